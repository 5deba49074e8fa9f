//! All plugins of a node: reads what `scan` found, starts a supervisor per plugin, finds plugins by name and by
//! prompt, and brings new versions. Manifests and libraries come from authors who are not trusted: a bad file is named and left out; the
//! others start.

use super::grants::Subject;
use super::handle::Handle;
use super::image::{self, Image, ImageError};
use super::lifecycle::{Desired, State};
use super::manifest::Manifest;
pub use super::scan::Rejected;
use super::scan::{named, scan, Found};
use super::shelf::{Shelf, ShelfError};
use super::supervisor::{self, HostMaker, Keeping, Policy, Surroundings};
use super::terms::Terms;
use super::uids::{Claims, Uids};
use super::version::{growth, Version};
use crate::config::{Permission, Plugins};
use semver::Version as Semver;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thenodes::host::HostError;
use thenodes_ipc::{Code, PluginName};

/// Makes the node as a plugin on these terms sees it.
pub type Hosts = Arc<dyn Fn(&Arc<Terms>) -> HostMaker + Send + Sync>;

/// What bringing a new version takes.
struct Workshop {
    config: Plugins,
    provided: BTreeSet<String>,
    shelf: Arc<Shelf>,
    hosts: Hosts,
    /// Content of each plugin's file in the plugin directory, as last read.
    in_dir: Mutex<BTreeMap<PluginName, (PathBuf, String)>>,
    /// One new version at a time: each may take half a minute, and two processes' memory.
    one: tokio::sync::Mutex<()>,
}

/// Where a new version comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The plugin directory, as it is now.
    Directory,
    /// A library, or a directory with one.
    File(PathBuf),
    /// The version before the one that runs.
    Before,
}

/// The plugins of a node.
#[derive(Default)]
pub struct Registry {
    plugins: BTreeMap<PluginName, Handle>,
    /// Files that are no plugins.
    pub rejected: Vec<Rejected>,
    workshop: Option<Workshop>,
    /// Keeps the uids of the plugins theirs.
    _claims: Option<Claims>,
}

/// A plugin as it was read: library, manifest and its text.
struct Read {
    image: Image,
    manifest: Option<(Manifest, Arc<str>)>,
}

impl Registry {
    /// Reads every plugin of the directory and starts it. A directory that does not exist has no plugins.
    pub fn start(
        config: &Plugins,
        policy: &Arc<Policy>,
        uids: &mut Uids,
        shelf: Arc<Shelf>,
        hosts: Hosts,
        mut around: impl FnMut(Arc<Terms>, HostMaker, u32, Keeping) -> Surroundings,
    ) -> std::io::Result<Registry> {
        let mut registry = Registry::default();
        let found = scan(&config.dir)?;
        if found.is_empty() {
            return Ok(registry);
        }
        let provided = image::libraries_of_program(&policy.runner).map_err(std::io::Error::other)?;
        let mut good = Vec::new();
        for one in found {
            match one.and_then(|found| read(&found, None, &provided)) {
                Ok(read) => good.push(read),
                Err(rejected) => registry.rejected.push(rejected),
            }
        }
        // Whoever has a name has what the operator gives to it: where two claim one, none gets it.
        let mut claims: BTreeMap<PluginName, Vec<PathBuf>> = BTreeMap::new();
        for Read { image, .. } in &good {
            claims.entry(image.name.clone()).or_default().push(image.path.clone());
        }
        let mut in_dir = BTreeMap::new();
        for read in good {
            let (name, path) = (read.image.name.clone(), read.image.path.clone());
            let others = claims.get(&name).map(Vec::as_slice).unwrap_or_default();
            if let Some(other) = others.iter().find(|other| **other != path) {
                let reason = format!(
                    "another plugin is named {name} too: {}; neither is loaded until one is renamed or removed",
                    other.display()
                );
                registry.rejected.push(Rejected::new(&path, reason));
                continue;
            }
            let slot = match uids.of(&name) {
                Ok(slot) => slot,
                Err(error) => {
                    let reason = format!("it has no uid: {error}");
                    registry.rejected.push(Rejected::new(&path, reason));
                    continue;
                }
            };
            // A plugin whose operator's wish cannot be read does not start: it may have been disabled.
            let desired = match shelf.desired(&name) {
                Ok(desired) => desired,
                Err(error) => {
                    registry.rejected.push(Rejected::new(&path, error));
                    continue;
                }
            };
            in_dir.insert(name.clone(), (path, read.image.sha256.clone()));
            let (Read { image, manifest }, rejected) = chosen(&shelf, read, &provided);
            registry.rejected.extend(rejected);
            let (manifest, text) = manifest.unzip();
            let terms = Terms::agree(name, manifest, &config.giving, config.limits, config.budget);
            let terms = Arc::new(terms);
            let keeping = Keeping {
                supervision: config.supervision,
                desired,
                shelf: Some(shelf.clone()),
                manifest: text,
            };
            let host = hosts(&terms);
            let handle = supervisor::supervise(Arc::new(image), around(terms, host, slot, keeping));
            registry.plugins.insert(handle.name.clone(), handle);
        }
        registry._claims = uids.take_claims();
        let (config, in_dir) = (config.clone(), Mutex::new(in_dir));
        let one = tokio::sync::Mutex::default();
        registry.workshop = Some(Workshop { config, provided, shelf, hosts, in_dir, one });
        Ok(registry)
    }

