//! Messages that ask for an acknowledgement, as they arrive: which are new, which were taken before, which wait for an earlier one.
//! What is remembered is kept under the sender that the connection proves, bounded, and forgotten in time. Nothing here stalls: a
//! sender that begins to count anew is followed, and a gap is given up when its message cannot come any more. Pure; time is an argument.

use crate::config::Deliveries;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};
use thenodes::network::message::{DeliveryClass, DeliveryMetadata};

/// Senders that are remembered; the one that was silent longest is forgotten first.
const MAX_SENDERS: usize = 1024;
/// Messages remembered of one sender.
const MAX_IDS: usize = 4096;
/// And of all.
const MAX_ALL: usize = 262_144;
/// Ordered streams of one sender.
const MAX_STREAMS: usize = 256;

/// What is to be done with a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<T> {
    /// Take it, and say what became of it with [`Receiver::finished`].
    Take(T),
    /// It was taken before: acknowledge it again.
    Duplicate,
    /// It is in hand, and will be acknowledged then.
    InHand,
    /// It waits for an earlier one.
    Waits,
    /// No room, or too late; its sender may try again.
    Refused,
}

struct Stream<T> {
    /// The number that is in hand, or comes next.
    next: u64,
    in_hand: bool,
    waiting: BTreeMap<u64, (u64, T)>,
    /// Their weight.
    parked: usize,
    /// Since when the next one is missing.
    gap: Option<Instant>,
    /// Since when numbers come that were passed already.
    low: Option<Instant>,
    last: Instant,
}

struct Sender<T> {
    /// Whether each message is taken, by a hash of its id.
    ids: HashMap<u64, bool>,
    /// Those that were taken, in that order.
    order: VecDeque<(u64, Instant)>,
    streams: HashMap<String, Stream<T>>,
    last: Instant,
}

/// Longest ordering key, bytes.
const MAX_KEY: usize = 256;
/// What may wait for earlier messages: of one sender, and of all; bytes once parsed.
const PARKED: usize = 4 * 1024 * 1024;
const PARKED_IN_ALL: usize = 32 * 1024 * 1024;
/// Senders that relays speak of.
const MAX_RELAYED: usize = 512;

/// Something that may have to wait.
pub trait Parks {
    /// What it takes, bytes.
    fn weight(&self) -> usize;
    /// It waits from now on: whatever it holds beside itself is to be let go.
    fn park(&mut self);
}

/// What is remembered of all senders. `T` is what waits.
pub struct Receiver<T> {
    config: Deliveries,
    hasher: RandomState,
    senders: HashMap<String, Sender<T>>,
    all: usize,
    /// Weight of all that waits.
    parked: usize,
}

impl<T: Parks> Receiver<T> {
    /// Remembers nothing yet.
    pub fn new(config: Deliveries) -> Self {
        Self { config, hasher: RandomState::new(), senders: HashMap::new(), all: 0, parked: 0 }
    }

    /// A message that is missing cannot come any more after so long: its sender has tried as often as it does.
    fn gap(&self) -> Duration {
        self.config.retry * (self.config.ordered_retries + 1)
    }

    /// True if this sender's message was taken already.
    pub fn knows(&self, sender: &str, message_id: &str) -> bool {
        let id = self.hasher.hash_one(message_id);
        self.senders.get(sender).is_some_and(|sender| sender.ids.get(&id) == Some(&true))
    }

