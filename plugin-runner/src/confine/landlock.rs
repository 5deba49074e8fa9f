//! Landlock: every right and scope the kernel knows is taken, and only what was granted is given back. It stands beside the
//! root, so that a hole in one is closed by the other.

use super::root::Root;
use super::Walls;
use landlock::{
    Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, ABI,
};
use thenodes_ipc::launch::{Layer, NodeHello, PathGrant};

/// Newest ABI whose rights are asked for; older kernels give the part they know, and the report says so.
const ABI_WANTED: ABI = ABI::V6;

/// Restricts this thread, and with it every thread it will start.
pub(crate) fn restrict(hello: &NodeHello, root: &Root, walls: &mut Walls) {
    if super::omitted(hello, Layer::Landlock) {
        return walls.hole(Layer::Landlock, "left out for a test");
    }
    // Where no root could be built the granted names are the host's own; the rights are the same.
    let _ = root.empty;
    match try_restrict(hello) {
        Ok(RulesetStatus::FullyEnforced) => {}
        Ok(status) => walls.hole(
            Layer::Landlock,
            format!("the kernel enforces only part of Landlock ABI 6 (files, TCP, scopes): {status:?}"),
        ),
        Err(error) => walls.hole(Layer::Landlock, format!("restricting: {error}")),
    }
}

/// The warden's own restriction: files like the plugin's, but it must be able to end the plugin, so no scope.
pub(crate) fn restrict_to_grants(hello: &NodeHello) -> bool {
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI_WANTED)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| give_back(ruleset, hello))
        .and_then(RulesetCreated::restrict_self);
    matches!(restricted, Ok(status) if status.ruleset == RulesetStatus::FullyEnforced)
}

fn try_restrict(hello: &NodeHello) -> Result<RulesetStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?;
    Ok(give_back(ruleset, hello)?.restrict_self()?.ruleset)
}

fn give_back(mut ruleset: RulesetCreated, hello: &NodeHello) -> Result<RulesetCreated, RulesetError> {
    for grant in &hello.all_paths() {
        // What cannot be opened here cannot be opened by the plugin either.
        if let Ok(file) = PathFd::new(&grant.path) {
            let directory = std::fs::metadata(&grant.path).is_ok_and(|about| about.is_dir());
            ruleset = ruleset.add_rule(PathBeneath::new(file, rights(grant, directory)))?;
        }
    }
    Ok(ruleset)
}

fn rights(grant: &PathGrant, directory: bool) -> BitFlags<AccessFs> {
    let mut rights = BitFlags::<AccessFs>::empty();
    if grant.read {
        rights |= AccessFs::ReadFile;
        if directory {
            rights |= AccessFs::ReadDir;
        }
    }
    if grant.write || grant.create {
        rights |= AccessFs::WriteFile | AccessFs::Truncate;
    }
    if grant.create && directory {
        rights |= AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            | AccessFs::Refer;
    }
    rights
}
