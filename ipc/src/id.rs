//! Names and numbers that must not be confused with each other.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of a plugin: `[a-z0-9][a-z0-9._-]{0,63}`. Safe in paths, logs and terminals by construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PluginName(String);

/// A name that breaks the rule of [`PluginName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a plugin name has 1 to 64 characters of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit"
)]
pub struct BadPluginName;

impl PluginName {
    /// Checks the rule.
    pub fn new(name: impl Into<String>) -> Result<Self, BadPluginName> {
        let name = name.into();
        let first_ok = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest_ok =
            name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if first_ok && rest_ok && name.len() <= 64 {
            Ok(Self(name))
        } else {
            Err(BadPluginName)
        }
    }

    /// The name of the plugin in a library file: `libkvstore_plugin.so` is `kvstore`, `libecho.so` is `echo`.
    pub fn from_file_stem(stem: &str) -> Result<Self, BadPluginName> {
        let stem = stem.strip_prefix("lib").unwrap_or(stem);
        let stem = stem.strip_suffix("_plugin").filter(|s| !s.is_empty()).unwrap_or(stem);
        Self::new(stem.to_ascii_lowercase())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PluginName {
    type Error = BadPluginName;
    fn try_from(name: String) -> Result<Self, BadPluginName> {
        Self::new(name)
    }
}

impl From<PluginName> for String {
    fn from(name: PluginName) -> String {
        name.0
    }
}

/// Which process of a plugin this is: 1 for the first start of this node's life, then counting up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a call: the generation in the upper 24 bits, a counter from 1 in the lower 40. Zero is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CallId(pub u64);

impl CallId {
    const COUNTER_BITS: u32 = 40;

    /// The `counter`th call of `generation`. Counters wrap after 2^40 calls, generations after 2^24 starts.
    pub fn new(generation: Generation, counter: u64) -> Self {
        let generation = u64::from(generation.0) & 0xff_ffff;
        Self((generation << Self::COUNTER_BITS) | (counter & ((1 << Self::COUNTER_BITS) - 1)))
    }

    /// The generation whose process this call belongs to.
    pub fn generation(self) -> Generation {
        Generation((self.0 >> Self::COUNTER_BITS) as u32)
    }

    /// The counter within the generation.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_name_cannot_leave_its_directory_or_touch_a_terminal() {
        for bad in ["", "../x", ".x", "a/b", "A", "a b", "a\n", "ü", &"a".repeat(65)] {
            assert_eq!(PluginName::new(bad), Err(BadPluginName), "{bad:?}");
        }
        assert_eq!(PluginName::from_file_stem("libkvstore_plugin").map(String::from), Ok("kvstore".into()));
        assert_eq!(PluginName::from_file_stem("lib_plugin").map(String::from), Err(BadPluginName));
        assert_eq!(PluginName::from_file_stem("echo").map(String::from), Ok("echo".into()));
    }

    #[test]
    fn an_id_of_a_dead_generation_is_never_one_of_the_living() {
        let old = CallId::new(Generation(1), 7);
        let new = CallId::new(Generation(2), 7);
        assert_ne!(old, new);
        assert_eq!((new.generation(), new.counter()), (Generation(2), 7));
    }
}
