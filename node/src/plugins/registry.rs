//! All plugins of a node: reads what `scan` found, starts a supervisor per plugin, finds plugins by name and by
//! prompt. Manifests and libraries come from authors who are not trusted: a bad file is named and left out; the others start.

use super::grants::Subject;
use super::handle::Handle;
use super::image::{self, Image, ImageError};
use super::lifecycle::State;
use super::manifest::Manifest;
pub use super::scan::Rejected;
use super::scan::{scan, Found};
use super::supervisor::{self, Policy, Surroundings};
use super::terms::Terms;
use super::uids::{Claims, Uids};
use crate::config::{Permission, Plugins};
use semver::Version;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thenodes_ipc::{Code, PluginName};

/// The plugins of a node.
#[derive(Default)]
pub struct Registry {
    plugins: BTreeMap<PluginName, Handle>,
    /// Files that are no plugins.
    pub rejected: Vec<Rejected>,
    /// Keeps the uids of the plugins theirs.
    _claims: Option<Claims>,
}

impl Registry {
    /// Reads every plugin of the directory and starts it. A directory that does not exist has no plugins.
    pub fn start(
        config: &Plugins,
        policy: &Arc<Policy>,
        uids: &mut Uids,
        mut around: impl FnMut(Arc<Terms>, u32) -> Surroundings,
    ) -> std::io::Result<Registry> {
        let mut registry = Registry::default();
        let found = scan(&config.dir)?;
        if found.is_empty() {
            return Ok(registry);
        }
        let provided = image::libraries_of_program(&policy.runner).map_err(std::io::Error::other)?;
        let mut good = Vec::new();
        for one in found {
            match one.and_then(|found| read(&found, &provided)) {
                Ok(read) => good.push(read),
                Err(rejected) => registry.rejected.push(rejected),
            }
        }
        // Whoever has a name has what the operator gives to it: where two claim one, none gets it.
        let mut claims: BTreeMap<PluginName, Vec<PathBuf>> = BTreeMap::new();
        for (image, _) in &good {
            claims.entry(image.name.clone()).or_default().push(image.path.clone());
        }
        for (image, manifest) in good {
            let others = claims.get(&image.name).map(Vec::as_slice).unwrap_or_default();
            if let Some(other) = others.iter().find(|path| **path != image.path) {
                let reason = format!(
                    "another plugin is named {} too: {}; neither is loaded until one is renamed or removed",
                    image.name,
                    other.display()
                );
                registry.rejected.push(Rejected::new(&image.path, reason));
                continue;
            }
            let slot = match uids.of(&image.name) {
                Ok(slot) => slot,
                Err(error) => {
                    let reason = format!("it has no uid: {error}");
                    registry.rejected.push(Rejected::new(&image.path, reason));
                    continue;
                }
            };
            let terms =
                Terms::agree(image.name.clone(), manifest, &config.giving, config.limits, config.budget);
            let handle = supervisor::supervise(Arc::new(image), around(Arc::new(terms), slot));
            registry.plugins.insert(handle.name.clone(), handle);
        }
        registry._claims = uids.take_claims();
        Ok(registry)
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
            let may = plugin.terms.grants.allows(Permission::CommandRegister, Subject::Prompt(prefix));
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
                plugin.wait(|status| !matches!(status.state, State::Loading | State::Initializing)).await;
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
                plugin.wait(|status| matches!(status.state, State::Stopped)).await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }
}

/// Reads manifest and library; the manifest first, because it is small and says the name.
fn read(found: &Found, provided: &BTreeSet<String>) -> Result<(Image, Option<Manifest>), Rejected> {
    let Some(path) = &found.manifest else {
        let image = Image::read(&found.library, provided);
        return image.map(|image| (image, None)).map_err(|error| bad(&found.library, &error));
    };
    let of_manifest =
        |reason: String| Rejected { path: path.clone(), reason: format!("{}: {reason}", Code::ConfigError) };
    let manifest = Manifest::read(path).map_err(|error| of_manifest(error.to_string()))?;
    let node = Version::parse(env!("CARGO_PKG_VERSION")).map_err(|error| of_manifest(error.to_string()))?;
    manifest.fits(&node).map_err(|reason| Rejected {
        path: path.clone(),
        reason: format!("{}: {reason}", Code::Incompatible),
    })?;
    let image = Image::read_as(manifest.name.clone(), &found.library, provided);
    image.map(|image| (image, Some(manifest))).map_err(|error| bad(&found.library, &error))
}

/// The library's own error names the file already.
fn bad(library: &Path, error: &ImageError) -> Rejected {
    Rejected { path: library.into(), reason: error.to_string() }
}
