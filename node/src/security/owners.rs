//! Which key each node id came with first, in memory: the rule that no trusted peer takes another's name where no certificate of the
//! operator's says whose it is. Decides only; who calls it reads and writes [`bindings`](super::bindings) beside it. Does not trust
//! the peers that fill it: both numbers are bounded, and a key that comes with ever new ids pushes out its own and nobody else's.

use super::bindings::{Binding, MAX_BINDINGS};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Ids of one key that are remembered: the last ones.
pub const MAX_IDS_PER_KEY: usize = 64;

/// Why a key may not have an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotOwned {
    /// It came with another key first.
    OfAnother,
    /// What is on disk about it cannot be understood.
    Unreadable,
    /// More ids are not remembered.
    Full,
}

/// What has to be done on disk for an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write down whose it is.
    Keep(Binding),
    /// Its key has come with so many others since.
    Drop(String),
}

#[derive(Debug)]
struct Owner {
    key: Arc<str>,
    /// Its place in the order of coming.
    since: u64,
    /// It has been written down.
    written: bool,
}

/// What is known of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Disk {
    /// Nothing is kept there.
    #[default]
    Unused,
    /// It was not read yet.
    Unread,
    /// What stood there is in the table.
    Read,
    /// It cannot be read.
    Lost,
}

/// The table.
#[derive(Debug, Default)]
pub struct Owners {
    /// It outlives the node: what is new has to be written, and where it is full nobody is forgotten for somebody else.
    keeps: bool,
    by_id: HashMap<String, Owner>,
    by_age: BTreeMap<u64, String>,
    by_key: HashMap<Arc<str>, BTreeSet<u64>>,
    count: u64,
    /// Not written yet, or not dropped yet.
    pending: BTreeSet<String>,
    /// Ids of which the disk says something that cannot be understood, by the names of their files.
    unreadable: HashSet<String>,
    disk: Disk,
}

impl Owners {
    /// Nothing is known. `keeps`: it is kept on disk, and nobody is let in before that was read ([`adopt`](Self::adopt)).
    pub fn new(keeps: bool) -> Self {
        Self { keeps, disk: if keeps { Disk::Unread } else { Disk::Unused }, ..Self::default() }
    }

    /// True if it is kept on disk.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// The key that an id belongs to.
    pub fn key_of(&self, node_id: &str) -> Option<&str> {
        self.by_id.get(node_id).map(|owner| &*owner.key)
    }

    /// An id comes with a key: its first has it. `file`: the name of the file that would speak of it.
    pub fn meet(&mut self, node_id: &str, key: &str, file: &str) -> Result<(), NotOwned> {
        match self.key_of(node_id) {
            Some(known) if known == key => return Ok(()),
            Some(_) => return Err(NotOwned::OfAnother),
            None => {}
        }
        if matches!(self.disk, Disk::Unread | Disk::Lost) || self.unreadable.contains(file) {
            return Err(NotOwned::Unreadable);
        }
        let own = self.by_key.get(key);
        if own.map_or(0, BTreeSet::len) >= MAX_IDS_PER_KEY {
            let oldest = own.and_then(BTreeSet::first).and_then(|since| self.by_age.get(since)).cloned();
            oldest.into_iter().for_each(|id| self.forget(&id));
        } else if self.by_id.len() >= MAX_BINDINGS {
            let oldest = self.by_age.first_key_value().map(|(_, id)| id.clone()).filter(|_| !self.keeps);
            self.forget(&oldest.ok_or(NotOwned::Full)?);
        }
        self.put(node_id, key, false);
        Ok(())
    }

    fn put(&mut self, node_id: &str, key: &str, written: bool) {
        self.take(node_id);
        let key = match self.by_key.get_key_value(key) {
            Some((key, _)) => key.clone(),
            None => Arc::from(key),
        };
        self.count += 1;
        self.by_age.insert(self.count, node_id.to_owned());
        self.by_key.entry(key.clone()).or_default().insert(self.count);
        self.by_id.insert(node_id.to_owned(), Owner { key, since: self.count, written });
        if self.keeps && !written {
            self.pending.insert(node_id.to_owned());
        }
    }

