//! Frames that are kept for peers that are away. Bounded in number and bytes, for one target and in all; what has to go when a
//! bound is reached is the oldest frame of whoever fills it most, so that nobody is pushed out by another's flood. Pure: the caller
//! tells origins what became of their frames.

use super::{Frame, Qos};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// What a frame costs beside its bytes.
const OVERHEAD: usize = 256;

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Frames for one target.
    pub per_target: usize,
    /// Frames in all.
    pub global: usize,
    /// Bytes in all; a quarter for one target.
    pub bytes: usize,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is kept; these had to go for it.
    Yes(Vec<Arc<Frame>>),
    /// There is no room for it.
    No,
}

#[derive(Debug, Default)]
struct Queue {
    /// Those with priority, and the others; oldest first. Ids of frames that are gone are passed over.
    lanes: [VecDeque<u64>; 2],
    frames: usize,
    bytes: usize,
    /// Frames of each origin.
    counts: HashMap<Arc<str>, usize>,
}

/// The frames.
#[derive(Debug)]
pub struct Store {
    bounds: Bounds,
    next: u64,
    frames: HashMap<u64, Arc<Frame>>,
    bytes: usize,
    queues: HashMap<Arc<str>, Queue>,
    /// Ids of each origin, oldest first; ids of frames that are gone are passed over.
    origins: HashMap<Arc<str>, (usize, VecDeque<u64>)>,
    /// Origins by the number of their frames.
    heaviest: BTreeSet<(usize, Arc<str>)>,
    expiries: BTreeSet<(u64, u64)>,
}

fn cost(frame: &Frame) -> usize {
    frame.line.len() + OVERHEAD
}

