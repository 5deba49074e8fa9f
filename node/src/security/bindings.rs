//! Which key each node id came with first, on disk: the memory of `tofu`, and of the modes with a list of trusted keys. It outlives the
//! node, and one of its entries changes only when the operator says so. Does not trust peers: an id names a file by its hash, entries are bounded in number and size,
//! and what cannot be read or written lets nobody in.
//!
//! The format is upstream's since 0.4: `<observed>/bindings/<SHA-256 of "node:ID">.txt` with lines `fingerprint=` and `identity=`.
//! Upstream also keeps entries by subject (`identity=CN=..`), which say nothing of a node id and are passed over.

use super::directory::is_fingerprint;
use crate::text::hex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Ids that are remembered; no more come in on first use.
pub const MAX_BINDINGS: usize = 10_000;
/// Largest file of one entry, bytes.
const MAX_FILE: u64 = 4096;

/// How an id and a key met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meeting {
    /// The id was never seen; from now on it belongs to this key.
    First,
    /// They came together before.
    Again,
    /// The id was never seen before, but somebody else is connected under it.
    Connected,
    /// The id belongs to another key.
    Other {
        /// Whose fingerprint is this.
        fingerprint: String,
    },
}

/// Why the memory says nothing. Each lets nobody in.
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// An entry, or the directory, cannot be read or means nothing.
    #[error("{path}: {what}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A new entry cannot be written.
    #[error("{path}: {what}", path = path.display())]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// The directory of a node's bindings.
#[derive(Debug, Clone)]
pub struct Bindings(PathBuf);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Node id.
    pub node_id: String,
    /// Fingerprint of its key.
    pub fingerprint: String,
}

impl Bindings {
    /// Below the directory of observed certificates.
    pub fn below(observed: &Path) -> Self {
        Self(observed.join("bindings"))
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The name of the file that speaks of an id.
    pub fn file_of(node_id: &str) -> String {
        format!("{}.txt", hex(&Sha256::digest(format!("node:{node_id}"))))
    }

    fn path(&self, node_id: &str) -> PathBuf {
        self.0.join(Self::file_of(node_id))
    }

    /// Makes the directory; true if there was none. Once, when a node starts or its rules name another place or begin to remember: from then
    /// on one that is missing is a memory that is missing, and not an empty one.
    pub fn prepare(&self) -> Result<bool, BindingError> {
        if self.0.is_dir() {
            return Ok(false);
        }
        let unwritable =
            |e: io::Error| BindingError::Unwritable { path: self.0.clone(), what: e.to_string() };
        fs::create_dir_all(&self.0).map_err(unwritable).map(|()| true)
    }

    /// An id comes with a key; `connected`: somebody has the id now, who need not be the same. Blocks for some small reads, and a write
    /// at the first time; of two first times at once one is.
    pub fn meet(&self, node_id: &str, fingerprint: &str, connected: bool) -> Result<Meeting, BindingError> {
        let path = self.path(node_id);
        if let Some(known) = entry(&path)? {
            return compare(known, node_id, fingerprint, &path);
        }
        if connected {
            return Ok(Meeting::Connected);
        }
        let unwritable = |what: String| BindingError::Unwritable { path: path.clone(), what };
        let files = fs::read_dir(&self.0).map_err(|e| {
            let what = format!("{e}; a node makes this directory when it starts");
            BindingError::Unreadable { path: self.0.clone(), what }
        })?;
        let is_entry =
            |file: &fs::DirEntry| file.path().extension().is_some_and(|extension| extension == "txt");
        let count = files.flatten().filter(is_entry).count();
        if count >= MAX_BINDINGS {
            return Err(unwritable(format!(
                "{count} ids are remembered, and no more; remove those of nodes that are gone with `thenodes trust forget`"
            )));
        }
        let file = self.draft(node_id, fingerprint).map_err(|e| unwritable(e.to_string()))?;
        match file.persist_noclobber(&path) {
            // What a power cut may take back was not remembered.
            Ok(_) => match fs::File::open(&self.0).and_then(|dir| dir.sync_all()) {
                Ok(()) => Ok(Meeting::First),
                Err(error) => Err(unwritable(error.to_string())),
            },
            // Somebody was first meanwhile.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                let known = entry(&path)?.ok_or_else(|| unwritable("it comes and goes".into()))?;
                compare(known, node_id, fingerprint, &path)
            }
            Err(error) => Err(unwritable(error.error.to_string())),
        }
    }

