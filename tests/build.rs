//! Puts the scaffolding that the documents imply around their code blocks, so that the compiler sees the blocks as they stand.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

fn block(name: &str) -> String {
    let path = format!("seeds/{name}.rs");
    println!("cargo:rerun-if-changed={path}");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A module that holds a block of items, after some lines of scaffolding.
fn module(out: &mut String, name: &str, before: &str, block: &str) {
    let _ = writeln!(out, "mod {} {{\n{before}\n{block}\n}}", name.replace('-', "_"));
}

fn main() {
    let out_dir = std::env::var("OUT_DIR").expect("cargo sets it");
    let context = "use thenodes::plugin_host::PluginContext;";
    let plugin = "use thenodes::plugin_host::{Plugin, PluginContext};\npub struct MyPlugin;";

    let mut authoring = String::new();
    module(&mut authoring, "authoring-0", "", &block("authoring-0"));
    module(&mut authoring, "authoring-1", "use super::authoring_0::MyPlugin;", &block("authoring-1"));
    let _ = writeln!(authoring, "#[test]\nfn authoring_2() {{\n{}\n}}", block("authoring-2"));
    // The one block that compiles nowhere as it stands: it awaits in a function that is not async.
    let awaiting = block("authoring-3").replace("fn example(", "async fn example(");
    module(&mut authoring, "authoring-3", context, &awaiting);
    module(
        &mut authoring,
        "authoring-4",
        &format!("{context}\nuse std::net::SocketAddr;"),
        &block("authoring-4"),
    );
    module(&mut authoring, "authoring-5", plugin, &block("authoring-5"));
    module(&mut authoring, "authoring-6", plugin, &block("authoring-6"));
    fs::write(Path::new(&out_dir).join("authoring.rs"), authoring).expect("written");

    let mut development = String::new();
    module(&mut development, "development-0", context, &block("development-0"));
    let _ = writeln!(
        development,
        "fn development_1(ctx: &thenodes::plugin_host::PluginContext) {{\n{}\n}}",
        block("development-1")
    );
    let _ = writeln!(
        development,
        "async fn development_2(peer_manager: thenodes::network::PeerManager, relay_addr: std::net::SocketAddr, realm: thenodes::realms::RealmInfo) {{\n{}\n}}",
        block("development-2")
    );
    let _ = writeln!(
        development,
        "async fn development_3(config: thenodes::config::Config, addr: std::net::SocketAddr, node_id: String, capabilities: Vec<String>, exclude_set: std::collections::HashSet<std::net::SocketAddr>) {{\n{}\n}}",
        block("development-3")
    );
    let own =
        "pub struct MyPlugin;\nimpl MyPlugin { fn new() -> Self { MyPlugin } }\nimpl Plugin for MyPlugin {}";
    module(&mut development, "development-4", own, &block("development-4"));
    fs::write(Path::new(&out_dir).join("development.rs"), development).expect("written");
}
