//! The shape of the house: which crate knows which, and where `unsafe` may stand.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

#[test]
fn crates_know_only_whom_the_design_lets_them_know() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let Ok(output) = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
    else {
        return thenodes_tests::skip(
            "crates_know_only_whom_the_design_lets_them_know",
            "no cargo for this user",
        );
    };
    if !output.status.success() {
        return thenodes_tests::skip(
            "crates_know_only_whom_the_design_lets_them_know",
            "cargo metadata failed for this user",
        );
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut arrows = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let from = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            // Test-only knowledge is no arrow of the product.
            if dependency["path"].is_string() && dependency["kind"].is_null() {
                arrows.insert((from.to_owned(), dependency["name"].as_str().expect("a name").to_owned()));
            }
        }
    }
    let product = ["thenodes-ipc", "thenodes-plugin-sdk", "thenodes-plugin-runner", "thenodes-node"];
    let found: Vec<_> = arrows.iter().filter(|(from, _)| product.contains(&from.as_str())).cloned().collect();
    let allowed = [
        ("thenodes-node", "thenodes-ipc"),
        ("thenodes-node", "thenodes-plugin-sdk"),
        ("thenodes-plugin-runner", "thenodes-ipc"),
        ("thenodes-plugin-sdk", "thenodes-ipc"),
    ];
    assert_eq!(found, allowed.map(|(from, to)| (from.to_owned(), to.to_owned())));
    for (from, to) in arrows
        .iter()
        .filter(|(from, _)| from.starts_with("thenodes-plugin-") && !product.contains(&from.as_str()))
    {
        assert_eq!(to, "thenodes-plugin-sdk", "{from} is an author's crate and sees only the SDK");
    }
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn unsafe_stands_only_in_its_rooms_and_each_block_argues() {
    let rooms = [
        "ipc/src/ring/bulk.rs",
        "ipc/src/ring/consumer.rs",
        "ipc/src/ring/hint.rs",
        "ipc/src/ring/mapping.rs",
        "plugin-runner/src/sys.rs",
        "plugin-runner/src/library.rs",
        "plugin-runner/src/serve.rs",
        "plugin-sdk/src/plugin_host/export.rs",
    ];
    let mut files = Vec::new();
    for part in ["ipc/src", "node/src", "plugin-runner/src", "plugin-sdk/src"] {
        rust_files(&root().join(part), &mut files);
    }
    assert!(files.len() > 40, "the whole product is looked at");
    for path in files {
        let name = path.strip_prefix(root()).expect("inside").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("reads");
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            assert!(rooms.contains(&name.as_str()), "{name}:{}: unsafe outside its rooms", at + 1);
            let argued = lines[at.saturating_sub(4)..=at].iter().any(|line| line.contains("SAFETY"));
            assert!(argued, "{name}:{}: an unsafe block without its argument", at + 1);
        }
    }
}

#[test]
fn the_wings_of_the_node_do_not_know_each_other() {
    for (wing, other) in [
        ("network", "crate::plugins"),
        ("plugins", "crate::network"),
        ("plugins", "crate::host"),
        ("network", "crate::host"),
        ("events", "crate::plugins"),
        ("security", "crate::plugins"),
        ("config", "crate::plugins"),
        ("services", "crate::plugins"),
        ("services", "crate::network"),
        ("services", "crate::host"),
    ] {
        let mut files = Vec::new();
        rust_files(&root().join("node/src").join(wing), &mut files);
        for path in files {
            let text = fs::read_to_string(&path).expect("reads");
            let known: Vec<&str> = text.lines().filter(|line| line.contains(other)).collect();
            assert!(known.is_empty(), "{}: {known:?}", path.display());
        }
    }
}