    /// Judges a message.
    pub fn admit(&mut self, from: &str, about: &DeliveryMetadata, mut item: T, now: Instant) -> Admission<T> {
        if about.ordering_key.as_ref().is_some_and(|key| key.len() > MAX_KEY) {
            return Admission::Refused;
        }
        let id = self.hasher.hash_one(&about.message_id);
        if !self.senders.contains_key(from) || self.all >= MAX_ALL {
            self.make_room(from);
        }
        let parked_by_all = self.parked;
        let patience = self.config.retry * 2;
        let (buffered, window) = (self.config.buffered, self.config.dedup);
        let sender = self.senders.entry(from.to_owned()).or_insert_with(|| Sender {
            ids: HashMap::new(),
            order: VecDeque::new(),
            streams: HashMap::new(),
            last: now,
        });
        sender.last = now;
        self.all -= sender.forget(now, window);
        match sender.ids.get(&id) {
            Some(true) => return Admission::Duplicate,
            Some(false) => return Admission::InHand,
            None => {}
        }
        let place = match (about.class, &about.ordering_key, about.ordering_sequence) {
            (DeliveryClass::OrderedReliable, Some(key), Some(sequence)) => Some((key, sequence)),
            _ => None,
        };
        if let Some((key, sequence)) = place {
            if !sender.streams.contains_key(key) {
                if !sender.make_room_for_stream() {
                    return Admission::Refused;
                }
                let begins = Stream {
                    // One that begins later is one whose beginning we do not remember: what comes first may not be the first.
                    next: if sequence == 1 { 1 } else { 0 },
                    in_hand: false,
                    waiting: BTreeMap::new(),
                    parked: 0,
                    gap: None,
                    low: None,
                    last: now,
                };
                sender.streams.insert(key.clone(), begins);
            }
            let Some(stream) = sender.streams.get_mut(key) else { return Admission::Refused };
            stream.last = now;
            if stream.next == 0 && sequence == 1 {
                stream.next = 1; // the beginning, after all
            }
            let begins_anew = sequence < stream.next
                && (sequence == 1
                    || stream.low.is_some_and(|since| now.saturating_duration_since(since) >= patience));
            if begins_anew && !stream.in_hand {
                // What waited belongs to a count that is over; its sender will not ask again.
                let gone = std::mem::take(&mut stream.waiting);
                self.parked -= std::mem::take(&mut stream.parked);
                (stream.next, stream.gap, stream.low) = (sequence, None, None);
                for (id, _) in gone.values() {
                    sender.ids.remove(id);
                    self.all -= 1;
                }
            }
            let parked_by_sender: usize = sender.streams.values().map(|stream| stream.parked).sum();
            let Some(stream) = sender.streams.get_mut(key) else { return Admission::Refused };
            if sequence < stream.next {
                stream.low.get_or_insert(now);
                return Admission::Refused;
            }
            if sequence > stream.next || stream.in_hand {
                if sequence == stream.next
                    || stream.waiting.len() >= buffered
                    || stream.waiting.contains_key(&sequence)
                {
                    return Admission::Refused;
                }
                let weight = item.weight();
                if parked_by_sender + weight > PARKED || parked_by_all + weight > PARKED_IN_ALL {
                    return Admission::Refused;
                }
                if !stream.in_hand {
                    stream.gap.get_or_insert(now);
                }
                item.park();
                stream.parked += weight;
                self.parked += weight;
                stream.waiting.insert(sequence, (id, item));
                sender.ids.insert(id, false);
                self.all += 1;
                return Admission::Waits;
            }
            (stream.in_hand, stream.low) = (true, None);
        }
        sender.ids.insert(id, false);
        self.all += 1;
        Admission::Take(item)
    }

    /// A message that was to be taken was taken, or not. The next of its stream, if it waits.
    pub fn finished(&mut self, from: &str, about: &DeliveryMetadata, taken: bool, now: Instant) -> Option<T> {
        let id = self.hasher.hash_one(&about.message_id);
        let sender = self.senders.get_mut(from)?;
        sender.last = now;
        if taken {
            self.all += usize::from(sender.ids.insert(id, true).is_none());
            sender.order.push_back((id, now));
            if sender.order.len() > MAX_IDS {
                if let Some((oldest, _)) = sender.order.pop_front() {
                    self.all -= usize::from(sender.ids.remove(&oldest).is_some());
                }
            }
        } else {
            self.all -= usize::from(sender.ids.remove(&id).is_some());
        }
        let stream = sender.streams.get_mut(about.ordering_key.as_ref()?)?;
        if !stream.in_hand || about.ordering_sequence != Some(stream.next) {
            return None;
        }
        stream.in_hand = false;
        stream.last = now;
        if taken {
            stream.next = stream.next.saturating_add(1);
        }
        let before = stream.parked;
        let next = stream.go_on(now);
        self.parked -= before - stream.parked;
        next
    }

