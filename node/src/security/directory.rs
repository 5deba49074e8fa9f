//! The directories of other nodes' certificates: those that the operator trusts, and those of strangers that were kept. Does not trust
//! what strangers brought: what is kept of them is bounded, and a name becomes a path only if it is a fingerprint.

use super::bindings::{Binding, BindingError, Bindings};
use super::pki::{at, facts, read, CertificateFacts, PkiError};
use crate::config::is_node_id;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Certificates of strangers that are kept; more are not written.
const MAX_OBSERVED: usize = 1000;

/// Whom a directory trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Fingerprints: of each certificate in each `*.pem`, and the names of `*.spki` files.
    pub keys: BTreeSet<String>,
    /// Pairs of a node id and a key: those certificates of `*.pem` files whose common name is a node id.
    pairs: BTreeSet<(String, String)>,
    /// The same, by key.
    names: BTreeMap<String, BTreeSet<String>>,
}

/// What the operator's pairs say of an id and a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pair {
    /// The operator trusts this key under this id.
    Listed,
    /// He trusts another key under this id.
    OfAnother,
    /// He trusts this key under another id.
    Elsewhere {
        /// One of those.
        named: String,
    },
    /// He said nothing of either.
    Unsaid,
}

impl Trusted {
    fn name(&mut self, node_id: &str, fingerprint: &str) {
        self.pairs.insert((node_id.to_owned(), fingerprint.to_owned()));
        self.names.entry(fingerprint.to_owned()).or_default().insert(node_id.to_owned());
    }

    /// The ids that a key is trusted under; none: any.
    pub fn names_of(&self, fingerprint: &str) -> impl Iterator<Item = &str> {
        self.names.get(fingerprint).into_iter().flatten().map(String::as_str)
    }

    /// A key and the ids that it is trusted under, for people.
    pub fn shown(&self, key: &str) -> String {
        let names: Vec<&str> = self.names_of(key).collect();
        match names.is_empty() {
            true => key.to_owned(),
            false => format!("{key} as {}", names.join(", ")),
        }
    }

    /// Whether this key may come as this id, as far as the operator said.
    pub fn pair(&self, node_id: &str, fingerprint: &str) -> Pair {
        if self.pairs.contains(&(node_id.to_owned(), fingerprint.to_owned())) {
            return Pair::Listed;
        }
        let from = (node_id.to_owned(), String::new());
        if self.pairs.range(from..).next().is_some_and(|(id, _)| id == node_id) {
            return Pair::OfAnother;
        }
        match self.names.get(fingerprint).and_then(|names| names.first()) {
            Some(named) => Pair::Elsewhere { named: named.clone() },
            None => Pair::Unsaid,
        }
    }
}

/// Whom a directory trusts.
///
/// A directory that does not exist trusts nobody; a file that cannot be read is an error, because silence about it would
/// look like a peer that was never trusted.
pub fn trusted(dir: &Path) -> Result<Trusted, PkiError> {
    let mut trusted = Trusted::default();
    for path in files(dir)? {
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("pem") => {
                for facts in certificates(&path)? {
                    if let Some(name) = facts.common_name.filter(|name| is_node_id(name)) {
                        trusted.name(&name, &facts.fingerprint);
                    }
                    trusted.keys.insert(facts.fingerprint);
                }
            }
            Some("spki") => {
                let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_ascii_lowercase();
                if !is_fingerprint(&stem) {
                    return Err(at(&path, "the file name is no fingerprint of 64 hex digits"));
                }
                trusted.keys.insert(stem);
            }
            _ => {}
        }
    }
    Ok(trusted)
}

/// 64 lower-case hex digits.
pub fn is_fingerprint(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Trusts a key by its fingerprint, under whatever id it comes with: an empty file named after it. False if it was trusted already.
pub fn trust_fingerprint(dir: &Path, fingerprint: &str) -> Result<bool, PkiError> {
    let fingerprint = fingerprint.trim().to_ascii_lowercase();
    if !is_fingerprint(&fingerprint) {
        return Err(at(dir, format!("{fingerprint:?} is no fingerprint of 64 hex digits")));
    }
    if trusted(dir)?.keys.contains(&fingerprint) {
        return Ok(false);
    }
    fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
    let path = dir.join(format!("{fingerprint}.spki"));
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).map_err(|e| at(&path, e))?;
    Ok(true)
}

