//! What a node remembers about its plugins beyond its own end, in its state directory: whether each is wanted, and the last versions of
//! those that were upgraded, by the hash of their content. What lies here is checked against its name before it is used: whoever can
//! write to the directory is the operator, but disks fail and hands slip.
//!
//! ```text
//! STATE_DIR/plugins/NAME/state.json             wanted or not, the version in use, and which file it stands for
//! STATE_DIR/plugins/NAME/versions/SHA256/NAME.so and plugin.toml
//! ```

use super::image::Image;
use super::lifecycle::Desired;
use super::version::Version;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use thenodes_ipc::PluginName;

/// Versions kept of each plugin.
pub const KEPT: usize = 3;
/// Largest state file.
const MAX_STATE: u64 = 64 * 1024;

/// A version on the shelf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Content of the library.
    pub sha256: String,
    /// What the author calls it.
    pub version: Option<String>,
}

/// What is remembered about one plugin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Memory {
    #[serde(default)]
    disabled: bool,
    /// The version in use, if it is one of those below and not the plugin directory's.
    #[serde(default)]
    current: Option<String>,
    /// Content of the plugin directory's file when that version was chosen. Another file there is the operator's later word.
    #[serde(default)]
    instead_of: Option<String>,
    /// The last one used is last.
    #[serde(default)]
    versions: Vec<Kept>,
}

/// What is wrong with the shelf.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct ShelfError {
    path: PathBuf,
    what: String,
}

/// The shelf of one node.
#[derive(Debug)]
pub struct Shelf {
    root: PathBuf,
    /// One writer at a time.
    lock: Mutex<()>,
}

fn failed(path: &Path, what: impl ToString) -> ShelfError {
    ShelfError { path: path.into(), what: what.to_string() }
}

/// A hash is the only name that leads into the shelf.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Shelf {
    /// The shelf below this state directory; nothing is made until something is to be remembered.
    pub fn new(state_dir: &Path) -> Shelf {
        Shelf { root: state_dir.join("plugins"), lock: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_file(&self, plugin: &PluginName) -> PathBuf {
        self.root.join(plugin.as_str()).join("state.json")
    }

    fn dir_of(&self, plugin: &PluginName, sha256: &str) -> PathBuf {
        self.root.join(plugin.as_str()).join("versions").join(sha256)
    }

    fn read(&self, plugin: &PluginName) -> Result<Memory, ShelfError> {
        let path = self.state_file(plugin);
        let mut text = String::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
            Err(error) => return Err(failed(&path, error)),
            Ok(file) => {
                file.take(MAX_STATE + 1).read_to_string(&mut text).map_err(|error| failed(&path, error))?
            }
        };
        let memory: Memory = serde_json::from_str(&text).map_err(|error| {
            failed(&path, format!("{error}; mend it, or remove it to forget what was wanted"))
        })?;
        if let Some(wrong) = memory.versions.iter().find(|version| !is_hash(&version.sha256)) {
            return Err(failed(&path, format!("{:?} is no hash; remove the file", wrong.sha256)));
        }
        Ok(memory)
    }

    /// Whole or not at all, and on the disk before this returns.
    fn write(&self, plugin: &PluginName, memory: &Memory) -> Result<(), ShelfError> {
        let path = self.state_file(plugin);
        let text = serde_json::to_vec_pretty(memory).map_err(|error| failed(&path, error))?;
        put(&path, &text)
    }

    /// What the operator wanted when he last said so.
    pub fn desired(&self, plugin: &PluginName) -> Result<Desired, ShelfError> {
        let disabled = self.read(plugin)?.disabled;
        Ok(if disabled { Desired::Disabled } else { Desired::Enabled })
    }

    /// Remembers what the operator wants.
    pub fn want(&self, plugin: &PluginName, desired: Desired) -> Result<(), ShelfError> {
        let _one = self.lock();
        let memory = Memory { disabled: desired == Desired::Disabled, ..self.read(plugin)? };
        self.write(plugin, &memory)
    }

    /// Puts a version on the shelf. `in_dir`: content of the plugin directory's file, which it is used instead of.
    pub fn keep(&self, version: &Version, in_dir: &str) -> Result<(), ShelfError> {
        let _one = self.lock();
        let name = &version.image.name;
        let sha256 = &version.image.sha256;
        let dir = self.dir_of(name, sha256);
        if let Some(manifest) = &version.manifest {
            put(&dir.join("plugin.toml"), manifest.as_bytes())?;
        }
        let library = dir.join(format!("{name}.so"));
        // Also if it is there: it may have been damaged since.
        put(&library, &content(&version.image).map_err(|error| failed(&library, error))?)?;
        let mut memory = self.read(name)?;
        let label = version.terms.manifest.as_ref().map(|manifest| manifest.version.to_string());
        memory.versions.retain(|kept| kept.sha256 != *sha256);
        memory.versions.push(Kept { sha256: sha256.clone(), version: label });
        while memory.versions.len() > KEPT {
            let old = memory.versions.remove(0);
            // What cannot be removed is only in the way.
            let _ = fs::remove_dir_all(self.dir_of(name, &old.sha256));
        }
        memory.instead_of = Some(in_dir.to_owned());
        self.write(name, &memory)
    }

    /// Forgets a version that was not on the shelf before and did not come up.
    pub fn forget(&self, plugin: &PluginName, sha256: &str) -> Result<(), ShelfError> {
        let _one = self.lock();
        let mut memory = self.read(plugin)?;
        if memory.current.as_deref() == Some(sha256) || !is_hash(sha256) {
            return Ok(());
        }
        memory.versions.retain(|kept| kept.sha256 != sha256);
        let _ = fs::remove_dir_all(self.dir_of(plugin, sha256));
        self.write(plugin, &memory)
    }

    /// True if this version lies here.
    pub fn has(&self, plugin: &PluginName, sha256: &str) -> bool {
        self.read(plugin).is_ok_and(|memory| memory.versions.iter().any(|kept| kept.sha256 == sha256))
    }

    /// A version is in use now. One that is not on the shelf is the plugin directory's.
    pub fn set_current(&self, plugin: &PluginName, sha256: &str) -> Result<(), ShelfError> {
        let _one = self.lock();
        let mut memory = self.read(plugin)?;
        let Some(at) = memory.versions.iter().position(|kept| kept.sha256 == sha256) else {
            if memory.current.is_none() {
                return Ok(()); // nothing was ever chosen, and nothing is to be written
            }
            memory.current = None;
            return self.write(plugin, &memory);
        };
        memory.current = (memory.instead_of.as_deref() != Some(sha256)).then(|| sha256.to_owned());
        let kept = memory.versions.remove(at);
        memory.versions.push(kept);
        self.write(plugin, &memory)
    }

    /// Content of the version to use instead of the plugin directory's file with this content, if one was chosen.
    pub fn chosen(&self, plugin: &PluginName, in_dir: &str) -> Result<Option<String>, ShelfError> {
        let memory = self.read(plugin)?;
        Ok(memory.current.filter(|_| memory.instead_of.as_deref() == Some(in_dir)))
    }

    /// The version that was in use before this one.
    pub fn before(&self, plugin: &PluginName, sha256: &str) -> Result<Option<Kept>, ShelfError> {
        Ok(self.read(plugin)?.versions.into_iter().rev().find(|kept| kept.sha256 != sha256))
    }

    /// Files of a version.
    pub fn files(&self, plugin: &PluginName, sha256: &str) -> Result<(PathBuf, Option<PathBuf>), ShelfError> {
        if !is_hash(sha256) {
            return Err(failed(&self.state_file(plugin), format!("{sha256:?} is no hash; remove the file")));
        }
        let dir = self.dir_of(plugin, sha256);
        let (library, manifest) = (dir.join(format!("{plugin}.so")), dir.join("plugin.toml"));
        Ok((library, manifest.exists().then_some(manifest)))
    }
}