    /// An entry that has no name yet.
    fn draft(&self, node_id: &str, fingerprint: &str) -> io::Result<tempfile::NamedTempFile> {
        let mut file =
            tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o644)).tempfile_in(&self.0)?;
        let text = format!("fingerprint={fingerprint}\nidentity=node:{node_id}\n");
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    }

    /// Writes down whose an id is, if nobody is written down, or it is that key already or this one. Says whose it is if it is another's.
    /// Blocks for a write.
    pub fn keep(&self, of: &Binding, replaces: Option<&str>) -> Result<Option<String>, BindingError> {
        match self.holder(&of.node_id)? {
            Some(holder) if holder == of.fingerprint => Ok(None),
            Some(holder) if replaces == Some(&*holder) => self.give(of).map(|()| None),
            Some(holder) => Ok(Some(holder)),
            None => match self.meet(&of.node_id, &of.fingerprint, false)? {
                Meeting::Other { fingerprint } => Ok(Some(fingerprint)),
                Meeting::First | Meeting::Again | Meeting::Connected => Ok(None),
            },
        }
    }

    /// Removes what is written down of an id, if it is this key's.
    pub fn release(&self, of: &Binding) -> Result<(), BindingError> {
        match self.holder(&of.node_id)? {
            Some(holder) if holder == of.fingerprint => self.forget(&of.node_id).map(drop),
            Some(_) | None => Ok(()),
        }
    }

    /// Gives an id to a key, whoever had it before. Blocks for a write.
    pub fn give(&self, of: &Binding) -> Result<(), BindingError> {
        let path = self.path(&of.node_id);
        let given = self
            .draft(&of.node_id, &of.fingerprint)
            .and_then(|file| file.persist(&path).map_err(|e| e.error))
            .and_then(|_| fs::File::open(&self.0)?.sync_all());
        given.map_err(|e| BindingError::Unwritable { path, what: e.to_string() })
    }

    /// The fingerprint of the key that an id belongs to; `None` if it was never seen, or was forgotten.
    pub fn holder(&self, node_id: &str) -> Result<Option<String>, BindingError> {
        let known = entry(&self.path(node_id))?;
        Ok(known
            .and_then(Entry::of_node)
            .filter(|known| known.node_id == node_id)
            .map(|known| known.fingerprint))
    }

    /// All entries of node ids, by id. A file that means nothing is an error: silence would look like an id that was never seen.
    pub fn list(&self) -> Result<Vec<Binding>, BindingError> {
        if !self.0.exists() {
            return Ok(Vec::new());
        }
        let (list, unreadable) = self.survey()?;
        match unreadable.into_iter().next() {
            None => Ok(list),
            Some((_, error)) => Err(error),
        }
    }

    /// The same, with the names of the files that mean nothing, and why, beside what the others say.
    pub fn survey(&self) -> Result<(Vec<Binding>, HashMap<String, BindingError>), BindingError> {
        let error = |e: io::Error| BindingError::Unreadable { path: self.0.clone(), what: e.to_string() };
        let (mut list, mut unreadable) = (Vec::new(), HashMap::new());
        for file in fs::read_dir(&self.0).map_err(error)? {
            let file = file.map_err(error)?;
            let (path, name) = (file.path(), file.file_name().to_string_lossy().into_owned());
            if path.extension().is_none_or(|extension| extension != "txt") {
                continue;
            }
            match entry(&path).map(|entry| entry.and_then(Entry::of_node)) {
                Ok(Some(of)) if Self::file_of(&of.node_id) != name => {
                    let what = "it speaks of another identity than its name; restore it, or remove it".into();
                    unreadable.insert(name, BindingError::Unreadable { path, what });
                }
                Ok(entry) => list.extend(entry),
                Err(error) => drop(unreadable.insert(name, error)),
            }
        }
        list.sort_by(|a: &Binding, b| a.node_id.cmp(&b.node_id));
        Ok((list, unreadable))
    }

    /// Forgets an id: whoever comes with it next is its first. False if it was not known.
    pub fn forget(&self, node_id: &str) -> Result<bool, BindingError> {
        let path = self.path(node_id);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(BindingError::Unwritable { path, what: error.to_string() }),
        }
    }
}

/// What stands in a file.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    fingerprint: String,
    identity: String,
}

impl Entry {
    fn of_node(self) -> Option<Binding> {
        let node_id = self.identity.strip_prefix("node:")?.to_owned();
        Some(Binding { node_id, fingerprint: self.fingerprint })
    }
}

fn compare(known: Entry, node_id: &str, fingerprint: &str, path: &Path) -> Result<Meeting, BindingError> {
    if known.identity.strip_prefix("node:") != Some(node_id) {
        let what = "it speaks of another identity than its name; restore it, or remove it".into();
        return Err(BindingError::Unreadable { path: path.into(), what });
    }
    Ok(match known.fingerprint == fingerprint {
        true => Meeting::Again,
        false => Meeting::Other { fingerprint: known.fingerprint },
    })
}

