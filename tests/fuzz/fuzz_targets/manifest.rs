//! A manifest: text of an author whom the node does not trust. No bytes panic the reader, an error names a place in the text,
//! and a manifest that was read keeps every promise that the rest of the node builds on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use thenodes_node::config::scope::{Scope, Scoping};
use thenodes_node::config::ConfigError;
use thenodes_node::plugins::manifest::{Manifest, ManifestError, Word, MAX_MANIFEST};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.lines().count();
    let manifest = match Manifest::parse(Path::new("plugin.toml"), text) {
        Ok(manifest) => manifest,
        Err(ManifestError::Value { error: ConfigError::Value { line, column, what, .. } }) => {
            assert!(line >= 1 && line <= lines + 1 && column >= 1 && !what.is_empty());
            return;
        }
        Err(ManifestError::TooLarge { .. }) => return assert!(text.len() > MAX_MANIFEST),
        Err(other) => panic!("{other}"),
    };
    assert!(text.len() <= MAX_MANIFEST && manifest.lines == lines);
    let strings = [&manifest.title, &manifest.description, &manifest.author, &manifest.license];
    let more = [&manifest.repository, &manifest.homepage];
    for string in strings.into_iter().chain(more).flatten().chain(&manifest.tags).chain(&manifest.handles) {
        assert!(!string.is_empty() && string.len() <= 1024 && !string.chars().any(char::is_control));
    }
    assert!(manifest.tags.len() <= 16 && manifest.handles.len() <= 64 && manifest.permissions.len() <= 64);
    assert!(manifest.depends.len() <= 16 && manifest.exports.len() <= 64 && manifest.hooks.len() <= 16);
    assert!(manifest.provides.len() <= 64 && manifest.libraries.len() <= 16);
    assert!(
        manifest.priority.is_none_or(|n| n <= 999)
            && manifest.concurrency.is_none_or(|n| (1..=64).contains(&n))
    );
    for (name, value, range) in manifest.limits.each() {
        assert!(value.is_none_or(|value| range.contains(&value)), "{name}");
    }
    let mut seen = HashSet::new();
    for asked in &manifest.permissions {
        assert!(asked.line >= 1 && asked.line <= lines && asked.scopes.len() <= 64);
        let permission = match asked.word {
            Word::Served(permission) => permission,
            Word::NotServed(word) => {
                assert!(asked.optional && asked.scopes.is_empty());
                assert!(manifest.without_effect.iter().any(|line| line.starts_with(word)));
                continue;
            }
        };
        match permission.scoping() {
            Scoping::None => assert!(asked.scopes.is_empty()),
            Scoping::Optional(_) => {}
            Scoping::Mandatory(_) => assert!(!asked.scopes.is_empty()),
        }
        if asked.scopes.is_empty() {
            assert!(seen.insert((permission, None)));
        }
        for scope in &asked.scopes {
            assert!(seen.insert((permission, Some(scope.clone()))), "{scope} twice");
            assert_eq!(
                Scope::parse(permission, &scope.to_string()).as_ref(),
                Ok(scope),
                "{scope} reads back"
            );
            assert!(scope.contains(scope));
            match scope {
                Scope::Path(path) => {
                    assert!(path.path().is_absolute() && path.allows(path.path()));
                    for never in ["/", "/proc", "/proc/self/mem", "/sys/x", "/dev/mem", "/a/../b"] {
                        assert!(!path.allows(Path::new(never)), "{scope} allows {never}");
                    }
                }
                Scope::Net(net) => {
                    for inner in ["127.0.0.1:80", "169.254.169.254:80", "[::1]:80", "[::ffff:10.0.0.1]:80"] {
                        let addr: SocketAddr = inner.parse().expect("an address");
                        assert!(net.is_address() || !net.allows_addr(addr), "{scope} allows {inner}");
                    }
                    assert!(!net.allows_name("127.1", 80) && !net.allows_name("2130706433", 80));
                }
                Scope::Peer(_) | Scope::Prompt(_) | Scope::Env(_) => {}
            }
        }
    }
});
