//! Control groups: kernel limits on a plugin's whole process tree, made from outside it, where this system lets the node make
//! them. What can be done is found out by doing it, limit by limit, never by a version; what cannot is left to rlimits
//! and the [`watchdog`](super::watchdog), and said so.
//!
//! Each process of a plugin gets a leaf of its own. To move another process the kernel first waits until no processor is in the
//! middle of a fork (10 to 30 ms); a thread that moves itself waits for nothing, but only version 1 knows threads. So where version 1
//! holds the limits, the thread that starts a warden is in the leaf for that moment and the warden is born there; it is moved into a
//! group of version 2 that only serves to kill the tree while it starts. Where version 2 holds a limit, the warden is moved
//! before it is sent `hello`: until then it waits on its socket, has forked nothing and entered no namespace. Either way stub and
//! runner are born under the limits and nothing of the plugin ever runs outside. (An administrator who mounts version 2 with
//! `favordynmods` spares its users the wait.)
//!
//! A leaf is removed after the death of its processes. A node that is killed cannot do that, and its wardens cannot either
//! (a process cannot remove the group it is in, and they have no right to): its `janitor` does, and should that be gone too,
//! the next node here.

mod files;
mod find;
mod janitor;
mod late;

use files::{count, cpu_lift, cpu_writes, memory_writes, read, set, write};
use find::{delegate, own_group, own_prefix};
use janitor::Janitor;
pub use late::Late;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thenodes_ipc::janitor::Cleanup;
use thenodes_ipc::launch::ProcessLimits;

/// Room in the leaf beside what the plugin may use: warden, stub, page tables, buffers of link and pipes.
const ROOM: u64 = 16 * 1024 * 1024;
/// How long a leaf is waited for to become empty; the processes in it have been killed already.
const EMPTY_PATIENCE: Duration = Duration::from_secs(1);

/// Which interface of the kernel holds a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// One hierarchy.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V1 => "cgroup v1",
            Version::V2 => "cgroup v2",
        })
    }
}

/// Which limits of a process tree control groups hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Enforcement {
    /// Memory of the tree.
    pub memory: Option<Version>,
    /// Processes and threads of the tree.
    pub threads: Option<Version>,
    /// Share of processor time.
    pub cpu: Option<Version>,
    /// All processes of the tree can be killed at once.
    pub kill: bool,
}

/// A group below which leaves can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    dir: PathBuf,
    version: Version,
}

/// What this process can do with control groups.
#[derive(Debug, Default)]
pub struct Cgroups {
    memory: Option<Tree>,
    threads: Option<Tree>,
    cpu: Option<Tree>,
    kill: Option<PathBuf>,
    /// Names of leaves of this process begin with it.
    prefix: String,
    /// Numbers leaves, so that several nodes in one process do not meet.
    made: AtomicU64,
    /// Removes leaves when this process is killed.
    janitor: Janitor,
}

impl Cgroups {
    /// Measures once for this process: under version 2 it may have to move itself into a group `node`.
    pub fn here() -> Arc<Cgroups> {
        static HERE: OnceLock<Arc<Cgroups>> = OnceLock::new();
        HERE.get_or_init(|| {
            let mounts = read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
            let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
            let found = Cgroups::measure(&mounts, &own);
            found.sweep();
            Arc::new(found)
        })
        .clone()
    }

    fn measure(mounts: &str, own: &str) -> Cgroups {
        // A process is known by pid and start time within its pid namespace; without them leaves could not be told apart.
        let Some(prefix) = own_prefix() else { return Cgroups::default() };
        let mut found = Cgroups { prefix, ..Cgroups::default() };
        if let Some(dir) = own_group(mounts, own, None) {
            delegate(&dir);
            found.try_out(&dir, Version::V2);
        }
        for controller in ["memory", "pids", "cpu"] {
            if let Some(dir) = own_group(mounts, own, Some(controller)) {
                found.try_out(&dir, Version::V1);
            }
        }
        found
    }

    /// Makes a leaf, sets every limit that nothing else holds yet, and removes it again.
    fn try_out(&mut self, dir: &Path, version: Version) {
        let trial = dir.join(format!("{}trial", self.prefix));
        if fs::create_dir(&trial).is_err() {
            return;
        }
        let tree = || Some(Tree { dir: dir.into(), version });
        let can =
            |writes: &[(&str, String)]| writes.iter().all(|(file, text)| set(&trial, file, text).is_ok());
        if self.memory.is_none() && can(&memory_writes(version, ROOM)) {
            self.memory = tree();
        }
        if self.threads.is_none() && can(&[("pids.max", "16".into())]) {
            self.threads = tree();
        }
        if self.cpu.is_none() && can(&cpu_writes(version, 100)) {
            self.cpu = tree();
        }
        if self.kill.is_none() && trial.join("cgroup.kill").exists() {
            self.kill = Some(dir.into());
        }
        let _ = fs::remove_dir(&trial);
    }

