//! Names and versions that appear on the wire and on screens.

/// Shown where a configuration names no `app_name`.
pub const DEFAULT_APP_NAME: &str = "TheNodes";
/// `protocol` of a HELLO.
pub const PROTOCOL_NAME: &str = "TheNodes";
/// `version` of a HELLO. All releases of upstream say "1".
pub const PROTOCOL_VERSION: &str = "1";
/// Version of this build.
pub const APP_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Indentation of console lines.
pub const ICON_PLACEHOLDER: &str = "   ";

/// `v` and the version.
pub fn full_version() -> String {
    format!("v{APP_VERSION}")
}

/// Commit this was built from, if the build said so (`THENODES_GIT_COMMIT`).
pub fn git_commit() -> &'static str {
    option_env!("THENODES_GIT_COMMIT").unwrap_or("unknown")
}

/// Time of the build, if the build said so (`THENODES_BUILD_TIME`).
pub fn build_timestamp() -> &'static str {
    option_env!("THENODES_BUILD_TIME").unwrap_or("unknown")
}
