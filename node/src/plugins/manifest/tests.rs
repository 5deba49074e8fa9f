//! What a manifest may say, what is refused and where the refusal points.

use super::*;
use proptest::prelude::*;

const HEAD: &str = "schema = 1\nname = \"x\"\nversion = \"1.0.0\"\n";

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(Path::new("plugin.toml"), text)
}

fn after_head(text: &str) -> Result<Manifest, ManifestError> {
    parse(&format!("{HEAD}{text}"))
}

#[test]
fn everything_that_a_manifest_may_say_is_read() {
    let manifest = parse(include_str!("../../../../tests/fuzz/corpus/manifest/full"))
        .expect("the full example is valid");
    assert_eq!(
        (manifest.name.as_str(), manifest.version.to_string().as_str()),
        ("kvstore", "1.2.3-rc.1+build.5")
    );
    assert_eq!(manifest.permissions.len(), 9);
    let files = &manifest.permissions[3];
    assert_eq!((files.word, files.optional, files.line), (Word::Served(Permission::FsRead), true, 37));
    assert_eq!(
        files.scopes.iter().map(Scope::to_string).collect::<Vec<_>>(),
        ["/srv/data", "/etc/kvstore.toml"]
    );
    assert_eq!((manifest.limits.memory_mb, manifest.limits.cpu_percent), (Some(64), Some(50)));
    let silent: Vec<&str> =
        manifest.without_effect.iter().filter_map(|line| line.split([' ', ':']).next()).collect();
    assert_eq!(
        silent,
        [
            "handles",
            "priority",
            "concurrency",
            "min_api",
            "kind",
            "limits.timers",
            "limits.subscriptions",
            "provides",
            "kv.read",
            "sandbox.network",
            "depends",
            "exports",
            "hook",
            "lib",
            "config"
        ],
        "what has no effect is said"
    );
    assert!(manifest.fits(&Version::new(0, 1, 0)).is_ok());
    let error = manifest.fits(&Version::new(0, 0, 9)).expect_err("too old");
    assert!(
        error.starts_with("plugin.toml:14: needs a node of version 0.1.0 or later, this is 0.0.9"),
        "{error}"
    );
}

