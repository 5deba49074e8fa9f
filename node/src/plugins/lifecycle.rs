//! The life of a plugin as one pure function: state and event in, state and actions out. Time and chance are arguments.
//!
//! ```text
//! Loading ─> Initializing ─> Ready ─> Stopping ─> Stopped
//!    └───────────┴─────────────┴── died ──> Backoff ─> Loading     first restart at once, then 100 ms doubling to 30 s
//!                                     └───> Failed                 5 deaths in 60 s, or nothing that a restart would mend
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};
use thenodes_ipc::launch::{Level, Step};

/// Deaths within [`WINDOW`] that open the breaker.
pub const MAX_DEATHS: usize = 5;
/// The window of the breaker.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Delay of the second restart; the first is at once.
pub const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay between restarts, and how long an open breaker waits before it tries one start.
pub const MAX_DELAY: Duration = Duration::from_secs(30);

/// Where a plugin is in its life.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// A runner was started; walls, library and registration are under way.
    Loading,
    /// `on_load` runs.
    Initializing,
    /// Takes calls.
    Ready,
    /// Asked to end; finishing.
    Stopping,
    /// Ended because somebody wanted it.
    Stopped,
    /// Waits for its next start.
    Backoff {
        /// When.
        until: Instant,
    },
    /// Given up: for good, or until one more try.
    Failed {
        /// When one start will be tried; `None` waits for an operator.
        probe: Option<Instant>,
    },
}

impl State {
    /// The word in lists.
    pub fn word(&self) -> &'static str {
        match self {
            State::Loading => "Loading",
            State::Initializing => "Initializing",
            State::Ready => "Ready",
            State::Stopping => "Stopping",
            State::Stopped => "Stopped",
            State::Backoff { .. } => "Backoff",
            State::Failed { .. } => "Failed",
        }
    }
}

/// A limit that a plugin met or went beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// The kernel killed it for memory.
    Oom,
    /// Processor time.
    Cpu,
    /// Memory in use.
    Memory,
    /// Threads.
    Threads,
    /// Open descriptors.
    Fds,
    /// Log lines a second.
    LogRate,
    /// Messages over the link a second.
    LinkRate,
    /// Size of a file it wrote.
    FileSize,
    /// All files together where it may write.
    Disk,
}

impl LimitKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [LimitKind; 9] = [
        LimitKind::Oom,
        LimitKind::Cpu,
        LimitKind::Memory,
        LimitKind::Threads,
        LimitKind::Fds,
        LimitKind::LogRate,
        LimitKind::LinkRate,
        LimitKind::FileSize,
        LimitKind::Disk,
    ];

    /// A stable word.
    pub fn word(self) -> &'static str {
        match self {
            LimitKind::Oom => "oom",
            LimitKind::Cpu => "cpu",
            LimitKind::Memory => "memory",
            LimitKind::Threads => "threads",
            LimitKind::Fds => "fds",
            LimitKind::LogRate => "log_rate",
            LimitKind::LinkRate => "link_rate",
            LimitKind::FileSize => "file_size",
            LimitKind::Disk => "disk",
        }
    }
}

/// Why a runner ended, as true as can be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A signal ended the plugin.
    Signal(i32),
    /// A wall ended the plugin: what it attempted.
    Denied(String),
    /// It ended itself.
    Exit(i32),
    /// It broke the link protocol.
    Violation(String),
    /// It did not answer a call within deadline and grace.
    Hang(String),
    /// A step of the start took too long.
    Deadline(&'static str),
    /// The runner said no.
    Refused(Step, String),
    /// Too few walls stand.
    Level {
        /// What was measured.
        level: Level,
        /// What the configuration asks for.
        required: String,
    },
    /// `on_load` failed.
    Load(String),
    /// A permission that its manifest requires is not given.
    Permissions(String),
    /// The runner could not be started at all.
    Spawn(String),
    /// It met a limit that ends a process, or went beyond limits too often.
    Limit {
        /// Which.
        kind: LimitKind,
        /// What was seen, and by whom.
        detail: String,
        /// The operator wants no restart after this.
        give_up: bool,
    },
    /// Somebody asked for it.
    Asked,
}

