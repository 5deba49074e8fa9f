//! The files of control groups: what each limit is called in either version, and bounded reads and writes of them.

use super::{Tree, Version};
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// Length of the kernel's period for processor time, microseconds.
const PERIOD_US: u64 = 100_000;
/// Longest file of the kernel that is read here.
const MAX_READ: u64 = 256 * 1024;
/// Swap is not room. Where the kernel does not count it, these are missing.
const SWAP_V1: &str = "memory.memsw.limit_in_bytes";
/// As [`SWAP_V1`].
const SWAP_V2: &str = "memory.swap.max";

/// What to write for this much memory.
pub(super) fn memory_writes(version: Version, bytes: u64) -> Vec<(&'static str, String)> {
    match version {
        Version::V1 => {
            vec![("memory.limit_in_bytes", bytes.to_string()), (SWAP_V1, bytes.to_string())]
        }
        Version::V2 => vec![("memory.max", bytes.to_string()), (SWAP_V2, "0".into())],
    }
}

/// What to write for this share of processor time.
pub(super) fn cpu_writes(version: Version, percent: u64) -> Vec<(&'static str, String)> {
    let quota = percent.saturating_mul(PERIOD_US) / 100;
    match version {
        Version::V1 => {
            vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
        }
        Version::V2 => vec![("cpu.max", format!("{quota} {PERIOD_US}"))],
    }
}

/// What to write where processor time shall have no limit.
pub(super) fn cpu_lift(version: Version) -> (&'static str, &'static str) {
    match version {
        Version::V1 => ("cpu.cfs_quota_us", "-1"),
        Version::V2 => ("cpu.max", "max"),
    }
}

/// The number after a word in a file of lines `word number`.
pub(super) fn count(tree: &Option<Tree>, [v1, v2]: [&str; 2], word: &str) -> u64 {
    let Some(tree) = tree else { return 0 };
    let file = if tree.version == Version::V1 { v1 } else { v2 };
    let text = read(&tree.dir.join(file)).unwrap_or_default();
    let of_line = |line: &str| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(of_line).unwrap_or(0)
}

/// A file of the kernel, bounded.
pub(super) fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(MAX_READ).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Writes into a file that is there.
pub(super) fn write(dir: &Path, file: &str, text: &str) -> io::Result<()> {
    // Never creating: a file that the kernel did not put there is no limit.
    use io::Write as _;
    fs::OpenOptions::new().write(true).open(dir.join(file))?.write_all(text.as_bytes())
}

/// Writes a limit.
pub(super) fn set(dir: &Path, file: &str, text: &str) -> io::Result<()> {
    match write(dir, file, text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && [SWAP_V1, SWAP_V2].contains(&file) => Ok(()),
        done => done,
    }
}
