//! Kernel limits of this process. They hold without cgroups; memory is limited by `RLIMIT_DATA`, which counts what can be
//! written to, because address space as such is not memory (malloc reserves 64 MiB per arena without touching it).

use super::Walls;
use crate::sys;
use nix::sys::resource::{setrlimit, Resource};
use thenodes_ipc::launch::{Layer, ProcessLimits};

/// Stack of a thread in Rust and tokio; counted by `RLIMIT_DATA` when the thread starts.
const THREAD_STACK: u64 = 2 * 1024 * 1024;
/// What the process maps besides: libraries, reserved arenas, guard pages.
const ADDRESS_SPACE_EXTRA: u64 = 1024 * 1024 * 1024;
/// Warden, stub and the runner's first thread live in the same user namespace.
const OWN_PROCESSES: u64 = 3;

/// The limits as numbers, which the self-test reads back. `own_count`: see [`set`].
pub(crate) fn table(limits: &ProcessLimits, own_count: bool) -> Vec<(Resource, &'static str, u64)> {
    let data = limits.memory.saturating_add(limits.threads.saturating_mul(THREAD_STACK));
    let mut table = vec![
        (Resource::RLIMIT_DATA, "data", data),
        (Resource::RLIMIT_AS, "address space", data.saturating_add(ADDRESS_SPACE_EXTRA)),
        (Resource::RLIMIT_NOFILE, "descriptors", limits.descriptors),
        (Resource::RLIMIT_STACK, "stack", 8 * 1024 * 1024),
        (Resource::RLIMIT_CORE, "core file", 0),
        (Resource::RLIMIT_FSIZE, "file size", 0),
        (Resource::RLIMIT_MEMLOCK, "locked memory", 0),
        (Resource::RLIMIT_MSGQUEUE, "message queues", 0),
        (Resource::RLIMIT_SIGPENDING, "pending signals", 64),
    ];
    if own_count {
        table.push((Resource::RLIMIT_NPROC, "threads", limits.threads + OWN_PROCESSES));
    }
    table
}

/// Sets every limit, soft and hard.
///
/// The kernel counts processes per uid within a user namespace. Without one, and without a uid of its own, a plugin's threads
/// would be counted together with everything else this user runs, and a limit would hit the wrong ones: then there is none,
/// and the report says so.
pub(crate) fn set(limits: &ProcessLimits, own_count: bool, walls: &mut Walls) {
    sys::limit_malloc_arenas();
    // Best effort: it changes who waits, not what may be done.
    let _ = sys::be_nice();
    for (resource, name, value) in table(limits, own_count) {
        walls.step(Layer::Rlimits, name, setrlimit(resource, value, value));
    }
    if !own_count {
        walls.hole(
            Layer::Rlimits,
            "threads are not limited: no user namespace and no uid of its own to count them by",
        );
    }
}