    /// Which limits leaves made here will hold.
    pub fn enforcement(&self) -> Enforcement {
        let version = |tree: &Option<Tree>| tree.as_ref().map(|tree| tree.version);
        Enforcement {
            memory: version(&self.memory),
            threads: version(&self.threads),
            cpu: version(&self.cpu),
            kill: self.kill.is_some(),
        }
    }

    fn dirs(&self) -> BTreeSet<&PathBuf> {
        let trees = [&self.memory, &self.threads, &self.cpu];
        trees.into_iter().flatten().map(|tree| &tree.dir).chain(&self.kill).collect()
    }

    /// True if no group can be made here.
    pub fn is_nothing(&self) -> bool {
        self.dirs().is_empty()
    }

    /// Sees to it that leaves are removed even if this process is killed: to be called before a leaf is made. `runner` is the
    /// runner program. An error is for people; without a janitor leaves stay until the next node. Blocks for some milliseconds
    /// the first time.
    pub fn keep_clean(&self, runner: &Path) -> Result<(), String> {
        let parents: Vec<String> =
            self.dirs().into_iter().filter_map(|dir| Some(dir.to_str()?.to_owned())).collect();
        if parents.is_empty() {
            return Ok(());
        }
        let node_pid = i32::try_from(std::process::id()).map_err(|e| e.to_string())?;
        self.janitor.ensure(runner, &Cleanup { node_pid, prefix: self.prefix.clone(), parents })
    }

    /// Removes empty leaves of nodes that are gone. What lives is never touched: a group with a process cannot be removed.
    pub fn sweep(&self) {
        let Some((namespace, _)) = self.prefix.rsplit_once('-').and_then(|(rest, _)| rest.rsplit_once('-'))
        else {
            return;
        };
        for dir in self.dirs() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_str().is_some_and(|name| name.starts_with(&self.prefix)) {
                    continue; // our own, and alive
                }
                // Pids of another namespace say nothing here.
                let Some(rest) =
                    name.to_str().and_then(|name| name.strip_prefix(namespace)?.strip_prefix('-'))
                else {
                    continue;
                };
                let owner = rest.split_once('.').and_then(|(owner, _)| owner.split_once('-'));
                let Some((Ok(pid), Ok(started))) = owner.map(|(pid, at)| (pid.parse(), at.parse::<u64>()))
                else {
                    continue;
                };
                if super::usage::start_time(pid) != Some(started) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    /// Makes the leaf for one process tree; nothing is limited in it yet. `whose`: what people find in its name.
    pub fn leaf(&self, whose: &str) -> Leaf {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{number}.{whose}", self.prefix);
        let mut leaf = Leaf::default();
        for dir in self.dirs() {
            let path = dir.join(&name);
            match fs::create_dir(&path) {
                Ok(()) => leaf.dirs.push(path),
                Err(error) => leaf.problems.push(format!("{}: {error}", path.display())),
            }
        }
        let made = |dir: &Path| Some(dir.join(&name)).filter(|path| leaf.dirs.contains(path));
        let tree = |tree: &Option<Tree>| {
            let Tree { dir, version } = tree.as_ref()?;
            Some(Tree { dir: made(dir)?, version: *version })
        };
        let trees = (tree(&self.memory), tree(&self.threads), tree(&self.cpu));
        leaf.kill = self.kill.as_deref().and_then(made);
        (leaf.memory, leaf.threads, leaf.cpu) = trees;
        leaf
    }
}

/// The group of one process tree.
#[derive(Debug, Default)]
pub struct Leaf {
    dirs: Vec<PathBuf>,
    memory: Option<Tree>,
    threads: Option<Tree>,
    cpu: Option<Tree>,
    kill: Option<PathBuf>,
    /// Groups that the starting thread is in; the warden is born there.
    entered: Vec<PathBuf>,
    /// Set if the group for killing could not be filled.
    lost: Arc<AtomicBool>,
    problems: Vec<String>,
}

impl Leaf {
    /// Writes the limits of the tree; what cannot be written is not held. To be called before anything of a plugin is in it.
    /// `files`: bytes of the libraries it will hold.
    pub fn limit(&mut self, limits: &ProcessLimits, cpu_percent: u64, files: u64) {
        // More than RLIMIT_DATA on purpose: a plugin that asks for too much is told so, and may live. The group is for what
        // rlimits do not count: files, page tables, buffers of the kernel, and all processes of the tree together.
        let memory =
            limits.data().saturating_add(files).saturating_add(limits.file_size).saturating_add(ROOM);
        let problems = &mut self.problems;
        let mut hold =
            |tree: &mut Option<Tree>, writes: fn(Version, u64) -> Vec<(&'static str, String)>, value| {
                let Some(Tree { dir, version }) = tree.as_ref() else { return };
                for (file, text) in writes(*version, value) {
                    if let Err(error) = set(dir, file, &text) {
                        problems.push(format!("{}/{file}: {error}", dir.display()));
                        *tree = None;
                        return;
                    }
                }
            };
        hold(&mut self.memory, memory_writes, memory);
        hold(&mut self.threads, |_, max| vec![("pids.max", max.to_string())], limits.tasks());
        hold(&mut self.cpu, cpu_writes, cpu_percent);
    }