    /// Brings another version of a plugin while calls go on, and says which one runs then. The old one goes on if it does not come up.
    ///
    /// # Errors
    /// If there is no such version, if it may do more than the old one and the operator did not say `accept`, if it does not come up.
    pub async fn bring(
        self: &Arc<Self>,
        name: &str,
        source: Source,
        accept: bool,
    ) -> Result<String, HostError> {
        let (Some(plugin), Some(workshop)) = (self.get(name).cloned(), &self.workshop) else {
            return Err(HostError::new(Code::NotFound, format!("no plugin {name:?}")));
        };
        let _one = workshop.one.lock().await;
        let (this, old) = (self.clone(), plugin.status().version);
        let before = old.clone();
        // Files are read and written: not on a worker.
        let making = tokio::task::spawn_blocking(move || {
            let workshop =
                this.workshop.as_ref().ok_or_else(|| HostError::new(Code::Internal, "no workshop"))?;
            workshop.make(&before, &source, accept)
        });
        let internal = |error: tokio::task::JoinError| HostError::new(Code::Internal, error.to_string());
        let (new, fresh) = making.await.map_err(internal)??;
        let new_hash = new.image.sha256.clone();
        let outcome = plugin.replace(new).await;
        if outcome.is_err() && fresh {
            let (shelf, of) = (workshop.shelf.clone(), plugin.name.clone());
            let forgotten = tokio::task::spawn_blocking(move || shelf.forget(&of, &new_hash)).await;
            if let Ok(Err(error)) = forgotten {
                tracing::warn!("plugin {name}: a version that did not come up stays: {error}");
            }
        }
        outcome
    }

    /// Remembers what the operator wants of a plugin, and does it.
    ///
    /// # Errors
    /// If it cannot be written down; then nothing is done.
    pub async fn want(&self, name: &str, desired: Desired) -> Result<(), HostError> {
        let (Some(plugin), Some(workshop)) = (self.get(name), &self.workshop) else {
            return Err(HostError::new(Code::NotFound, format!("no plugin {name:?}")));
        };
        let (shelf, of) = (workshop.shelf.clone(), plugin.name.clone());
        let written = tokio::task::spawn_blocking(move || shelf.want(&of, desired)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(not_written(&error)),
            Err(error) => return Err(HostError::new(Code::Internal, error.to_string())),
        }
        match desired {
            Desired::Enabled => plugin.enable().await,
            Desired::Disabled => plugin.disable().await,
        }
        Ok(())
    }

