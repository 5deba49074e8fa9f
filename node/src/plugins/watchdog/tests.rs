//! The judgement, sample by sample: what counts as a violation, how often, and what does not.

use super::*;
use proptest::prelude::*;

fn limits() -> Limits {
    Limits {
        process: ProcessLimits {
            memory: 100 << 20,
            threads: 16,
            descriptors: 64,
            cpu_seconds: None,
            file_size: 0,
        },
        budget: Budget::default(),
    }
}

fn at(start: Instant, seconds: u64) -> Sample {
    Sample {
        at: start + Duration::from_secs(seconds),
        memory: 10 << 20,
        cpu: Duration::ZERO,
        threads: 4,
        fds: Some(8),
        throttled: 0,
        refused: 0,
        lines_dropped: 0,
        link_excess: 0,
        disk: None,
    }
}

fn kinds(samples: &[Sample]) -> Vec<(&'static str, bool)> {
    let now = samples.last().expect("a sample").at;
    judge(samples, &limits(), now).iter().map(|v| (v.kind.word(), v.critical)).collect()
}

#[test]
fn a_plugin_within_its_limits_is_never_accused() {
    let start = Instant::now();
    let samples: Vec<Sample> = (0..10)
        .map(|n| Sample {
            cpu: Duration::from_secs(10 * n),
            memory: 89 << 20,
            threads: 16,
            ..at(start, 10 * n)
        })
        .collect();
    assert_eq!(kinds(&samples), []);
}

#[test]
fn each_limit_is_named_as_what_it_was() {
    let start = Instant::now();
    let second = |change: &dyn Fn(&mut Sample)| {
        let mut sample = at(start, 10);
        change(&mut sample);
        kinds(&[at(start, 0), sample])
    };
    assert_eq!(second(&|s| s.cpu = Duration::from_secs(12)), [("cpu", false)]);
    let held_back = |used: u64| second(&|s| (s.throttled, s.cpu) = (3, Duration::from_secs(used)));
    assert_eq!(held_back(9), [("cpu", false)], "the kernel lets it get no further");
    assert_eq!(held_back(1), [], "a short burst");
    assert_eq!(second(&|s| s.memory = 90 << 20), [("memory", false)]);
    assert_eq!(
        second(&|s| s.memory = 140 << 20),
        [("memory", true)],
        "more than the kernel should have given"
    );
    assert_eq!(second(&|s| s.threads = 17), [("threads", false)]);
    assert_eq!(second(&|s| s.threads = 40), [("threads", true)]);
    assert_eq!(second(&|s| s.refused = 1), [("threads", false)]);
    assert_eq!(second(&|s| s.fds = Some(64)), [("fds", false)]);
    assert_eq!(second(&|s| s.fds = None), [], "what the kernel does not say is no violation");
    assert_eq!(second(&|s| s.lines_dropped = 5), [("log_rate", false)]);
    assert_eq!(second(&|s| s.link_excess = 5), [("link_rate", false)]);
}

#[test]
fn one_kind_must_be_seen_as_often_as_the_threshold_says_and_a_critical_one_once() {
    let start = Instant::now();
    let samples: Vec<Sample> =
        (0..=10).map(|n| Sample { cpu: Duration::from_secs(20 * n), ..at(start, 10 * n) }).collect();
    let judged = |count: usize| {
        let samples = &samples[..=count];
        judge(samples, &limits(), samples[count].at)
    };
    assert_eq!(verdict(&judged(9), 10), None);
    assert_eq!(verdict(&judged(10), 10).map(|v| v.kind), Some(LimitKind::Cpu));
    let bad = [at(start, 0), Sample { fds: Some(65), ..at(start, 10) }];
    let judged = judge(&bad, &limits(), bad[1].at);
    assert_eq!(verdict(&judged, 10).map(|v| v.kind), Some(LimitKind::Fds));
}

#[test]
fn what_is_older_than_the_window_is_forgotten() {
    let start = Instant::now();
    let samples = [at(start, 0), Sample { memory: 95 << 20, ..at(start, 1) }, at(start, 2)];
    let window = limits().budget.window();
    assert_eq!(judge(&samples, &limits(), samples[2].at).len(), 1);
    assert_eq!(judge(&samples, &limits(), samples[1].at + window).len(), 1);
    assert_eq!(judge(&samples, &limits(), samples[2].at + window).len(), 0);
}

#[test]
fn a_record_counts_everything_and_keeps_a_bounded_number() {
    let record = Record::default();
    let violation =
        Violation { kind: LimitKind::Fds, at: Instant::now(), critical: false, detail: "x".into() };
    record.note(&vec![violation; 1000]);
    let value = record.violations();
    assert_eq!(value["counts"]["fds"], 1000);
    assert_eq!(value["last"].as_array().map(Vec::len), Some(KEPT));
    record.reset();
    assert_eq!(record.violations()["counts"]["fds"], 0);
}

proptest! {
    /// Whatever numbers `/proc` gives, in whatever order: no panic, and no more findings than samples times kinds.
    #[test]
    fn no_numbers_break_the_judgement(numbers in proptest::collection::vec((0u64..100, any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>()), 1..40)) {
        let start = Instant::now();
        let samples: Vec<Sample> = numbers
            .iter()
            .map(|(second, memory, cpu, count, other)| Sample {
                memory: *memory,
                cpu: Duration::from_millis(u64::from(*cpu)),
                threads: *count,
                fds: Some(*other),
                throttled: *other,
                lines_dropped: *count,
                ..at(start, *second)
            })
            .collect();
        let found = judge(&samples, &limits(), start + Duration::from_secs(100));
        prop_assert!(found.len() <= samples.len() * LimitKind::ALL.len());
        let _ = verdict(&found, 10);
    }
}

#[test]
fn a_full_disk_is_critical_at_once_and_one_that_is_nearly_full_is_nothing() {
    let start = Instant::now();
    let full = |disk| kinds(&[Sample { disk: Some(disk), ..at(start, 0) }]);
    assert_eq!(full(Budget::default().disk), []);
    assert_eq!(full(Budget::default().disk + 1), [("disk", true)]);
    assert_eq!(full(u64::MAX), [("disk", true)]);
}
