//! Promises of the ring: a queue between friends, harmless between enemies. Real memory, real threads, a real second process.
//! Under an interpreter (`cargo +nightly miri test -p thenodes-ipc ring`) the same without memfd and processes.

#[cfg(not(miri))]
mod kernel;

use super::layout::{Ring, Shared, RESTART};
use super::{Consumer, Producer, Region, RingError, CAPACITY, PIECE};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Long enough for every machine; reached only if something is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// One after the other, as good as random and the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The node's region and the runner's view of it.
fn regions() -> (Region, Region) {
    #[cfg(miri)]
    return Region::pair();
    #[cfg(not(miri))]
    {
        let (node, fd) = Region::create().expect("a region");
        (node, Region::open(&fd).expect("the same region"))
    }
}

/// The two ends of one ring.
fn down() -> (Producer, Consumer) {
    let (node, runner) = regions();
    (node.node_side().0, runner.runner_side().1)
}

/// Writes all of it, sleeping when there is no room.
fn write_all(producer: &mut Producer, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let count = producer.write(&[bytes]).expect("an honest consumer");
        if count > 0 && producer.consumer_sleeps() {
            producer.wake_consumer();
        }
        bytes = &bytes[count..];
        if !bytes.is_empty() {
            assert!(producer.wait_room(PATIENCE), "no room in time");
        }
    }
}

/// Writes until there is no room; says how much that was.
fn fill(producer: &mut Producer) -> usize {
    let all = [1; PIECE];
    std::iter::from_fn(|| {
        Some(producer.write(&[&all]).expect("an honest consumer")).filter(|count| *count > 0)
    })
    .sum()
}

