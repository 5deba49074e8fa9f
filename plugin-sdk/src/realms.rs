//! A realm: the network a node belongs to. Two nodes meet only if their canonical codes and versions are equal.

use crate::utils::to_kebab_ascii_strict;
use serde::{Deserialize, Serialize};

/// Name, optional code and version of a realm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealmInfo {
    /// Name for people.
    pub name: String,
    /// Code that overrides the one made from the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Version of the realm's own protocol.
    pub version: String,
}

impl Default for RealmInfo {
    fn default() -> Self {
        Self { name: "default".into(), code: None, version: "1.0".into() }
    }
}

impl RealmInfo {
    /// A realm with the code made from its name.
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: name.into(), code: Some(to_kebab_ascii_strict(name)), version: version.into() }
    }

    /// A realm with a code of its own.
    pub fn new_with_code(name: &str, code: &str, version: &str) -> Self {
        Self { name: name.into(), code: Some(code.into()), version: version.into() }
    }

    /// The code that is compared.
    pub fn canonical_code(&self) -> String {
        self.code.clone().unwrap_or_else(|| to_kebab_ascii_strict(&self.name))
    }

    /// True if a node of this realm may talk to one of `other`.
    pub fn matches(&self, other: &RealmInfo) -> bool {
        self.version == other.version && self.canonical_code() == other.canonical_code()
    }
}

#[cfg(test)]
mod tests {
    use super::RealmInfo;

    #[test]
    fn realms_meet_by_code_and_version() {
        let a = RealmInfo::new("Interop Test", "1.0");
        assert!(a.matches(&RealmInfo { code: None, ..a.clone() }));
        assert!(a.matches(&RealmInfo::new_with_code("Other name", "interop-test", "1.0")));
        assert!(!a.matches(&RealmInfo::new("Interop Test", "1.1")));
    }
}