/// Where certificates are put that the operator trusts, and what he wants to happen to others of the same name.
#[derive(Debug, Clone)]
pub struct Trusting<'a> {
    /// The trusted directory.
    pub dir: &'a Path,
    /// Which key an id came with, as far as that is remembered on disk.
    pub bindings: Bindings,
    /// An id that is another key's goes to this one.
    pub replace: bool,
}

impl Trusting<'_> {
    /// Trusts the key of a certificate, under the id that the certificate names if it names one. False if both were trusted already. What a
    /// certificate says of itself is its maker's word: an id that is another key's needs the operator's.
    fn certificate(&self, certificate: &CertificateDer<'_>) -> Result<bool, PkiError> {
        let facts = facts(certificate);
        let named = facts.common_name.filter(|name| is_node_id(name));
        let before = trusted(self.dir)?;
        let known = match &named {
            None => before.keys.contains(&facts.fingerprint),
            Some(named) => before.pair(named, &facts.fingerprint) == Pair::Listed,
        };
        if let Some(named) = &named {
            self.make_room(named, &facts.fingerprint)?;
        }
        if known {
            return Ok(false);
        }
        // One key may have several certificates.
        let number = (0..).map(|n| if n == 0 { String::new() } else { format!(".{n}") });
        let mut paths = number.map(|n| self.dir.join(format!("{}{n}.pem", facts.fingerprint)));
        let path = paths.find(|path| !path.exists()).unwrap_or_default();
        write_new(self.dir, &path, certificate, 0o644).map_err(|e| at(&path, e))
    }

    /// Other keys that have the id lose it, or are the reason why nothing is done.
    fn make_room(&self, node_id: &str, fingerprint: &str) -> Result<(), PkiError> {
        let refused = |path: &Path, key: &str| {
            let what = format!(
                "{node_id} is the id of {key}; if it has a new key, --replace trusts that in place of the old one, and if this is another node, it needs an id and a certificate of its own"
            );
            at(path, what)
        };
        for (path, others) in self.others(node_id, fingerprint)? {
            match others.as_slice() {
                [other] if !self.replace => return Err(refused(&path, other)),
                [_] => fs::remove_file(&path).map_err(|e| at(&path, e))?,
                _ => {
                    return Err(at(
                        &path,
                        format!("it holds several certificates; take out that of {node_id}"),
                    ))
                }
            }
        }
        let at_bindings = |e: BindingError| at(self.bindings.dir(), e);
        if !self.bindings.dir().is_dir() {
            return Ok(());
        }
        match self.bindings.holder(node_id).map_err(at_bindings)? {
            Some(holder) if holder != fingerprint && !self.replace => {
                Err(refused(self.bindings.dir(), &holder))
            }
            Some(holder) if holder != fingerprint => {
                let binding = Binding { node_id: node_id.into(), fingerprint: fingerprint.into() };
                self.bindings.give(&binding).map_err(at_bindings)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Files that give an id to other keys, with the keys of all their certificates.
    fn others(&self, node_id: &str, fingerprint: &str) -> Result<Vec<(PathBuf, Vec<String>)>, PkiError> {
        let mut found = Vec::new();
        let is_pem = |path: &PathBuf| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("pem"));
        for path in files(self.dir)?.into_iter().filter(is_pem) {
            let all = certificates(&path)?;
            let is_other = |facts: &CertificateFacts| {
                facts.common_name.as_deref() == Some(node_id) && facts.fingerprint != fingerprint
            };
            if all.iter().any(is_other) {
                found.push((path, all.into_iter().map(|facts| facts.fingerprint).collect()));
            }
        }
        Ok(found)
    }

    /// Trusts the certificates of a PEM file, each under the id that it names; returns their fingerprints.
    pub fn file(&self, file: &Path) -> Result<Vec<String>, PkiError> {
        let mut list = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(&read(file)?) {
            let certificate = certificate.map_err(|e| at(file, e))?;
            self.certificate(&certificate)?;
            list.push(facts(&certificate).fingerprint);
        }
        if list.is_empty() {
            return Err(at(file, "holds no PEM certificate"));
        }
        Ok(list)
    }

    /// Trusts a key whose certificate was kept among the observed ones; false if it was trusted already. `None`: none was kept.
    pub fn promote(&self, observed: &Path, fingerprint: &str) -> Result<Option<bool>, PkiError> {
        let fingerprint = fingerprint.trim().to_ascii_lowercase();
        // Compared with what is there, and never made a path of before that.
        if !is_fingerprint(&fingerprint) || !trusted(observed)?.keys.contains(&fingerprint) {
            return Ok(None);
        }
        let path = observed.join(format!("{fingerprint}.pem"));
        if !path.exists() {
            return trust_fingerprint(self.dir, &fingerprint).map(Some); // kept in another way: by hand
        }
        let mut new = false;
        for certificate in CertificateDer::pem_slice_iter(&read(&path)?) {
            let certificate = certificate.map_err(|e| at(&path, e))?;
            // Of a file that strangers' certificates are kept in, no more than was asked for.
            if facts(&certificate).fingerprint == fingerprint {
                new |= self.certificate(&certificate)?;
            }
        }
        Ok(Some(new))
    }
}

/// The files of a directory, none if it does not exist.
fn files(dir: &Path) -> Result<Vec<PathBuf>, PkiError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(|e| at(dir, e))?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(at(dir, error)),
    }
}

