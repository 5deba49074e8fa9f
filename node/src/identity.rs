//! Who this node is: from the configuration, else from a file that the first start writes, else for this run only.

use crate::config::Identity;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Where an id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Written in the configuration.
    Configured,
    /// Read from the id file.
    Persisted,
    /// Made now and written to the id file.
    Created,
    /// Made now; it could not be written.
    Ephemeral,
}

/// Why there is no id.
#[derive(Debug, thiserror::Error)]
#[error("no node id: {path}: {what}; set [node] id, or make the directory writable")]
pub struct IdentityError {
    path: String,
    what: String,
}

/// Finds or makes the id.
pub fn resolve(identity: &Identity) -> Result<(String, Source), IdentityError> {
    if let Some(id) = &identity.id {
        return Ok((id.clone(), Source::Configured));
    }
    let path = identity.state_dir.join(&identity.id_file);
    let failed = |what: String| IdentityError { path: path.display().to_string(), what };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            return if crate::config::is_node_id(id) {
                Ok((id.to_owned(), Source::Persisted))
            } else {
                Err(failed("holds no node id; remove the file to get a new one".into()))
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error.to_string())),
    }
    let id = uuid::Uuid::new_v4().to_string();
    match persist(&path, &id) {
        Ok(()) => Ok((id, Source::Created)),
        Err(error) if identity.allow_ephemeral => {
            tracing::warn!("{}: {error}; this id is for this run only", path.display());
            Ok((id, Source::Ephemeral))
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Writes a whole file or none, and never over one that appeared meanwhile.
fn persist(path: &Path, id: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{id}")?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(dir: &Path, allow_ephemeral: bool) -> Identity {
        Identity {
            id: None,
            state_dir: dir.into(),
            id_file: "node_id".into(),
            allow_ephemeral,
            node_type: "daemon".into(),
        }
    }

    #[test]
    fn the_first_start_makes_an_id_and_the_next_ones_keep_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, source) = resolve(&identity(dir.path(), false)).expect("an id");
        assert_eq!(source, Source::Created);
        assert_eq!(resolve(&identity(dir.path(), false)).expect("an id"), (first, Source::Persisted));
    }

    #[test]
    fn an_id_file_that_holds_none_is_an_error_and_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("node_id"), "a b\n").expect("written");
        assert!(resolve(&identity(dir.path(), true)).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("node_id")).expect("reads"), "a b\n");
    }

    #[test]
    fn without_a_place_for_the_id_only_permission_makes_it_ephemeral() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        assert!(resolve(&identity(&file, false)).is_err());
    }
}
