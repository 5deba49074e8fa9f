//! The promises of the state machine, under a clock that the tests move.

use super::*;
use proptest::prelude::*;
use std::time::Duration;
use thenodes_ipc::launch::Step;

fn begun() -> Life {
    let (life, actions) = Life::begin(Desired::Enabled, HealthPolicy::default());
    assert_eq!((life.state.word(), actions), ("Loading", vec![Action::Start]));
    life
}

fn ready(now: Instant) -> Life {
    after(begun(), &[Event::Registered, Event::Loaded], now)
}

fn after(mut life: Life, events: &[Event], now: Instant) -> Life {
    for event in events {
        life = life.on(event.clone(), now).0;
    }
    life
}

fn death() -> Event {
    Event::Died { cause: Cause::Signal(11), jitter: 0.0 }
}

#[test]
fn a_breaker_opens_at_the_fifth_death_and_its_probe_decides() {
    let mut now = Instant::now();
    let mut life = ready(now);
    let mut waits = Vec::new();
    for _ in 0..4 {
        life = life.on(death(), now).0;
        let due = life.timer().expect("a timer");
        waits.push((due - now).as_millis());
        now = due;
        let (next, actions) = life.on(Event::TimerFired, now);
        assert_eq!(actions, [Action::Start]);
        life = after(next, &[Event::Registered, Event::Loaded], now);
    }
    assert_eq!(waits, [0, 100, 200, 400]);
    life = life.on(death(), now).0;
    assert_eq!(life.state, State::Failed { probe: Some(now + MAX_DELAY) });
    assert_eq!(life.recent_deaths(now), 5);
    let later = now + MAX_DELAY;
    let probe = life.clone().on(Event::TimerFired, later).0;
    let soon = later + Duration::from_secs(1);
    assert_eq!(probe.clone().on(death(), soon).0.state, State::Failed { probe: Some(soon + MAX_DELAY) });
    let well = after(probe, &[Event::Registered, Event::Loaded], later);
    let much_later = later + WINDOW + WINDOW;
    assert_eq!(well.on(death(), much_later).0.state, State::Backoff { until: much_later });
    // An operator does not have to wait.
    assert_eq!(life.on(Event::Reset, now).1, [Action::Start]);
}

