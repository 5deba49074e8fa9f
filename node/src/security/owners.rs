//! Which key each node id came with first, in memory: the rule that no trusted peer takes another's name where no certificate of the
//! operator's says whose it is. Decides only; who calls it reads and writes [`bindings`](super::bindings) beside it, and what the operator
//! wrote there wins. Does not trust the peers that fill it: both numbers are bounded, and a key that comes with ever new ids pushes out
//! its own and nobody else's.

use super::bindings::{Binding, MAX_BINDINGS};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Ids of one key that are remembered: those that it came with last.
pub const MAX_IDS_PER_KEY: usize = 64;

/// Why a key may not have an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Write down whose it is, where nobody is written down, or this key.
    Keep {
        /// Whose.
        binding: Binding,
        /// Whose it was.
        replaces: Option<String>,
    },
    /// Its key has come with so many others since: remove that.
    Drop(Binding),
}

impl Change {
    /// Which id.
    pub fn node_id(&self) -> &str {
        match self {
            Change::Keep { binding, .. } | Change::Drop(binding) => &binding.node_id,
        }
    }
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It is done.
    Yes,
    /// Not now.
    NotYet,
    /// Somebody else wrote down that the id belongs to this key.
    OfAnother(String),
}

/// What whoever asks knows of peers and keys.
pub struct Known<'a> {
    /// True of an id under which somebody is connected.
    pub connected: &'a dyn Fn(&str) -> bool,
    /// True of a key that is trusted now. The ids of others are free for those that are.
    pub trusted: &'a dyn Fn(&str) -> bool,
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

/// What reading the disk has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// Nothing.
    Same,
    /// Somebody else than this table has changed what it says.
    News,
    /// It can be read again.
    Back,
}

/// The table.
#[derive(Debug, Default)]
pub struct Owners {
    /// It outlives the node: what is new has to be written, and where it is full nobody new comes in.
    keeps: bool,
    by_id: HashMap<String, Owner>,
    by_age: BTreeMap<u64, String>,
    by_key: HashMap<Arc<str>, BTreeSet<u64>>,
    count: u64,
    /// What has to be done on disk.
    pending: BTreeMap<String, Change>,
    /// Ids of which something is being done there.
    writing: HashSet<String>,
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

    /// Whether a key may come with an id: if nobody's came with it first. `file`: the name of the file that would speak of it. Changes
    /// nothing; who is let in is then [`learn`](Self::learn)ed.
    pub fn ask(&self, node_id: &str, key: &str, file: &str, known: &Known<'_>) -> Result<(), NotOwned> {
        match self.key_of(node_id) {
            Some(owner) if owner == key => return Ok(()),
            Some(owner) if !self.keeps || (known.trusted)(owner) => return Err(NotOwned::OfAnother),
            Some(_) => return Ok(()),
            None => {}
        }
        if matches!(self.disk, Disk::Unread | Disk::Lost) || self.unreadable.contains(file) {
            return Err(NotOwned::Unreadable);
        }
        let full = self.by_id.len() >= MAX_BINDINGS && self.ids_of(key) < MAX_IDS_PER_KEY;
        if self.keeps && full && self.of_nobody(known).is_none() {
            return Err(NotOwned::Full);
        }
        Ok(())
    }

    /// A key was let in with an id: from now on it is its own. A table that is not kept and is full learns nothing new.
    pub fn learn(&mut self, node_id: &str, key: &str, known: &Known<'_>) {
        if self.key_of(node_id) == Some(key) {
            let written = self.by_id.get(node_id).is_some_and(|owner| owner.written);
            return self.put(node_id, key, written); // it came last
        }
        if self.ids_of(key) >= MAX_IDS_PER_KEY {
            let own = self.by_key.get(key).into_iter().flatten().filter_map(|since| self.by_age.get(since));
            let mut own = own.filter(|id| !(known.connected)(id));
            let Some(oldest) = own.next().cloned() else { return };
            self.forget(&oldest);
        } else if self.by_id.len() >= MAX_BINDINGS && !self.by_id.contains_key(node_id) {
            let Some(id) = self.of_nobody(known).filter(|_| self.keeps) else { return };
            self.forget(&id);
        }
        let before = self.by_id.get(node_id).filter(|owner| owner.written).map(|owner| owner.key.to_string());
        self.put(node_id, key, false);
        if self.keeps {
            // What was to be removed of it, or written, is taken over by this.
            let before = match self.pending.remove(node_id) {
                Some(Change::Drop(of)) => Some(of.fingerprint),
                Some(Change::Keep { replaces, .. }) => replaces.or(before),
                None => before,
            };
            let binding = Binding { node_id: node_id.into(), fingerprint: key.into() };
            self.pending.insert(node_id.into(), Change::Keep { binding, replaces: before });
        }
    }