    /// All plugins, by name.
    pub fn all(&self) -> impl Iterator<Item = &Handle> {
        self.plugins.values()
    }

    /// The plugin of this name.
    pub fn get(&self, name: &str) -> Option<&Handle> {
        self.plugins.get(&PluginName::new(name).ok()?)
    }

    /// The plugin with this prompt prefix; the first by name, if several may have it.
    pub fn by_prompt(&self, prefix: &str) -> Option<&Handle> {
        self.all().find(|plugin| {
            let may = plugin.terms().grants.allows(Permission::CommandRegister, Subject::Prompt(prefix));
            may && plugin.with_status(|status| {
                status.registration.as_ref().is_some_and(|r| r.prompts.iter().any(|prompt| prompt == prefix))
            })
        })
    }

    /// Waits until every plugin has registered, or has failed, or `patience` is over.
    pub async fn wait_registered(&self, patience: Duration) {
        let all = async {
            for plugin in self.all() {
                plugin.wait(|status| !matches!(status.state, State::Loading)).await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Waits until every plugin is Ready, or has failed or died once, or `patience` is over.
    pub async fn wait_settled(&self, patience: Duration) {
        let all = async {
            for plugin in self.all() {
                plugin.wait(|status| !status.state.starts()).await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Stops all, and waits until each has.
    pub async fn stop(&self, patience: Duration) {
        let all = async {
            for plugin in self.all() {
                plugin.stop().await;
            }
            for plugin in self.all() {
                plugin.wait(|status| !status.state.has_process()).await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }
}

fn not_written(error: &ShelfError) -> HostError {
    HostError::new(Code::Internal, format!("{error}; the state directory must be writable for this"))
}

impl Workshop {
    /// Reads and checks a version, and puts it and the one that runs on the shelf. True if it was not there before.
    fn make(
        &self,
        old: &Arc<Version>,
        source: &Source,
        accept: bool,
    ) -> Result<(Arc<Version>, bool), HostError> {
        let name = &old.image.name;
        let wrong = |rejected: Rejected| HostError::new(Code::InvalidInput, rejected.reason);
        let on_shelf = |error: ShelfError| HostError::new(Code::Internal, error.to_string());
        let of_dir = {
            let in_dir = self.in_dir.lock().unwrap_or_else(PoisonError::into_inner);
            in_dir.get(name).cloned()
        };
        let (path, mut dir_hash) = of_dir.ok_or_else(|| {
            HostError::new(Code::NotFound, format!("plugin {name}: it has no file in the plugin directory"))
        })?;
        let Read { image, manifest } = match source {
            Source::File(file) => {
                read(&named(file).map_err(wrong)?, Some(name), &self.provided).map_err(wrong)?
            }
            Source::Directory => {
                let of_name = named(&path).map_err(wrong)?;
                let here = read(&of_name, Some(name), &self.provided).map_err(wrong)?;
                dir_hash = here.image.sha256.clone();
                let (chosen, rejected) = chosen(&self.shelf, here, &self.provided);
                match rejected {
                    Some(rejected) => return Err(wrong(rejected)),
                    None => chosen,
                }
            }
            Source::Before => {
                let before = self.shelf.before(name, &old.image.sha256).map_err(on_shelf)?;
                let before = before.ok_or_else(|| {
                    let text = format!("plugin {name}: no other version is kept; versions are kept when they are upgraded or reloaded");
                    HostError::new(Code::NotFound, text)
                })?;
                of_shelf(&self.shelf, name, &before.sha256, &self.provided).map_err(wrong)?
            }
        };
        let (manifest, text) = manifest.unzip();
        let config = &self.config;
        let terms =
            Arc::new(Terms::agree(name.clone(), manifest, &config.giving, config.limits, config.budget));
        let new =
            Arc::new(Version { host: (self.hosts)(&terms), image: Arc::new(image), terms, manifest: text });
        let more = growth(&old.terms, &new.terms);
        // What is gone back to was accepted when it came.
        if !more.is_empty() && !accept && *source != Source::Before {
            let text = format!(
                "plugin {name}: version {} may do more than {}:\n{}\nif you agree, repeat with --accept-permissions",
                new.label(),
                old.label(),
                more.join("\n")
            );
            return Err(HostError::new(Code::PermissionDenied, text));
        }
        let fresh = !self.shelf.has(name, &new.image.sha256);
        self.shelf
            .keep(old, &dir_hash)
            .and_then(|()| self.shelf.keep(&new, &dir_hash))
            .map_err(|e| not_written(&e))?;
        let mut in_dir = self.in_dir.lock().unwrap_or_else(PoisonError::into_inner);
        in_dir.insert(name.clone(), (path, dir_hash));
        Ok((new, fresh))
    }
}

/// The version that an operator chose instead of this file, if he did, and what is wrong with it, if something is.
fn chosen(shelf: &Shelf, here: Read, provided: &BTreeSet<String>) -> (Read, Option<Rejected>) {
    let name = here.image.name.clone();
    let found = match shelf.chosen(&name, &here.image.sha256) {
        Ok(None) => return (here, None),
        Ok(Some(sha256)) => of_shelf(shelf, &name, &sha256, provided),
        Err(error) => Err(Rejected::new(&here.image.path, error)),
    };
    match found {
        Ok(read) => (read, None),
        Err(mut rejected) => {
            rejected.reason.push_str("; the plugin directory's own version runs instead");
            (here, Some(rejected))
        }
    }
}

/// Reads a version from the shelf; its content must be what its name says.
fn of_shelf(
    shelf: &Shelf,
    name: &PluginName,
    sha256: &str,
    provided: &BTreeSet<String>,
) -> Result<Read, Rejected> {
    let (library, manifest) =
        shelf.files(name, sha256).map_err(|error| Rejected::new(Path::new(name.as_str()), error))?;
    let read = read(&Found { library: library.clone(), manifest }, Some(name), provided)?;
    if read.image.sha256 == sha256 {
        Ok(read)
    } else {
        Err(Rejected::new(&library, "its content is not what its name says; the disk may be failing"))
    }
}

/// Reads manifest and library; the manifest first, because it is small and says the name. `wanted`: the name that it must have.
fn read(found: &Found, wanted: Option<&PluginName>, provided: &BTreeSet<String>) -> Result<Read, Rejected> {
    let Some(path) = &found.manifest else {
        let image = match wanted {
            None => Image::read(&found.library, provided),
            Some(name) => Image::read_as(name.clone(), &found.library, provided),
        };
        let image = image.map_err(|error| bad(&found.library, &error))?;
        return Ok(Read { image, manifest: None });
    };
    let of_manifest =
        |reason: String| Rejected { path: path.clone(), reason: format!("{}: {reason}", Code::ConfigError) };
    let text = Manifest::text(path).map_err(|error| of_manifest(error.to_string()))?;
    let manifest = Manifest::parse(path, &text).map_err(|error| of_manifest(error.to_string()))?;
    let node = Semver::parse(env!("CARGO_PKG_VERSION")).map_err(|error| of_manifest(error.to_string()))?;
    manifest.fits(&node).map_err(|reason| Rejected {
        path: path.clone(),
        reason: format!("{}: {reason}", Code::Incompatible),
    })?;
    if let Some(wanted) = wanted.filter(|wanted| **wanted != manifest.name) {
        return Err(of_manifest(format!(
            "{}: it is the plugin {}, not {wanted}",
            path.display(),
            manifest.name
        )));
    }
    let image = Image::read_as(manifest.name.clone(), &found.library, provided);
    let image = image.map_err(|error| bad(&found.library, &error))?;
    Ok(Read { image, manifest: Some((manifest, text.into())) })
}

/// The library's own error names the file already.
fn bad(library: &Path, error: &ImageError) -> Rejected {
    Rejected { path: library.into(), reason: error.to_string() }
}
