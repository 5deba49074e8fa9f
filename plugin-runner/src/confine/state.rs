//! What a process inherits without asking: descriptors, environment, session. Afterwards there are 0 (nothing), 1 and 2 (log
//! pipes), 3 (the link), 4 (the way to the broker, for a moment), and no others.

use super::Walls;
use crate::link::Link;
use crate::sys;
use crate::warden::Leash;
use nix::dir::Dir;
use nix::fcntl::{openat, OFlag};
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, OwnedFd};
use thenodes_ipc::launch::Layer;

/// Number of the link from here on.
pub(crate) const LINK_FD: i32 = 3;
/// Number of the socket over which the broker gets the listener; closed before the library is opened.
pub(crate) const CONFIDENCE_FD: i32 = 4;
/// Number of the host's `/proc` while it is asked which descriptors are open.
const PROC_FD: i32 = 5;

/// Lays the descriptors out and leaves the session. An error means that the runner could not go on at all.
pub(crate) fn clean(link: &mut Link, leash: Leash, walls: &mut Walls) -> Result<(), String> {
    // A new session has no terminal, so no terminal can be written to by ioctl.
    walls.step(Layer::CleanState, "setsid", nix::unistd::setsid());
    walls.step(Layer::CleanState, "default actions for memory faults", sys::default_faults());
    sys::forget_own_path();
    let placing = |e| format!("laying out descriptors: {e}");
    // First far away from everything, then into place, so that no step overwrites a source of a later one.
    let far = [
        (link.raw_fd(), 201, LINK_FD),
        (leash.null.as_raw_fd(), 202, 0),
        (leash.confidence.as_raw_fd(), 203, CONFIDENCE_FD),
        (leash.proc.as_raw_fd(), 204, PROC_FD),
    ];
    for (fd, away, _) in far {
        sys::place(fd, away).map_err(placing)?;
    }
    std::mem::forget(leash); // closed below with everything else
    for (_, away, target) in far {
        sys::place(away, target).map_err(placing)?;
    }
    walls.step(Layer::CleanState, "closing descriptors", sys::close_from(PROC_FD + 1));
    let proc = sys::adopt(PROC_FD).ok_or("the way to /proc was lost")?;
    // One question to the kernel instead of one per number; what is opened from here on gets a number below the limit, and
    // those are tried one by one behind the filter.
    match open_descriptors(proc) {
        Ok(open) => {
            let as_expected = open == (0..=CONFIDENCE_FD).collect::<Vec<_>>();
            walls.test(
                Layer::CleanState,
                "no descriptor of the host's is open, whatever its number",
                as_expected,
            );
        }
        Err(error) => walls.hole(Layer::CleanState, format!("listing descriptors: {error}")),
    }
    link.replace(sys::adopt(LINK_FD).ok_or("the link was lost")?);
    Ok(())
}

/// Numbers of all open descriptors but those that it takes to ask, which are closed on return.
fn open_descriptors(proc: OwnedFd) -> nix::Result<Vec<i32>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut list = Dir::from_fd(openat(&proc, "self/fd", flags, Mode::empty())?)?;
    let asking = [proc.as_raw_fd(), list.as_raw_fd()];
    let mut open = Vec::new();
    for entry in list.iter() {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        open.extend(number.filter(|number| !asking.contains(number)));
    }
    open.sort_unstable();
    Ok(open)
}
