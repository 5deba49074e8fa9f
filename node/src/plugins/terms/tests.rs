//! What is given: never more than was asked for and allowed, and a reason for everything that is not.

use super::*;
use crate::config::{Config, Raw};
use crate::plugins::grants::Subject;
use proptest::prelude::*;
use std::path::Path;

fn plugins(text: &str) -> crate::config::Plugins {
    Raw::parse(Path::new("c.toml"), text).and_then(Raw::validate).expect(text).plugins
}

fn terms(permissions: &str, operator: &str) -> Terms {
    let text = format!("schema = 1\nname = \"echo\"\nversion = \"1.0.0\"\n{permissions}");
    let manifest = Manifest::parse(Path::new("plugins/echo/plugin.toml"), &text).expect("valid");
    let plugins = plugins(operator);
    Terms::agree(
        PluginName::new("echo").expect("a name"),
        Some(manifest),
        &plugins.giving,
        plugins.limits,
        plugins.budget,
    )
}

fn wish(name: &str, more: &str) -> String {
    format!("[[permission]]\nname = \"{name}\"\n{more}\n")
}

fn actions(terms: &Terms) -> Vec<&str> {
    terms.notes.iter().map(|note| note.action).collect()
}

#[test]
fn a_manifest_that_asks_for_nothing_gets_nothing_and_none_at_all_gets_the_defaults() {
    let asked = terms("", "");
    assert!(Permission::ALL.into_iter().all(|permission| !asked.grants.allows_some(permission)));
    assert_eq!(asked.refusal, None);
    let plugins = plugins("");
    let none = Terms::agree(
        PluginName::new("x").expect("a name"),
        None,
        &plugins.giving,
        plugins.limits,
        plugins.budget,
    );
    for permission in Permission::ALL {
        let expected = Config::default_permissions().contains(&permission);
        assert_eq!(none.grants.allows(permission, Subject::Whole), expected, "{permission}");
    }
}

#[test]
fn a_required_wish_that_is_not_given_stops_the_plugin_with_the_line_that_allows_it() {
    let refused = terms(&wish("fs.read", "scope = [\"/srv/data\", \"/etc/x\"]"), "");
    assert_eq!(
        refused.refusal.as_deref(),
        Some("plugins/echo/plugin.toml:5: requires fs.read:/srv/data, fs.read:/etc/x and was not given it; to allow it, write [plugins.for.echo] allow = [\"fs.read:/srv/data\", \"fs.read:/etc/x\"]")
    );
    let allowed = terms(
        &wish("fs.read", "scope = [\"/srv/data\", \"/etc/x\"]"),
        "[plugins.for.echo]\nallow = [\"fs.read:/srv/data\", \"fs.read:/etc/x\"]",
    );
    assert_eq!((allowed.refusal, allowed.notes), (None, vec![]), "that line does allow it");
    let narrow =
        terms(&wish("fs.read", "scope = [\"/a\", \"/b\"]"), "[plugins.for.echo]\nallow = [\"fs.read:/a\"]");
    let expected = "to allow it, add \"fs.read:/b\" to [plugins.for.echo] allow";
    assert!(narrow.refusal.as_deref().is_some_and(|text| text.ends_with(expected)), "{:?}", narrow.refusal);
    let denied = terms(&wish("random", ""), "[plugins.for.echo]\ndeny = [\"random\"]");
    assert!(denied
        .refusal
        .as_deref()
        .is_some_and(|text| text.ends_with("[plugins.for.echo] deny takes \"random\" away")));
}

#[test]
fn an_optional_wish_is_left_out_and_said() {
    let terms = terms(
        &(wish("fs.read", "scope = [\"/srv\"]\noptional = true") + &wish("kv.read", "optional = true")),
        "",
    );
    assert_eq!(terms.refusal, None);
    assert_eq!(actions(&terms), ["manifest_key_without_effect", "permission_not_granted"]);
    assert!(
        terms.notes[1].detail.contains("[plugins.for.echo] allow = [\"fs.read:/srv\"]"),
        "{:?}",
        terms.notes
    );
    assert_eq!(terms.outcomes.iter().map(|o| o.verdict).collect::<Vec<_>>(), ["denied", "denied"]);
}