    fn take(&mut self, node_id: &str) -> Option<Owner> {
        let owner = self.by_id.remove(node_id)?;
        self.by_age.remove(&owner.since);
        if let Some(ages) = self.by_key.get_mut(&owner.key) {
            ages.remove(&owner.since);
            if ages.is_empty() {
                self.by_key.remove(&owner.key);
            }
        }
        Some(owner)
    }

    fn forget(&mut self, node_id: &str) {
        if self.take(node_id).is_some_and(|owner| owner.written) {
            self.pending.insert(node_id.to_owned());
        } else {
            self.pending.remove(node_id);
        }
    }

    /// What is on disk now, and which files there mean nothing. What was not written yet stays as it is. True if somebody else than this
    /// table has changed what it says.
    pub fn adopt(&mut self, list: &[Binding], unreadable: HashSet<String>) -> bool {
        let there: HashMap<&str, &str> =
            list.iter().map(|binding| (binding.node_id.as_str(), binding.fingerprint.as_str())).collect();
        let gone: Vec<String> = (self.by_id.iter())
            .filter(|(id, owner)| owner.written && !there.contains_key(id.as_str()))
            .map(|(id, _)| id.clone())
            .collect();
        let mut changed = !gone.is_empty() || self.unreadable != unreadable;
        changed |= std::mem::replace(&mut self.disk, Disk::Read) != Disk::Read;
        gone.iter().for_each(|id| drop(self.take(id)));
        for (id, key) in there {
            if self.pending.contains(id) || self.key_of(id) == Some(key) {
                continue;
            }
            self.put(id, key, true);
            changed = true;
        }
        self.unreadable = unreadable;
        changed
    }

    /// Nothing on disk can be read: nobody is let in whom this table does not know. True if that is new.
    pub fn lose(&mut self) -> bool {
        std::mem::replace(&mut self.disk, Disk::Lost) != Disk::Lost
    }

    /// What has to be done on disk. Bounded by the table's own bounds.
    pub fn changes(&mut self) -> Vec<Change> {
        let pending = std::mem::take(&mut self.pending);
        let change = |id: String| match self.by_id.get_mut(&id) {
            None => Change::Drop(id),
            Some(owner) => {
                owner.written = true;
                Change::Keep(Binding { node_id: id, fingerprint: owner.key.to_string() })
            }
        };
        pending.into_iter().map(change).collect()
    }

