//! What an operator writes about what plugins are given: `[plugins.defaults]`, `[plugins.policy]` and `[plugins.for.NAME]`. A
//! word that says more than it seems to, such as `fs.read` without a path, is refused where it stands.

use super::limits::RawLimits;
use super::raw::RawPlugins;
use super::{
    BadRule, Config, ConfigError, ForPlugin, Giving, ManifestLimits, Overflow, Permission, Raw, Rule,
};
use serde::Deserialize;
use serde_spanned::Spanned;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use thenodes_ipc::launch::SeccompMode;
use thenodes_ipc::PluginName;

/// System calls that an operator may add by name.
const MAX_CALLS: usize = 64;
/// Largest file of such names, bytes.
const MAX_CALLS_FILE: u64 = 64 * 1024;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPluginPolicy {
    pub(super) permissions: Option<Vec<Spanned<String>>>,
    widen: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawForPlugin {
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    deny: Vec<Spanned<String>>,
    pub(super) limits: Option<RawLimits>,
    queue: Option<Spanned<String>>,
    seccomp: Option<Spanned<String>>,
    calls: Option<Vec<Spanned<String>>>,
    calls_file: Option<Spanned<PathBuf>>,
}

/// The words of a table about system calls.
pub(super) struct Calls<'a> {
    pub(super) mode: Option<&'a Spanned<String>>,
    pub(super) names: Option<&'a [Spanned<String>]>,
    pub(super) file: Option<&'a Spanned<PathBuf>>,
}

const HELP: &str = "names are like \"timerfd_create\", at most 64 of them";

fn is_call(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=32).contains(&name.len()) && name.bytes().all(plain)
}

impl Raw {
    pub(super) fn giving(&self, plugins: &RawPlugins, limits: ManifestLimits) -> Result<Giving, ConfigError> {
        let no_policy = RawPluginPolicy::default();
        let policy = plugins.policy.as_ref().unwrap_or(&no_policy);
        let defaults = plugins.defaults.as_ref().and_then(|defaults| defaults.permissions.as_ref());
        let rules = |written: Option<&Vec<Spanned<String>>>, default: fn() -> Vec<Permission>| match written {
            Some(written) => self.rules(written, Rule::giving),
            None => Ok(default().into_iter().map(Rule::from).collect()),
        };
        let mut by_name = BTreeMap::new();
        for (name, table) in &plugins.by_name {
            let Ok(plugin) = PluginName::new(name.get_ref().clone()) else {
                let help =
                    "use 1 to 64 characters of a-z, 0-9, '.', '_' and '-', the first a letter or digit";
                return self.wrong(name, "not the name of a plugin", help);
            };
            let own = ForPlugin {
                allow: self.rules(&table.allow, Rule::giving)?,
                deny: self.rules(&table.deny, Rule::taking)?,
                limits: self.limits(table.limits.as_ref())?,
                queue: self.overflow(table.queue.as_ref())?,
                seccomp: self.seccomp(Calls {
                    mode: table.seccomp.as_ref(),
                    names: table.calls.as_deref(),
                    file: table.calls_file.as_ref(),
                })?,
            };
            by_name.insert(plugin, own);
        }
        Ok(Giving {
            defaults: rules(defaults, Config::default_permissions)?,
            policy: rules(policy.permissions.as_ref(), Config::default_policy)?,
            widen: policy.widen.unwrap_or(false),
            by_name,
            limits,
            seccomp: self.seccomp(plugins.calls())?.unwrap_or_default(),
        })
    }

    fn overflow(&self, word: Option<&Spanned<String>>) -> Result<Overflow, ConfigError> {
        let Some(word) = word else { return Ok(Overflow::default()) };
        let known = Overflow::parse(word.get_ref());
        let help = "use \"drop-newest\", \"drop-oldest\" or \"block-peer\"";
        known.map_or_else(|| self.wrong(word, "no such answer to a full queue", help), Ok)
    }

    /// A list of system calls by name, in the configuration or in a file of its own (one name a line, `#` begins a comment). Whether
    /// each call exists, and may be added at all, is the runner's to say.
    fn seccomp(&self, calls: Calls<'_>) -> Result<Option<(SeccompMode, Vec<String>)>, ConfigError> {
        let words = SeccompMode::ALL.map(SeccompMode::word).join(", ");
        let mode = match calls.mode.map(|mode| (mode, SeccompMode::parse(mode.get_ref()))) {
            None => None,
            Some((_, Some(found))) => Some(found),
            Some((mode, None)) => return self.wrong(mode, "no such mode", &format!("there are {words}")),
        };
        let mut names: Vec<String> = Vec::new();
        for call in calls.names.unwrap_or_default() {
            if mode != Some(SeccompMode::Custom) {
                return self.wrong(call, "calls without seccomp = \"custom\"", "write the mode beside it");
            }
            if !is_call(call.get_ref()) || names.len() >= MAX_CALLS {
                return self.wrong(call, "not the name of a system call", HELP);
            }
            names.push(call.get_ref().clone());
        }
        if let Some(file) = calls.file {
            if mode != Some(SeccompMode::Custom) {
                return self.wrong(
                    file,
                    "calls_file without seccomp = \"custom\"",
                    "write the mode beside it",
                );
            }
            let mut text = String::new();
            let read = std::fs::File::open(file.get_ref())
                .and_then(|opened| opened.take(MAX_CALLS_FILE).read_to_string(&mut text));
            if let Err(error) = read {
                return self.wrong(
                    file,
                    format!("cannot be read: {error}"),
                    "name a file with one system call a line",
                );
            }
            for (at, line) in text.lines().enumerate() {
                let name = line.split('#').next().unwrap_or_default().trim();
                if name.is_empty() {
                    continue;
                }
                if !is_call(name) || names.len() >= MAX_CALLS {
                    let shown = crate::text::printable(name, 64);
                    return self.wrong(
                        file,
                        format!("line {}: {shown:?} is not the name of a system call", at + 1),
                        HELP,
                    );
                }
                names.push(name.to_owned());
            }
        }
        Ok(mode.map(|mode| (mode, names)))
    }

    fn rules(
        &self,
        written: &[Spanned<String>],
        read: fn(&str) -> Result<Rule, BadRule>,
    ) -> Result<Vec<Rule>, ConfigError> {
        let one = |text: &Spanned<String>| {
            read(text.get_ref()).or_else(|bad| self.wrong(text, bad.what, &bad.help))
        };
        written.iter().map(one).collect()
    }

    /// Limits in `[plugins]` that nothing enforces yet.
    pub(super) fn limit_keys(&self) -> Vec<String> {
        let Some(plugins) = &self.plugins else { return Vec::new() };
        let all = plugins.limits.iter().map(|table| ("plugins.limits".to_owned(), table));
        let single = plugins.by_name.iter().filter_map(|(name, table)| {
            Some((format!("plugins.for.{}.limits", name.get_ref()), table.limits.as_ref()?))
        });
        let keys = |(name, table): (String, &RawLimits)| {
            let limits = self.limits(Some(table)).unwrap_or_default();
            limits
                .without_effect()
                .map(|key| format!("{name}.{key}: not enforced in this release"))
                .collect::<Vec<_>>()
        };
        all.chain(single).flat_map(keys).collect()
    }
}
