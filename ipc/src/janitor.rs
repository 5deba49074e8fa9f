//! What a node tells its janitor, over standard input, once: which control groups to remove when the node is gone. The node is
//! trusted by it; a list that came only in part, because the node was killed while it wrote, does not decode.

use serde::{Deserialize, Serialize};

/// The argument that makes a runner program a janitor.
pub const ARGUMENT: &str = "--janitor";
/// Longest list: what a pipe takes at once, so that the node never waits for its janitor.
pub const MAX_LIST: usize = 4096;

/// The list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    /// The node.
    pub node_pid: i32,
    /// Names of the node's own groups begin with it, and no others: `thenodes-NAMESPACE-PID-START.`
    pub prefix: String,
    /// Directories in which they are.
    pub parents: Vec<String>,
}

impl Cleanup {
    /// True if the names can only be those of groups that a node made, and the places are places.
    pub fn is_sound(&self) -> bool {
        let numbers = self.prefix.strip_prefix("thenodes-").and_then(|rest| rest.strip_suffix('.'));
        let whole = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        let numbers: Vec<&str> = numbers.map(|rest| rest.split('-').collect()).unwrap_or_default();
        numbers.len() == 3
            && numbers.into_iter().all(whole)
            && self.node_pid > 1
            && self.parents.iter().all(|parent| parent.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack;

    fn list(prefix: &str) -> Cleanup {
        Cleanup { node_pid: 7, prefix: prefix.into(), parents: vec!["/sys/fs/cgroup/memory".into()] }
    }

    #[test]
    fn only_names_of_one_nodes_groups_are_sound() {
        assert!(list("thenodes-4026531836-7-12345.").is_sound());
        for wrong in [
            "",
            "thenodes-",
            "thenodes-1-2-3",
            "thenodes-1-2.",
            "thenodes-1--3.",
            "x-1-2-3.",
            "thenodes-1-2-3-4.",
        ] {
            assert!(!list(wrong).is_sound(), "{wrong:?}");
        }
        let good = list("thenodes-1-2-3.");
        assert!(!Cleanup { parents: vec!["here".into()], ..good.clone() }.is_sound());
        assert!(!Cleanup { node_pid: 0, ..good }.is_sound());
    }

    #[test]
    fn a_part_of_a_list_is_no_list() {
        let whole = pack::encode(&list("thenodes-1-2-3.")).expect("encodes");
        assert_eq!(pack::decode::<Cleanup>(&whole).expect("whole"), list("thenodes-1-2-3."));
        for end in 0..whole.len() {
            assert!(pack::decode::<Cleanup>(&whole[..end]).is_err(), "{end} of {}", whole.len());
        }
    }
}