/// Appends some bytes, sleeping when there are none.
fn read_some(consumer: &mut Consumer, into: &mut Vec<u8>, most: usize) {
    assert!(consumer.wait(Some(PATIENCE)), "no bytes in time");
    assert!(consumer.read(into, most).expect("an honest producer") > 0, "told of bytes, got none");
    if consumer.producer_waits() {
        consumer.wake_producer();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<usize>),
    Read(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![4 => 0..40_usize, 1 => 0..CAPACITY + 9];
    let step = prop_oneof![
        prop::collection::vec(length.clone(), 0..4).prop_map(Step::Write),
        length.prop_map(Step::Read)
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 128 }, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_order_of_writes_and_reads_is_a_queue(steps in steps()) {
        let (mut producer, mut consumer) = down();
        let (mut queue, mut numbers) = (VecDeque::new(), Numbers(1));
        for step in steps {
            match step {
                Step::Write(lengths) => {
                    let parts: Vec<Vec<u8>> =
                        lengths.iter().map(|length| (0..*length).map(|_| numbers.next() as u8).collect()).collect();
                    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                    let all = parts.concat();
                    let count = producer.write(&parts).expect("an honest consumer");
                    prop_assert_eq!(count, all.len().min(CAPACITY - queue.len()).min(PIECE));
                    queue.extend(&all[..count]);
                }
                Step::Read(most) => {
                    let mut found = vec![7];
                    let mut left = most.min(queue.len());
                    while left > 0 {
                        let count = consumer.read(&mut found, left).expect("an honest producer");
                        prop_assert!(0 < count && count <= left);
                        left -= count;
                    }
                    prop_assert_eq!(found.remove(0), 7, "what was there stays");
                    prop_assert_eq!(&found, &queue.drain(..found.len()).collect::<Vec<u8>>());
                }
            }
            prop_assert_eq!(producer.free(), Ok(CAPACITY - queue.len()));
            prop_assert_eq!(consumer.is_empty(), Ok(queue.is_empty()));
        }
    }
}

#[test]
fn a_ring_whose_bytes_are_read_soon_stays_at_its_beginning() {
    let (node, runner) = regions();
    let (mut producer, back) = node.node_side();
    let fingerprint = |shared: &Shared, from: usize| {
        shared.down.data.0[from / 8..].iter().any(|word| word.load(Ordering::Relaxed) != 0)
    };
    let raw = Region::clone_of(&runner);
    let (_, mut consumer) = runner.runner_side();
    let (frame, far) = (vec![0xff_u8; 100], RESTART as usize + 100);
    let (frame, far) = if cfg!(miri) { (frame[..10].to_vec(), 16) } else { (frame, far) };
    let mut found = Vec::new();
    for _ in 0..4 * CAPACITY / frame.len() {
        assert_eq!(producer.write(&[&frame]), Ok(frame.len()));
        found.clear();
        assert_eq!(consumer.read(&mut found, CAPACITY), Ok(frame.len()));
        assert_eq!(found, frame);
    }
    assert!(!fingerprint(raw.raw(), far.next_multiple_of(8)), "bytes were written far from the beginning");
    // And the control: one that is never empty goes all the way.
    assert_eq!(producer.write(&[&frame]), Ok(frame.len()));
    for _ in 0..2 * CAPACITY / frame.len() {
        assert_eq!(producer.write(&[&frame]), Ok(frame.len()));
        assert_eq!(consumer.read(&mut found, frame.len()), Ok(frame.len()));
    }
    assert!(fingerprint(raw.raw(), CAPACITY - frame.len()));
    drop(back);
}

#[test]
fn a_sleep_is_told_once_and_only_if_nothing_came() {
    let (mut producer, mut consumer) = down();
    assert!(!producer.consumer_sleeps(), "nobody sleeps yet");
    assert!(consumer.sleep_announced());
    assert_eq!(producer.write(&[b"x"]), Ok(1));
    assert!(producer.consumer_sleeps());
    assert!(!producer.consumer_sleeps(), "once per sleep");
    assert!(!consumer.sleep_announced(), "there is a byte");
    assert!(!producer.consumer_sleeps(), "and nothing was announced");

    assert!(!producer.want_room(), "there is room");
    assert_eq!(fill(&mut producer), CAPACITY - 1);
    assert!(producer.want_room());
    assert_eq!(consumer.read(&mut Vec::new(), 1), Ok(1));
    assert!(consumer.producer_waits());
    assert!(!consumer.producer_waits(), "once per sleep");
    assert!(!producer.want_room(), "there is room again");
}

#[test]
fn a_wait_ends_with_its_time_and_leaves_no_announcement() {
    let (mut producer, mut consumer) = down();
    assert!(!consumer.wait(Some(Duration::from_millis(1))));
    assert!(!producer.consumer_sleeps());
    assert_eq!(fill(&mut producer), CAPACITY);
    assert!(!producer.wait_room(Duration::from_millis(1)));
    assert!(!consumer.producer_waits());
    assert!(consumer.wait(Some(Duration::MAX)), "a time too long for the clock is no error");
}

#[test]
fn a_look_for_room_ends_with_its_time_or_with_room() {
    let (mut producer, mut consumer) = down();
    assert_eq!(fill(&mut producer), CAPACITY);
    for time in [Duration::ZERO, Duration::from_micros(50)] {
        assert!(!producer.look_for_room(time));
        assert!(!consumer.producer_waits(), "a look is no sleep");
    }
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| producer.look_for_room(PATIENCE));
        assert_eq!(consumer.read(&mut Vec::new(), 1), Ok(1));
        assert!(looking.join().expect("it looks"));
    });
    assert_eq!(producer.write(&[b"xy"]), Ok(1));
}

#[test]
fn a_close_is_seen_by_the_other_side_and_cannot_be_taken_back_by_it() {
    let (node, runner) = regions();
    let (producer, consumer) = node.node_side();
    let word = &runner.raw().closed.0;
    word.store(1, Ordering::Relaxed);
    assert!(producer.closed() && consumer.closed());
    word.store(0, Ordering::Relaxed);
    assert!(!producer.closed(), "what the other side closed it may take back, to its own harm");
    consumer.close();
    assert_eq!(word.load(Ordering::Relaxed), 1);
    word.store(0, Ordering::Relaxed);
    assert!(producer.closed() && consumer.closed(), "what we closed stays closed");
}

#[test]
fn whoever_sleeps_hears_the_close() {
    let (node, runner) = regions();
    let ((down, _back), (mut up, mut consumer)) = (node.node_side(), runner.runner_side());
    assert_eq!(fill(&mut up), CAPACITY);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || consumer.wait(None));
        let writer = scope.spawn(move || up.wait_room(PATIENCE));
        down.close();
        assert!(!reader.join().expect("the reader"));
        assert!(!writer.join().expect("the writer"));
    });
}

