//! Becoming more than one is, and undoing what confinement did to the process: ids, capabilities, the knobs of prctl, and
//! priorities of others.

use super::call::{pid, At};
use super::Probe;

const GROUP: &str = "privileges";

const PR_SET_MDWE: i32 = 65;
const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const PR_SYS_DISPATCH_ON: i32 = 1;
const CAP_VERSION_3: u32 = 0x2008_0522;
const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_BEST_EFFORT: i32 = 2 << 13 | 4;
const CAP_SYS_ADMIN: i32 = 21;

pub(super) const PROBES: &[Probe] = &[
    probe!("setuid", "becoming user 0 (setuid)", None, |_| sys!(SYS_setuid, 0)).namespaced(),
    probe!("setgid", "becoming group 0 (setgid)", None, |_| sys!(SYS_setgid, 0)).namespaced(),
    probe!("setresuid", "becoming user 0 (setresuid)", None, |_| sys!(SYS_setresuid, 0, 0, 0)).namespaced(),
    probe!("setgroups", "other groups (setgroups)", None, |_| sys!(SYS_setgroups, 0, 0))
        .root_only("needs CAP_SETGID, and a user namespace of an ordinary user may not"),
    probe!("capset", "more capabilities (capset)", None, |_| {
        let header = [CAP_VERSION_3, 0];
        let wanted = [1u32 << CAP_SYS_ADMIN, 1 << CAP_SYS_ADMIN, 0, 0, 0, 0];
        sys!(SYS_capset, header.as_ptr(), wanted.as_ptr())
    })
    .namespaced(),
    probe!("capability-ambient", "capabilities that survive exec (PR_CAP_AMBIENT)", None, |_| {
        prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as i64, 0, 0, 0])
    }),
    probe!("capability-bounds", "changing the bounding set (PR_CAPBSET_DROP)", None, |_| {
        prctl(libc::PR_CAPBSET_DROP, [0, 0, 0, 0])
    })
    .namespaced(),
    probe!("capability-securebits", "changing the securebits", None, |_| {
        prctl(libc::PR_SET_SECUREBITS, [0, 0, 0, 0])
    })
    .namespaced(),
    probe!("capability-keep", "keeping capabilities (PR_SET_KEEPCAPS)", None, |_| {
        prctl(libc::PR_SET_KEEPCAPS, [1, 0, 0, 0])
    }),
    probe!("prctl-dumpable", "becoming dumpable again", None, |_| prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0])),
    probe!("prctl-ptracer", "naming a tracer (PR_SET_PTRACER)", None, |_| {
        prctl(libc::PR_SET_PTRACER, [-1, 0, 0, 0])
    })
    .no_control("only kernels with Yama know it"),
    probe!("prctl-memory-map", "rewriting the process's memory map (PR_SET_MM)", None, |_| {
        let size = 0u32;
        let to = std::ptr::from_ref(&size) as i64;
        prctl(libc::PR_SET_MM, [libc::PR_SET_MM_MAP_SIZE.into(), to, 0, 0])
    }),
    probe!("prctl-seccomp", "a filter of its own (PR_SET_SECCOMP)", None, |_| {
        // SAFETY: an action that filters of unprivileged processes need first.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        let program = super::kernel::allow_everything();
        let program = super::kernel::filter(&program);
        prctl(libc::PR_SET_SECCOMP, [2, std::ptr::from_ref(&program) as i64, 0, 0])
    }),
    probe!("prctl-parent-death", "outliving its parent (PR_SET_PDEATHSIG)", None, |_| {
        prctl(libc::PR_SET_PDEATHSIG, [0, 0, 0, 0])
    }),
    probe!("prctl-subreaper", "adopting orphans (PR_SET_CHILD_SUBREAPER)", None, |_| {
        prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0])
    }),
    probe!("prctl-speculation", "changing mitigations (PR_SET_SPECULATION_CTRL)", None, |_| {
        prctl(
            libc::PR_SET_SPECULATION_CTRL,
            [libc::PR_SPEC_STORE_BYPASS.into(), libc::PR_SPEC_ENABLE.into(), 0, 0],
        )
    })
    .no_control("depends on the processor"),
    probe!("prctl-write-execute", "unlocking W^X (PR_SET_MDWE)", None, |_| prctl(PR_SET_MDWE, [0, 0, 0, 0])),
    probe!("prctl-dispatch", "dispatching its own calls (PR_SET_SYSCALL_USER_DISPATCH)", None, |_| {
        // Every address is exempt: it changes nothing.
        static ALLOW: u8 = 0;
        let selector = std::ptr::from_ref(&ALLOW) as i64;
        prctl(PR_SET_SYSCALL_USER_DISPATCH, [PR_SYS_DISPATCH_ON.into(), 0, 1 << 46, selector])
    }),
    probe!("personality-layout", "turning address randomisation off", None, |_| {
        sys!(SYS_personality, libc::ADDR_NO_RANDOMIZE)
    }),
    probe!("personality-execute", "making everything readable executable", None, |_| {
        sys!(SYS_personality, libc::READ_IMPLIES_EXEC)
    }),
    probe!("affinity-other", "choosing another process's processors", Pid, |arg| {
        let mut mask = [0u64; 128];
        sys!(SYS_sched_getaffinity, 0, 1024, mask.as_mut_ptr()).at("sched_getaffinity")?;
        sys!(SYS_sched_setaffinity, pid(arg), 1024, mask.as_ptr())
    }),
    probe!("affinity-read-other", "learning another process's processors", Pid, |arg| {
        let mut mask = [0u64; 128];
        sys!(SYS_sched_getaffinity, pid(arg), 1024, mask.as_mut_ptr())
    }),
    probe!("scheduler-other", "changing another process's scheduling", Pid, |arg| {
        let priority = 0i32;
        sys!(SYS_sched_setscheduler, pid(arg), libc::SCHED_OTHER, std::ptr::from_ref(&priority))
    }),
    probe!("realtime", "running before everybody else (SCHED_FIFO)", None, |_| {
        let (now, later) = (1i32, 0i32);
        sys!(SYS_sched_setscheduler, 0, libc::SCHED_FIFO, std::ptr::from_ref(&now))?;
        sys!(SYS_sched_setscheduler, 0, libc::SCHED_OTHER, std::ptr::from_ref(&later))
    })
    .root_only("needs CAP_SYS_NICE"),
    probe!("nice-negative", "a better priority", None, |_| sys!(SYS_setpriority, libc::PRIO_PROCESS, 0, -5))
        .root_only("needs CAP_SYS_NICE"),
    probe!("nice-other", "another process's priority", Pid, |arg| {
        sys!(SYS_setpriority, libc::PRIO_PROCESS, pid(arg), 19)
    }),
    probe!("ioprio-other", "another process's disk priority", Pid, |arg| {
        sys!(SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid(arg), IOPRIO_BEST_EFFORT)
    }),
];

fn prctl(option: i32, args: [i64; 4]) -> std::io::Result<libc::c_long> {
    sys!(SYS_prctl, option, args[0], args[1], args[2], args[3])
}
