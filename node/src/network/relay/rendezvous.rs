//! Which relay a target's name selects: every node that knows the same relays chooses the same one (highest random weight). The
//! weight is upstream's, SipHash-1-3 with a zero key, which is what the standard library's hasher is; the vectors below hold it to that.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The weight of a relay for a target.
pub fn weight(target: &str, relay: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    target.hash(&mut hasher);
    relay.hash(&mut hasher);
    hasher.finish()
}

/// The relay with the highest weight; of equal ones the smallest name.
pub fn choose<'a>(target: &str, relays: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    relays
        .map(|relay| (weight(target, relay), std::cmp::Reverse(relay)))
        .filter(|(weight, _)| *weight > 0)
        .max()
        .map(|(_, relay)| relay.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_real_nodes() {
        assert_eq!(weight("target", "relay-1"), 14_626_716_419_849_334_693);
        assert_eq!(weight("target", "relay-2"), 15_432_436_259_737_853_238);
        assert_eq!(weight("node-b", "node-a"), 16_970_831_980_239_567_522);
    }

    #[test]
    fn the_choice_does_not_depend_on_the_order_and_moves_only_with_its_relay() {
        let relays = ["relay-1", "relay-2", "relay-3", "relay-4"];
        for target in ["a", "b", "c", "d", "target"] {
            let chosen = choose(target, relays.into_iter()).expect("one");
            assert_eq!(choose(target, relays.into_iter().rev()), Some(chosen));
            let others: Vec<_> = relays.into_iter().filter(|relay| *relay != chosen).collect();
            let without = choose(target, others.iter().skip(1).copied().chain([chosen])).expect("one");
            assert_eq!(without, chosen, "the loss of another relay moves nothing");
        }
        assert_eq!(choose("a", std::iter::empty()), None);
    }
}
