//! No capability, no way to one, nothing that another process could read out of this one, and memory that is never both
//! writable and executable.

use super::Walls;
use crate::sys;
use thenodes_ipc::launch::Layer;
use thenodes_ipc::PluginName;

/// Highest capability number that is tried; the kernel says where its own list ends.
const LAST_CAPABILITY: u64 = 63;
/// SECBIT_KEEP_CAPS_LOCKED, NO_SETUID_FIXUP(+LOCKED), NOROOT(+LOCKED), NO_CAP_AMBIENT_RAISE(+LOCKED).
const LOCKED_SECUREBITS: u64 = 0b1110_1111;
const PR_SET_MDWE: libc::c_int = 65;
const PR_MDWE_REFUSE_EXEC_GAIN: u64 = 1;

/// Gives everything up, in the order in which each step is still allowed.
pub(crate) fn drop_all(plugin: &PluginName, walls: &mut Walls) {
    // Best effort, like the next step: outside a user namespace it needs CAP_SETPCAP, and a process that holds no capability
    // and cannot gain one by exec (no_new_privs, below) has no use for a bounding set.
    for capability in 0..=LAST_CAPABILITY {
        if sys::prctl(libc::PR_CAPBSET_DROP, [capability, 0, 0, 0]) == Err(nix::errno::Errno::EINVAL) {
            break; // the end of the kernel's list
        }
    }
    let _ = sys::prctl(libc::PR_SET_SECUREBITS, [LOCKED_SECUREBITS, 0, 0, 0]);
    let ambient = sys::prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0]);
    walls.step(Layer::Privileges, "PR_CAP_AMBIENT_CLEAR_ALL", ambient);
    walls.step(Layer::Privileges, "capset", sys::drop_capabilities());
    walls.step(Layer::Privileges, "PR_SET_NO_NEW_PRIVS", nix::sys::prctl::set_no_new_privs());
    walls.step(Layer::NotDumpable, "PR_SET_DUMPABLE", nix::sys::prctl::set_dumpable(false));
    let mdwe = sys::prctl(PR_SET_MDWE, [PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0]);
    walls.step(Layer::WriteXorExecute, "PR_SET_MDWE", mdwe);
    // Only a name in process lists.
    if let Ok(name) = std::ffi::CString::new(plugin.as_str()) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}
