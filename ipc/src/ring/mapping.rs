//! The memory under the rings: made and sealed by the node, checked and opened by the runner, unmapped when both halves are
//! gone. Does not trust the descriptor it opens: one that can still shrink
//! would end the process with SIGBUS at a moment of the other side's choice.

use super::layout::{Ring, Shared};
use super::{Consumer, Producer};
#[cfg(loom)]
use loom::sync::atomic::Ordering;
use std::sync::atomic::AtomicBool;
#[cfg(not(loom))]
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Both rings, before they are taken apart into halves.
pub struct Region(Arc<Mapping>);

/// The memory, shared by the two halves that one process holds.
pub(crate) struct Mapping {
    memory: Memory,
    /// This process closed the link. The shared word cannot take that back. Not a model's business, so never loom's.
    closed: AtomicBool,
}

enum Memory {
    #[cfg(not(loom))]
    Mapped(std::ptr::NonNull<Shared>),
    /// Where there is no memfd: in models and under an interpreter.
    #[cfg(any(loom, miri))]
    Heap(Arc<Shared>),
}

// SAFETY: the pointer leads to a mapping of the process, not of a thread, and everything in it is an atomic.
#[cfg(not(loom))]
#[allow(unsafe_code)]
unsafe impl Send for Memory {}
// SAFETY: as above.
#[cfg(not(loom))]
#[allow(unsafe_code)]
unsafe impl Sync for Memory {}

impl Mapping {
    fn shared(&self) -> &Shared {
        match &self.memory {
            // SAFETY: mapped with the size of `Shared` until this value is dropped; the file cannot shrink (sealed); all bits are
            // valid for its fields, which are atomics, so that writes of the other process are no data race in ours.
            #[cfg(not(loom))]
            #[allow(unsafe_code)]
            Memory::Mapped(shared) => unsafe { shared.as_ref() },
            #[cfg(any(loom, miri))]
            Memory::Heap(shared) => shared,
        }
    }

    /// Ends the link for both sides and both directions, and wakes whoever waits by futex. As with bytes: the word, then
    /// the bells, each behind its fence; who announces a sleep after that sees the word.
    pub(crate) fn close(&self) {
        self.closed.store(true, std::sync::atomic::Ordering::Relaxed);
        let shared = self.shared();
        shared.closed.0.store(1, Ordering::Relaxed);
        for bell in [&shared.down.consumer, &shared.down.producer, &shared.up.consumer, &shared.up.producer] {
            if bell.sleeps() {
                bell.wake();
            }
        }
    }

    pub(crate) fn closed(&self) -> bool {
        self.closed.load(std::sync::atomic::Ordering::Relaxed)
            || self.shared().closed.0.load(Ordering::Relaxed) != 0
    }
}

/// Which of the two rings.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    Down,
    Up,
}

/// One ring of a mapping that lives as long as this.
pub(crate) struct Handle {
    pub(crate) mapping: Arc<Mapping>,
    direction: Direction,
}

impl Handle {
    pub(crate) fn ring(&self) -> &Ring {
        let shared = self.mapping.shared();
        match self.direction {
            Direction::Down => &shared.down,
            Direction::Up => &shared.up,
        }
    }
}

impl Region {
    fn halves(self, out: Direction, back: Direction) -> (Producer, Consumer) {
        let producer = Producer::new(Handle { mapping: self.0.clone(), direction: out });
        (producer, Consumer::new(Handle { mapping: self.0, direction: back }))
    }

    /// The node's halves: it writes `down` and reads `up`.
    pub fn node_side(self) -> (Producer, Consumer) {
        self.halves(Direction::Down, Direction::Up)
    }

    /// The runner's halves: it writes `up` and reads `down`.
    pub fn runner_side(self) -> (Producer, Consumer) {
        self.halves(Direction::Up, Direction::Down)
    }

    /// Both sides in memory of one process, for models and interpreters.
    #[cfg(all(test, any(loom, miri)))]
    pub(crate) fn pair() -> (Region, Region) {
        let shared = Arc::new(Shared::new());
        let side = |shared| {
            Region(Arc::new(Mapping { memory: Memory::Heap(shared), closed: AtomicBool::new(false) }))
        };
        (side(shared.clone()), side(shared))
    }

    /// Another look at the same memory, for tests that keep one.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn clone_of(region: &Region) -> Region {
        Region(region.0.clone())
    }

    /// The region as it lies there, for tests that play the other process.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn raw(&self) -> &Shared {
        self.0.shared()
    }
}

#[cfg(not(loom))]
mod kernel {
    //! memfd, seals, mmap.

    use super::{Mapping, Memory, Region, Shared};
    use crate::ring::RingError;
    use rustix::fs::{
        fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create, MemfdFlags, SealFlags,
    };
    use rustix::io::Errno;
    use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::ptr::{null_mut, NonNull};
    use std::sync::atomic::AtomicBool;
    use std::sync::Arc;

    const SIZE: u64 = size_of::<Shared>() as u64;
    /// Without these the file could change its size, or its seals, under the mapping.
    const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

    impl Region {
        /// A new region and the descriptor that the runner opens it by. The node's side of the matter.
        pub fn create() -> io::Result<(Region, OwnedFd)> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            // Never executable, where the kernel knows that (6.3).
            let fd = match memfd_create(c"thenodes-ring", flags | MemfdFlags::NOEXEC_SEAL) {
                Err(Errno::INVAL) => memfd_create(c"thenodes-ring", flags)?,
                other => other?,
            };
            ftruncate(&fd, SIZE)?;
            fcntl_add_seals(&fd, SEALS)?;
            Ok((map(&fd)?, fd))
        }

        /// Opens what [`Region::create`] made, after a look at its size and seals. The runner's side of the matter; it can close
        /// the descriptor afterwards.
        pub fn open(fd: &OwnedFd) -> Result<Region, RingError> {
            let system = |step| move |error: Errno| RingError::System { step, reason: error.to_string() };
            let found = fcntl_get_seals(fd).map_err(system("asking for the seals of the descriptor"))?;
            if !found.contains(SEALS) {
                return Err(RingError::Seals {
                    found: found.bits(),
                    missing: SEALS.difference(found).bits(),
                });
            }
            let size = fstat(fd).map_err(system("asking for the size of the descriptor"))?.st_size;
            // A negative size does not exist; as 0 it is refused like every other wrong one.
            let found = u64::try_from(size).unwrap_or(0);
            if found != SIZE {
                return Err(RingError::Size { found, expected: SIZE });
            }
            map(fd).map_err(system("mapping the descriptor"))
        }
    }

    fn map(fd: impl AsFd) -> Result<Region, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice takes no memory from anybody.
        #[allow(unsafe_code)]
        let address = unsafe {
            mmap(
                null_mut(),
                size_of::<Shared>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let shared = NonNull::new(address.cast()).ok_or(Errno::FAULT)?;
        Ok(Region(Arc::new(Mapping { memory: Memory::Mapped(shared), closed: AtomicBool::new(false) })))
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            match self {
                Memory::Mapped(shared) => {
                    // SAFETY: mapped by `map` with this size; every reference into it borrows from the `Mapping` that ends here.
                    #[allow(unsafe_code)]
                    let _ = unsafe { munmap(shared.as_ptr().cast(), size_of::<Shared>()) };
                }
                #[cfg(miri)]
                Memory::Heap(_) => {}
            }
        }
    }
}
