//! The C header, made from `ipc/src/abi.rs` so that the two cannot differ.

use crate::root;
use anyhow::{ensure, Context, Result};
use std::path::PathBuf;

const OPENING: &str = "/* The table between a TheNodes runner and a plugin library, ABI version 1.
 * Generated from ipc/src/abi.rs by `cargo xtask header`; do not edit.
 *
 * A plugin exports   void register_plugin(const ThenodesRegistrarApi *api);
 * checks api->abi_version, and calls api->register_handler with a ThenodesPluginTable.
 * docs/authoring.md and plugins/hello-c show how. */";

/// Constants of the table; in C they are THENODES_ and this.
const CONSTANTS: [&str; 11] = [
    "ABI_VERSION",
    "KIND_CALL",
    "KIND_NOTIFY",
    "KIND_REPLY",
    "KIND_CANCEL",
    "OK",
    "TOO_LONG",
    "CLOSED",
    "INVALID",
    "WRONG_VERSION",
    "ABSENT",
];

/// Types of the table; in C they are Thenodes and this.
const TYPES: [&str; 6] = ["Bytes", "FrameView", "HostTable", "Description", "PluginTable", "RegistrarApi"];

fn path() -> PathBuf {
    root().join("plugin-sdk/include/thenodes_plugin.h")
}

fn generate() -> Result<String> {
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        include_guard: Some("THENODES_PLUGIN_H".into()),
        header: Some(OPENING.into()),
        cpp_compat: true,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        usize_is_size_t: true,
        style: cbindgen::Style::Both,
        export: cbindgen::ExportConfig {
            include: TYPES.map(Into::into).into(),
            rename: CONSTANTS
                .iter()
                .map(|name| ((*name).to_owned(), format!("THENODES_{name}")))
                .chain(TYPES.iter().map(|name| ((*name).to_owned(), format!("Thenodes{name}"))))
                .collect(),
            exclude: vec!["ENTRY_SYMBOL".into(), "EMPTY".into(), "Bytes_EMPTY".into()],
            ..Default::default()
        },
        ..Default::default()
    };
    let bindings = cbindgen::Builder::new()
        .with_src(root().join("ipc/src/abi.rs"))
        .with_config(config)
        .generate()
        .context("reading ipc/src/abi.rs")?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).context("the header is UTF-8")
}

/// Writes the header.
pub(crate) fn write() -> Result<()> {
    std::fs::write(path(), generate()?).context("writing the header")
}

/// Fails if the committed header is not what would be generated.
pub(crate) fn check() -> Result<()> {
    let committed = std::fs::read_to_string(path()).unwrap_or_default();
    ensure!(
        committed == generate()?,
        "plugin-sdk/include/thenodes_plugin.h is not generated from ipc/src/abi.rs: run `cargo xtask header`"
    );
    Ok(())
}
