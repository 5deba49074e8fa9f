//! The shipped unit under a real systemd, booted in namespaces: ready when plugins are up, at the same sandbox level as
//! outside, back after SIGKILL, an orderly stop. Needs root and the root file system that `cargo xtask test` makes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use thenodes_tests::{bin_dir, is_root, plugin, skip};

fn put(stage: &Path, from: &Path, to: &str, mode: u32) {
    let to = stage.join(to);
    let mut dir = to.parent().expect("a directory").to_path_buf();
    fs::create_dir_all(&dir).expect("made");
    while dir.starts_with(stage) {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        dir = dir.parent().expect("a parent").to_path_buf();
    }
    fs::copy(from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    fs::set_permissions(&to, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn the_unit_runs_the_node_with_full_walls_and_survives_sigkill() {
    let name = "the_unit_runs_the_node_with_full_walls_and_survives_sigkill";
    if !is_root() {
        return skip(name, "booting a systemd needs root");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let rootfs = target.join("systemd-rootfs");
    if !rootfs.exists() {
        return skip(name, "no root file system: tests/systemd/rootfs.sh could not make one here");
    }
    // A program that was linked against a newer libc than the root file system has cannot run there at all.
    let probe = bin_dir().join("thenodes");
    let fits = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$1\" \"$2/mnt\" && chroot \"$2\" /mnt/thenodes --version",
            "sh",
        ])
        .arg(probe.parent().expect("a directory"))
        .arg(&rootfs)
        .output();
    if !fits.is_ok_and(|output| output.status.success()) {
        return skip(name, "the built node does not run inside the root file system (another libc?)");
    }
    let stage = tempfile::tempdir().expect("a directory");
    let stage = stage.path();
    put(stage, &bin_dir().join("thenodes"), "usr/bin/thenodes", 0o755);
    put(stage, &bin_dir().join("thenodes-runner"), "usr/bin/thenodes-runner", 0o755);
    put(stage, &plugin("kvstore"), "usr/lib/thenodes/plugins/libkvstore.so", 0o644);
    put(stage, &root.join("config/production.toml"), "etc/thenodes/config.toml", 0o644);
    put(
        stage,
        &root.join("config/systemd/thenodes.service"),
        "usr/lib/systemd/system/thenodes.service",
        0o644,
    );
    put(
        stage,
        &root.join("config/systemd/thenodes.sysusers.conf"),
        "usr/lib/sysusers.d/thenodes.conf",
        0o644,
    );
    put(
        stage,
        &root.join("config/systemd/thenodes.tmpfiles.conf"),
        "usr/lib/tmpfiles.d/thenodes.conf",
        0o644,
    );
    let output = Command::new("bash")
        .arg(root.join("tests/systemd/boot.sh"))
        .arg(&rootfs)
        .arg(stage)
        .arg(root.join("tests/systemd/thenodes.sh"))
        .output()
        .expect("bash runs");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(77) => skip(name, said.lines().last().unwrap_or("this machine lacks something")),
        Some(0) => println!("{said}"),
        _ => panic!("{said}"),
    }
}
