//! The daemon and its commands; everything is in the library.

use std::process::ExitCode;

/// Memory that is free goes back to the system within a second: so it is told at build time, in `.cargo/config.toml`; without that, within ten.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    thenodes_node::cli::main()
}