fn entry(path: &Path) -> Result<Option<Entry>, BindingError> {
    let unreadable = |what: String| BindingError::Unreadable { path: path.into(), what };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| unreadable(e.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(unreadable(format!("longer than {MAX_FILE} bytes")));
    }
    parse(&text).map(Some).ok_or_else(|| unreadable("no lines `fingerprint=` and `identity=`".into()))
}

fn parse(text: &str) -> Option<Entry> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let fingerprint = value("fingerprint")?.trim().to_ascii_lowercase();
    let identity = value("identity")?.to_owned();
    is_fingerprint(&fingerprint).then_some(Entry { fingerprint, identity })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> String {
        hex(&[n; 32])
    }

    #[test]
    fn an_id_belongs_to_its_first_key_until_the_operator_says_otherwise() {
        let dir = tempfile::tempdir().expect("a directory");
        let bindings = Bindings::below(dir.path());
        assert_eq!(bindings.list().expect("none yet"), []);
        let met = bindings.meet("n", &key(1), false);
        assert!(
            matches!(met, Err(BindingError::Unreadable { .. })),
            "a memory that is gone is not empty: {met:?}"
        );
        assert!(bindings.prepare().expect("made") && !bindings.prepare().expect("there"));
        assert_eq!(bindings.meet("n", &key(9), true).expect("read"), Meeting::Connected);
        assert_eq!(bindings.meet("n", &key(1), false).expect("written"), Meeting::First);
        assert_eq!(bindings.meet("n", &key(1), false).expect("read"), Meeting::Again);
        assert_eq!(bindings.meet("n", &key(2), false).expect("read"), Meeting::Other { fingerprint: key(1) });
        // One key may have many names; what upstream had wrong is one subject for many keys.
        assert_eq!(bindings.meet("m", &key(1), false).expect("written"), Meeting::First);
        let ids: Vec<String> = bindings.list().expect("two").into_iter().map(|b| b.node_id).collect();
        assert_eq!(ids, ["m", "n"]);
        assert!(bindings.forget("n").expect("removed") && !bindings.forget("n").expect("gone"));
        assert_eq!(bindings.meet("n", &key(2), false).expect("written"), Meeting::First);
    }

    #[test]
    fn the_file_is_the_one_that_upstream_writes() {
        let dir = tempfile::tempdir().expect("a directory");
        let bindings = Bindings::below(dir.path());
        bindings.prepare().expect("made");
        bindings.meet("node-b", &key(0xab), false).expect("written");
        let name = format!("{}.txt", hex(&Sha256::digest(b"node:node-b")));
        let text = fs::read_to_string(dir.path().join("bindings").join(name)).expect("there");
        assert_eq!(text, format!("fingerprint={}\nidentity=node:node-b\n", key(0xab)));
    }

    #[test]
    fn what_cannot_be_understood_lets_nobody_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let bindings = Bindings::below(dir.path());
        bindings.prepare().expect("made");
        bindings.meet("n", &key(1), false).expect("written");
        let path = bindings.path("n");
        let of_other = format!("fingerprint={}\nidentity=node:m\n", key(1));
        let long = format!("fingerprint={}\nidentity=node:n\n{}", key(1), "x".repeat(5000));
        for text in ["", "fingerprint=12\nidentity=node:n\n", &of_other, &long] {
            fs::write(&path, text).expect("written");
            let met = bindings.meet("n", &key(1), false);
            assert!(matches!(met, Err(BindingError::Unreadable { .. })), "{text:.40}: {met:?}");
        }
        // A file where the directory should be.
        fs::write(dir.path().join("file"), "").expect("written");
        let bindings = Bindings(dir.path().join("file/bindings"));
        assert!(bindings.prepare().is_err());
        let met = bindings.meet("n", &key(1), false);
        assert!(
            matches!(met, Err(BindingError::Unreadable { .. } | BindingError::Unwritable { .. })),
            "{met:?}"
        );
    }

    #[test]
    fn of_two_first_times_at_once_one_is_the_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let bindings = Bindings::below(dir.path());
        bindings.prepare().expect("made");
        let met: Vec<Meeting> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|n| {
                    let bindings = bindings.clone();
                    scope.spawn(move || bindings.meet("n", &key(n), false).expect("readable"))
                })
                .collect();
            all.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert_eq!(met.iter().filter(|met| **met == Meeting::First).count(), 1, "{met:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_the_reader(text: String) {
            let _ = parse(&text);
        }
    }
}
