//! What a process inherits without asking: descriptors, environment, session. Afterwards there are 0 (nothing), 1 and 2 (log
//! pipes), 3 (the link), and no others, except sealed library descriptors where no root could be built.

use super::root::Root;
use super::Walls;
use crate::link::Link;
use crate::sys;
use std::os::fd::AsRawFd;
use thenodes_ipc::launch::Layer;

/// Number of the link from here on.
pub(crate) const LINK_FD: i32 = 3;

/// Lays the descriptors out and leaves the session. An error means that the runner could not go on at all.
pub(crate) fn clean(link: &mut Link, root: &Root, walls: &mut Walls) -> Result<(), String> {
    // A new session has no terminal, so no terminal can be written to by ioctl.
    walls.step(Layer::CleanState, "setsid", nix::unistd::setsid());
    walls.step(Layer::CleanState, "default actions for memory faults", sys::default_faults());
    let placing = |e| format!("laying out descriptors: {e}");
    // First far away from everything, then into place, so that no step overwrites a source of a later one.
    let mut far = 200;
    let mut move_away = |fd| -> Result<i32, String> {
        far += 1;
        sys::place(fd, far).map(|()| far).map_err(placing)
    };
    let away_link = move_away(link.raw_fd())?;
    let null = root.take_null().ok_or("no /dev/null was kept")?;
    let away_null = move_away(null.as_raw_fd())?;
    let away_kept = root.kept.iter().map(|fd| move_away(*fd)).collect::<Result<Vec<_>, _>>()?;
    std::mem::forget(null); // closed below with everything else
    sys::place(away_null, 0).map_err(placing)?;
    sys::place(away_link, LINK_FD).map_err(placing)?;
    for (place, fd) in (LINK_FD + 1..).zip(&away_kept) {
        sys::place(*fd, place).map_err(placing)?;
    }
    let first_unused = LINK_FD + 1 + away_kept.len() as i32;
    walls.step(Layer::CleanState, "closing descriptors", sys::close_from(first_unused));
    link.replace(sys::adopt(LINK_FD).ok_or("the link was lost")?);
    Ok(())
}
