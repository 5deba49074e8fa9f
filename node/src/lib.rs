//! A peer-to-peer node that runs third-party plugins it does not trust, each in a sandboxed process of its own.
//!
//! Two doors lead in, one decoder each: [`network::wire`] for peers and [`plugins::link`] for runners. Between them everything
//! is typed. `network` and `plugins` do not know each other; [`host`] is where they meet. `docs/architecture.md` walks a
//! message and a crash through the rooms. The binary `thenodes` is this library with a command line.

pub mod admin;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod events;
pub mod explain;
pub mod host;
pub mod identity;
pub mod network;
pub mod node;
pub mod plugins;
pub mod prompt;
pub mod security;
pub mod services;
pub mod text;

/// The commit that this was built from; `unknown` outside of a checkout, unless the build said so.
pub const COMMIT: &str = env!("THENODES_COMMIT");
/// Version and commit, for people.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("THENODES_COMMIT"), ")");

pub use config::Config;
pub use node::Node;
