//! Landlock: every right and scope the kernel knows is taken, and only reading the library files is given back. It stands
//! beside the empty root, so that a hole in one is closed by the other.

use super::root::Root;
use super::Walls;
use landlock::{
    Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, ABI,
};
use thenodes_ipc::launch::Layer;

/// Newest ABI whose rights are asked for; older kernels give the part they know, and the report says so.
const ABI_WANTED: ABI = ABI::V6;

/// Restricts this thread, and with it every thread it will start.
pub(crate) fn restrict(root: &Root, walls: &mut Walls) {
    match try_restrict(root) {
        Ok(RulesetStatus::FullyEnforced) => {}
        Ok(status) => walls.hole(
            Layer::Landlock,
            format!("the kernel enforces only part of Landlock ABI 6 (files, TCP, scopes): {status:?}"),
        ),
        Err(error) => walls.hole(Layer::Landlock, format!("restricting: {error}")),
    }
}

fn try_restrict(root: &Root) -> Result<RulesetStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?;
    if root.empty {
        for path in std::iter::once(&root.library).chain(&root.needed) {
            // A probe has no library; a file that cannot be opened here cannot be opened by dlopen either, which says why.
            if let Ok(file) = PathFd::new(path) {
                ruleset = ruleset.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
            }
        }
    }
    Ok(ruleset.restrict_self()?.ruleset)
}
