//! What is particular about one plugin's sandbox: paths that it was given, temporary storage, lists of system calls. Each grant
//! opens what it says and nothing beside it, and each has its control: the same attempt where it is, or is not, granted.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use thenodes_tests::fuse::Served;
use thenodes_tests::{plugin, skip, Spec, TestNode};

/// A directory of the host with something to read in it and something that must not be read beside it. Everybody may use it by
/// its mode: what refuses must be the sandbox.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::Builder::new().prefix("thenodes-host").tempdir().expect("a directory");
        let open =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
        open(dir.path(), 0o755);
        fs::create_dir(dir.path().join("data")).expect("a directory");
        open(&dir.path().join("data"), 0o777);
        for (file, text) in [("data/given", "given"), ("secret", "secret")] {
            fs::write(dir.path().join(file), text).expect("written");
            open(&dir.path().join(file), 0o666);
        }
        symlink(dir.path().join("secret"), dir.path().join("data/way-out")).expect("linked");
        symlink("../secret", dir.path().join("data/way-up")).expect("linked");
        Host { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self) -> String {
        self.at("data").display().to_string()
    }
}

/// A node whose hostile plugin asks for these permissions on `data`, and an operator who allows them; more configuration.
fn node(host: &Host, permissions: &[&str], manifest_end: &str, config: &str) -> TestNode {
    let (data, mut asked, mut allowed) = (host.data(), String::new(), Vec::new());
    for permission in permissions {
        asked.push_str(&format!("[[permission]]\nname = \"{permission}\"\nscope = [\"{data}\"]\n"));
        allowed.push(format!("\"{permission}:{data}\""));
    }
    let manifest = format!(
        "schema = 1\nname = \"hostile\"\nversion = \"1.0.0\"\n[[permission]]\nname = \"command.register\"\n{asked}{manifest_end}"
    );
    let spec = Spec::new("sandbox")
        .with("echo")
        .with_file("libhostile.plugin.toml", manifest.into_bytes())
        .with_file("libhostile.so", fs::read(plugin("hostile")).expect("built"))
        .more(&format!("[plugins.for.hostile]\nallow = [{}]\n{config}", allowed.join(", ")));
    spec.start()
}

fn files(node: &TestNode, what: &str, path: &Path) -> String {
    node.prompt("hostile", &format!("files {what} {}", path.display()))
        .unwrap_or_else(|error| panic!("{what}: {error}"))
}

#[test]
fn a_path_that_was_given_can_be_read_and_nothing_beside_it() {
    let host = Host::new();
    let with = node(&host, &["fs.read"], "", "");
    assert_eq!(with.status("hostile")["level"], "full", "a grant is no hole");
    assert_eq!(files(&with, "read", &host.at("data/given")), "given");
    assert_eq!(files(&with, "list", &host.at("data")), "given way-out way-up");
    for beyond in ["secret", "data/way-out", "data/way-up", "data/../secret", "data/./../secret"] {
        let answer = files(&with, "read", &host.at(beyond));
        assert!(answer.starts_with("denied"), "{beyond}: {answer}");
    }
    for (what, path) in [("write", "data/given"), ("write", "data/new"), ("make", "data")] {
        let answer = files(&with, what, &host.at(path));
        assert!(answer.starts_with("denied"), "{what} {path}: {answer}");
    }
    assert_eq!(fs::read_to_string(host.at("data/given")).ok().as_deref(), Some("given"));
    let denials = with.json(&["plugin", "denials", "hostile"]);
    let told = denials["last"].to_string();
    assert!(told.contains("/secret") && told.contains("data/new"), "refusals by path are told: {denials}");
    drop(with);
    let without = node(&host, &[], "", "");
    assert!(files(&without, "read", &host.at("data/given")).starts_with("denied"), "the control");
}

#[test]
fn writing_needs_its_own_word_and_making_another() {
    let host = Host::new();
    let limits = "[plugins.limits]\nfile_mb = 1";
    let writer = node(&host, &["fs.read", "fs.write"], "", limits);
    assert_eq!(files(&writer, "write", &host.at("data/given")), "written");
    for (what, path) in [("write", "data/new"), ("make", "data")] {
        let answer = files(&writer, what, &host.at(path));
        assert!(answer.starts_with("denied"), "{what} {path}: {answer}");
    }
    drop(writer);
    let mut maker = node(&host, &["fs.read", "fs.create"], "", limits);
    assert_eq!(files(&maker, "write", &host.at("data/new")), "written");
    assert_eq!(files(&maker, "make", &host.at("data")), "made, renamed, removed");
    assert_eq!(fs::read_to_string(host.at("data/new")).ok().as_deref(), Some("written by a plugin"));
    for probe in ["mknod", "symlink", "chmod"] {
        let answer = maker.prompt("hostile", &format!("{probe} {}", host.data())).unwrap_or_default();
        assert!(!answer.contains("GOT THROUGH"), "{probe}: {answer}");
        if answer.is_empty() {
            maker.expect("name=hostile action=ready"); // it was ended for the attempt
        }
    }
    assert_eq!(maker.prompt("echo", "x").as_deref(), Ok("x"));
}

