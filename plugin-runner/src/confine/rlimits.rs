//! Kernel limits of this process. They hold without cgroups; memory is limited by `RLIMIT_DATA`, which counts what can be
//! written to, because address space as such is not memory (malloc reserves 64 MiB per arena without touching it).

use super::Walls;
use crate::sys;
use nix::sys::resource::{setrlimit, Resource};
use thenodes_ipc::launch::{Layer, ProcessLimits};

/// What the process maps besides: libraries, reserved arenas, guard pages.
const ADDRESS_SPACE_EXTRA: u64 = 1024 * 1024 * 1024;

/// What `RLIMIT_AS` is set to.
pub(crate) fn address_space(limits: &ProcessLimits) -> u64 {
    limits.data().saturating_add(ADDRESS_SPACE_EXTRA)
}

/// One limit as numbers.
pub(crate) struct Limit {
    pub(crate) resource: Resource,
    pub(crate) name: &'static str,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The limits as numbers, which the self-test reads back. `own_count`: see [`set`].
pub(crate) fn table(limits: &ProcessLimits, own_count: bool) -> Vec<Limit> {
    let fixed = |resource, name, value| Limit { resource, name, soft: value, hard: value };
    let mut table = vec![
        fixed(Resource::RLIMIT_DATA, "data", limits.data()),
        fixed(Resource::RLIMIT_AS, "address space", address_space(limits)),
        fixed(Resource::RLIMIT_NOFILE, "descriptors", limits.descriptors),
        fixed(Resource::RLIMIT_STACK, "stack", 8 * 1024 * 1024),
        fixed(Resource::RLIMIT_CORE, "core file", 0),
        fixed(Resource::RLIMIT_FSIZE, "file size", limits.file_size),
        fixed(Resource::RLIMIT_MEMLOCK, "locked memory", 0),
        fixed(Resource::RLIMIT_MSGQUEUE, "message queues", 0),
        fixed(Resource::RLIMIT_SIGPENDING, "pending signals", 64),
    ];
    if own_count {
        table.push(fixed(Resource::RLIMIT_NPROC, "threads", limits.tasks()));
    }
    if let Some(seconds) = limits.cpu_seconds {
        // The soft limit ends a plugin by the signal that says why; whoever ignores that one meets the hard limit.
        let hard = seconds.saturating_add(1);
        table.push(Limit { resource: Resource::RLIMIT_CPU, name: "processor time", soft: seconds, hard });
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
    for Limit { resource, name, soft, hard } in table(limits, own_count) {
        walls.step(Layer::Rlimits, name, setrlimit(resource, soft, hard));
    }
    if !own_count {
        walls.hole(
            Layer::Rlimits,
            "threads are not limited: no user namespace and no uid of its own to count them by",
        );
    }
}
