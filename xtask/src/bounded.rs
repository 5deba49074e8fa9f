//! Waiting for other programs with an end: a test that hangs must not hang whoever waits for all tests. What is waited for too
//! long is killed with everything it started, and what it was doing is said. Trusts nobody to end by themselves.

use anyhow::{bail, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long a program may take, and how long it may say nothing.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) whole: Duration,
    pub(crate) silence: Duration,
}

/// For all tests of one user on a slow machine. A single one says after a minute that it is still running, and then nothing more.
pub(crate) const TESTS: Patience =
    Patience { whole: Duration::from_secs(2 * 60 * 60), silence: Duration::from_secs(15 * 60) };
/// For one run of the attack suite; its attempts have ends of their own.
pub(crate) const SUITE: Duration = Duration::from_secs(60 * 60);

/// Runs a command and hands each line of its output over.
pub(crate) fn lines(
    command: &mut Command,
    patience: Patience,
    mut heard: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, lines) = channel();
    let pipes: [Box<dyn std::io::Read + Send>; 2] =
        [Box::new(child.stdout.take().context("piped")?), Box::new(child.stderr.take().context("piped")?)];
    for pipe in pipes {
        let sender = sender.clone();
        std::thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
    }
    drop(sender);
    let until = Instant::now() + patience.whole;
    let mut doing = Doing::default();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left.min(patience.silence)) {
            Ok(line) => {
                doing.hear(&line);
                heard(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                end_all(child.id());
                let _ = child.wait();
                let why = if left < patience.silence { patience.whole } else { patience.silence };
                let said = if left < patience.silence { "no end" } else { "not a line" };
                bail!("{said} in {} s, and killed: {doing}", why.as_secs());
            }
        }
    }
    // The output has ended, and so has the program, or it is about to.
    wait(child, patience.silence, &doing.to_string())
}

/// Runs a command whose output goes where ours goes.
pub(crate) fn status(command: &mut Command, patience: Duration, what: &str) -> Result<ExitStatus> {
    let child = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
    wait(child, patience, what)
}

fn wait(mut child: std::process::Child, patience: Duration, what: &str) -> Result<ExitStatus> {
    let (sender, ended) = channel();
    let pid = child.id();
    std::thread::spawn(move || sender.send(child.wait()));
    match ended.recv_timeout(patience) {
        Ok(status) => Ok(status?),
        Err(_) => {
            end_all(pid);
            bail!("no end in {} s, and killed: {what}", patience.as_secs())
        }
    }
}

/// What the output says is going on: the test program, and its tests that are known to run.
#[derive(Default)]
struct Doing {
    program: String,
    slow: BTreeSet<String>,
    last: String,
}

impl Doing {
    fn hear(&mut self, line: &str) {
        if let Some(program) = line.trim_start().strip_prefix("Running ") {
            self.program = program.to_owned();
            self.slow.clear();
        }
        if let Some((name, rest)) = line.strip_prefix("test ").and_then(|test| test.split_once(' ')) {
            if rest.starts_with("has been running for over") {
                self.slow.insert(name.to_owned());
            } else if rest.starts_with("... ") {
                self.slow.remove(name);
            }
            line.clone_into(&mut self.last);
        }
    }
}

impl std::fmt::Display for Doing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slow: Vec<&str> = self.slow.iter().map(String::as_str).collect();
        let slow = if slow.is_empty() { "no test longer than a minute".into() } else { slow.join(", ") };
        write!(f, "{:?} was running {slow}; the last word of a test was {:?}", self.program, self.last)
    }
}

/// Kills a process that this one started, and all below it, wherever they went.
fn end_all(root: u32) {
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        found.extend(children(found[at]));
        at += 1;
    }
    for pid in found {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

fn children(parent: u32) -> Vec<u32> {
    let of = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in parentheses may hold anything; the parent is the second word behind it.
        let word = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        word == Some(parent)
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_that_hangs_is_ended_and_the_test_that_ran_is_named() {
        let mut shell = Command::new("sh");
        let script =
            "echo '     Running tests/x.rs (x)'; echo 'test quick has been running for over 60 seconds'; \
                      echo 'test quick ... ok'; echo 'test slow has been running for over 60 seconds'; \
                      sleep 1000 & echo $!; wait";
        let patience = Patience { whole: Duration::from_secs(60), silence: Duration::from_secs(1) };
        let mut sleeper = None;
        let hear = |line: &str| sleeper = sleeper.or(line.parse::<i32>().ok());
        let error = lines(shell.args(["-c", script]), patience, hear).expect_err("it hangs").to_string();
        assert!(error.contains("tests/x.rs (x)") && error.contains("was running slow;"), "{error}");
        let sleeper = Pid::from_raw(sleeper.expect("its pid"));
        let begun = Instant::now();
        let alive = || {
            let stat = fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while alive() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{sleeper} lives");
            std::thread::park_timeout(Duration::from_millis(5)); // processes of others cannot be waited for
        }
    }

    #[test]
    fn one_that_talks_for_ever_is_ended_too_and_one_that_ends_is_not() {
        let patience = Patience { whole: Duration::from_secs(1), silence: Duration::from_secs(60) };
        let error = lines(Command::new("sh").args(["-c", "while :; do echo x; done"]), patience, |_| {});
        assert!(error.expect_err("it never ends").to_string().contains("no end in 1 s"));
        let good = lines(Command::new("sh").args(["-c", "echo x; exit 3"]), TESTS, |_| {}).expect("ended");
        assert_eq!(good.code(), Some(3));
        let error = status(Command::new("sleep").arg("1000"), Duration::from_millis(50), "the sleeper");
        assert!(error.expect_err("it sleeps").to_string().contains("the sleeper"));
    }
}