#[test]
fn a_file_ends_at_its_limit_and_temporary_storage_at_its_own_and_with_the_process() {
    let host = Host::new();
    let mut small = node(&host, &["fs.create"], "", "[plugins.limits]\nfile_mb = 1");
    let _ = small.prompt("hostile", &format!("files fill {}", host.at("data/big").display()));
    let died = small.expect("name=hostile action=died");
    assert!(died.contains("cause=file_size"), "{died}");
    let size = fs::metadata(host.at("data/big")).expect("a file").len();
    assert!(size <= 1 << 20, "{size} bytes");
    drop(small);
    let node = node(&host, &[], "[sandbox]\ntmp_mb = 2\n", "[plugins.limits]\ntmp_mb = 4");
    let filled = files(&node, "fill", Path::new("/tmp/full"));
    assert!(filled.contains("No space left") && filled.contains("20"), "about 2 MiB: {filled}");
    assert_eq!(files(&node, "list", Path::new("/tmp")), "full");
    assert!(!Path::new("/tmp/full").exists(), "it is the plugin's own");
    node.json(&["plugin", "restart", "hostile"]);
    assert_eq!(files(&node, "list", Path::new("/tmp")), "", "gone with the process");
}

#[test]
fn a_list_of_system_calls_is_the_operators_choice_and_no_list_opens_a_wall() {
    let host = Host::new();
    let uname = |mode: &str| {
        let node = node(&host, &[], "", mode);
        let answer = node.prompt("hostile", "uname").expect("it lives");
        let socket = node.prompt("hostile", "socket");
        assert!(socket.is_err(), "{mode}: a socket ends the process under every list: {socket:?}");
        (answer.contains("GOT THROUGH"), node.json(&["plugin", "sandbox", "hostile"])["seccomp"].clone())
    };
    assert_eq!(uname(""), (false, "strict".into()));
    assert_eq!(uname("seccomp = \"basic\""), (true, "basic".into()));
    assert_eq!(uname("seccomp = \"permissive\""), (true, "permissive".into()));
    assert_eq!(uname("seccomp = \"custom\"\ncalls = [\"uname\"]"), (true, "custom".into()));
}

#[test]
fn a_call_that_no_list_may_have_keeps_the_plugin_from_starting_and_the_reason_names_it() {
    let host = Host::new();
    let mut node = node(&host, &[], "", "seccomp = \"custom\"\ncalls = [\"execve\"]");
    let failed = node.seen("name=hostile action=failed");
    assert!(failed.contains("execve is never allowed"), "{failed}");
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
}

#[test]
fn the_sandbox_is_explained_call_by_call() {
    let host = Host::new();
    let node = node(&host, &["fs.read"], "", "");
    let value = node.json(&["plugin", "sandbox", "hostile", "--explain"]);
    let allowed = value["explained"]["allowed"].as_array().expect("a list");
    let has = |call: &str| allowed.iter().any(|entry| entry["call"] == call);
    assert!(has("read") && has("getdents64") && !has("socket") && !has("mkdirat"), "{value}");
    assert!(allowed.iter().all(|entry| entry["why"].as_str().is_some_and(|why| !why.is_empty())));
    assert_eq!(value["paths"][0]["path"], host.data());
    let strict = node.json(&["plugin", "sandbox", "echo", "--explain"]);
    let allowed = strict["explained"]["allowed"].as_array().expect("a list").len();
    assert!((30..70).contains(&allowed), "{allowed} calls");
}

#[test]
fn every_refusal_is_told_with_call_arguments_phase_and_place() {
    let node = Spec::new("denials").with_hostile("early", "constructor:open").start();
    let early = node.json(&["plugin", "denials", "early"]);
    let first = &early["last"][0];
    assert_eq!((&first["phase"], &first["syscall"]), (&"constructor".into(), &"openat".into()), "{early}");
    assert!(first["arguments"].as_str().is_some_and(|text| text.contains("/etc/passwd")), "{early}");
    assert!(first["at"].as_str().is_some_and(|at| at.contains(".so") && at.contains("+0x")), "{early}");
    let mut node = Spec::new("denials").with("hostile").start();
    let _ = node.prompt("hostile", "socket");
    node.expect("name=hostile action=died");
    let late = node.json(&["plugin", "denials", "hostile"]);
    let text = late["last"].to_string();
    assert_eq!(late["killed"], 1, "{late}");
    assert!(
        text.contains("AF_INET") && text.contains("\"serve\"") && text.contains("\"killed\":true"),
        "{late}"
    );
}

