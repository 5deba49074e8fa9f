//! What a process inherits without asking: descriptors, environment, session. Afterwards there are 0 (nothing), 1 and 2 (log
//! pipes), 3 (the link), 4 (the way to the broker, for a moment), and no others.

use super::Walls;
use crate::link::Link;
use crate::sys;
use crate::warden::Leash;
use std::os::fd::AsRawFd;
use thenodes_ipc::launch::Layer;

/// Number of the link from here on.
pub(crate) const LINK_FD: i32 = 3;
/// Number of the socket over which the broker gets the listener; closed before the library is opened.
pub(crate) const CONFIDENCE_FD: i32 = 4;

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
    ];
    for (fd, away, _) in far {
        sys::place(fd, away).map_err(placing)?;
    }
    std::mem::forget(leash); // closed below with everything else
    for (_, away, target) in far {
        sys::place(away, target).map_err(placing)?;
    }
    walls.step(Layer::CleanState, "closing descriptors", sys::close_from(CONFIDENCE_FD + 1));
    link.replace(sys::adopt(LINK_FD).ok_or("the link was lost")?);
    Ok(())
}
