//! The plugin wing: files become images, images become confined processes, processes are supervised, and whatever comes
//! back over their links is hostile input until door 2 ([`link`]) has read it and [`grants`] has judged it.
//!
//! This wing does not know the network: it sees the rest of the node only as the SDK's `Host` trait.

pub mod cause;
pub mod cgroup;
pub mod denials;
pub mod grants;
pub mod handle;
pub mod image;
pub mod lifecycle;
pub mod link;
pub mod logs;
pub mod manifest;
pub mod metrics;
pub mod process;
pub mod queue;
pub mod rate;
pub mod registry;
mod scan;
pub mod shelf;
pub mod spare;
pub mod supervisor;
pub mod terms;
pub mod uids;
pub mod usage;
pub mod version;
pub mod watchdog;
mod way;
pub mod why;

pub use crate::config::scope;
pub use registry::Registry;