#[test]
fn a_denied_path_is_not_given_by_the_way() {
    let host = Host::new();
    let deny = |what: &str| format!("deny = [\"{what}:{}\"]\n[plugins.limits]\nfile_mb = 1", host.data());
    let maker = node(&host, &["fs.create"], "", &deny("fs.read"));
    for (what, path) in [("read", "data/given"), ("list", "data")] {
        let answer = files(&maker, what, &host.at(path));
        assert!(answer.starts_with("denied"), "{what}: {answer}");
    }
    assert_eq!(files(&maker, "write", &host.at("data/new")), "written");
    drop(maker);
    // Making files includes writing to them: without that there is nothing left to give, and the plugin requires it.
    let mut none = node(&host, &["fs.create"], "", &deny("fs.write"));
    let failed = none.seen("name=hostile action=failed");
    assert!(failed.contains("requires fs.create") && failed.contains("deny"), "{failed}");
    let value = none.json(&["plugin", "permissions", "hostile"]);
    assert_eq!(value["permissions"][1]["verdict"], "denied", "{value}");
}

#[test]
fn making_files_is_not_reading_them() {
    let host = Host::new();
    let node = node(&host, &["fs.create"], "", "[plugins.limits]\nfile_mb = 1");
    assert_eq!(files(&node, "write", &host.at("data/new")), "written");
    assert!(files(&node, "read", &host.at("data/given")).starts_with("denied"));
}

#[test]
fn all_files_together_end_at_their_limit_and_a_plugin_within_it_goes_on() {
    let host = Host::new();
    fs::write(host.at("data/large"), vec![1; 3 << 20]).expect("written");
    let limits =
        |mb: u32| format!("[plugins.limits]\nfile_mb = 1\ndisk_mb = {mb}\n[plugins.watchdog]\nsample_s = 1");
    let mut full = node(&host, &["fs.create"], "", &limits(2));
    let died = full.expect("name=hostile action=died");
    assert!(died.contains("cause=disk") && died.contains("of 2"), "{died}");
    assert_eq!(full.prompt("echo", "x").as_deref(), Ok("x"));
    drop(full);
    let within = node(&host, &["fs.create"], "", &limits(8));
    assert_eq!(files(&within, "write", &host.at("data/new")), "written");
    // Its usage is known, so it was looked at, and nothing followed.
    let begun = std::time::Instant::now();
    while within.status("hostile")["usage"]["disk"].as_u64() < Some(3 << 20) {
        assert!(begun.elapsed() < thenodes_tests::PATIENCE, "nobody looked");
    }
    assert_eq!(within.status("hostile")["starts"], 1);
}

#[test]
fn a_path_on_a_file_system_that_somebody_serves_is_not_granted() {
    let name = "a_path_on_a_file_system_that_somebody_serves_is_not_granted";
    let host = Host::new();
    let served = match Served::on(&host.at("data")) {
        Ok(served) => served,
        Err(error) => return skip(name, &format!("no file system can be served here: {error}")),
    };
    assert!(fs::metadata(host.at("data")).is_ok_and(|about| about.is_dir()), "the control: it answers");
    let data = host.data();
    let manifest = format!(
        "schema = 1\nname = \"hostile\"\nversion = \"1.0.0\"\n[[permission]]\nname = \"fs.read\"\nscope = [\"{data}\"]\n"
    );
    let spec = Spec::new("served")
        .with("echo")
        .with_file("libhostile.plugin.toml", manifest.into_bytes())
        .with_file("libhostile.so", fs::read(plugin("hostile")).expect("built"))
        .more(&format!("[plugins.for.hostile]\nallow = [\"fs.read:{data}\"]"));
    let mut node = spec.spawn(spec.lay_out());
    node.seen("name=hostile action=failed");
    node.seen("name=echo action=ready");
    let status = node.status("hostile");
    let why = status["layers"].to_string();
    assert!(why.contains(&data) && why.contains("FUSE"), "{status}");
    assert_eq!(status["state"], "Failed", "{status}");
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    drop(node);
    drop(served);
    // The control: the same path, now that nobody serves it.
    let with = self::node(&host, &["fs.read"], "", "");
    assert_eq!(files(&with, "read", &host.at("data/given")), "given");
}