impl Cause {
    /// True if the same start would fail the same way: no restart by itself.
    pub fn is_final(&self) -> bool {
        match self {
            Cause::Refused(..) | Cause::Level { .. } | Cause::Load(_) | Cause::Permissions(_) => true,
            Cause::Limit { give_up, .. } => *give_up,
            Cause::Signal(_)
            | Cause::Denied(_)
            | Cause::Exit(_)
            | Cause::Violation(_)
            | Cause::Hang(_)
            | Cause::Deadline(_)
            | Cause::Spawn(_)
            | Cause::Asked => false,
        }
    }

    /// A stable word for events and `--json`.
    pub fn word(&self) -> &'static str {
        match self {
            Cause::Signal(libc_sigsys::SIGSYS) | Cause::Denied(_) => "denied_syscall",
            Cause::Signal(_) => "signal",
            Cause::Exit(_) => "exit",
            Cause::Violation(_) => "protocol_violation",
            Cause::Hang(_) => "hang",
            Cause::Deadline(_) => "start_deadline",
            Cause::Refused(..) => "refused",
            Cause::Level { .. } => "sandbox_level",
            Cause::Load(_) => "on_load",
            Cause::Permissions(_) => "permissions",
            Cause::Spawn(_) => "spawn",
            Cause::Limit { kind, .. } => kind.word(),
            Cause::Asked => "asked",
        }
    }
}

mod libc_sigsys {
    /// The signal of a denied system call.
    pub(super) const SIGSYS: i32 = nix::sys::signal::Signal::SIGSYS as i32;
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use nix::sys::signal::Signal;
        match self {
            Cause::Signal(number) => match Signal::try_from(*number) {
                Ok(Signal::SIGSYS) => f.write_str("SIGSYS: a system call that the sandbox does not allow"),
                Ok(Signal::SIGSEGV) => f.write_str("SIGSEGV: invalid memory access, or stack overflow"),
                Ok(Signal::SIGABRT) => f.write_str("SIGABRT: abort"),
                Ok(Signal::SIGKILL) => {
                    f.write_str("SIGKILL: killed from outside, by an operator or for memory")
                }
                Ok(signal) => write!(f, "{signal}"),
                Err(_) => write!(f, "signal {number}"),
            },
            Cause::Denied(what) => write!(f, "a wall of the sandbox ended it: {what}"),
            Cause::Exit(code) => write!(f, "ended itself with exit code {code}"),
            Cause::Violation(what) => write!(f, "broke the link protocol: {what}"),
            Cause::Hang(method) => write!(f, "did not answer {method} within deadline and grace"),
            Cause::Deadline(step) => write!(f, "took too long: {step}"),
            Cause::Refused(step, reason) => {
                let at = match step {
                    Step::Hello => "before the walls",
                    Step::Confine => "while confining",
                    Step::Open => "opening the library",
                    Step::Register => "registering",
                };
                write!(f, "{at}: {reason}")
            }
            Cause::Level { level, required } => {
                write!(f, "sandbox level {level}, but [plugins.sandbox] required = \"{required}\"; see `thenodes doctor`")
            }
            Cause::Load(why) => write!(f, "on_load said: {why}"),
            Cause::Permissions(why) => f.write_str(why),
            Cause::Spawn(why) => write!(f, "the runner could not be started: {why}"),
            Cause::Limit { kind, detail, .. } => write!(f, "limit {}: {detail}", kind.word()),
            Cause::Asked => f.write_str("asked to stop"),
        }
    }
}

/// What happens to a plugin.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The library registered.
    Registered,
    /// `on_load` returned.
    Loaded,
    /// The process has ended. `jitter` is a random number in 0..1.
    Died {
        /// Why.
        cause: Cause,
        /// Chance for the delay.
        jitter: f64,
    },
    /// The delay of a Backoff, or the wait of an open breaker, is over.
    TimerFired,
    /// An operator wants it to run (again).
    Restart,
    /// An operator, or the end of the node, wants it to stop.
    Stop,
}

/// What the supervisor has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a runner.
    Start,
    /// Call `on_load`.
    Load,
    /// Let it finish, then end it.
    Stop,
}

/// State and what it takes to decide the next one.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// Now.
    pub state: State,
    /// Starts asked for while the old process is still stopping.
    restart_after_stop: bool,
    /// Deaths within the window, oldest first.
    deaths: VecDeque<Instant>,
    /// Starts since the node began.
    pub starts: u32,
}