#[test]
fn errors_are_these_texts() {
    let cases = [
        ("nmae = 1", "plugin.toml:4:1: unknown field `nmae`, expected one of"),
        ("title = 3", "plugin.toml:4:9: invalid type: integer `3`, expected a string"),
        ("title = \"a\\u001b\"", "plugin.toml:4:9: control characters; write one line of plain text"),
        ("kind = \"virus\"", "plugin.toml:4:8: no such word; there are service, processor, tool, store"),
        ("priority = 1000", "plugin.toml:4:12: out of range; from 0 to 999"),
        ("tags = [\"a\", \"a\"]", "plugin.toml:4:14: written twice; keep one of the two"),
        ("min_host = \"1\"", "plugin.toml:4:12: not a version: unexpected end of input while parsing major version number; write three numbers, like \"1.0.0\""),
        ("[limits]\nmemory_mb = 1", "plugin.toml:5:13: out of range; from 16 to 65536"),
        ("[limits]\nmemory = 1", "plugin.toml:5:1: unknown field `memory`, expected one of"),
        ("[[permission]]\nname = \"message_send\"", "plugin.toml:5:8: no such permission: message_send; did you mean \"message.send\"?"),
        ("[[permission]]\nname = \"everything\"", "plugin.toml:5:8: no such permission: everything; there are message.receive, "),
        ("[[permission]]\nname = \"kv.read\"", "plugin.toml:5:8: this release does not serve kv.read; write optional = true if the plugin works without it"),
        ("[[permission]]\nname = \"fs.read\"", "plugin.toml:5:8: fs.read without a scope; add scope = [\"..\"] with what is needed and no more"),
        ("[[permission]]\nname = \"fs.read\"\nscope = [\"/a\", \"/proc/1\"]", "plugin.toml:6:16: a path in /proc, /sys or /dev; these are never given to a plugin"),
        ("[[permission]]\nname = \"random\"\nscope = [\"x\"]", "plugin.toml:6:10: random has no scopes; write the permission without a scope"),
        ("[[permission]]\nname = \"random\"\n[[permission]]\nname = \"random\"", "plugin.toml:7:8: random is asked for twice, first in line 5; keep one of the two"),
        ("[[permission]]\nname = \"message.send\"\nscope = [\"a\"]\n[[permission]]\nname = \"message.send\"", "plugin.toml:8:8: message.send is asked for twice, first in line 6; keep one of the two"),
        ("[[permission]]\nname = \"random\"\nresaon = \"x\"", "plugin.toml:6:1: unknown field `resaon`, expected one of"),
        ("[[hook]]\npattern = \"a.kv*\"", "plugin.toml:5:11: not a hook pattern; write 1 to 16 parts"),
        ("[[lib]]\ntarget = \"t\"\npath = \"../x\"", "plugin.toml:6:8: not a path inside the package; write it relative, without '..'"),
        ("[[depends]]\nname = \"x\"\nversion = \"1\"", "plugin.toml:5:8: the plugin itself; remove the entry"),
        ("config = { schema = 1 }", "plugin.toml:4:10: config.schema is no table; write [config.schema]"),
        ("title = \"x\"\ntitle = \"y\"", "plugin.toml:5:1: duplicate key"),
    ];
    for (text, expected) in cases {
        let error = after_head(text).expect_err(text).to_string();
        assert!(error.starts_with(expected), "{text:?}:\n{error}\n{expected}");
    }
    for (text, expected) in [
        ("name = \"x\"\nversion = \"1.0.0\"", "plugin.toml:1:1: missing field `schema`"),
        (
            "schema = 2\nname = \"x\"\nversion = \"1.0.0\"",
            "plugin.toml:1:10: no such schema; write schema = 1",
        ),
        (
            "schema = 1\nname = \"X y\"\nversion = \"1.0.0\"",
            "plugin.toml:2:8: a plugin name has 1 to 64 characters",
        ),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.starts_with(expected), "{text:?}:\n{error}\n{expected}");
    }
}

#[test]
fn size_is_looked_at_before_anything_else() {
    let error = parse(&"#".repeat(MAX_MANIFEST + 1)).expect_err("too large").to_string();
    assert_eq!(error, "plugin.toml: 262145 bytes; a manifest has at most 262144");
    let many = "[[permission]]\nname = \"random\"\n".repeat(65);
    let error = after_head(&many).expect_err("too many").to_string();
    assert!(error.starts_with("plugin.toml:133:8: more than 64 entries of [[permission]]"), "{error}");
}

#[test]
fn words_that_nobody_serves_may_only_be_optional() {
    for word in Permission::NOT_SERVED {
        let manifest =
            after_head(&format!("[[permission]]\nname = \"{word}\"\noptional = true")).expect(word);
        assert_eq!(
            manifest.without_effect,
            [format!("{word} (line 5): this release does not serve it; it is not granted")]
        );
    }
}

#[test]
fn hook_patterns_are_those_of_the_specification() {
    for good in ["hooks.>", ">", "*", "a.*.b", "on_request", "a-b.c"] {
        assert!(check::is_pattern(good), "{good}");
    }
    for wrong in ["", "a..b", "a.>.b", "kv*", "A", "a.", ".a", &["a"; 17].join(".")] {
        assert!(!check::is_pattern(wrong), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_the_reader(text in "\\PC{0,300}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_text_behind_a_good_head_panics_the_reader(text in "[a-z\\[\\]=\"\\.\n0-9{}:/*, ]{0,200}") {
        if let Ok(manifest) = after_head(&text) {
            prop_assert!(manifest.permissions.iter().all(|asked| asked.line <= manifest.lines));
        }
    }
}