    /// Moves the calling thread into the groups that take threads, until [`Leaf::leave`]: what it starts meanwhile is born there.
    pub fn enter(&mut self) {
        let trees = [&self.memory, &self.threads, &self.cpu].into_iter().flatten();
        let of_threads = trees.filter(|tree| tree.version == Version::V1).map(|tree| tree.dir.clone());
        for dir in of_threads.collect::<BTreeSet<_>>() {
            match write(&dir, "tasks", "0") {
                Ok(()) => self.entered.push(dir),
                Err(error) => self.failed(&dir, &format!("tasks: {error}")),
            }
        }
    }

    /// Takes the calling thread out again. A thread that cannot leave keeps the group from being removed until it ends.
    pub fn leave(&mut self) {
        for dir in &self.entered {
            // The leaf was made below the node's own group.
            if let Err(error) = dir.parent().map_or(Ok(()), |own| write(own, "tasks", "0")) {
                self.problems.push(format!("{}: taking a thread of the node out: {error}", dir.display()));
            }
        }
    }

    /// Moves a process that has no children yet into the groups that it was not born in. It takes the kernel 10 to 30 ms: call
    /// it where blocking is allowed. A group that holds no limit is left to the returned [`Late`] if the limits hold already.
    pub fn attach(&mut self, pid: u32) -> Option<Late> {
        let killing = self.kill.clone().filter(|kill| self.only_kills(kill));
        let late = self.entered.first().cloned().zip(killing);
        let late = late.map(|(born_in, group)| Late { group, born_in, lost: self.lost.clone() });
        let now = |dir: &&PathBuf| {
            !self.entered.contains(dir) && late.as_ref().is_none_or(|late| late.group != **dir)
        };
        for dir in self.dirs.iter().filter(now).cloned().collect::<Vec<_>>() {
            if let Err(error) = write(&dir, "cgroup.procs", &pid.to_string()) {
                self.failed(&dir, &format!("cgroup.procs: {error}"));
            }
        }
        late
    }

    /// True for a group that holds no limit.
    fn only_kills(&self, dir: &Path) -> bool {
        [&self.memory, &self.threads, &self.cpu].into_iter().flatten().all(|tree| tree.dir != dir)
    }

    /// What the group was for is not held.
    fn failed(&mut self, dir: &Path, what: &str) {
        self.problems.push(format!("{}/{what}", dir.display()));
        let here = |tree: &mut Option<Tree>| drop(tree.take_if(|tree| tree.dir == dir));
        here(&mut self.memory);
        here(&mut self.threads);
        here(&mut self.cpu);
        self.kill.take_if(|kill| *kill == dir);
    }

    /// True if there is no group at all.
    pub fn is_nothing(&self) -> bool {
        self.dirs.is_empty()
    }

    /// What could not be done and why; what it was for is not in [`Leaf::enforcement`].
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Which limits hold for this process tree.
    pub fn enforcement(&self) -> Enforcement {
        let version = |tree: &Option<Tree>| tree.as_ref().map(|tree| tree.version);
        Enforcement {
            memory: version(&self.memory),
            threads: version(&self.threads),
            cpu: version(&self.cpu),
            kill: self.kill.is_some() && !self.lost.load(Ordering::Relaxed),
        }
    }

    /// Processes that the kernel killed because the group had no memory left.
    pub fn oom_kills(&self) -> u64 {
        count(&self.memory, ["memory.oom_control", "memory.events"], "oom_kill")
    }

    /// The most memory the tree had at once, bytes, where the kernel says it.
    pub fn memory_peak(&self) -> Option<u64> {
        let tree = self.memory.as_ref()?;
        let file = match tree.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        read(&tree.dir.join(file))?.trim().parse().ok()
    }

    /// Threads that were refused.
    pub fn threads_refused(&self) -> u64 {
        count(&self.threads, ["pids.events"; 2], "max")
    }

    /// Periods in which the tree wanted more processor time than it may have.
    pub fn throttled(&self) -> u64 {
        count(&self.cpu, ["cpu.stat"; 2], "nr_throttled")
    }