/// The bytes of the sealed library, which nobody can have changed since they were checked.
fn content(image: &Image) -> io::Result<Vec<u8>> {
    let file = File::from(image.library.fd.try_clone()?);
    let mut bytes = vec![0; usize::try_from(image.library.size).map_err(io::Error::other)?];
    // At an offset of its own: the descriptor's is shared with every runner.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a file beside its place and puts it there.
fn put(path: &Path, bytes: &[u8]) -> Result<(), ShelfError> {
    let error = |error: io::Error| failed(path, error);
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(error)?;
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(error)?;
    file.write_all(bytes).map_err(error)?;
    file.as_file().sync_all().map_err(error)?;
    file.persist(path).map_err(|failure| error(failure.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> PluginName {
        PluginName::new("echo").expect("a name")
    }

    #[test]
    fn what_an_operator_wants_outlives_the_node() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Shelf::new(dir.path()).desired(&name()).expect("readable"), Desired::Enabled);
        Shelf::new(dir.path()).want(&name(), Desired::Disabled).expect("written");
        assert_eq!(Shelf::new(dir.path()).desired(&name()).expect("readable"), Desired::Disabled);
        Shelf::new(dir.path()).want(&name(), Desired::Enabled).expect("written");
        assert_eq!(Shelf::new(dir.path()).desired(&name()).expect("readable"), Desired::Enabled);
    }

    #[test]
    fn a_chosen_version_holds_until_another_file_lies_in_the_plugin_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::new(dir.path());
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let kept = |sha256: &str| Kept { sha256: sha256.into(), version: None };
        let memory = Memory {
            instead_of: Some(one.clone()),
            versions: vec![kept(&one), kept(&two)],
            ..Memory::default()
        };
        shelf.write(&name(), &memory).expect("written");
        shelf.set_current(&name(), &two).expect("written");
        assert_eq!(shelf.chosen(&name(), &one).expect("readable"), Some(two.clone()));
        assert!(shelf.files(&name(), &two).expect("a version").0.ends_with(format!("{two}/echo.so")));
        assert_eq!(shelf.chosen(&name(), &"3".repeat(64)).expect("readable"), None);
        assert_eq!(shelf.before(&name(), &two).expect("readable"), Some(kept(&one)));
        shelf.set_current(&name(), &one).expect("written");
        assert_eq!(shelf.chosen(&name(), &one).expect("readable"), None, "it is the directory's own again");
        assert_eq!(shelf.before(&name(), &one).expect("readable"), Some(kept(&two)));
    }

    #[test]
    fn a_state_file_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::new(dir.path());
        shelf.want(&name(), Desired::Enabled).expect("written");
        for text in ["{", "{\"versions\":[{\"sha256\":\"../../x\",\"version\":null}]}"] {
            fs::write(shelf.state_file(&name()), text).expect("written");
            let error = shelf.desired(&name()).expect_err("refused").to_string();
            assert!(error.contains("state.json"), "{error}");
        }
        assert!(shelf.files(&name(), "../x").is_err());
    }
}