/// What stands in the certificates of a PEM file.
fn certificates(path: &Path) -> Result<Vec<CertificateFacts>, PkiError> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .map(|certificate| certificate.map(|der| facts(&der)).map_err(|e| at(path, e)))
        .collect()
}

/// Writes a peer's certificate to the observed directory, once per fingerprint. True if it was written now.
pub fn observe(dir: &Path, fingerprint: &str, certificate: &[u8]) -> io::Result<bool> {
    let path = dir.join(format!("{fingerprint}.pem"));
    if path.exists() || fs::read_dir(dir).is_ok_and(|entries| entries.count() >= MAX_OBSERVED) {
        return Ok(false);
    }
    write_new(dir, &path, certificate, 0o600)
}

/// Writes a certificate whole or not at all, and never over another; false if there was one.
fn write_new(dir: &Path, path: &Path, certificate: &[u8], mode: u32) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    let text = pem::encode(&pem::Pem::new("CERTIFICATE", certificate));
    let mut file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::pki::{fingerprints, make, KeyType};
    use thenodes::realms::RealmInfo;

    fn trusting(dir: &Path) -> Trusting<'_> {
        Trusting { dir, bindings: Bindings::below(&dir.join("observed")), replace: false }
    }

    fn realm() -> RealmInfo {
        RealmInfo::new("Test Realm", "1")
    }

    #[test]
    fn strangers_certificates_are_kept_up_to_a_number() {
        let dir = tempfile::tempdir().expect("a directory");
        let kept = (0..1100).filter(|n| observe(dir.path(), &format!("{n}"), b"x").expect("written")).count();
        assert_eq!((kept, fs::read_dir(dir.path()).expect("reads").count()), (1000, 1000));
    }

    #[test]
    fn only_what_was_kept_is_promoted_and_no_path_is_made_of_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let (observed, trust) = (dir.path().join("observed"), dir.path().join("trusted"));
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let fingerprint = make(&cert, &key, "a", &realm(), KeyType::P256, 1, false).expect("made");
        let der = CertificateDer::from_pem_file(&cert).expect("PEM");
        for word in [&*fingerprint, "../../etc", ""] {
            assert!(matches!(trusting(&trust).promote(&observed, word), Ok(None)), "{word}");
        }
        observe(&observed, &fingerprint, &der).expect("written");
        assert!(matches!(trusting(&trust).promote(&observed, &fingerprint.to_uppercase()), Ok(Some(true))));
        assert!(matches!(trusting(&trust).promote(&observed, &fingerprint), Ok(Some(false))));
        let of = trusted(&trust).expect("reads");
        assert_eq!((of.keys.len(), of.pair("a", &fingerprint)), (1, Pair::Listed));
    }

    #[test]
    fn a_directory_trusts_certificates_and_fingerprints_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let trust = dir.path().join("trusted");
        assert_eq!(trusted(&trust).expect("none"), Trusted::default());
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let fingerprint = make(&cert, &key, "n", &realm(), KeyType::P256, 1, false).expect("made");
        assert_eq!(trusting(&trust).file(&cert).expect("trusted"), std::slice::from_ref(&fingerprint));
        assert!(!trust_fingerprint(&trust, &fingerprint).expect("again"));
        fs::copy(&cert, trust.join("x.PEM")).expect("copied");
        assert_eq!(trusted(&trust).expect("one").keys, BTreeSet::from([fingerprint]));
        assert!(trust_fingerprint(&trust, "../../etc/passwd").is_err());
        fs::write(trust.join("short.spki"), "").expect("written");
        assert!(trusted(&trust).is_err(), "a file that means nothing is an error, not silence");
    }

    #[test]
    fn an_observed_certificate_reads_back_as_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let fingerprint = make(&cert, &key, "n", &realm(), KeyType::P256, 1, false).expect("made");
        let der = CertificateDer::from_pem_file(&cert).expect("PEM");
        let observed = dir.path().join("observed");
        assert!(observe(&observed, &fingerprint, &der).expect("written"));
        assert!(!observe(&observed, &fingerprint, &der).expect("once"));
        assert_eq!(fingerprints(&observed.join(format!("{fingerprint}.pem"))).expect("reads"), [fingerprint]);
    }

    #[test]
    fn a_certificate_in_the_trusted_directory_pairs_its_key_with_the_id_that_it_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let trust = dir.path().join("trusted");
        let made = |id: &str| {
            let (cert, key) = (dir.path().join(format!("{id}.pem")), dir.path().join(format!("{id}.key")));
            let fingerprint = make(&cert, &key, id, &realm(), KeyType::P256, 1, false).expect("made");
            (cert, fingerprint)
        };
        let ((a, of_a), (_, of_b), (nameless, of_none)) = (made("node-a"), made("node-b"), made("no id"));
        trusting(&trust).file(&a).expect("trusted");
        trusting(&trust).file(&nameless).expect("trusted");
        trust_fingerprint(&trust, &of_b).expect("trusted");
        let trusted = trusted(&trust).expect("reads");
        assert_eq!(trusted.keys.len(), 3);
        assert_eq!(trusted.pair("node-a", &of_a), Pair::Listed);
        assert_eq!(trusted.pair("node-a", &of_b), Pair::OfAnother);
        assert_eq!(trusted.pair("node-b", &of_a), Pair::Elsewhere { named: "node-a".into() });
        for (id, key) in [("node-b", &of_b), ("node-c", &of_none), ("node-", &of_none), ("node-aa", &of_b)] {
            assert_eq!(trusted.pair(id, key), Pair::Unsaid, "{id}");
        }
    }

    #[test]
    fn a_key_that_was_trusted_by_its_fingerprint_gets_its_name_with_its_certificate() {
        let dir = tempfile::tempdir().expect("a directory");
        let trust = dir.path().join("trusted");
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let fingerprint = make(&cert, &key, "node-a", &realm(), KeyType::P256, 1, false).expect("made");
        trust_fingerprint(&trust, &fingerprint).expect("trusted");
        assert_eq!(trusted(&trust).expect("reads").pair("node-a", &fingerprint), Pair::Unsaid);
        for _ in 0..2 {
            trusting(&trust).file(&cert).expect("trusted");
            assert_eq!(trusted(&trust).expect("reads").pair("node-a", &fingerprint), Pair::Listed);
        }
        assert_eq!(fs::read_dir(&trust).expect("reads").count(), 2);
    }

    #[test]
    fn a_certificate_takes_no_id_that_is_another_keys_unless_the_operator_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let trust = dir.path().join("trusted");
        let made = |file: &str| {
            let (cert, key) =
                (dir.path().join(format!("{file}.pem")), dir.path().join(format!("{file}.key")));
            let fingerprint = make(&cert, &key, "node-a", &realm(), KeyType::P256, 1, false).expect("made");
            (cert, fingerprint)
        };
        let ((old, of_old), (new, of_new)) = (made("old"), made("new"));
        trusting(&trust).file(&old).expect("trusted");
        let error = trusting(&trust).file(&new).expect_err("refused").to_string();
        assert!(error.contains("node-a is the id of") && error.contains("--replace"), "{error}");
        assert_eq!(trusted(&trust).expect("reads").keys, BTreeSet::from([of_old]));
        let replacing = Trusting { replace: true, ..trusting(&trust) };
        replacing.file(&new).expect("trusted");
        let now = trusted(&trust).expect("reads");
        assert_eq!(
            (now.keys.len(), now.pair("node-a", &of_new)),
            (1, Pair::Listed),
            "in place of the old one"
        );
        // Nor one that came with another key first.
        let (other, of_other) = {
            let (cert, key) = (dir.path().join("b.pem"), dir.path().join("b.key"));
            let fingerprint = make(&cert, &key, "node-b", &realm(), KeyType::P256, 1, false).expect("made");
            (cert, fingerprint)
        };
        replacing.bindings.prepare().expect("made");
        replacing.bindings.meet("node-b", &of_new, false).expect("written");
        assert!(trusting(&trust).file(&other).is_err());
        replacing.file(&other).expect("trusted");
        assert_eq!(replacing.bindings.holder("node-b").expect("read"), Some(of_other));
    }
}
