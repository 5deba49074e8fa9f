//! Random bytes for plugins, from the operating system and nowhere else. A plugin may ask its own kernel too; this is for
//! those written in languages, or for platforms, where that is hard. Failure is an error: never zeros, never a weaker source.

use thenodes::host::{Bytes, HostError, Response};
use thenodes_ipc::{limits, Code};

/// Draws `count` bytes.
pub fn bytes(count: u32) -> Result<Response, HostError> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > limits::MAX_RANDOM {
        let text = format!("random: {count} bytes; ask for at most {} at once", limits::MAX_RANDOM);
        return Err(HostError::new(Code::InvalidInput, text));
    }
    let mut bytes = vec![0; count];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(Response::Bytes(Bytes(bytes))),
        Err(error) => Err(HostError::new(Code::Internal, format!("random: the system gave none: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(count: u32) -> Vec<u8> {
        match bytes(count) {
            Ok(Response::Bytes(Bytes(bytes))) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn as_many_bytes_as_asked_for_and_never_the_same() {
        assert!(drawn(0).is_empty());
        let (one, other) = (drawn(65_536), drawn(65_536));
        assert_eq!(one.len(), 65_536);
        assert_ne!(one, other);
        // 32 equal bytes in a row have a chance of one in 2^232: a part that was left as zeros would be seen.
        assert!(!one.windows(32).any(|w| w.iter().all(|byte| *byte == w[0])));
    }

    #[test]
    fn more_than_the_bound_is_refused_before_anything_is_allocated() {
        for count in [65_537, u32::MAX] {
            assert_eq!(bytes(count).map_err(|error| error.code), Err(Code::InvalidInput));
        }
    }
}