    /// What need not wait any longer: messages behind one that cannot come any more.
    pub fn sweep(&mut self, now: Instant) -> Vec<T> {
        let (gap, window) = (self.gap(), self.config.dedup);
        let mut ready = Vec::new();
        for sender in self.senders.values_mut() {
            self.all -= sender.forget(now, window);
            for stream in sender.streams.values_mut() {
                let over = stream.gap.is_some_and(|since| now.saturating_duration_since(since) >= gap);
                if over && !stream.in_hand {
                    if let Some(first) = stream.waiting.keys().next() {
                        stream.next = *first;
                    }
                    let before = stream.parked;
                    ready.extend(stream.go_on(now));
                    self.parked -= before - stream.parked;
                }
            }
            sender.streams.retain(|_, stream| {
                stream.in_hand
                    || !stream.waiting.is_empty()
                    || now.saturating_duration_since(stream.last) < window
            });
        }
        self.senders.retain(|_, sender| {
            !sender.ids.is_empty()
                || !sender.streams.is_empty()
                || now.saturating_duration_since(sender.last) < gap
        });
        ready
    }

    /// Forgets whoever was silent longest; of names that relays speak of, which cost nothing, first those.
    fn make_room(&mut self, newcomer: &str) {
        let behind = |from: &str| from.split_once(' ').map(|(relay, _)| relay.to_owned());
        if let Some(relay) = behind(newcomer) {
            let of_relay = |from: &String| behind(from).as_deref() == Some(&*relay);
            if self.senders.keys().filter(|from| of_relay(from)).count() >= MAX_RELAYED {
                let silent = self.senders.iter().filter(|(from, _)| of_relay(from));
                let silent = silent.min_by_key(|(_, sender)| sender.last).map(|(from, _)| from.clone());
                self.forget(silent);
            }
        }
        while self.senders.len() >= MAX_SENDERS || self.all >= MAX_ALL {
            let silent =
                self.senders.iter().min_by_key(|(_, sender)| sender.last).map(|(from, _)| from.clone());
            if !self.forget(silent) {
                break;
            }
        }
    }

    fn forget(&mut self, from: Option<String>) -> bool {
        let Some(sender) = from.and_then(|from| self.senders.remove(&from)) else { return false };
        self.all -= sender.ids.len();
        self.parked -= sender.streams.values().map(|stream| stream.parked).sum::<usize>();
        true
    }
}

impl<T: Parks> Stream<T> {
    fn go_on(&mut self, now: Instant) -> Option<T> {
        match self.waiting.remove(&self.next) {
            Some((_, item)) => {
                self.parked -= item.weight();
                (self.in_hand, self.gap) = (true, None);
                Some(item)
            }
            None => {
                self.gap = (!self.waiting.is_empty()).then_some(now);
                None
            }
        }
    }
}

impl<T> Sender<T> {
    /// Forgets what was taken too long ago; how many.
    fn forget(&mut self, now: Instant, window: Duration) -> usize {
        let mut count = 0;
        while let Some((id, _)) =
            self.order.front().filter(|(_, since)| now.saturating_duration_since(*since) >= window)
        {
            count += usize::from(self.ids.remove(id).is_some());
            self.order.pop_front();
        }
        count
    }

