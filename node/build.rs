//! Says which commit a build is of: what whoever builds says (`THENODES_GIT_COMMIT`), else what git says of the source, else that it is
//! unknown, as in a package from a registry.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=THENODES_GIT_COMMIT");
    // Changes with each commit and each checkout.
    let log = Path::new("../.git/logs/HEAD");
    if log.exists() {
        println!("cargo:rerun-if-changed={}", log.display());
    } else {
        println!("cargo:rerun-if-changed=build.rs");
    }
    let of_git = || {
        if !Path::new("../.git").exists() {
            return None; // an unpacked package, perhaps inside of somebody else's repository
        }
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !commit.is_empty()).then_some(commit)
    };
    let said = std::env::var("THENODES_GIT_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = said.or_else(of_git).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=THENODES_COMMIT={commit}");
}
