//! What a plugin's process uses, read from `/proc` from outside. The process is not asked: it may lie. Reads are bounded, and a
//! pid is believed only together with its start time, because the kernel gives pids out again.

use nix::unistd::{sysconf, SysconfVar};
use serde_json::{json, Value};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest file under `/proc` that is read.
const MAX_READ: u64 = 4096;

/// What a plugin used at one moment. Totals count from the start of its process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// Memory of its own, bytes: resident, without what it shares with files.
    pub memory: u64,
    /// Processor time, total.
    pub cpu: Duration,
    /// Threads.
    pub threads: u64,
    /// Open descriptors; kernels before 6.2 do not say.
    pub fds: Option<u64>,
    /// Periods in which the kernel held it back, total; zero without a control group.
    pub throttled: u64,
    /// Threads that its control group refused, total.
    pub refused: u64,
    /// Log lines dropped, total over all its processes.
    pub lines_dropped: u64,
    /// How often its link was held back, total over all its processes.
    pub link_excess: u64,
    /// Bytes of all files where it may write; `None` if it may write nowhere.
    pub disk: Option<u64>,
}

impl Sample {
    /// For `status --json`.
    pub fn to_json(&self) -> Value {
        json!({
            "age_ms": self.at.elapsed().as_millis() as u64,
            "memory": self.memory,
            "cpu_ms": self.cpu.as_millis() as u64,
            "threads": self.threads,
            "fds": self.fds,
            "throttled": self.throttled,
            "disk": self.disk,
        })
    }
}

/// The runner of a plugin: the process in which its code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runner {
    pid: u32,
    started: u64,
    /// Warden and stub: answering what the plugin may not do is work that the plugin makes.
    around: [u32; 2],
}

impl Runner {
    /// Finds it below its warden: the warden's only child is the stub, whose only child it is.
    pub fn below(warden: u32) -> Option<Runner> {
        let stub = only_child(warden)?;
        let pid = only_child(stub)?;
        Some(Runner { pid, started: start_time(pid)?, around: [warden, stub] })
    }

    /// Its pid.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Memory, processor time, threads and descriptors now; `None` if the process is gone.
    pub fn measure(self) -> Option<Sample> {
        let stat = Stat::read(self.pid).filter(|stat| stat.started == self.started)?;
        let around =
            self.around.iter().filter_map(|pid| Stat::read(*pid)).map(|stat| stat.ticks).sum::<u64>();
        let ticks = stat.ticks.saturating_add(around);
        let statm = proc(self.pid, "statm")?;
        let mut pages = statm.split(' ').skip(1).map(|word| word.trim().parse::<u64>().unwrap_or(0));
        let (resident, shared) = (pages.next()?, pages.next()?);
        // Since 6.2 the size of the directory is the number of descriptors; before, it is zero, and a runner has some.
        let fds = std::fs::metadata(format!("/proc/{}/fd", self.pid)).map_or(0, |about| about.len());
        Some(Sample {
            at: Instant::now(),
            memory: resident.saturating_sub(shared).saturating_mul(unit(SysconfVar::PAGE_SIZE, 4096)),
            cpu: Duration::from_millis(ticks.saturating_mul(1000) / unit(SysconfVar::CLK_TCK, 100)),
            threads: stat.threads,
            fds: (fds > 0).then_some(fds),
            throttled: 0,
            refused: 0,
            lines_dropped: 0,
            link_excess: 0,
            disk: None,
        })
    }
}

/// Most entries of granted directories that are counted; a plugin that makes more is beyond every limit.
const MAX_ENTRIES: usize = 20_000;

/// Bytes that the files in these places take, links not followed; `None` for no places. Reads at most 20 000 entries,
/// and says [`u64::MAX`] if there are more. Blocks: not for a worker of the runtime.
pub fn disk(places: &[PathBuf]) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    if places.is_empty() {
        return None;
    }
    let (mut waiting, mut bytes, mut entries) = (places.to_vec(), 0u64, 0);
    while let Some(path) = waiting.pop() {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Some(u64::MAX);
        }
        let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
        bytes = bytes.saturating_add(about.blocks().saturating_mul(512));
        if about.is_dir() {
            let Ok(inside) = std::fs::read_dir(&path) else { continue };
            waiting.extend(inside.take(MAX_ENTRIES + 1).flatten().map(|entry| entry.path()));
        }
    }
    Some(bytes)
}