impl Store {
    /// An empty store.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            next: 0,
            frames: HashMap::new(),
            bytes: 0,
            queues: HashMap::new(),
            origins: HashMap::new(),
            heaviest: BTreeSet::new(),
            expiries: BTreeSet::new(),
        }
    }

    /// Frames that are kept.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True if there are frames for this target.
    pub fn has(&self, target: &str) -> bool {
        self.queues.contains_key(target)
    }

    /// Frames that are kept for a target.
    pub fn count(&self, target: &str) -> usize {
        self.queues.get(target).map_or(0, |queue| queue.frames)
    }

    /// True if a new frame for this target would push another out.
    pub fn is_full(&self, target: &str) -> bool {
        let full =
            |queue: &Queue| queue.frames >= self.bounds.per_target || queue.bytes >= self.bounds.bytes / 4;
        self.frames.len() >= self.bounds.global
            || self.bytes >= self.bounds.bytes
            || self.queues.get(target).is_some_and(full)
    }

    /// Keeps a frame. One of `bulk` pushes nobody out.
    pub fn keep(&mut self, frame: Arc<Frame>) -> Kept {
        let cost = cost(&frame);
        if cost > self.bounds.bytes / 4 || (frame.wants.qos == Qos::Bulk && self.is_full(&frame.target)) {
            return Kept::No;
        }
        let mut out = Vec::new();
        while let Some(queue) = self.queues.get(&frame.target) {
            if queue.frames < self.bounds.per_target && queue.bytes + cost <= self.bounds.bytes / 4 {
                break;
            }
            let Some(victim) = self.first_of_heaviest_in(&frame.target, true) else { break };
            out.extend(self.remove(victim));
        }
        while self.frames.len() >= self.bounds.global || self.bytes + cost > self.bounds.bytes {
            let Some(victim) = self.oldest_of_heaviest() else { break };
            out.extend(self.remove(victim));
        }
        let lane = usize::from(frame.wants.qos != Qos::HighThroughput);
        self.insert(frame, lane, false);
        Kept::Yes(out)
    }

    /// Puts frames back that were taken and could not be handed over, before all others; returns those that have no room any more.
    pub fn put_back(&mut self, frames: Vec<Arc<Frame>>) -> Vec<Arc<Frame>> {
        let targets: BTreeSet<Arc<str>> = frames.iter().map(|frame| frame.target.clone()).collect();
        for frame in frames.into_iter().rev() {
            self.insert(frame, 0, true);
        }
        let mut out = Vec::new();
        for target in targets {
            while let Some(queue) = self.queues.get(&target) {
                if queue.frames <= self.bounds.per_target && queue.bytes <= self.bounds.bytes / 4 {
                    break;
                }
                let Some(victim) = self.first_of_heaviest_in(&target, false) else { break };
                out.extend(self.remove(victim));
            }
        }
        while self.frames.len() > self.bounds.global || self.bytes > self.bounds.bytes {
            let Some(victim) = self.oldest_of_heaviest() else { break };
            out.extend(self.remove(victim));
        }
        out
    }

    fn insert(&mut self, frame: Arc<Frame>, lane: usize, front: bool) {
        let (id, cost) = (self.next, cost(&frame));
        self.next += 1;
        let queue = self.queues.entry(frame.target.clone()).or_default();
        queue.frames += 1;
        queue.bytes += cost;
        *queue.counts.entry(frame.origin.clone()).or_default() += 1;
        if front {
            queue.lanes[lane].push_front(id);
        } else {
            queue.lanes[lane].push_back(id);
        }
        let (count, ids) = self.origins.entry(frame.origin.clone()).or_default();
        self.heaviest.remove(&(*count, frame.origin.clone()));
        *count += 1;
        ids.push_back(id);
        self.heaviest.insert((*count, frame.origin.clone()));
        self.bytes += cost;
        self.expiries.insert((frame.expires, id));
        self.frames.insert(id, frame);
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Frame>> {
        let frame = self.frames.remove(&id)?;
        let cost = cost(&frame);
        self.bytes -= cost;
        self.expiries.remove(&(frame.expires, id));
        if let Some(queue) = self.queues.get_mut(&frame.target) {
            queue.frames -= 1;
            queue.bytes -= cost;
            if let Some(count) = queue.counts.get_mut(&frame.origin) {
                *count -= 1;
                if *count == 0 {
                    queue.counts.remove(&frame.origin);
                }
            }
            if queue.frames == 0 {
                self.queues.remove(&frame.target);
            } else {
                // Ids of gone frames must not gather.
                for lane in &mut queue.lanes {
                    while lane.front().is_some_and(|id| !self.frames.contains_key(id)) {
                        lane.pop_front();
                    }
                    if lane.len() > 2 * queue.frames + 16 {
                        lane.retain(|id| self.frames.contains_key(id));
                    }
                }
            }
        }
        if let Some((count, ids)) = self.origins.get_mut(&frame.origin) {
            self.heaviest.remove(&(*count, frame.origin.clone()));
            *count -= 1;
            if *count == 0 {
                self.origins.remove(&frame.origin);
            } else {
                while ids.front().is_some_and(|id| !self.frames.contains_key(id)) {
                    ids.pop_front();
                }
                if ids.len() > 2 * *count + 16 {
                    ids.retain(|id| self.frames.contains_key(id));
                }
                self.heaviest.insert((*count, frame.origin.clone()));
            }
        }
        Some(frame)
    }

    fn oldest_of_heaviest(&self) -> Option<u64> {
        let (_, origin) = self.heaviest.last()?;
        self.origins.get(origin)?.1.iter().find(|id| self.frames.contains_key(*id)).copied()
    }

    /// The oldest of whoever has most for this target: among those without priority, if it has such, or among all that came back.
    fn first_of_heaviest_in(&self, target: &str, spares_priority: bool) -> Option<u64> {
        let queue = self.queues.get(target)?;
        let (heaviest, _) = queue.counts.iter().max_by_key(|(origin, count)| (**count, (*origin).clone()))?;
        // Its oldest: mostly the first that is looked at, since who has most is who filled it.
        let [priority, others] = &queue.lanes;
        let (first, then) = if spares_priority { (others, priority) } else { (priority, others) };
        first
            .iter()
            .chain(then)
            .copied()
            .find(|id| self.frames.get(id).is_some_and(|frame| frame.origin == *heaviest))
    }

    /// Takes the next frames for a target, at most so many bytes of them but at least one.
    pub fn take(&mut self, target: &str, bytes: usize) -> Vec<Arc<Frame>> {
        let (mut taken, mut size) = (Vec::new(), 0);
        while size < bytes {
            let Some(queue) = self.queues.get_mut(target) else { break };
            let Some(id) = queue.lanes.iter_mut().find_map(VecDeque::pop_front) else { break };
            if let Some(frame) = self.remove(id) {
                size += frame.line.len();
                taken.push(frame);
            }
        }
        taken
    }

    /// Takes what is too old, at most so many.
    pub fn expire(&mut self, now: u64, most: usize) -> Vec<Arc<Frame>> {
        let old: Vec<u64> = self
            .expiries
            .iter()
            .take_while(|(expires, _)| *expires <= now)
            .take(most)
            .map(|(_, id)| *id)
            .collect();
        old.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// All frames, in the order in which each target would get its own.
    pub fn all(&self) -> Vec<Arc<Frame>> {
        let of = |queue: &Queue| -> Vec<Arc<Frame>> {
            queue.lanes.iter().flatten().filter_map(|id| self.frames.get(id).cloned()).collect()
        };
        self.queues.values().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Wants;
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { per_target: 4, global: 8, bytes: 1 << 20 };

    fn frame(origin: &str, target: &str, sequence: u64, qos: Qos) -> Arc<Frame> {
        Arc::new(Frame {
            origin: origin.into(),
            from: origin.into(),
            target: target.into(),
            sequence: Some(sequence),
            line: b"x\n".to_vec().into(),
            expires: sequence,
            wants: Wants { qos, store: true },
        })
    }

    fn numbers(frames: &[Arc<Frame>]) -> Vec<u64> {
        frames.iter().filter_map(|frame| frame.sequence).collect()
    }

    #[test]
    fn frames_come_in_order_those_with_priority_first() {
        let mut store = Store::new(BOUNDS);
        for (n, qos) in
            [(1, Qos::Plain), (2, Qos::HighThroughput), (3, Qos::Reliable), (4, Qos::HighThroughput)]
        {
            assert_eq!(store.keep(frame("o", "t", n, qos)), Kept::Yes(vec![]));
        }
        let taken = store.take("t", usize::MAX);
        assert_eq!(numbers(&taken), [2, 4, 1, 3]);
        assert!(store.is_empty() && !store.has("t"));
        assert!(store.put_back(taken).is_empty());
        assert_eq!(numbers(&store.take("t", usize::MAX)), [2, 4, 1, 3]);
    }

    #[test]
    fn what_comes_back_beyond_the_bound_of_its_target_loses_its_oldest() {
        let mut store = Store::new(BOUNDS);
        let first: Vec<_> = (1..=3).map(|n| frame("o", "t", n, Qos::Plain)).collect();
        for n in 4..=6 {
            store.keep(frame("o", "t", n, Qos::Plain));
        }
        assert_eq!(numbers(&store.put_back(first)), [1, 2]);
        assert_eq!(numbers(&store.take("t", usize::MAX)), [3, 4, 5, 6]);
    }

    #[test]
    fn a_flood_pushes_out_its_own_frames_and_bulk_pushes_nobody() {
        let mut store = Store::new(BOUNDS);
        store.keep(frame("quiet", "t", 1, Qos::Plain));
        for n in 2..5 {
            store.keep(frame("loud", "t", n, Qos::Plain));
        }
        let Kept::Yes(out) = store.keep(frame("loud", "t", 5, Qos::Plain)) else { panic!("kept") };
        assert_eq!((numbers(&out), &*out[0].origin), (vec![2], "loud"));
        assert_eq!(store.keep(frame("quiet", "t", 6, Qos::Bulk)), Kept::No);
        // In all: whoever has most of all.
        for n in 10..14 {
            store.keep(frame("loud", "u", n, Qos::Plain));
        }
        let Kept::Yes(out) = store.keep(frame("quiet", "v", 20, Qos::Plain)) else { panic!("kept") };
        assert_eq!((numbers(&out), &*out[0].origin), (vec![3], "loud"));
        assert_eq!(numbers(&store.take("t", usize::MAX)), [1, 4, 5]);
    }

    #[test]
    fn what_is_too_old_is_given_out_once() {
        let mut store = Store::new(BOUNDS);
        for n in 1..4 {
            store.keep(frame("o", "t", n, Qos::Plain));
        }
        assert_eq!(numbers(&store.expire(2, 100)), [1, 2]);
        assert!(store.expire(2, 100).is_empty());
        assert_eq!(numbers(&store.take("t", usize::MAX)), [3]);
    }

    proptest! {
        #[test]
        fn no_order_of_events_passes_a_bound_or_loses_count(
            steps in proptest::collection::vec((0u8..6, 0u8..3, 0u8..4, 0u64..50), 1..200)
        ) {
            let mut store = Store::new(BOUNDS);
            let mut away = Vec::new();
            for (what, origin, target, n) in steps {
                let (origin, target) = (format!("o{origin}"), format!("t{target}"));
                match what {
                    0 | 1 => drop(store.keep(frame(&origin, &target, n, Qos::Plain))),
                    2 => drop(store.take(&target, n as usize)),
                    3 => away.extend(store.take(&target, n as usize)),
                    4 => drop(store.put_back(std::mem::take(&mut away))),
                    _ => drop(store.expire(n / 2, 3)),
                }
                prop_assert!(store.len() <= BOUNDS.global && store.bytes() <= BOUNDS.bytes);
                prop_assert!(store.queues.values().all(|queue| queue.frames <= BOUNDS.per_target));
                let counted: usize = store.queues.values().map(|queue| queue.frames).sum();
                prop_assert_eq!(counted, store.len());
                prop_assert_eq!(store.heaviest.iter().map(|(count, _)| count).sum::<usize>(), store.len());
                prop_assert_eq!(store.all().len(), store.len());
                prop_assert_eq!(store.expiries.len(), store.len());
            }
        }
    }
}