impl Life {
    /// A plugin that starts now.
    pub fn begin() -> (Life, Vec<Action>) {
        let life =
            Life { state: State::Loading, restart_after_stop: false, deaths: VecDeque::new(), starts: 1 };
        (life, vec![Action::Start])
    }

    /// Deaths within the window.
    pub fn recent_deaths(&self) -> usize {
        self.deaths.len()
    }

    /// When [`Event::TimerFired`] is due.
    pub fn timer(&self) -> Option<Instant> {
        match self.state {
            State::Backoff { until } => Some(until),
            State::Failed { probe } => probe,
            State::Loading | State::Initializing | State::Ready | State::Stopping | State::Stopped => None,
        }
    }

    /// The next state.
    pub fn on(mut self, event: Event, now: Instant) -> (Life, Vec<Action>) {
        let (state, actions) = match (self.state.clone(), event) {
            (State::Loading, Event::Registered) => (State::Initializing, vec![Action::Load]),
            (State::Initializing, Event::Loaded) => (State::Ready, vec![]),
            (State::Stopping, Event::Died { .. }) if self.restart_after_stop => self.start(),
            (State::Stopping, Event::Died { .. }) => (State::Stopped, vec![]),
            (State::Loading | State::Initializing | State::Ready, Event::Died { cause, jitter }) => {
                (self.after_death(&cause, jitter, now), vec![])
            }
            (State::Backoff { .. } | State::Failed { probe: Some(_) }, Event::TimerFired) => self.start(),
            (State::Loading | State::Initializing | State::Ready, Event::Restart) => {
                self.restart_after_stop = true;
                (State::Stopping, vec![Action::Stop])
            }
            (State::Stopped | State::Backoff { .. } | State::Failed { .. }, Event::Restart) => {
                self.deaths.clear();
                self.start()
            }
            (State::Stopping, Event::Restart) => {
                self.restart_after_stop = true;
                (State::Stopping, vec![])
            }
            (State::Loading | State::Initializing | State::Ready, Event::Stop) => {
                self.restart_after_stop = false;
                (State::Stopping, vec![Action::Stop])
            }
            (State::Stopping, Event::Stop) => {
                self.restart_after_stop = false;
                (State::Stopping, vec![])
            }
            (State::Backoff { .. } | State::Failed { .. } | State::Stopped, Event::Stop) => {
                (State::Stopped, vec![])
            }
            // Late news of a process that is gone, or a timer that was overtaken: nothing changes.
            (state, Event::Registered | Event::Loaded | Event::Died { .. } | Event::TimerFired) => {
                (state, vec![])
            }
        };
        self.state = state;
        (self, actions)
    }

    fn start(&mut self) -> (State, Vec<Action>) {
        self.restart_after_stop = false;
        self.starts = self.starts.saturating_add(1);
        (State::Loading, vec![Action::Start])
    }