fn unit(name: SysconfVar, default: u64) -> u64 {
    sysconf(name)
        .ok()
        .flatten()
        .and_then(|value| u64::try_from(value).ok())
        .filter(|v| *v > 0)
        .unwrap_or(default)
}

fn proc(pid: u32, file: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{file}")).ok()?.take(MAX_READ).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn only_child(pid: u32) -> Option<u32> {
    let children = proc(pid, &format!("task/{pid}/children"))?;
    let mut children = children.split_whitespace();
    let child = children.next()?.parse().ok()?;
    children.next().is_none().then_some(child)
}

/// When a process started, in the kernel's own ticks; with the pid it names a process for good.
pub fn start_time(pid: u32) -> Option<u64> {
    Some(Stat::read(pid)?.started)
}

struct Stat {
    ticks: u64,
    threads: u64,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        Stat::parse(&proc(pid, "stat")?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name in parentheses is the plugin's choice and may hold anything; what counts comes after the last one.
        let words: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| words.get(field - 3)?.parse::<u64>().ok();
        Some(Stat {
            ticks: number(14)?.saturating_add(number(15)?),
            threads: number(20)?,
            started: number(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_by_what_the_kernel_says_and_not_by_its_name() {
        let stat = "7 (evil) R 1 1) S 1 7 7 0 -1 4194560 1 0 0 0 11 22 0 0 30 10 5 0 999 1000 10 18446744073709551615";
        let stat = Stat::parse(stat).expect("parses");
        assert_eq!((stat.ticks, stat.threads, stat.started), (33, 5, 999));
        assert!(Stat::parse("7 (x) R 1").is_none() && Stat::parse("").is_none());
    }

    #[test]
    fn files_are_counted_without_following_links_and_only_so_many() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("sub")).expect("made");
        std::fs::write(dir.path().join("sub/file"), vec![1; 300_000]).expect("written");
        std::os::unix::fs::symlink("/usr", dir.path().join("way-out")).expect("linked");
        let counted = disk(&[dir.path().to_path_buf()]).expect("a place");
        assert!((300_000..500_000).contains(&counted), "{counted}");
        assert_eq!(disk(&[]), None);
        for n in 0..=MAX_ENTRIES {
            std::fs::File::create(dir.path().join(n.to_string())).expect("made");
        }
        assert_eq!(disk(&[dir.path().to_path_buf()]), Some(u64::MAX));
    }

    #[test]
    fn a_pid_that_was_given_out_again_is_not_the_same_process() {
        let pid = std::process::id();
        let me = Runner { pid, started: start_time(pid).expect("a start"), around: [0, 0] };
        let sample = me.measure().expect("alive");
        assert!(sample.memory > 0 && sample.threads > 0 && sample.fds.is_none_or(|fds| fds >= 3));
        assert_eq!(Runner { started: me.started + 1, ..me }.measure(), None);
    }

    #[test]
    fn what_its_warden_works_counts_as_the_plugins_work() {
        use std::process::{Child, Command};
        struct Reaped(Child);
        impl Drop for Reaped {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let shell = |line: &str| Reaped(Command::new("sh").args(["-c", line]).spawn().expect("a shell"));
        let (busy, idle) = (shell("while :; do :; done"), shell("exec sleep 600"));
        let begun = Instant::now();
        while Stat::read(busy.0.id()).expect("alive").ticks < 20 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no processor time in a minute");
            std::thread::yield_now();
        }
        let pid = idle.0.id();
        let runner = |around| Runner { pid, started: start_time(pid).expect("a start"), around };
        let work = |around| runner(around).measure().expect("alive").cpu;
        let least = Duration::from_millis(20 * 1000 / unit(SysconfVar::CLK_TCK, 100));
        assert!(work([busy.0.id(), 0]) >= least && work([0, busy.0.id()]) >= least, "warden or stub");
        assert!(work([0, 0]) < least / 2, "the control: by itself it does nothing");
    }
}
