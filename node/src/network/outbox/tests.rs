//! What waits for one peer: bounds, order, what comes back, and who is woken.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

fn o() -> Arc<str> {
    "o".into()
}

fn frame(sequence: u64) -> Arc<Frame> {
    let line = format!("{sequence}\n").into_bytes().into_boxed_slice();
    Arc::new(Frame {
        origin: "o".into(),
        from: "o".into(),
        target: "t".into(),
        sequence: Some(sequence),
        line,
        expires: 0,
        wants: Default::default(),
    })
}

fn next(outbox: &Outbox) -> Poll<Next> {
    outbox.poll_next(&mut Context::from_waker(Waker::noop()), &mut Vec::new())
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_writer_that_rests_is_woken_and_one_that_looks_here_anyway_is_not() {
    for attends in [false, true] {
        let (outbox, woken) = (Outbox::new(Instant::now()), Arc::<Woken>::default());
        let waker = Waker::from(woken.clone());
        let look = || outbox.poll_next(&mut Context::from_waker(&waker), &mut Vec::new());
        assert_eq!(look(), Poll::Pending);
        if attends {
            outbox.attend();
        }
        assert_eq!(outbox.own(b"a\n"), Put::Queued);
        assert_ne!(woken.0.load(Ordering::Relaxed), attends);
        assert_eq!(look(), Poll::Ready(Next::Lines(b"a\n".to_vec())));
        // From its next rest on it is woken again.
        assert_eq!((look(), outbox.own(b"b\n")), (Poll::Pending, Put::Queued));
        assert!(woken.0.load(Ordering::Relaxed));
    }
}

#[test]
fn what_gathers_goes_out_at_once_and_what_is_beyond_the_bound_is_refused() {
    let outbox = Outbox::new(Instant::now());
    assert_eq!((outbox.own(b"a\n"), outbox.relayed(&o(), b"b\n")), (Put::Queued, Put::Queued));
    assert_eq!(next(&outbox), Poll::Ready(Next::Lines(b"a\nb\n".to_vec())));
    assert_eq!(outbox.relayed(&o(), &[b'x'; RELAYED_BYTES]), Put::Queued, "what is written waits still");
    assert_eq!((outbox.relayed(&o(), b"c\n"), outbox.own(b"d\n")), (Put::Full, Put::Queued));
    assert!(outbox.waiting() <= RELAYED_BYTES + 8);
}

#[test]
fn a_peer_that_takes_nothing_is_stalled_until_it_takes_something() {
    let outbox = Outbox::new(Instant::now());
    assert_eq!(outbox.relayed(&o(), &[b'x'; RELAYED_BYTES + 1]), Put::Queued);
    outbox.lock().progress = Instant::now() - STALLED;
    assert_eq!(outbox.relayed(&o(), b"y\n"), Put::Stalled);
    assert!(next(&outbox).is_ready());
    outbox.wrote(1, Instant::now());
    assert_eq!(outbox.relayed(&o(), b"y\n"), Put::Full);
    outbox.wrote(RELAYED_BYTES, Instant::now());
    assert_eq!(outbox.relayed(&o(), b"y\n"), Put::Queued);
}

#[test]
fn frames_that_were_not_written_come_back_in_order() {
    let now = Instant::now();
    let outbox = Outbox::new(now);
    outbox.begin((1..=4).map(frame).collect(), false, now);
    assert!(next(&outbox).is_ready());
    outbox.wrote(4, now);
    let left: Vec<_> = outbox.end().kept.iter().filter_map(|frame| frame.sequence).collect();
    assert_eq!(left, [3, 4]);
    assert_eq!(outbox.own(b"x\n"), Put::Gone);
}

#[test]
fn a_frame_is_sent_again_until_it_is_acknowledged_or_given_up() {
    let now = Instant::now();
    let outbox = Outbox::new(now);
    assert_eq!(outbox.keep(&frame(1), true, now), Put::Queued);
    assert_eq!(outbox.keep(&frame(2), true, now), Put::Queued);
    assert!(next(&outbox).is_ready());
    outbox.wrote(4, now);
    assert!(outbox.acknowledged("o", 2) && !outbox.acknowledged("o", 2) && !outbox.acknowledged("x", 1));
    let mut later = now;
    for _ in 0..RESENDS {
        later += RESEND;
        assert!(outbox.resend(later).is_empty());
        assert_eq!(next(&outbox), Poll::Ready(Next::Lines(b"1\n".to_vec())));
        outbox.wrote(2, later);
    }
    let lost = outbox.resend(later + RESEND);
    assert_eq!(lost.iter().filter_map(|frame| frame.sequence).collect::<Vec<_>>(), [1]);
    assert!(outbox.end().kept.is_empty());
}

#[test]
fn whose_frames_were_not_written_hears_of_it_and_nobody_else() {
    let outbox = Outbox::new(Instant::now());
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    for (origin, line) in [(&a, b"1\n"), (&a, b"2\n"), (&b, b"3\n")] {
        assert_eq!(outbox.relayed(origin, line), Put::Queued);
    }
    assert!(next(&outbox).is_ready());
    outbox.wrote(4, Instant::now());
    let left: Vec<_> = outbox.end().origins.iter().map(ToString::to_string).collect();
    assert_eq!(left, ["b"]);
}

#[test]
fn bytes_of_frames_without_acknowledgement_are_bounded_and_a_mute_peer_gets_nothing_twice() {
    let now = Instant::now();
    let outbox = Outbox::new(now);
    let large = |n| {
        let line = vec![b'x'; 200 * 1024].into_boxed_slice();
        Arc::new(Frame { line, ..Arc::into_inner(frame(n)).expect("the only one") })
    };
    let mut kept = 0;
    while outbox.keep(&large(kept), true, now) == Put::Queued {
        kept += 1;
        outbox.wrote_all();
    }
    assert!((5..=6).contains(&kept), "{kept}");
    assert_eq!(outbox.keep(&large(99), true, now + STALLED), Put::Stalled);
    for round in 1..=20 {
        assert!(outbox.resend(now + RESEND * round).is_empty());
    }
    assert!(outbox.waiting() <= RELAYED_BYTES + 200 * 1024, "{}", outbox.waiting());
}