#[test]
fn an_index_that_cannot_be_is_named() {
    let index = |whose, seen, least, most| RingError::Index { whose, seen, least, most };
    let capacity = CAPACITY as u64;

    let (node, runner) = regions();
    let (mut producer, mut consumer) = node.node_side();
    let Shared { down, up, .. } = runner.raw();
    assert_eq!(producer.write(&[b"abcd"]), Ok(4));
    down.tail.0.store(5, Ordering::Relaxed);
    assert_eq!(producer.free(), Err(index("consumer", 5, 0, 4)), "read what was never written");
    down.tail.0.store(3, Ordering::Relaxed);
    assert_eq!(producer.free(), Ok(CAPACITY - 1));
    down.tail.0.store(2, Ordering::Relaxed);
    assert_eq!(producer.free(), Err(index("consumer", 2, 3, 4)), "went back");
    let mut written = 4;
    let error = std::iter::repeat_with(|| producer.write(&[&[0; PIECE]]).inspect(|count| written += count))
        .take(CAPACITY)
        .find_map(Result::err);
    assert!(
        matches!(error, Some(RingError::Index { whose: "consumer", seen: 2, least: 3, .. })),
        "{error:?}"
    );
    assert!(written <= CAPACITY, "the write that has to look names it: {written}");

    up.head.0.index.store(capacity + 1, Ordering::Relaxed);
    let mut found = Vec::new();
    assert_eq!(consumer.read(&mut found, 9), Err(index("producer", capacity + 1, 0, capacity)));
    up.head.0.index.store(u64::MAX, Ordering::Relaxed);
    assert!(!consumer.sleep_announced(), "an error to fetch is no sleep");
    assert_eq!(consumer.is_empty(), Err(index("producer", u64::MAX, 0, capacity)));
    up.head.0.index.store(3, Ordering::Relaxed);
    assert_eq!(consumer.read(&mut found, 9), Ok(3));
    up.head.0.index.store(2, Ordering::Relaxed);
    let error = consumer.read(&mut found, 9).expect_err("went back");
    assert!(
        error.to_string().contains("producer's index of the ring: it says 2, possible is 3 to"),
        "{error}"
    );
    assert_eq!(found.len(), 3, "nothing is appended with an error");
}

#[test]
fn what_a_side_publishes_it_never_reads_back() {
    let (node, runner) = regions();
    let (mut producer, mut consumer) = node.node_side();
    let Shared { down, up, .. } = runner.raw();
    down.head.0.index.store(77, Ordering::Relaxed);
    up.tail.0.store(77, Ordering::Relaxed);
    assert_eq!(producer.write(&[b"abc"]), Ok(3));
    assert_eq!(down.head.0.index.load(Ordering::Relaxed), 3);
    assert_eq!(producer.free(), Ok(CAPACITY - 3));
    up.head.0.index.store(2, Ordering::Relaxed);
    assert_eq!(consumer.read(&mut Vec::new(), 9), Ok(2));
    assert_eq!(up.tail.0.load(Ordering::Relaxed), 2);
}

/// Writes garbage into every word until told to stop; indices are often almost right, because those do most.
fn vandalize(shared: &Shared, done: &AtomicBool) {
    let mut numbers = Numbers(99);
    let index = |word: &std::sync::atomic::AtomicU64, numbers: &mut Numbers| {
        let near = word.load(Ordering::Relaxed).wrapping_add(numbers.next() % (CAPACITY as u64 / 8));
        let value = match numbers.next() % 64 {
            0 => numbers.next(),
            1 => word.load(Ordering::Relaxed).wrapping_sub(1),
            2 => 0,
            _ => near,
        };
        word.store(value, Ordering::Relaxed);
    };
    while !done.load(Ordering::Relaxed) {
        for Ring { head, tail, consumer, producer, data } in [&shared.down, &shared.up] {
            index(&head.0.index, &mut numbers);
            index(&head.0.start, &mut numbers);
            // Where the producer is, or somewhere: an honest-looking consumer lets the producer go on.
            match numbers.next() % 4 {
                0 => index(&tail.0, &mut numbers),
                _ => tail.0.store(head.0.index.load(Ordering::Relaxed), Ordering::Relaxed),
            }
            consumer.word().store(numbers.next() as u32, Ordering::Relaxed);
            producer.word().store(numbers.next() as u32 % 2, Ordering::Relaxed);
            data.0[numbers.next() as usize % data.0.len()].store(numbers.next(), Ordering::Relaxed);
        }
        shared.closed.0.store(u32::from(numbers.next().is_multiple_of(8)), Ordering::Relaxed);
        std::thread::yield_now();
    }
}

