//! What an operator writes about what plugins are given: `[plugins.defaults]`, `[plugins.policy]` and `[plugins.for.NAME]`. A
//! word that says more than it seems to, such as `fs.read` without a path, is refused where it stands.

use super::limits::RawLimits;
use super::raw::RawPlugins;
use super::{BadRule, Config, ConfigError, ForPlugin, Giving, ManifestLimits, Permission, Raw, Rule};
use serde::Deserialize;
use serde_spanned::Spanned;
use std::collections::BTreeMap;
use thenodes_ipc::launch::SeccompMode;
use thenodes_ipc::PluginName;

/// System calls that an operator may add by name.
const MAX_CALLS: usize = 64;

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
    seccomp: Option<Spanned<String>>,
    calls: Option<Vec<Spanned<String>>>,
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
                seccomp: self.seccomp(table.seccomp.as_ref(), table.calls.as_deref())?,
            };
            by_name.insert(plugin, own);
        }
        Ok(Giving {
            defaults: rules(defaults, Config::default_permissions)?,
            policy: rules(policy.permissions.as_ref(), Config::default_policy)?,
            widen: policy.widen.unwrap_or(false),
            by_name,
            limits,
            seccomp: self.seccomp(plugins.seccomp().0, plugins.seccomp().1)?.unwrap_or_default(),
        })
    }

    /// A list of system calls by name. Whether each call exists, and may be added at all, is the runner's to say.
    fn seccomp(
        &self,
        mode: Option<&Spanned<String>>,
        calls: Option<&[Spanned<String>]>,
    ) -> Result<Option<(SeccompMode, Vec<String>)>, ConfigError> {
        let words = SeccompMode::ALL.map(SeccompMode::word).join(", ");
        let found = match mode.map(|mode| (mode, SeccompMode::parse(mode.get_ref()))) {
            None => None,
            Some((_, Some(found))) => Some(found),
            Some((mode, None)) => return self.wrong(mode, "no such mode", &format!("there are {words}")),
        };
        let calls = calls.unwrap_or_default();
        for (at, call) in calls.iter().enumerate() {
            if found != Some(SeccompMode::Custom) {
                return self.wrong(call, "calls without seccomp = \"custom\"", "write the mode beside it");
            }
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            let name = call.get_ref();
            if at >= MAX_CALLS || name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
                return self.wrong(
                    call,
                    "not the name of a system call",
                    "names are like \"timerfd_create\", at most 64 of them",
                );
            }
        }
        Ok(found.map(|mode| (mode, calls.iter().map(|call| call.get_ref().clone()).collect())))
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