#[test]
fn narrower_than_asked_is_given_and_said() {
    let terms =
        terms(&wish("fs.read", "scope = [\"/srv\"]"), "[plugins.for.echo]\nallow = [\"fs.read:/srv/data\"]");
    assert_eq!((terms.refusal.as_deref(), actions(&terms)), (None, vec!["permission_narrowed"]));
    assert_eq!(
        (terms.outcomes[0].verdict, terms.outcomes[0].granted.as_slice()),
        ("narrowed", &["/srv/data".to_owned()][..])
    );
    assert!(terms.grants.allows(Permission::FsRead, Subject::Path(Path::new("/srv/data/x"))));
    assert!(!terms.grants.allows(Permission::FsRead, Subject::Path(Path::new("/srv/other"))));
}

#[test]
fn allow_beyond_the_wish_needs_widen_and_both_are_said() {
    let allow = "[plugins.for.echo]\nallow = [\"peers.write\"]\n";
    let without = terms("", allow);
    assert!(!without.grants.allows_some(Permission::PeersWrite));
    assert_eq!(actions(&without), ["allow_without_effect"]);
    let with = terms("", &format!("{allow}[plugins.policy]\nwiden = true"));
    assert!(with.grants.allows(Permission::PeersWrite, Subject::Whole));
    assert_eq!(actions(&with), ["permission_widened"]);
    let denied = terms("", &format!("{allow}deny = [\"peers.write\"]\n[plugins.policy]\nwiden = true"));
    assert!(!denied.grants.allows_some(Permission::PeersWrite), "deny wins over widen");
}

#[test]
fn only_node_info_tells_a_plugin_which_node_it_is_on() {
    let info = NodeInfo {
        plugin: String::new(),
        node_id: "secret".into(),
        realm: RealmInfo::new("secret", "1"),
        node_type: "daemon".into(),
        session_id: "secret".into(),
    };
    let told = terms("", "").info(&info);
    assert!(!format!("{told:?}").contains("secret") && told.plugin == "echo", "{told:?}");
    assert_eq!(terms(&wish("node.info", ""), "").info(&info), NodeInfo { plugin: "echo".into(), ..info });
}

#[test]
fn the_tightest_limit_of_three_holds() {
    let limits = terms(
        "[limits]\nmemory_mb = 64\nthreads = 100\n",
        "[plugins.limits]\nmemory_mb = 96\n[plugins.for.echo.limits]\nfds = 20\nmemory_mb = 80",
    );
    assert_eq!(actions(&limits), ["limit_lowered"], "{:?}", limits.notes);
    let limits = limits.process;
    assert_eq!((limits.memory >> 20, limits.threads, limits.descriptors), (64, 16, 20));
}

fn rules() -> impl Strategy<Value = Vec<(usize, &'static str)>> {
    let path = prop_oneof![Just("/a"), Just("/a/b"), Just("/a/b/c"), Just("/ab"), Just("/b")];
    proptest::collection::vec((0usize..2, path), 0..4)
}

proptest! {
    /// Whoever asks for whatever under whichever rules: nothing is open that was not asked for, allowed, and left.
    #[test]
    fn what_is_given_was_asked_for_and_allowed_and_not_denied(
        asked in rules(), policy in rules(), allow in rules(), deny in rules(), probe in "/[ab](/[bc]){0,2}",
    ) {
        const NAMES: [&str; 2] = ["fs.read", "fs.write"];
        let mut manifest = String::new();
        for (at, name) in NAMES.iter().enumerate() {
            let mut scopes: Vec<_> = asked.iter().filter(|(which, _)| *which == at).map(|(_, path)| *path).collect();
            scopes.sort_unstable();
            scopes.dedup();
            if !scopes.is_empty() {
                manifest.push_str(&wish(name, &format!("scope = {scopes:?}\noptional = true")));
            }
        }
        let list = |rules: &[(usize, &str)]| format!("{:?}", rules.iter().map(|(at, path)| format!("{}:{path}", NAMES[*at])).collect::<Vec<_>>());
        let operator = format!(
            "[plugins.policy]\npermissions = {}\n[plugins.for.echo]\nallow = {}\ndeny = {}",
            list(&policy), list(&allow), list(&deny)
        );
        let terms = terms(&manifest, &operator);
        for (at, permission) in [Permission::FsRead, Permission::FsWrite].into_iter().enumerate() {
            let within = |rules: &[(usize, &str)]| {
                rules.iter().any(|(which, path)| *which == at && Path::new(&probe).starts_with(path))
            };
            let expected = within(&asked) && (within(&policy) || within(&allow)) && !within(&deny);
            prop_assert_eq!(terms.grants.allows(permission, Subject::Path(Path::new(&probe))), expected, "{} {}", permission, probe);
        }
    }
}
