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

/// The limits as numbers, which the self-test reads back.
pub(crate) fn table(limits: &ProcessLimits) -> Vec<(Resource, &'static str, u64)> {
    let data = limits.memory.saturating_add(limits.threads.saturating_mul(THREAD_STACK));
    vec![
        (Resource::RLIMIT_DATA, "data", data),
        (Resource::RLIMIT_AS, "address space", data.saturating_add(ADDRESS_SPACE_EXTRA)),
        (Resource::RLIMIT_NPROC, "threads", limits.threads + OWN_PROCESSES),
        (Resource::RLIMIT_NOFILE, "descriptors", limits.descriptors),
        (Resource::RLIMIT_STACK, "stack", 8 * 1024 * 1024),
        (Resource::RLIMIT_CORE, "core file", 0),
        (Resource::RLIMIT_FSIZE, "file size", 0),
        (Resource::RLIMIT_MEMLOCK, "locked memory", 0),
        (Resource::RLIMIT_MSGQUEUE, "message queues", 0),
        (Resource::RLIMIT_SIGPENDING, "pending signals", 64),
    ]
}

/// Sets every limit, soft and hard.
pub(crate) fn set(limits: &ProcessLimits, walls: &mut Walls) {
    sys::limit_malloc_arenas();
    for (resource, name, value) in table(limits) {
        walls.step(Layer::Rlimits, name, setrlimit(resource, value, value));
    }
}
