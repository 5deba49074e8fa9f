//! Where the own control group is, in every kind of hierarchy, and the one thing that has to be done before groups below it can
//! have limits. The kernel's tables are read as they are: what does not fit is no group, and nothing is guessed.

use super::files::{read, write};
use std::fs;
use std::path::{Path, PathBuf};

/// `thenodes-NAMESPACE-PID-START.`
pub(super) fn own_prefix() -> Option<String> {
    let pid = std::process::id();
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let namespace: String = namespace.to_str()?.chars().filter(char::is_ascii_digit).collect();
    Some(format!("thenodes-{namespace}-{pid}-{}.", crate::plugins::usage::start_time(pid)?))
}

/// Directory of the own group in the hierarchy of a controller, or in that of version 2.
pub(super) fn own_group(mounts: &str, own: &str, controller: Option<&str>) -> Option<PathBuf> {
    let has = |list: &str| controller.is_some_and(|wanted| list.split(',').any(|word| word == wanted));
    let mut paths = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let path = paths.find(|(list, _)| if controller.is_some() { has(list) } else { list.is_empty() })?.1;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (kind, rest) = after.split_once(' ')?;
        let fits = match controller {
            Some(_) => kind == "cgroup" && has(rest.rsplit(' ').next()?),
            None => kind == "cgroup2",
        };
        let mut words = before.split(' ').skip(3);
        let (root, point) = (words.next()?, words.next()?);
        let below = if root == "/" { path } else { path.strip_prefix(root)? };
        // Outside of what is mounted here, or a mount point with blanks in it: not ours to work with.
        if !fits || below.contains("..") || point.contains('\\') {
            return None;
        }
        Some(Path::new(point).join(below.trim_start_matches('/')))
    })
}

/// Under version 2 a group with limits for its children has no processes itself: if this group is ours alone, the node moves
/// into a child of it and hands the controllers down. Failure only means that the trial finds less.
pub(super) fn delegate(dir: &Path) {
    let words = |file: &str| read(&dir.join(file)).unwrap_or_default();
    let handed_down = words("cgroup.subtree_control");
    let missing: Vec<&str> = ["memory", "pids", "cpu"]
        .into_iter()
        .filter(|c| words("cgroup.controllers").split_whitespace().any(|word| word == *c))
        .filter(|c| !handed_down.split_whitespace().any(|word| word == *c))
        .collect();
    let me = std::process::id().to_string();
    if missing.is_empty() || words("cgroup.procs").split_whitespace().ne([me.as_str()]) {
        return;
    }
    let node = dir.join("node");
    let _ = fs::create_dir(&node);
    if write(&node, "cgroup.procs", &me).is_ok() {
        for controller in missing {
            let _ = write(dir, "cgroup.subtree_control", &format!("+{controller}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:name=systemd:/x\n0::/user.slice/s\n";
    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 /a /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_group_is_found_in_every_kind_of_hierarchy_and_nothing_is_guessed() {
        let group = |controller| own_group(MOUNTS, OWN, controller);
        assert_eq!(group(Some("memory")), Some("/sys/fs/cgroup/memory/b".into()));
        assert_eq!(group(Some("cpu")), Some("/sys/fs/cgroup/cpu".into()));
        assert_eq!(group(Some("pids")), None);
        assert_eq!(group(None), Some("/sys/fs/cgroup/unified/user.slice/s".into()));
        assert_eq!(own_group(MOUNTS, "0::/../outside\n", None), None);
        assert_eq!(own_group(MOUNTS, "4:memory:/elsewhere\n", Some("memory")), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_of_the_kernel_panics_the_reader(mounts in "[a-z0-9/ :,\\-\n\\\\.]{0,200}", own in "[a-z0-9/:,.\n]{0,100}") {
            for controller in [None, Some("memory")] {
                let _ = own_group(&mounts, &own, controller);
            }
        }
    }
}
