//! Which sequence numbers of a pair were seen: a window behind the highest one, so that frames may come out of order, and a jump
//! silences nobody for ever. One window belongs to one connection of the frames' sender and ends with it.

/// Numbers behind the highest that are told apart.
pub const WIDTH: u64 = 1024;
const WORDS: usize = (WIDTH / 64) as usize;

/// The window.
#[derive(Debug, Clone)]
pub struct Window {
    highest: u64,
    /// One bit for each number, at its remainder.
    seen: Box<[u64; WORDS]>,
}

impl Window {
    /// A window that saw this number and no other.
    pub fn beginning(sequence: u64) -> Self {
        let mut window = Self { highest: sequence, seen: Box::new([0; WORDS]) };
        window.mark(sequence);
        window
    }

    fn bit(sequence: u64) -> (usize, u64) {
        let at = sequence % WIDTH;
        ((at / 64) as usize, 1 << (at % 64))
    }

    fn mark(&mut self, sequence: u64) {
        let (word, bit) = Self::bit(sequence);
        self.seen[word] |= bit;
    }

    /// Takes a number; false if it was seen, or is older than anybody remembers.
    pub fn take(&mut self, sequence: u64) -> bool {
        if sequence > self.highest {
            if sequence - self.highest >= WIDTH {
                self.seen.fill(0);
            } else {
                for passed in self.highest + 1..=sequence {
                    let (word, bit) = Self::bit(passed);
                    self.seen[word] &= !bit;
                }
            }
            self.highest = sequence;
            self.mark(sequence);
            return true;
        }
        let (word, bit) = Self::bit(sequence);
        if self.highest - sequence >= WIDTH || self.seen[word] & bit != 0 {
            return false;
        }
        self.mark(sequence);
        true
    }

    /// The same, where a sender may begin to count anew: a number far below all others is a new beginning.
    pub fn take_or_begin(&mut self, sequence: u64) -> bool {
        if sequence <= self.highest && self.highest - sequence >= WIDTH {
            *self = Self::beginning(sequence);
            return true;
        }
        self.take(sequence)
    }

    /// True if this number was taken, as far as anybody remembers.
    pub fn has(&self, sequence: u64) -> bool {
        let (word, bit) = Self::bit(sequence);
        sequence <= self.highest && self.highest - sequence < WIDTH && self.seen[word] & bit != 0
    }

    /// Takes a number back: the frame was not accepted after all.
    pub fn give_back(&mut self, sequence: u64) {
        if sequence <= self.highest && self.highest - sequence < WIDTH {
            let (word, bit) = Self::bit(sequence);
            self.seen[word] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_jump_to_the_end_silences_nobody_for_ever() {
        let mut window = Window::beginning(1);
        assert!(window.take(u64::MAX) && !window.take(u64::MAX));
        assert!(window.take(u64::MAX - 5), "late, not lost");
        // The sender begins again with another connection, and that has another window.
        let mut next = Window::beginning(1);
        assert!(next.take(2) && !next.take(1));
    }

    #[test]
    fn what_is_given_back_may_come_again() {
        let mut window = Window::beginning(7);
        window.give_back(7);
        assert!(window.take(7) && !window.take(7));
    }

    #[test]
    fn a_sender_that_begins_anew_is_followed() {
        let mut window = Window::beginning(1_000_000);
        assert!(!window.take(1) && window.take_or_begin(1) && window.take(2) && !window.take_or_begin(1));
        assert!(window.has(2) && !window.has(3) && !window.has(1_000_000));
    }

    proptest! {
        #[test]
        fn within_the_window_each_number_passes_once(numbers in proptest::collection::vec(1u64..900, 1..300)) {
            let mut window = Window::beginning(numbers[0]);
            let mut seen = HashSet::from([numbers[0]]);
            for number in &numbers[1..] {
                prop_assert_eq!(window.take(*number), seen.insert(*number));
            }
        }
    }
}
