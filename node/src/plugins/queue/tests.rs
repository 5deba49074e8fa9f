//! What each policy does with more messages than fit, at a plugin that takes none.

use super::*;
use thenodes_ipc::PluginName;
use tokio::sync::Semaphore;

const MORE: usize = 10;

fn queue(overflow: Overflow) -> Queue {
    let logs = Arc::new(LogBook::new(PluginName::new("x").expect("a name"), 1));
    Queue::new(overflow, Arc::default(), logs)
}

fn numbered(number: usize, hold: Option<Hold>) -> Delivery {
    Delivery { body: Bytes::from(number.to_string()), ack: None, hold, given_up: None }
}

fn waiting(queue: &Queue) -> Vec<usize> {
    let state = queue.lock();
    let number = |delivery: &Delivery| String::from_utf8_lossy(&delivery.body).parse().expect("a number");
    state.waiting.iter().map(number).collect()
}

fn dropped(queue: &Queue) -> u64 {
    queue.counters.dropped.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn drop_newest_keeps_the_first_and_drop_oldest_the_last() {
    for (overflow, first) in [(Overflow::DropNewest, 0), (Overflow::DropOldest, MORE)] {
        let queue = queue(overflow);
        for number in 0..limits::PLUGIN_QUEUE + MORE {
            queue.deliver(numbered(number, None));
        }
        let kept: Vec<usize> = (first..first + limits::PLUGIN_QUEUE).collect();
        assert_eq!(waiting(&queue), kept, "{}", overflow.word());
        assert_eq!(dropped(&queue), MORE as u64);
        let bytes = kept.iter().map(|number| number.to_string().len()).sum::<usize>();
        assert_eq!(queue.waiting(), (limits::PLUGIN_QUEUE, bytes));
    }
}

#[test]
fn who_is_dropped_and_asked_to_hear_of_it_hears_of_it() {
    let queue = queue(Overflow::DropOldest);
    let (ack, mut answer) = oneshot::channel();
    queue.deliver(Delivery { body: Bytes::from("0"), ack: Some(ack), hold: None, given_up: None });
    for number in 1..=limits::PLUGIN_QUEUE {
        queue.deliver(numbered(number, None));
    }
    let error = answer.try_recv().expect("answered").expect_err("dropped");
    assert_eq!(error.code, Code::ResourceExhausted);
}

#[test]
fn block_peer_drops_nothing_that_holds_room_and_gives_the_room_back_when_nobody_will_take_it() {
    const ALL: usize = limits::PLUGIN_QUEUE + MORE;
    let queue = queue(Overflow::BlockPeer);
    let room = Arc::new(Semaphore::new(ALL));
    for number in 0..ALL {
        let permit = Arc::new(room.clone().try_acquire_owned().expect("room"));
        queue.deliver(numbered(number, Some(Arc::new(permit))));
    }
    assert_eq!((waiting(&queue).len(), dropped(&queue)), (ALL, 0));
    assert_eq!(room.available_permits(), 0, "whoever sends more waits");
    queue.deliver(numbered(ALL, None));
    assert_eq!(dropped(&queue), 1, "what holds nobody is bounded as ever");
    queue.let_go();
    assert_eq!(room.available_permits(), ALL, "a plugin that is given up holds up nobody");
    assert_eq!((waiting(&queue), dropped(&queue)), ((0..limits::PLUGIN_QUEUE).collect(), 1 + MORE as u64));
}

#[test]
fn room_that_several_plugins_hold_is_given_back_by_the_last() {
    let (one, other) = (queue(Overflow::BlockPeer), queue(Overflow::BlockPeer));
    let room = Arc::new(Semaphore::new(1));
    let permit = Arc::new(room.clone().try_acquire_owned().expect("room"));
    one.deliver(numbered(0, Some(Arc::new(permit.clone()))));
    other.deliver(numbered(0, Some(Arc::new(permit))));
    one.let_go();
    assert_eq!(room.available_permits(), 0);
    other.let_go();
    assert_eq!(room.available_permits(), 1);
}

#[test]
fn a_plugin_has_no_more_messages_at_once_than_it_is_soon_done_with() {
    let (soon, late) = (limits::SOON, 2 * limits::SOON + Duration::from_millis(1));
    let after = |ages: &[Duration]| ages.iter().fold(32, |now, age| window(now, true, *age));
    assert_eq!(after(&[soon; 2]), 128);
    assert_eq!(after(&[soon; 9]), limits::MAX_MESSAGES_AT_ONCE);
    assert_eq!(after(&[soon, soon, late]), 64);
    assert_eq!(after(&[late; 9]), limits::MAX_MESSAGES_TO_PLUGIN);
    assert_eq!(window(32, false, Duration::ZERO), limits::MAX_MESSAGES_TO_PLUGIN, "one call each");
}