/// What the honest side saw.
#[derive(Debug, Default)]
struct Seen {
    written: usize,
    read: usize,
    errors: usize,
}

/// One round of every call; each ends, does at most what it says, and keeps its word about progress.
fn round(producer: &mut Producer, consumer: &mut Consumer, numbers: &mut Numbers, seen: &mut Seen) {
    let bytes = vec![1; numbers.next() as usize % (CAPACITY / 16)];
    match producer.write(&[&bytes, &bytes]) {
        Ok(count) => {
            assert!(count <= 2 * bytes.len());
            seen.written += count;
        }
        Err(error) => {
            assert!(matches!(error, RingError::Index { whose: "consumer", .. }), "{error}");
            seen.errors += 1;
        }
    }
    if producer.consumer_sleeps() {
        producer.wake_consumer();
    }
    if !producer.want_room() {
        assert_ne!(producer.write(&[b"x"]), Ok(0), "told of room");
    }
    producer.had_room();

    let mut found = Vec::new();
    let told = !consumer.sleep_announced();
    let most = 1 + numbers.next() as usize % CAPACITY;
    match consumer.read(&mut found, most) {
        Ok(count) => {
            assert!(count == found.len() && count <= most && (!told || count > 0));
            seen.read += count;
        }
        Err(error) => {
            assert!(matches!(error, RingError::Index { whose: "producer", .. }), "{error}");
            assert!(found.is_empty());
            seen.errors += 1;
        }
    }
    consumer.awake();
    if consumer.is_empty() == Ok(false) {
        assert_ne!(consumer.read(&mut found, most), Ok(0), "told of bytes");
    }
    if consumer.producer_waits() {
        consumer.wake_producer();
    }
    let _ = (producer.closed(), consumer.closed());
}

#[test]
fn garbage_in_every_shared_word_harms_nobody() {
    let (links, rounds) = if cfg!(miri) { (2, 20) } else { (100, 40) };
    let mut seen = Seen::default();
    for link in 1..=links {
        let (node, runner) = regions();
        let (mut producer, mut consumer) = node.node_side();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| vandalize(runner.raw(), &done));
            // Told even if an assertion ends the rounds, or the scope would wait for ever.
            let stop = Stop(&done);
            let mut numbers = Numbers(link);
            for _ in 0..rounds {
                round(&mut producer, &mut consumer, &mut numbers, &mut seen);
                std::thread::yield_now();
            }
            consumer.wait(Some(Duration::from_millis(1)));
            producer.wait_room(Duration::from_millis(1));
            drop(stop);
        });
    }
    assert!(seen.written > 0, "the vandal must not be so wild that nothing is written: {seen:?}");
    assert!(cfg!(miri) || (seen.read > 0 && seen.errors > 0), "both must happen: {seen:?}");
}

/// Sets a flag at the end of a scope, however it ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn two_threads_exchange_bytes_and_sleep() {
    let total = if cfg!(miri) { 2_000 } else { 5_000_000 };
    let (mut producer, mut consumer) = down();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut numbers, mut left) = (Numbers(5), total);
            while left > 0 {
                let size = left.min(1 + numbers.next() as usize % (CAPACITY / 3));
                let bytes: Vec<u8> = (0..size).map(|at| (left - at) as u8).collect();
                write_all(&mut producer, &bytes);
                left -= size;
            }
        });
        let (mut numbers, mut left, mut found) = (Numbers(6), total, Vec::new());
        while left > 0 {
            found.clear();
            read_some(&mut consumer, &mut found, 1 + numbers.next() as usize % CAPACITY);
            assert!(found.iter().enumerate().all(|(at, byte)| *byte == (left - at) as u8));
            left -= found.len();
        }
    });
}
