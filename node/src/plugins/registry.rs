//! All plugins of a node: reads the directory, starts a supervisor per file, finds plugins by name and by prompt. A bad
//! file is named and left out; the others start.

use super::grants::Verdict;
use super::handle::Handle;
use super::image::{self, Image};
use super::lifecycle::State;
use super::supervisor::{self, Policy, Surroundings};
use crate::config::Permission;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thenodes_ipc::PluginName;

/// A file in the plugin directory that is no plugin.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// The file.
    pub path: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

/// The plugins of a node.
#[derive(Default)]
pub struct Registry {
    plugins: BTreeMap<PluginName, Handle>,
    /// Files that are no plugins.
    pub rejected: Vec<Rejected>,
}

impl Registry {
    /// Reads every `*.so` of a directory and starts it. A directory that does not exist has no plugins.
    pub fn start(
        dir: &Path,
        policy: &Arc<Policy>,
        mut around: impl FnMut(&PluginName, u32) -> Surroundings,
    ) -> std::io::Result<Registry> {
        let mut registry = Registry::default();
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(registry),
            Err(error) => return Err(error),
        };
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "so"))
            .collect();
        paths.sort(); // the order of directory entries is chance; the order of plugins is not
        if paths.is_empty() {
            return Ok(registry);
        }
        let provided = image::libraries_of_program(&policy.runner).map_err(std::io::Error::other)?;
        for path in paths {
            match Image::read(&path, &provided) {
                Ok(image) if registry.plugins.contains_key(&image.name) => {
                    let reason =
                        format!("{}: a plugin named {} was loaded already", path.display(), image.name);
                    registry.rejected.push(Rejected { path, reason });
                }
                Ok(image) => {
                    let slot = registry.plugins.len() as u32;
                    let surroundings = around(&image.name, slot);
                    let handle = supervisor::supervise(Arc::new(image), surroundings);
                    registry.plugins.insert(handle.name.clone(), handle);
                }
                Err(error) => registry.rejected.push(Rejected { path, reason: error.to_string() }),
            }
        }
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

    /// The plugin with this prompt prefix; the first by name, if several claim it.
    pub fn by_prompt(&self, prefix: &str, policy: &Policy) -> Option<&Handle> {
        if !matches!(policy.grants.holds(Permission::CommandRegister), Verdict::Granted) {
            return None;
        }
        self.all().find(|plugin| {
            let status = plugin.status();
            status.registration.is_some_and(|registration| registration.prompts.iter().any(|p| p == prefix))
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