    fn after_death(&mut self, cause: &Cause, jitter: f64, now: Instant) -> State {
        if cause.is_final() {
            return State::Failed { probe: None };
        }
        while self.deaths.front().is_some_and(|death| now.saturating_duration_since(*death) > WINDOW) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        let count = self.deaths.len();
        if count >= MAX_DEATHS {
            // Half open: after the wait one start is tried; if it dies within the window, this is reached again at once.
            self.deaths.truncate(MAX_DEATHS);
            return State::Failed { probe: Some(now + MAX_DELAY) };
        }
        if count == 1 {
            return State::Backoff { until: now };
        }
        let doubled = FIRST_DELAY.saturating_mul(1 << (count - 2).min(16)).min(MAX_DELAY);
        State::Backoff { until: now + doubled.mul_f64(1.0 + 0.2 * jitter.clamp(0.0, 1.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ready(now: Instant) -> Life {
        let (life, _) = Life::begin();
        let (life, actions) = life.on(Event::Registered, now);
        assert_eq!(actions, [Action::Load]);
        life.on(Event::Loaded, now).0
    }

    fn die(life: Life, now: Instant) -> Life {
        life.on(Event::Died { cause: Cause::Signal(11), jitter: 0.0 }, now).0
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_next_ones_wait_longer() {
        let mut now = Instant::now();
        let mut life = ready(now);
        let mut waits = Vec::new();
        for _ in 0..4 {
            life = die(life, now);
            let due = life.timer().expect("a timer");
            waits.push((due - now).as_millis());
            now = due;
            let (next, actions) = life.on(Event::TimerFired, now);
            assert_eq!(actions, [Action::Start]);
            life = next.on(Event::Registered, now).0.on(Event::Loaded, now).0;
        }
        assert_eq!(waits, [0, 100, 200, 400]);
        life = die(life, now);
        assert_eq!(life.state, State::Failed { probe: Some(now + MAX_DELAY) });
    }

    #[test]
    fn a_probe_that_lives_closes_the_breaker_and_one_that_dies_opens_it_again() {
        let now = Instant::now();
        let mut life = ready(now);
        for _ in 0..MAX_DEATHS {
            life = die(life, now);
            life = match life.state {
                State::Failed { .. } => life,
                _ => life.on(Event::TimerFired, now).0,
            };
        }
        let later = now + MAX_DELAY;
        let probe = life.on(Event::TimerFired, later).0;
        assert_eq!(die(probe.clone(), later + Duration::from_secs(1)).state.word(), "Failed");
        let well = probe.on(Event::Registered, later).0.on(Event::Loaded, later).0;
        let much_later = later + WINDOW + WINDOW;
        assert_eq!(die(well, much_later).state, State::Backoff { until: much_later });
    }

    #[test]
    fn what_a_restart_cannot_mend_is_not_restarted() {
        let now = Instant::now();
        let disabled = Cause::Limit { kind: LimitKind::Cpu, detail: String::new(), give_up: true };
        for cause in [Cause::Load("no".into()), Cause::Refused(Step::Open, "no symbol".into()), disabled] {
            let life = Life::begin().0.on(Event::Died { cause, jitter: 0.5 }, now).0;
            assert_eq!(life.state, State::Failed { probe: None });
            assert_eq!(life.on(Event::Restart, now).1, [Action::Start]);
        }
    }

    #[test]
    fn a_limit_is_a_crash_like_any_other_unless_the_operator_said_disable() {
        let now = Instant::now();
        for (at, kind) in LimitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "counts are kept by this number");
            let cause = Cause::Limit { kind, detail: "x".into(), give_up: false };
            assert_eq!(cause.word(), kind.word());
            let life = ready(now).on(Event::Died { cause, jitter: 0.0 }, now).0;
            assert_eq!(life.state, State::Backoff { until: now });
        }
    }

    #[test]
    fn an_orderly_stop_is_not_a_crash() {
        let now = Instant::now();
        let (life, actions) = ready(now).on(Event::Stop, now);
        assert_eq!((life.state.word(), actions), ("Stopping", vec![Action::Stop]));
        assert_eq!(die(life, now).state, State::Stopped);
        let (life, _) = ready(now).on(Event::Restart, now);
        assert_eq!(life.on(Event::Died { cause: Cause::Asked, jitter: 0.0 }, now).1, [Action::Start]);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Registered),
            Just(Event::Loaded),
            Just(Event::TimerFired),
            Just(Event::Restart),
            Just(Event::Stop),
            (0.0..1.0f64).prop_map(|jitter| Event::Died { cause: Cause::Exit(0), jitter }),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: one process at a time, bounded memory, no restart faster than the policy.
        #[test]
        fn no_order_of_events_starts_two_processes_or_restarts_too_fast(events in proptest::collection::vec((any_event(), 0u64..5000), 0..200)) {
            let mut now = Instant::now();
            let (mut life, actions) = Life::begin();
            prop_assert_eq!(actions, vec![Action::Start]);
            let mut running = true;
            for (event, wait) in events {
                now += Duration::from_millis(wait);
                if matches!(event, Event::TimerFired) && life.timer().is_none_or(|due| due > now) {
                    continue;
                }
                let asked = matches!(event, Event::Restart);
                if matches!(event, Event::Died { .. }) {
                    if !running { continue; }
                    running = false;
                }
                let before = life.clone();
                let (after, actions) = life.on(event, now);
                for action in actions {
                    match action {
                        Action::Start => {
                            prop_assert!(!running, "started while one runs: {:?}", before);
                            running = true;
                            prop_assert!(asked || before.restart_after_stop || before.timer().is_some_and(|due| due <= now));
                        }
                        Action::Stop | Action::Load => prop_assert!(running),
                    }
                }
                prop_assert!(after.deaths.len() <= MAX_DEATHS + 1);
                let has_process = matches!(after.state, State::Loading | State::Initializing | State::Ready | State::Stopping);
                prop_assert_eq!(running, has_process);
                life = after;
            }
        }
    }
}