    /// This could not be done on disk; it has to be done still.
    pub fn undone(&mut self, change: &Change) {
        let id = match change {
            Change::Keep(binding) => &binding.node_id,
            Change::Drop(id) => id,
        };
        match (self.by_id.get_mut(id), change) {
            (Some(owner), Change::Keep(_)) => owner.written = false,
            // Come again meanwhile: to be written in any case.
            (Some(_), Change::Drop(_)) => {}
            // Pushed out meanwhile: there is nothing to write, and perhaps nothing to remove.
            (None, Change::Keep(_)) => return,
            (None, Change::Drop(_)) => {}
        }
        self.pending.insert(id.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(node_id: &str, key: &str) -> Binding {
        Binding { node_id: node_id.into(), fingerprint: key.into() }
    }

    #[test]
    fn an_id_belongs_to_its_first_key() {
        let mut owners = Owners::new(false);
        assert_eq!(owners.meet("a", "1", ""), Ok(()));
        assert_eq!(owners.meet("a", "1", ""), Ok(()));
        assert_eq!(owners.meet("a", "2", ""), Err(NotOwned::OfAnother));
        assert_eq!(owners.meet("b", "1", ""), Ok(()), "one key may have several");
        assert_eq!(owners.changes(), [], "nothing is kept");
    }

    #[test]
    fn a_key_of_many_ids_pushes_out_its_own_and_nobody_elses() {
        let mut owners = Owners::new(true);
        owners.adopt(&[binding("old", "many")], HashSet::new());
        assert_eq!(owners.meet("mine", "other", ""), Ok(()));
        for n in 0..10 * MAX_IDS_PER_KEY {
            assert_eq!(owners.meet(&format!("n{n}"), "many", ""), Ok(()));
        }
        assert_eq!((owners.by_id.len(), owners.by_key.len()), (MAX_IDS_PER_KEY + 1, 2));
        assert_eq!(owners.meet("mine", "many", ""), Err(NotOwned::OfAnother));
        let changes = owners.changes();
        assert_eq!(changes.len(), MAX_IDS_PER_KEY + 2, "what was never written needs no removal");
        assert!(changes.contains(&Change::Drop("old".into())));
        assert!(changes.contains(&Change::Keep(binding("mine", "other"))));
        assert_eq!(owners.changes(), []);
    }

    #[test]
    fn a_full_table_that_is_kept_forgets_nobody_and_one_of_this_run_its_oldest() {
        let full = |keeps| {
            let mut owners = Owners::new(keeps);
            if keeps {
                owners.adopt(&[], HashSet::new());
            }
            for n in 0..MAX_BINDINGS {
                assert_eq!(owners.meet(&format!("n{n}"), &format!("k{n}"), ""), Ok(()));
            }
            owners
        };
        let mut kept = full(true);
        assert_eq!(kept.meet("new", "k", ""), Err(NotOwned::Full));
        assert_eq!(kept.meet("n0", "k", ""), Err(NotOwned::OfAnother));
        let mut of_this_run = full(false);
        assert_eq!(of_this_run.meet("new", "k", ""), Ok(()));
        assert_eq!((of_this_run.by_id.len(), of_this_run.key_of("n0")), (MAX_BINDINGS, None));
    }

    #[test]
    fn nobody_new_is_let_in_before_the_disk_was_read_or_where_it_cannot_be_understood() {
        let mut owners = Owners::new(true);
        assert_eq!(owners.meet("a", "1", "file"), Err(NotOwned::Unreadable));
        assert!(owners.adopt(&[binding("b", "2")], HashSet::from(["file".to_owned()])));
        assert_eq!(owners.meet("a", "1", "file"), Err(NotOwned::Unreadable));
        assert_eq!(owners.meet("c", "1", "other"), Ok(()));
        assert!(owners.lose() && !owners.lose());
        assert_eq!(owners.meet("d", "1", "another"), Err(NotOwned::Unreadable));
        assert_eq!(owners.meet("b", "2", "file"), Ok(()), "what is known stays known");
    }

    #[test]
    fn what_the_operator_changes_on_disk_counts_and_what_was_written_by_us_is_no_change() {
        let mut owners = Owners::new(true);
        assert!(owners.adopt(&[], HashSet::new()), "the first reading");
        assert_eq!(owners.meet("a", "1", ""), Ok(()));
        assert!(!owners.adopt(&[], HashSet::new()), "not written yet");
        assert_eq!(owners.changes(), [Change::Keep(binding("a", "1"))]);
        assert!(!owners.adopt(&[binding("a", "1")], HashSet::new()));
        assert!(owners.adopt(&[binding("a", "2")], HashSet::new()), "by hand");
        assert_eq!(owners.meet("a", "1", ""), Err(NotOwned::OfAnother));
        assert!(owners.adopt(&[], HashSet::new()), "forgotten");
        assert_eq!(owners.meet("a", "1", ""), Ok(()));
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let mut owners = Owners::new(true);
        owners.adopt(&[], HashSet::new());
        assert_eq!(owners.meet("a", "1", ""), Ok(()));
        let changes = owners.changes();
        changes.iter().for_each(|change| owners.undone(change));
        assert!(!owners.adopt(&[], HashSet::new()), "what is not there was not forgotten by anybody");
        assert_eq!(owners.changes(), changes);
    }
}