    /// Lets the tree have as much processor time as there is: whoever is to die needs some to do it. To be called before a
    /// kill, and only then.
    pub fn lift_cpu(&self) {
        if let Some(tree) = &self.cpu {
            let (file, text) = cpu_lift(tree.version);
            let _ = write(&tree.dir, file, text);
        }
    }

    /// Kills all that is left and removes the group; waits at most a second for the dead to be buried.
    pub async fn end(mut self) {
        self.kill_all();
        let until = tokio::time::Instant::now() + EMPTY_PATIENCE;
        let mut pause = Duration::from_millis(1);
        while !self.remove() && tokio::time::Instant::now() < until {
            self.kill_all(); // the group may just have been filled
                             // The dead are being buried; there is no descriptor to wait on that both versions have.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn kill_all(&self) {
        self.lift_cpu();
        if let Some(dir) = &self.kill {
            let _ = write(dir, "cgroup.kill", "1");
        }
    }

    /// True if nothing is left of it.
    fn remove(&mut self) -> bool {
        self.dirs.retain(|dir| match fs::remove_dir(dir) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
        self.dirs.is_empty()
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // Only after an end that nobody waited for, as when a node is told to end while it starts. Killed processes are gone
        // in a few milliseconds; what is still in use after that is removed by the next sweep.
        self.kill_all();
        let mut tries = if self.kill.is_some() { 50 } else { 0 };
        while !self.remove() && tries > 0 {
            std::thread::sleep(Duration::from_millis(2));
            tries -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_leaf_holds_what_it_says_it_holds_and_leaves_nothing_behind() {
        let here = Cgroups::here();
        let limits =
            ProcessLimits { memory: 32 << 20, threads: 4, descriptors: 16, cpu_seconds: None, file_size: 0 };
        let mut leaf = here.leaf("unit-test");
        leaf.limit(&limits, 50, 0);
        assert!(leaf.problems().is_empty(), "{:?}", leaf.problems());
        assert_eq!(leaf.enforcement(), here.enforcement(), "what the trial could, a leaf can");
        let mut child = tokio::process::Command::new("sleep").arg("1000").spawn().expect("a process");
        assert!(leaf.attach(child.id().expect("a pid")).is_none(), "nothing is left for later");
        assert!(leaf.problems().is_empty(), "{:?}", leaf.problems());
        let dirs = leaf.dirs.clone();
        for dir in &dirs {
            let inside = read(&dir.join("cgroup.procs")).expect("readable");
            assert_eq!(inside.trim(), child.id().expect("a pid").to_string());
        }
        here.sweep();
        assert!(dirs.iter().all(|dir| dir.exists()), "a living node's leaves stay");
        if here.kill.is_none() {
            child.start_kill().expect("killed");
        }
        leaf.end().await;
        assert!(!dirs.iter().any(|dir| dir.exists()), "{dirs:?}");
        let killed = child.wait().await.expect("a child");
        assert!(!killed.success());
    }

    #[test]
    fn a_process_is_born_inside_and_the_group_for_killing_is_filled_later_with_it_and_nobody_else() {
        let here = Cgroups::here();
        let limits =
            ProcessLimits { memory: 32 << 20, threads: 4, descriptors: 16, cpu_seconds: None, file_size: 0 };
        let mut leaf = here.leaf("unit-test");
        leaf.limit(&limits, 50, 0);
        let inside = |dir: &Path| -> BTreeSet<u32> {
            let text = read(&dir.join("cgroup.procs")).expect("readable");
            text.lines().filter_map(|line| line.parse().ok()).collect()
        };
        leaf.enter();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
        leaf.leave();
        assert!(
            leaf.entered.iter().all(|dir| inside(dir) == BTreeSet::from([child.id()])),
            "born there, alone"
        );
        let late = leaf.attach(child.id());
        assert!(leaf.problems().is_empty(), "{:?}", leaf.problems());
        let by_kind = [&leaf.memory, &leaf.threads, &leaf.cpu];
        let v1 = by_kind.into_iter().flatten().any(|tree| tree.version == Version::V1);
        let v2 = by_kind.into_iter().flatten().any(|tree| tree.version == Version::V2);
        assert_eq!(late.is_some(), v1 && !v2 && leaf.kill.is_some(), "only where the limits hold already");
        if let Some(late) = late {
            let group = late.group.clone();
            late.fill();
            assert_eq!(inside(&group), BTreeSet::from([child.id()]));
            assert!(leaf.enforcement().kill);
            leaf.kill_all();
        } else {
            child.kill().expect("killed");
        }
        assert!(!child.wait().expect("a child").success());
    }
}
