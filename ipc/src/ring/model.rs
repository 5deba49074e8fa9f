//! Every order in which two threads may use a ring, tried by loom (`cargo xtask model`). loom follows the memory model, so a
//! missing fence shows here and not once a month on somebody's machine. The ring is 8 bytes small: one word, always at its end.
//!
//! One thing loom cannot show: a load that is carried out after a later store. That is what release and acquire on `tail` are
//! for (the copy out, and the load of `start`, are over before their place is free), so those rest on the argument in `layout.rs` alone.
//! Pieces are as long as the ring here.

use super::{Consumer, Producer, Region};
use loom::thread;
use std::time::Duration;

/// Two preemptions find what a missing fence does; three are tried, four take hours.
fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(3));
    builder.check(f);
}

/// The node's producer and the runner's consumer of one ring.
fn down() -> (Producer, Consumer) {
    let (node, runner) = Region::pair();
    (node.node_side().0, runner.runner_side().1)
}

fn write_all(producer: &mut Producer, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let count = producer.write(&[bytes]).expect("an honest consumer");
        bytes = &bytes[count..];
        if count > 0 && producer.consumer_sleeps() {
            producer.wake_consumer();
        }
        if !bytes.is_empty() {
            assert!(producer.wait_room(Duration::MAX), "nobody closes here");
        }
    }
}

fn read_all(consumer: &mut Consumer, expected: &[u8]) {
    let mut found = Vec::new();
    while found.len() < expected.len() {
        assert!(consumer.wait(None), "nobody closes here");
        assert!(consumer.read(&mut found, 8).expect("an honest producer") > 0);
        if consumer.producer_waits() {
            consumer.wake_producer();
        }
    }
    assert_eq!(found, expected);
}

#[test]
fn bytes_come_out_as_they_went_in_whoever_is_faster() {
    model(|| {
        let (mut producer, mut consumer) = down();
        let writer = thread::spawn(move || {
            let mut written = 0;
            for part in [&b"abcde"[..], b"fgh", b"ijk"] {
                let count = producer.write(&[part]).expect("an honest consumer");
                written += count;
                if count < part.len() {
                    break;
                }
            }
            written
        });
        let mut found = Vec::new();
        for most in [2, 8, 8] {
            consumer.read(&mut found, most).expect("an honest producer");
        }
        assert!(b"abcdefghijk".starts_with(&found), "{found:?}");
        let written = writer.join().expect("the writer");
        while consumer.read(&mut found, 8).expect("an honest producer") > 0 {}
        assert_eq!(found, b"abcdefghijk"[..written]);
    });
}

#[test]
fn no_wake_up_of_a_consumer_is_lost() {
    model(|| {
        let (mut producer, mut consumer) = down();
        let writer = thread::spawn(move || {
            write_all(&mut producer, b"ab");
            write_all(&mut producer, b"c");
        });
        read_all(&mut consumer, b"abc");
        writer.join().expect("the writer");
    });
}

#[test]
fn a_producer_that_waits_for_room_gets_it() {
    model(|| {
        let (mut producer, mut consumer) = down();
        assert_eq!(producer.write(&[b"abcdefgh"]), Ok(8));
        let writer = thread::spawn(move || write_all(&mut producer, b"ij"));
        read_all(&mut consumer, b"abcdefghij");
        writer.join().expect("the writer");
    });
}

#[test]
fn two_that_wait_for_each_other_both_go_on() {
    model(|| {
        let (mut producer, mut consumer) = down();
        let writer = thread::spawn(move || write_all(&mut producer, b"abcdefghijklmnopq"));
        read_all(&mut consumer, b"abcdefghijklmnopq");
        writer.join().expect("the writer");
    });
}

#[test]
fn a_close_ends_every_wait() {
    model(|| {
        let (node, runner) = Region::pair();
        let ((down, _back), (mut up, mut consumer)) = (node.node_side(), runner.runner_side());
        assert_eq!(up.write(&[b"abcdefgh"]), Ok(8));
        let closer = thread::spawn(move || down.close());
        let writer = thread::spawn(move || assert!(!up.wait_room(Duration::MAX)));
        assert!(!consumer.wait(None));
        assert!(consumer.closed());
        closer.join().expect("the closer");
        writer.join().expect("the writer");
    });
}

#[test]
fn bytes_before_a_close_are_read() {
    model(|| {
        let (mut producer, mut consumer) = down();
        let writer = thread::spawn(move || {
            write_all(&mut producer, b"last");
            producer.close();
        });
        let mut found = Vec::new();
        while consumer.wait(None) {
            assert!(consumer.read(&mut found, 8).expect("an honest producer") > 0);
        }
        // The word of the end says nothing about order: whoever sees it reads once more.
        writer.join().expect("the writer");
        consumer.read(&mut found, 8).expect("an honest producer");
        assert_eq!(found, b"last");
    });
}
