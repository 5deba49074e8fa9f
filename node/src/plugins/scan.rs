//! What lies in the plugin directory: which library, and which manifest belongs to it. Only names are looked at here; what the
//! files hold is read later and is not trusted. An entry that makes no sense is named and left out; the others go on.
//!
//! | where | what |
//! |---|---|
//! | `NAME/plugin.toml` with one `*.so` beside it | a plugin in a directory of its own |
//! | `libX.so` with `libX.plugin.toml` | side by side |
//! | `libX.so` with `plugin.toml`, if it is the only library | a directory of one |
//! | `libX.so` alone | a plugin without a manifest |

use std::io;
use std::path::{Path, PathBuf};

/// Name of a manifest.
const MANIFEST: &str = "plugin.toml";

/// A library and its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) library: PathBuf,
    pub(super) manifest: Option<PathBuf>,
}

/// A file that is no plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The file.
    pub path: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

impl Rejected {
    pub(super) fn new(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self { path: path.into(), reason: format!("{}: {reason}", path.display()) }
    }
}

/// Looks through a directory, in the order of names. One that does not exist has no plugins.
pub(super) fn scan(dir: &Path) -> io::Result<Vec<Result<Found, Rejected>>> {
    let entries = match sorted(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut libraries = entries.iter().filter(|path| is_library(path));
    let only = (libraries.next(), libraries.next());
    let shared = dir.join(MANIFEST);
    let mut out = Vec::new();
    for path in &entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_library(path) {
            let own = path.with_extension(MANIFEST);
            let shares = matches!(only, (Some(_), None)) && entries.contains(&shared);
            let manifest = match (entries.contains(&own), shares) {
                (true, true) => {
                    let reason =
                        format!("{} belongs to the library too; remove one of the two", own.display());
                    out.push(Err(Rejected::new(&shared, reason)));
                    continue;
                }
                (true, false) => Some(own),
                (false, true) => Some(shared.clone()),
                (false, false) => None,
            };
            out.push(Ok(Found { library: path.clone(), manifest }));
        } else if *path == shared {
            if !matches!(only, (Some(_), None)) {
                let reason = "it could belong to any library here, or to none; name it libNAME.plugin.toml, or give each plugin a directory of its own";
                out.push(Err(Rejected::new(path, reason)));
            }
        } else if let Some(stem) = name.strip_suffix(".plugin.toml") {
            let library = format!("{stem}.so");
            if !entries.contains(&dir.join(&library)) {
                out.push(Err(Rejected::new(path, format!("there is no {library} beside it"))));
            }
        } else if path.is_dir() && !name.starts_with('.') {
            out.extend(subdirectory(path));
        }
    }
    Ok(out)
}

/// The plugin that an operator names: a library, with its manifest beside it if there is one, or a directory with both.
pub(super) fn named(path: &Path) -> Result<Found, Rejected> {
    if path.is_dir() {
        let nothing = || Err(Rejected::new(path, "no plugin.toml and no library in it"));
        return subdirectory(path).unwrap_or_else(nothing);
    }
    let own = path.with_extension(MANIFEST);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shared = dir.join(MANIFEST);
    let manifest = if own.is_file() {
        Some(own)
    } else if shared.is_file() {
        let entries = sorted(dir).map_err(|error| Rejected::new(dir, error))?;
        if entries.iter().filter(|path| is_library(path)).count() > 1 {
            let reason = "it could belong to any library there; name it like the library, or name a directory with one";
            return Err(Rejected::new(&shared, reason));
        }
        Some(shared)
    } else {
        None
    };
    Ok(Found { library: path.into(), manifest })
}

/// A directory with a plugin in it; `None` if it has nothing to do with plugins.
fn subdirectory(dir: &Path) -> Option<Result<Found, Rejected>> {
    let entries = match sorted(dir) {
        Ok(entries) => entries,
        Err(error) => return Some(Err(Rejected::new(dir, format!("cannot be read: {error}")))),
    };
    let manifest = dir.join(MANIFEST);
    let libraries: Vec<&PathBuf> = entries.iter().filter(|path| is_library(path)).collect();
    match (entries.contains(&manifest), libraries.as_slice()) {
        (false, []) => None,
        (false, _) => {
            let reason =
                format!("a library in a directory of its own needs {} beside it", manifest.display());
            Some(Err(Rejected::new(dir, reason)))
        }
        (true, [library]) => Some(Ok(Found { library: (*library).clone(), manifest: Some(manifest) })),
        (true, several) => {
            let reason = format!("{} libraries (*.so) beside it; there must be exactly one", several.len());
            Some(Err(Rejected::new(&manifest, reason)))
        }
    }
}

/// The entries of a directory, sorted: their order on disk is chance, the order of plugins is not.
fn sorted(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn is_library(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "so")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lays files out, scans, and writes the result down: `library<manifest`, or `!file` for what was rejected.
    fn scanned(files: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a directory");
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, "").expect("a file");
        }
        let short = |path: &Path| path.strip_prefix(dir.path()).expect("inside").display().to_string();
        let line = |one: Result<Found, Rejected>| match one {
            Ok(Found { library, manifest: None }) => short(&library),
            Ok(Found { library, manifest: Some(manifest) }) => {
                format!("{}<{}", short(&library), short(&manifest))
            }
            Err(rejected) => format!("!{}", short(&rejected.path)),
        };
        scan(dir.path()).expect("scans").into_iter().map(line).collect()
    }

    #[test]
    fn a_manifest_finds_its_library_in_each_form() {
        assert_eq!(
            scanned(&["echo/plugin.toml", "echo/libany.so", "echo/README", "libb.so"]),
            ["echo/libany.so<echo/plugin.toml", "libb.so"]
        );
        assert_eq!(
            scanned(&["liba.so", "liba.plugin.toml", "libb.so"]),
            ["liba.so<liba.plugin.toml", "libb.so"]
        );
        assert_eq!(scanned(&["plugin.toml", "liba.so"]), ["liba.so<plugin.toml"]);
    }

    #[test]
    fn what_could_mean_two_things_is_rejected_and_the_others_go_on() {
        assert_eq!(scanned(&["plugin.toml", "liba.so", "libb.so"]), ["liba.so", "libb.so", "!plugin.toml"]);
        assert_eq!(scanned(&["plugin.toml"]), ["!plugin.toml"]);
        assert_eq!(scanned(&["plugin.toml", "liba.so", "liba.plugin.toml"]), ["!plugin.toml"]);
        assert_eq!(scanned(&["libx.plugin.toml", "liba.so"]), ["liba.so", "!libx.plugin.toml"]);
        assert_eq!(scanned(&["a/plugin.toml", "a/x.so", "a/y.so", "b.so"]), ["!a/plugin.toml", "b.so"]);
        assert_eq!(scanned(&["a/plugin.toml", "b/x.so", "c/data", ".d/x.so"]), ["!a/plugin.toml", "!b"]);
    }

    #[test]
    fn a_directory_that_does_not_exist_has_no_plugins() {
        assert_eq!(scan(Path::new("/nonexistent/plugins")).expect("no error"), []);
    }
}