    /// False if there is no room for another stream.
    fn make_room_for_stream(&mut self) -> bool {
        if self.streams.len() < MAX_STREAMS {
            return true;
        }
        let idle = self.streams.iter().filter(|(_, stream)| !stream.in_hand && stream.waiting.is_empty());
        let oldest = idle.min_by_key(|(_, stream)| stream.last).map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.streams.remove(&key).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Parks for u64 {
        fn weight(&self) -> usize {
            usize::try_from(*self).unwrap_or(usize::MAX)
        }
        fn park(&mut self) {}
    }

    fn config() -> Deliveries {
        let ms = Duration::from_millis;
        Deliveries {
            plain: ms(1000),
            reliable: ms(5000),
            ordered: ms(10_000),
            reliable_retries: 3,
            ordered_retries: 3,
            retry: ms(500),
            dedup: ms(3_600_000),
            buffered: 8,
        }
    }

    fn reliable(id: &str) -> DeliveryMetadata {
        DeliveryMetadata {
            message_id: id.into(),
            class: DeliveryClass::Reliable,
            ordering_key: None,
            ordering_sequence: None,
        }
    }

    fn ordered(count: &str, sequence: u64) -> DeliveryMetadata {
        DeliveryMetadata {
            message_id: format!("{count}{sequence}"),
            class: DeliveryClass::OrderedReliable,
            ordering_key: Some("k".into()),
            ordering_sequence: Some(sequence),
        }
    }

    #[test]
    fn a_message_is_taken_once_and_acknowledged_as_often_as_it_comes() {
        let (mut all, now) = (Receiver::new(config()), Instant::now());
        assert_eq!(all.admit("a", &reliable("1"), 1, now), Admission::Take(1));
        assert_eq!(all.admit("a", &reliable("1"), 1, now), Admission::InHand);
        assert_eq!(all.finished("a", &reliable("1"), true, now), None);
        assert_eq!(all.admit("a", &reliable("1"), 1, now), Admission::Duplicate);
        assert_eq!(all.admit("b", &reliable("1"), 1, now), Admission::Take(1), "ids are each sender's own");
        assert_eq!(all.admit("a", &reliable("1"), 1, now + config().dedup), Admission::Take(1));
    }

    #[test]
    fn what_no_plugin_took_may_come_again() {
        let (mut all, now) = (Receiver::new(config()), Instant::now());
        assert_eq!(all.admit("a", &ordered("x", 1), 1, now), Admission::Take(1));
        assert_eq!(all.admit("a", &ordered("x", 2), 2, now), Admission::Waits);
        assert_eq!(
            all.finished("a", &ordered("x", 1), false, now),
            None,
            "the second waits for the first still"
        );
        assert_eq!(all.admit("a", &ordered("x", 1), 1, now), Admission::Take(1));
        assert_eq!(all.finished("a", &ordered("x", 1), true, now), Some(2));
    }

    #[test]
    fn a_gap_is_given_up_when_its_message_cannot_come_any_more() {
        let (mut all, now) = (Receiver::new(config()), Instant::now());
        assert_eq!(all.admit("a", &ordered("x", 1), 1, now), Admission::Take(1));
        assert_eq!(all.finished("a", &ordered("x", 1), true, now), None);
        assert_eq!(all.admit("a", &ordered("x", 3), 3, now), Admission::Waits);
        assert!(all.sweep(now + Duration::from_millis(1999)).is_empty());
        assert_eq!(all.sweep(now + Duration::from_millis(2000)), [3]);
    }

    #[test]
    fn neither_side_that_begins_anew_stalls_the_stream() {
        let (mut all, mut now) = (Receiver::new(config()), Instant::now());
        // We begin anew: the stream is at 7.
        assert_eq!(all.admit("a", &ordered("x", 7), 7, now), Admission::Waits);
        now += Duration::from_secs(2);
        assert_eq!(all.sweep(now), [7]);
        assert_eq!(all.finished("a", &ordered("x", 7), true, now), None);
        assert_eq!(all.admit("a", &ordered("x", 8), 8, now), Admission::Take(8));
        assert_eq!(all.finished("a", &ordered("x", 8), true, now), None);
        // The sender begins anew, and its first message is lost.
        assert_eq!(all.admit("a", &ordered("y", 1), 1, now), Admission::Take(1));
        assert_eq!(all.finished("a", &ordered("y", 1), true, now), None);
        assert_eq!(all.admit("a", &ordered("y", 5), 5, now), Admission::Waits);
        now += Duration::from_secs(3);
        assert_eq!(all.sweep(now), [5]);
        assert_eq!(all.finished("a", &ordered("y", 5), true, now), None);
        assert_eq!(all.admit("a", &ordered("z", 2), 2, now), Admission::Refused);
        now += Duration::from_secs(1);
        assert_eq!(all.admit("a", &ordered("z", 2), 2, now), Admission::Take(2));
    }

    #[test]
    fn what_waits_is_bounded_by_weight_and_keys_by_length_and_number() {
        let (mut all, now) = (Receiver::new(config()), Instant::now());
        let heavy = PARKED as u64 / 2;
        assert_eq!(all.admit("a", &ordered("x", 5), heavy, now), Admission::Waits);
        assert_eq!(all.admit("a", &ordered("x", 6), heavy, now), Admission::Waits);
        assert_eq!(all.admit("a", &ordered("x", 7), 1, now), Admission::Refused);
        assert_eq!(all.admit("b", &ordered("x", 7), 1, now), Admission::Waits, "another's room is another's");
        assert_eq!(all.sweep(now + Duration::from_secs(2)).len(), 2);
        assert_eq!(all.parked, heavy as usize);
        let long = DeliveryMetadata { ordering_key: Some("k".repeat(MAX_KEY + 1)), ..ordered("x", 1) };
        assert_eq!(all.admit("c", &long, 1, now), Admission::Refused);
        for n in 0..2 * MAX_STREAMS {
            let busy = DeliveryMetadata {
                ordering_key: Some(format!("k{n}")),
                message_id: format!("i{n}"),
                ..ordered("x", 2)
            };
            let admitted = all.admit("d", &busy, 1, now);
            assert_eq!(admitted == Admission::Waits, n < MAX_STREAMS, "{n}");
        }
    }

    #[test]
    fn many_names_that_relays_speak_of_push_out_each_other_and_nobody_else() {
        let (mut all, mut now) = (Receiver::new(config()), Instant::now());
        assert_eq!(all.admit("honest", &reliable("1"), 1, now), Admission::Take(1));
        all.finished("honest", &reliable("1"), true, now);
        for n in 0..3 * MAX_SENDERS {
            now += Duration::from_millis(1);
            let _ = all.admit(&format!("relayed o{n}"), &reliable("1"), 1, now);
        }
        assert!(all.senders.len() <= MAX_RELAYED + 1 && all.knows("honest", "1"));
        // One that was forgotten meanwhile finishes.
        all.finished("relayed o1", &reliable("1"), true, now);
        let counted: usize = all.senders.values().map(|sender| sender.ids.len()).sum();
        assert_eq!(counted, all.all);
    }

    proptest! {
        /// Whatever order and repetition, each message is taken once, in order, within a bounded memory.
        #[test]
        fn ordered_messages_are_taken_once_and_in_order(arrivals in proptest::collection::vec((1u64..8, any::<bool>()), 1..100)) {
            let (mut all, now) = (Receiver::new(config()), Instant::now());
            let (mut taken, mut hand) = (Vec::new(), None);
            for (sequence, finish) in arrivals {
                if let Admission::Take(item) = all.admit("a", &ordered("x", sequence), sequence, now) {
                    prop_assert!(hand.is_none());
                    hand = Some(item);
                }
                while let Some(item) = hand.take_if(|_| finish) {
                    taken.push(item);
                    hand = all.finished("a", &ordered("x", item), true, now);
                }
            }
            let expected: Vec<u64> = match taken.first() { Some(first) => (*first..).take(taken.len()).collect(), None => vec![] };
            prop_assert_eq!(&taken, &expected);
            let counted: usize = all.senders.values().map(|sender| sender.ids.len()).sum();
            prop_assert_eq!(counted, all.all);
        }
    }
}
