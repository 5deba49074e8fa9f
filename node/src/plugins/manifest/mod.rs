//! What a plugin says about itself in `plugin.toml`, and what it asks for. Its author is not trusted: the text is bounded before
//! it is parsed, every value is checked, and asking is not being given, see [`super::grants`]. A key that this release does not
//! act on is named in [`Manifest::without_effect`], never passed over in silence.

mod check;
mod raw;
mod value;

use crate::config::scope::Scope;
use crate::config::{ConfigError, ManifestLimits, Permission};
use semver::{Version, VersionReq};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thenodes_ipc::PluginName;

/// Largest manifest, bytes.
pub const MAX_MANIFEST: usize = 256 * 1024;

/// Why a manifest is not used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}; make it a readable text file", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too large.
    #[error("{path}: {size} bytes; a manifest has at most {MAX_MANIFEST}", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Something in it is wrong.
    #[error("{error}{}", help(error))]
    Value {
        /// What and where.
        #[from]
        error: ConfigError,
    },
}

/// What to do, behind what is wrong: a list of plugins has one line for both.
fn help(error: &ConfigError) -> String {
    match error {
        ConfigError::Value { help: Some(help), .. } => format!("; {help}"),
        ConfigError::Value { help: None, .. } | ConfigError::Read { .. } => String::new(),
    }
}

/// What a plugin is to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginKind {
    /// It serves by itself.
    Service,
    /// It works on what passes.
    Processor,
    /// It is called with parameters.
    Tool,
    /// It keeps things.
    Store,
}

/// A permission by its word: one that can be given, or one that this release does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Word {
    /// It can be given.
    Served(Permission),
    /// It cannot; such an entry is always optional.
    NotServed(&'static str),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Served(permission) => permission.fmt(f),
            Word::NotServed(word) => f.write_str(word),
        }
    }
}

/// One `[[permission]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What.
    pub word: Word,
    /// How far; empty is everything, where the permission allows that.
    pub scopes: Vec<Scope>,
    /// What for, for the operator.
    pub reason: Option<String>,
    /// The plugin works without it.
    pub optional: bool,
    /// Line of its name in the file.
    pub line: usize,
}

/// Something that a plugin offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Provides {
    /// Of which type.
    pub what: String,
    /// What else it says of it.
    pub more: toml::Table,
}

/// Wishes for the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// Which filter of system calls.
    pub seccomp: Option<String>,
    /// Which network.
    pub network: Option<String>,
    /// Room for temporary files, MiB.
    pub tmp_mb: Option<u64>,
}

/// Another plugin that this one needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depends {
    /// Its name.
    pub name: PluginName,
    /// Its versions.
    pub version: VersionReq,
    /// It works without.
    pub optional: bool,
}

/// A method for other plugins.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// Its name.
    pub method: String,
    /// Schema of its parameters.
    pub params: Option<toml::Table>,
    /// For people.
    pub description: Option<String>,
}

/// A subscription to hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// To which.
    pub pattern: String,
    /// `observe` or `intercept`.
    pub mode: String,
    /// Lower is earlier.
    pub priority: u16,
    /// How long the handler may take.
    pub timeout_ms: u64,
    /// What a chain does with its answers.
    pub policy: Option<String>,
}

/// A library for one kind of machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// The machine.
    pub target: String,
    /// Where in the package.
    pub path: String,
}

/// A manifest whose values are possible.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The file.
    pub path: PathBuf,
    /// How many lines it has; something new goes behind the last.
    pub lines: usize,
    /// Name of the plugin.
    pub name: PluginName,
    /// Version of the plugin.
    pub version: Version,
    /// Name for people.
    pub title: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// Under which license.
    pub license: Option<String>,
    /// Where its source is.
    pub repository: Option<String>,
    /// Where to read about it.
    pub homepage: Option<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// What it is.
    pub kind: PluginKind,
    /// Oldest plugin interface that it works with.
    pub min_api: Option<Version>,
    /// Oldest node that it works with, and the line that says so.
    pub min_host: Option<(Version, usize)>,
    /// Requests that it answers.
    pub handles: Vec<String>,
    /// Lower is asked earlier.
    pub priority: Option<u16>,
    /// Requests at once.
    pub concurrency: Option<u8>,
    /// What it offers.
    pub provides: Vec<Provides>,
    /// What it asks for.
    pub permissions: Vec<Asked>,
    /// Limits.
    pub limits: ManifestLimits,
    /// Wishes for the sandbox.
    pub sandbox: Sandbox,
    /// What it needs.
    pub depends: Vec<Depends>,
    /// What others may call.
    pub exports: Vec<Export>,
    /// Subscriptions.
    pub hooks: Vec<Hook>,
    /// Its own configuration, with `schema` in it.
    pub config: Option<toml::Table>,
    /// Libraries of a package.
    pub libraries: Vec<Library>,
    /// Keys that were written and have no effect in this release, with line and reason.
    pub without_effect: Vec<String>,
}

impl Manifest {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Manifest, ManifestError> {
        Manifest::parse(path, &Manifest::text(path)?)
    }

    /// The text of a file; its size is looked at before anything else.
    pub fn text(path: &Path) -> Result<String, ManifestError> {
        let failed = |source| ManifestError::Read { path: path.into(), source };
        // Without blocking: a FIFO in the directory must not hold the node up.
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        if about.len() > MAX_MANIFEST as u64 {
            return Err(ManifestError::TooLarge { path: path.into(), size: about.len() });
        }
        let mut text = String::new();
        // Bounded even if the file grows while it is read; one byte more than allowed is refused by the parser.
        Read::by_ref(&mut file).take(MAX_MANIFEST as u64 + 1).read_to_string(&mut text).map_err(failed)?;
        Ok(text)
    }

    /// Reads a text. `path` is for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Manifest, ManifestError> {
        if text.len() > MAX_MANIFEST {
            return Err(ManifestError::TooLarge { path: path.into(), size: text.len() as u64 });
        }
        Ok(check::manifest(path, text)?)
    }

    /// Refuses a manifest that needs a newer node than this version.
    pub fn fits(&self, node: &Version) -> Result<(), String> {
        match &self.min_host {
            Some((least, line)) if least > node => Err(format!(
                "{}:{line}: needs a node of version {least} or later, this is {node}; update the node, or use an older plugin",
                self.path.display()
            )),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
