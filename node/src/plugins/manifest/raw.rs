//! `plugin.toml` as it is written: every key with its type and its place, unknown keys refused. What the values mean is checked
//! one floor up; nothing here is believed.

use crate::config::RawLimits;
use serde::Deserialize;
use serde_spanned::Spanned;

type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawManifest {
    pub(super) schema: Spanned<i64>,
    pub(super) name: Text,
    pub(super) version: Text,
    pub(super) title: Option<Text>,
    pub(super) description: Option<Text>,
    pub(super) author: Option<Text>,
    pub(super) license: Option<Text>,
    pub(super) repository: Option<Text>,
    pub(super) homepage: Option<Text>,
    #[serde(default)]
    pub(super) tags: Vec<Text>,
    pub(super) kind: Option<Text>,
    pub(super) min_api: Option<Text>,
    pub(super) min_host: Option<Text>,
    #[serde(default)]
    pub(super) handles: Vec<Text>,
    pub(super) priority: Option<Spanned<i64>>,
    pub(super) concurrency: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) provides: Vec<RawProvides>,
    #[serde(default)]
    pub(super) permission: Vec<RawPermission>,
    pub(super) limits: Option<RawLimits>,
    pub(super) sandbox: Option<RawSandbox>,
    #[serde(default)]
    pub(super) depends: Vec<RawDepends>,
    #[serde(default)]
    pub(super) exports: Vec<RawExport>,
    #[serde(default)]
    pub(super) hook: Vec<RawHook>,
    pub(super) config: Option<Spanned<toml::Table>>,
    #[serde(default)]
    pub(super) lib: Vec<RawLibrary>,
}

/// A type, and whatever else belongs to it.
#[derive(Debug, Deserialize)]
pub(super) struct RawProvides {
    #[serde(rename = "type")]
    pub(super) what: Text,
    #[serde(flatten)]
    pub(super) more: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPermission {
    pub(super) name: Text,
    #[serde(default)]
    pub(super) scope: Vec<Text>,
    pub(super) reason: Option<Text>,
    #[serde(default)]
    pub(super) optional: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSandbox {
    pub(super) seccomp: Option<Text>,
    pub(super) network: Option<Text>,
    pub(super) tmp_mb: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDepends {
    pub(super) name: Text,
    pub(super) version: Text,
    #[serde(default)]
    pub(super) optional: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExport {
    pub(super) method: Text,
    pub(super) params: Option<toml::Table>,
    pub(super) description: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    pub(super) pattern: Text,
    pub(super) mode: Option<Text>,
    pub(super) priority: Option<Spanned<i64>>,
    pub(super) timeout_ms: Option<Spanned<i64>>,
    pub(super) policy: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLibrary {
    pub(super) target: Text,
    pub(super) path: Text,
}