#[test]
fn what_a_restart_cannot_mend_is_not_restarted() {
    let now = Instant::now();
    let disabled = Cause::Limit { kind: LimitKind::Cpu, detail: String::new(), give_up: true };
    for cause in [Cause::Load("no".into()), Cause::Refused(Step::Open, "no symbol".into()), disabled] {
        let life = begun().on(Event::Died { cause, jitter: 0.5 }, now).0;
        assert_eq!(life.state, State::Failed { probe: None });
        for order in [Event::Restart, Event::Reset, Event::Enable] {
            assert_eq!(life.clone().on(order, now).1, [Action::Start]);
        }
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
    assert_eq!(life.on(death(), now).0.state, State::Stopped);
    let (life, _) = ready(now).on(Event::Restart, now);
    assert_eq!(life.on(Event::Died { cause: Cause::Asked, jitter: 0.0 }, now).1, [Action::Start]);
}

#[test]
fn three_misses_degrade_one_good_answer_recovers_and_six_replace() {
    let now = Instant::now();
    let degraded = after(ready(now), &[Event::Missed, Event::Missed, Event::Missed], now);
    assert_eq!(degraded.state, State::Degraded);
    assert!(degraded.state.serves());
    assert_eq!(degraded.clone().on(Event::Healthy, now).0.state, State::Ready);
    let (life, actions) = after(degraded, &[Event::Missed, Event::Missed], now).on(Event::Missed, now);
    assert_eq!(actions, [Action::Replace]);
    let died = Event::Died { cause: Cause::Health("x".into()), jitter: 0.0 };
    assert_eq!(life.on(died, now).0.state, State::Backoff { until: now });
}

#[test]
fn a_disabled_plugin_never_starts_by_itself_or_by_any_order_but_enable() {
    let now = Instant::now();
    let (life, actions) = Life::begin(Desired::Disabled, HealthPolicy::default());
    assert_eq!((life.state.word(), actions.len()), ("Available", 0));
    for event in [Event::TimerFired, Event::Restart, Event::Reset, Event::Trust, death()] {
        let (next, actions) = life.clone().on(event, now);
        assert_eq!((next.state, actions), (State::Available, vec![]));
    }
    assert_eq!(life.on(Event::Enable, now).1, [Action::Start]);
    let stopped = after(ready(now), &[Event::Disable, death()], now);
    assert_eq!((stopped.state.word(), stopped.desired), ("Stopped", Desired::Disabled));
}

#[test]
fn a_new_version_that_dies_within_its_probation_brings_the_old_one_back() {
    let now = Instant::now();
    let until = now + Duration::from_secs(60);
    let new = ready(now).on(Event::Promoted { probation: Some(until) }, now).0;
    assert!(new.in_probation(now) && !new.in_probation(until));
    let (back, actions) = new.clone().on(death(), until - Duration::from_millis(1));
    assert_eq!((back.state.word(), actions), ("Loading", vec![Action::RollBack, Action::Start]));
    // Once: the old one is judged like any other.
    assert_eq!(back.on(death(), now).0.state, State::Backoff { until: now });
    assert_eq!(new.clone().on(death(), until).0.state, State::Backoff { until });
    // Also for what is otherwise final.
    let (_, actions) = new.on(Event::Died { cause: Cause::Load("no".into()), jitter: 0.0 }, now);
    assert_eq!(actions, [Action::RollBack, Action::Start]);
}

#[test]
fn a_hand_over_ends_with_a_plugin_that_runs_whoever_dies_in_between() {
    let now = Instant::now();
    let probation = Some(now + Duration::from_secs(60));
    let (handing, actions) = ready(now).on(Event::HandOver, now);
    assert_eq!((handing.state.word(), actions), ("Stopping", vec![Action::Stop]));
    let given = handing.clone().on(Event::HandedOver { probation }, now).0;
    assert_eq!(given.state, State::Initializing);
    assert_eq!(given.clone().on(Event::Loaded, now).0.state, State::Ready);
    assert_eq!(given.on(death(), now).1, [Action::RollBack, Action::Start]);
    // The old one dies before it has left anything; or the new one before it got it.
    assert_eq!(handing.clone().on(death(), now).1, [Action::Start]);
    assert_eq!(handing.on(Event::HandOverFailed, now).0.on(death(), now).1, [Action::Start]);
}

#[test]
fn without_trust_nothing_runs_and_with_it_what_was_wanted_does() {
    let now = Instant::now();
    let (life, actions) = ready(now).on(Event::Revoke, now);
    assert_eq!(actions, [Action::Stop]);
    let life = after(life, &[Event::Enable, Event::Restart, death(), Event::Restart, Event::Reset], now);
    assert_eq!(life.state, State::Untrusted);
    assert_eq!(life.on(Event::Trust, now).1, [Action::Start]);
}

fn any_event() -> impl Strategy<Value = Event> {
    let soon = |seconds: Option<u64>| seconds.map(|s| Instant::now() + Duration::from_secs(s));
    prop_oneof![
        Just(Event::Registered),
        Just(Event::Loaded),
        Just(Event::Healthy),
        Just(Event::Missed),
        Just(Event::TimerFired),
        Just(Event::Restart),
        Just(Event::Enable),
        Just(Event::Disable),
        Just(Event::Reset),
        Just(Event::Stop),
        Just(Event::Trust),
        Just(Event::Revoke),
        proptest::option::of(0u64..500).prop_map(move |s| Event::Promoted { probation: soon(s) }),
        Just(Event::HandOver),
        proptest::option::of(0u64..500).prop_map(move |s| Event::HandedOver { probation: soon(s) }),
        Just(Event::HandOverFailed),
        (0.0..1.0f64).prop_map(|jitter| Event::Died { cause: Cause::Exit(0), jitter }),
        (0.0..1.0f64).prop_map(|jitter| Event::Died { cause: Cause::Load("no".into()), jitter }),
    ]
}

proptest! {
    /// Whatever happens in whatever order: one process at a time, none that nobody wants, none faster than the policy.
    #[test]
    fn no_order_of_events_starts_two_processes_or_an_unwanted_one_or_one_too_fast(
        events in proptest::collection::vec((any_event(), 0u64..5000), 0..300)
    ) {
        let mut now = Instant::now();
        let mut life = begun();
        let mut running = true;
        let mut crashes: Vec<Instant> = Vec::new();
        for (event, wait) in events {
            now += Duration::from_millis(wait);
            match &event {
                // The supervisor's timer, and processes that end, do not come without a reason.
                Event::TimerFired if life.timer().is_none_or(|due| due > now) => continue,
                Event::Died { .. } if !running => continue,
                Event::Died { .. } => {
                    running = false;
                    if !matches!(life.state, State::Stopping { .. }) {
                        crashes.push(now);
                    }
                }
                // Somebody says that there is nothing against it.
                Event::Restart | Event::Enable | Event::Reset => crashes.clear(),
                // Another process took this one's place.
                Event::Promoted { .. } | Event::HandedOver { .. } => crashes.clear(),
                _ => {}
            }
            let timer = matches!(event, Event::TimerFired);
            let promoted = matches!(event, Event::Promoted { .. });
            let before = life.clone();
            let (after, actions) = life.on(event, now);
            if promoted && after.state == State::Ready {
                running = true;
            }
            for action in &actions {
                match action {
                    Action::Start => {
                        prop_assert!(!running, "started while one runs: {before:?}");
                        running = true;
                        prop_assert_eq!(after.desired, Desired::Enabled, "nobody wants it: {:?}", before);
                        prop_assert!(!matches!(before.state, State::Untrusted) || after.state == State::Loading);
                        let recent = crashes.iter().filter(|at| now - **at <= WINDOW).count();
                        prop_assert!(!timer || recent <= MAX_DEATHS + 2, "{recent} deaths in a window: {before:?}");
                        if actions.contains(&Action::RollBack) {
                            crashes.clear();
                        }
                    }
                    Action::Stop | Action::Replace => prop_assert!(running),
                    Action::RollBack => prop_assert!(before.in_probation(now)),
                }
            }
            prop_assert_eq!(running, after.state.has_process(), "{:?} to {:?}", before, after);
            prop_assert!(after.recent_deaths(now) <= MAX_DEATHS);
            life = after;
        }
    }

    /// Left alone, a plugin that dies the moment it starts is started at most five times in any minute, and once per half minute after.
    #[test]
    fn a_plugin_that_dies_at_every_start_costs_a_bounded_number_of_starts(jitter in 0.0..1.0f64, lives in 0u64..10_000) {
        let mut now = Instant::now();
        let begin = now;
        let (mut life, mut starts) = (begun(), vec![now]);
        while now - begin < Duration::from_secs(600) {
            now += Duration::from_millis(lives);
            life = life.on(Event::Died { cause: Cause::Signal(6), jitter }, now).0;
            now = life.timer().expect("a crash is not final");
            let (next, actions) = life.on(Event::TimerFired, now);
            prop_assert_eq!(actions, vec![Action::Start]);
            life = next;
            starts.push(now);
        }
        for (at, first) in starts.iter().enumerate() {
            let within = starts[at..].iter().take_while(|start| **start - *first <= WINDOW).count();
            prop_assert!(within <= 7, "{within} starts within a window");
        }
    }
}
