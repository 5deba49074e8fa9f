//! The old ways between processes: System V objects and message queues, which live on after whoever made them.

use super::call::c;
use super::Probe;

const GROUP: &str = "ipc";

const IPC_PRIVATE: i32 = 0;

pub(super) const PROBES: &[Probe] = &[
    probe!("shmget", "System V shared memory", None, |_| {
        let id = sys!(SYS_shmget, IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600)?;
        sys!(SYS_shmctl, id, libc::IPC_RMID, 0)
    }),
    probe!("shmat-exec", "executable System V shared memory", None, |_| {
        touch!(SYS_shmat, -1, 0, libc::SHM_EXEC);
        let id = sys!(SYS_shmget, IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o700)?;
        let mapped = sys!(SYS_shmat, id, 0, libc::SHM_EXEC);
        sys!(SYS_shmctl, id, libc::IPC_RMID, 0)?;
        mapped
    }),
    probe!("shmctl-list", "the list of System V objects", None, |_| {
        let mut info = [0u64; 16];
        sys!(SYS_shmctl, 0, libc::IPC_INFO, info.as_mut_ptr())
    }),
    probe!("msgget", "a System V message queue", None, |_| {
        let id = sys!(SYS_msgget, IPC_PRIVATE, libc::IPC_CREAT | 0o600)?;
        sys!(SYS_msgctl, id, libc::IPC_RMID, 0)
    }),
    probe!("semget", "System V semaphores", None, |_| {
        let id = sys!(SYS_semget, IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600)?;
        sys!(SYS_semctl, id, 0, libc::IPC_RMID, 0)
    }),
    probe!("mq-open", "a POSIX message queue", None, |_| {
        let name = c(&format!("hostile-{}", std::process::id()));
        sys!(SYS_mq_open, name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, 0)?;
        sys!(SYS_mq_unlink, name.as_ptr())
    }),
];