    fn ids_of(&self, key: &str) -> usize {
        self.by_key.get(key).map_or(0, BTreeSet::len)
    }

    /// The oldest id whose key is not trusted any more.
    fn of_nobody(&self, known: &Known<'_>) -> Option<String> {
        let untrusted = |id: &&String| self.key_of(id).is_some_and(|key| !(known.trusted)(key));
        self.by_age.values().find(untrusted).cloned()
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
        let Some(owner) = self.take(node_id) else { return };
        self.pending.remove(node_id);
        // What was never written, and is not being written, needs no removal.
        if self.keeps && (owner.written || self.writing.contains(node_id)) {
            let binding = Binding { node_id: node_id.into(), fingerprint: owner.key.to_string() };
            self.pending.insert(node_id.into(), Change::Drop(binding));
        }
    }

    /// What is on disk now, and which files there mean nothing. It wins over what was not written yet.
    pub fn adopt(&mut self, list: &[Binding], unreadable: HashSet<String>) -> Adopted {
        let there: HashSet<&str> = list.iter().map(|binding| binding.node_id.as_str()).collect();
        let gone: Vec<String> = (self.by_id.iter())
            .filter(|(id, owner)| {
                owner.written && !there.contains(id.as_str()) && !self.writing.contains(*id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        let mut changed = !gone.is_empty() || self.unreadable != unreadable;
        for id in gone {
            self.take(&id);
            self.pending.remove(&id);
        }
        for Binding { node_id, fingerprint } in list {
            let ours = match self.pending.get(node_id) {
                Some(Change::Drop(of)) => of.fingerprint == *fingerprint,
                Some(Change::Keep { replaces, .. }) => replaces.as_ref() == Some(fingerprint),
                None => self.key_of(node_id) == Some(fingerprint),
            };
            if ours || self.writing.contains(node_id) {
                continue;
            }
            self.pending.remove(node_id);
            changed |= self.key_of(node_id) != Some(fingerprint);
            self.put(node_id, fingerprint, true);
        }
        self.unreadable = unreadable;
        match std::mem::replace(&mut self.disk, Disk::Read) {
            Disk::Lost => Adopted::Back,
            Disk::Unread => Adopted::News,
            Disk::Read | Disk::Unused if changed => Adopted::News,
            Disk::Read | Disk::Unused => Adopted::Same,
        }
    }

    /// Nothing on disk can be read: nobody is let in whom this table does not know. True if that is new.
    pub fn lose(&mut self) -> bool {
        std::mem::replace(&mut self.disk, Disk::Lost) != Disk::Lost
    }

    /// What has to be done on disk; of each it is to be told what became of it ([`done`](Self::done)).
    pub fn changes(&mut self) -> Vec<Change> {
        let changes: Vec<Change> = std::mem::take(&mut self.pending).into_values().collect();
        self.writing.extend(changes.iter().map(|change| change.node_id().to_owned()));
        changes
    }

    /// What became of a change.
    pub fn done(&mut self, change: Change, done: Done) {
        let id = change.node_id().to_owned();
        self.writing.remove(&id);
        match (done, &change) {
            (Done::Yes, Change::Keep { binding, .. }) => {
                // Unless it has changed hands meanwhile, which is to be written too.
                match self.by_id.get_mut(&id).filter(|owner| *owner.key == *binding.fingerprint) {
                    Some(owner) => owner.written = true,
                    None => self.replaced(&id, &binding.fingerprint),
                }
            }
            (Done::Yes, Change::Drop(_)) => {}
            (Done::NotYet, _) => drop(self.pending.entry(id).or_insert(change)),
            (Done::OfAnother(key), _) => {
                self.pending.remove(&id);
                self.put(&id, &key, true);
            }
        }
    }

    /// What waits for this id has something else to replace than it knew.
    fn replaced(&mut self, node_id: &str, key: &str) {
        if let Some(Change::Keep { replaces, .. }) = self.pending.get_mut(node_id) {
            *replaces = Some(key.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody is connected, and everybody trusted.
    const KNOWN: Known<'static> = Known { connected: &|_| false, trusted: &|_| true };

    fn binding(node_id: &str, key: &str) -> Binding {
        Binding { node_id: node_id.into(), fingerprint: key.into() }
    }

    fn keep(node_id: &str, key: &str) -> Change {
        Change::Keep { binding: binding(node_id, key), replaces: None }
    }

    /// One that comes, and is let in if it may be.
    fn meet(owners: &mut Owners, node_id: &str, key: &str) -> Result<(), NotOwned> {
        owners.ask(node_id, key, node_id, &KNOWN)?;
        owners.learn(node_id, key, &KNOWN);
        Ok(())
    }

    fn kept() -> Owners {
        let mut owners = Owners::new(true);
        assert_eq!(owners.adopt(&[], HashSet::new()), Adopted::News, "the first reading");
        owners
    }

    #[test]
    fn an_id_belongs_to_its_first_key() {
        let mut owners = Owners::new(false);
        assert_eq!(meet(&mut owners, "a", "1"), Ok(()));
        assert_eq!(meet(&mut owners, "a", "1"), Ok(()));
        assert_eq!(meet(&mut owners, "a", "2"), Err(NotOwned::OfAnother));
        assert_eq!(meet(&mut owners, "b", "1"), Ok(()), "one key may have several");
        assert_eq!(owners.changes(), [], "nothing is kept");
    }

    #[test]
    fn who_only_asks_takes_nothing() {
        let owners = kept();
        assert_eq!(owners.ask("a", "1", "", &KNOWN), Ok(()));
        assert_eq!(owners.ask("a", "2", "", &KNOWN), Ok(()));
    }

    #[test]
    fn a_key_of_many_ids_pushes_out_those_it_came_with_longest_ago_and_nobody_elses() {
        let mut owners = Owners::new(true);
        owners.adopt(&[binding("old", "many"), binding("daily", "many")], HashSet::new());
        assert_eq!(meet(&mut owners, "mine", "other"), Ok(()));
        for n in 0..10 * MAX_IDS_PER_KEY {
            assert_eq!(meet(&mut owners, &format!("n{n}"), "many"), Ok(()));
            assert_eq!(meet(&mut owners, "daily", "many"), Ok(()));
        }
        assert_eq!((owners.by_id.len(), owners.by_key.len()), (MAX_IDS_PER_KEY + 1, 2));
        for mine in ["mine", "daily"] {
            assert_eq!(meet(&mut owners, mine, "evil"), Err(NotOwned::OfAnother));
        }
        let changes = owners.changes();
        // 63 of its own, the other's, and one to remove: what was never written needs no removal.
        assert_eq!(changes.len(), MAX_IDS_PER_KEY - 1 + 2);
        assert!(changes.contains(&Change::Drop(binding("old", "many"))));
        assert!(changes.contains(&keep("mine", "other")));
        assert_eq!(owners.changes(), []);
    }

    #[test]
    fn an_id_that_is_connected_is_not_pushed_out() {
        let mut owners = kept();
        let known = Known { connected: &|id| id == "n0", trusted: &|_| true };
        for n in 0..=MAX_IDS_PER_KEY {
            owners.learn(&format!("n{n}"), "many", &known);
        }
        assert_eq!((owners.key_of("n0"), owners.key_of("n1")), (Some("many"), None));
    }

    #[test]
    fn a_full_table_forgets_nobody() {
        let full = |keeps| {
            let mut owners = if keeps { kept() } else { Owners::new(false) };
            for n in 0..MAX_BINDINGS {
                assert_eq!(meet(&mut owners, &format!("n{n}"), &format!("k{n}")), Ok(()));
            }
            owners
        };
        let mut kept = full(true);
        assert_eq!(meet(&mut kept, "new", "k"), Err(NotOwned::Full));
        assert_eq!(meet(&mut kept, "n0", "k"), Err(NotOwned::OfAnother));
        // What belongs to keys that are not trusted any more makes room.
        let known = Known { connected: &|_| false, trusted: &|key| key != "k7" };
        assert_eq!(kept.ask("new", "k", "", &known), Ok(()));
        kept.learn("new", "k", &known);
        assert_eq!(
            (kept.key_of("new"), kept.key_of("n7"), kept.by_id.len()),
            (Some("k"), None, MAX_BINDINGS)
        );
        let mut of_this_run = full(false);
        assert_eq!(meet(&mut of_this_run, "new", "k"), Ok(()), "everybody is let in there");
        assert_eq!((of_this_run.by_id.len(), of_this_run.key_of("new")), (MAX_BINDINGS, None));
        assert_eq!(meet(&mut of_this_run, "n0", "k"), Err(NotOwned::OfAnother));
    }

    #[test]
    fn the_id_of_a_key_that_is_not_trusted_any_more_is_free_for_one_that_is() {
        let mut owners = Owners::new(true);
        owners.adopt(&[binding("a", "old")], HashSet::new());
        let known = Known { connected: &|_| false, trusted: &|key| key == "new" };
        assert_eq!(owners.ask("a", "new", "", &KNOWN), Err(NotOwned::OfAnother), "the control");
        assert_eq!(owners.ask("a", "new", "", &known), Ok(()));
        owners.learn("a", "new", &known);
        let replaces = Some("old".to_owned());
        assert_eq!(owners.adopt(&[binding("a", "old")], HashSet::new()), Adopted::Same, "not written yet");
        assert_eq!(owners.changes(), [Change::Keep { binding: binding("a", "new"), replaces }]);
    }

    #[test]
    fn nobody_new_is_let_in_before_the_disk_was_read_or_where_it_cannot_be_understood() {
        let mut owners = Owners::new(true);
        assert_eq!(meet(&mut owners, "a", "1"), Err(NotOwned::Unreadable));
        owners.adopt(&[binding("b", "2")], HashSet::from(["a".to_owned()]));
        assert_eq!(meet(&mut owners, "a", "1"), Err(NotOwned::Unreadable));
        assert_eq!(meet(&mut owners, "c", "1"), Ok(()));
        assert!(owners.lose() && !owners.lose());
        assert_eq!(meet(&mut owners, "d", "1"), Err(NotOwned::Unreadable));
        assert_eq!(meet(&mut owners, "b", "2"), Ok(()), "what is known stays known");
        assert_eq!(owners.adopt(&[binding("b", "2")], HashSet::new()), Adopted::Back);
    }

    #[test]
    fn what_the_operator_changes_on_disk_counts_and_what_was_written_by_us_is_no_change() {
        let mut owners = kept();
        assert_eq!(meet(&mut owners, "a", "1"), Ok(()));
        assert_eq!(owners.adopt(&[], HashSet::new()), Adopted::Same, "not written yet");
        let mut changes = owners.changes();
        assert_eq!(changes, [keep("a", "1")]);
        assert_eq!(owners.adopt(&[], HashSet::new()), Adopted::Same, "it is being written");
        owners.done(changes.remove(0), Done::Yes);
        assert_eq!(owners.adopt(&[binding("a", "1")], HashSet::new()), Adopted::Same);
        assert_eq!(owners.adopt(&[binding("a", "2")], HashSet::new()), Adopted::News, "by hand");
        assert_eq!(meet(&mut owners, "a", "1"), Err(NotOwned::OfAnother));
        assert_eq!(owners.adopt(&[], HashSet::new()), Adopted::News, "forgotten");
        assert_eq!(meet(&mut owners, "a", "1"), Ok(()));
    }

    #[test]
    fn what_the_operator_wrote_wins_over_what_could_not_be_written() {
        let mut owners = kept();
        assert_eq!(meet(&mut owners, "a", "1"), Ok(()));
        let mut changes = owners.changes();
        owners.done(changes.remove(0), Done::NotYet);
        assert_eq!(
            owners.adopt(&[], HashSet::new()),
            Adopted::Same,
            "nobody has forgotten what is not there"
        );
        assert_eq!(owners.adopt(&[binding("a", "2")], HashSet::new()), Adopted::News);
        assert_eq!(owners.changes(), []);
        assert_eq!(owners.key_of("a"), Some("2"));
        // The same while it was being written.
        assert_eq!(meet(&mut owners, "b", "1"), Ok(()));
        let mut changes = owners.changes();
        owners.done(changes.remove(0), Done::OfAnother("2".into()));
        assert_eq!(owners.changes(), []);
        assert_eq!(owners.key_of("b"), Some("2"));
    }

    #[test]
    fn what_changes_hands_while_it_is_written_is_written_after_that() {
        let mut owners = kept();
        assert_eq!(meet(&mut owners, "a", "1"), Ok(()));
        let mut changes = owners.changes();
        let known = Known { connected: &|_| false, trusted: &|key| key == "2" };
        owners.learn("a", "2", &known);
        owners.done(changes.remove(0), Done::Yes);
        let replaces = Some("1".to_owned());
        assert_eq!(owners.changes(), [Change::Keep { binding: binding("a", "2"), replaces }]);
    }
}
