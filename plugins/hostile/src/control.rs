//! The control: every probe without walls. It makes the targets, and for attempts that would change the machine it makes
//! namespaces of its own first. What does not get through here proves nothing by failing in a runner.

use crate::probes::{Probe, Target, SECRET};
use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::IntoRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One of each target, alive until dropped. Whoever looks after a run can see whether anything came of it.
pub struct Targets {
    dir: PathBuf,
    tcp: TcpListener,
    udp: UdpSocket,
    unix: UnixListener,
    datagram: UnixDatagram,
    named: UnixListener,
    name: String,
    victim: Child,
}

impl Targets {
    /// Makes them in a new directory below this one. The canary directory may be written to by everybody: in a runner
    /// the user is another one, and the refusal must come from the walls.
    ///
    /// # Errors
    /// Naming what could not be made.
    pub fn new(below: &Path) -> io::Result<Self> {
        let dir = below.join(format!("hostile-targets-{}", std::process::id()));
        let made =
            |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("making {what}: {e}"));
        fs::create_dir(&dir).map_err(made("the directory of the targets"))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(dir.join("canary-dir")).map_err(made("the canary directory"))?;
        fs::set_permissions(dir.join("canary-dir"), fs::Permissions::from_mode(0o1777))?;
        fs::write(dir.join("canary"), SECRET).map_err(made("the canary"))?;
        let name = format!("hostile-target-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name)?;
        let targets = Self {
            tcp: TcpListener::bind("127.0.0.1:0").map_err(made("a TCP listener"))?,
            udp: UdpSocket::bind("127.0.0.1:0").map_err(made("a UDP socket"))?,
            unix: UnixListener::bind(dir.join("stream")).map_err(made("a Unix listener"))?,
            datagram: UnixDatagram::bind(dir.join("datagram")).map_err(made("a Unix socket"))?,
            named: UnixListener::bind_addr(&address).map_err(made("an abstract listener"))?,
            victim: Command::new("sleep")
                .arg("3600")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(made("a victim (the program `sleep`)"))?,
            dir,
            name,
        };
        for (socket, mode) in [("stream", 0o777), ("datagram", 0o777)] {
            fs::set_permissions(targets.dir.join(socket), fs::Permissions::from_mode(mode))?;
        }
        targets.tcp.set_nonblocking(true)?;
        targets.udp.set_nonblocking(true)?;
        targets.unix.set_nonblocking(true)?;
        targets.datagram.set_nonblocking(true)?;
        targets.named.set_nonblocking(true)?;
        Ok(targets)
    }

    /// The argument for an attempt on this target.
    pub fn argument(&self, target: Target) -> String {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let port = |address: io::Result<std::net::SocketAddr>| address.map_or(0, |a| a.port()).to_string();
        match target {
            Target::None => String::new(),
            Target::CanaryFile => path("canary"),
            Target::CanaryDir => path("canary-dir"),
            Target::TcpPort => port(self.tcp.local_addr()),
            Target::UdpPort => port(self.udp.local_addr()),
            Target::UnixPath => path("stream"),
            Target::UnixDatagram => path("datagram"),
            Target::AbstractName => self.name.clone(),
            Target::Pid => self.victim.id().to_string(),
        }
    }

    /// What happened to the targets since the last look: connections and data that came, files that appeared or changed. A
    /// run in which every attempt failed leaves this empty.
    pub fn disturbances(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        while self.tcp.accept().is_ok() {
            found.push("a TCP connection".to_owned());
        }
        while self.unix.accept().is_ok() {
            found.push("a connection to the socket file".to_owned());
        }
        while self.named.accept().is_ok() {
            found.push("a connection to the abstract socket".to_owned());
        }
        let mut bytes = [0; 64];
        while self.udp.recv(&mut bytes).is_ok() {
            found.push("a UDP datagram".to_owned());
        }
        while self.datagram.recv(&mut bytes).is_ok() {
            found.push("a Unix datagram".to_owned());
        }
        if fs::read(self.dir.join("canary")).ok().as_deref() != Some(SECRET.as_bytes()) {
            found.push("the canary is not what it was".to_owned());
        }
        let left = fs::read_dir(self.dir.join("canary-dir")).map_or(0, Iterator::count);
        if left > 0 {
            found.push(format!("{left} new entries in the canary directory"));
        }
        if !matches!(self.victim.try_wait(), Ok(None)) {
            found.push("the victim has ended".to_owned());
        }
        found
    }

    /// The directory of all of them; a working directory that is not the root.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        // Name by name and never downwards: should an attempt have mounted something here, nothing of it may be removed.
        let canaries = self.dir.join("canary-dir");
        for left in fs::read_dir(&canaries).into_iter().flatten().flatten().take(64) {
            let _ = fs::remove_file(left.path());
            let _ = fs::remove_dir(left.path());
        }
        for name in ["canary", "stream", "datagram"] {
            let _ = fs::remove_file(self.dir.join(name));
        }
        let _ = fs::remove_dir(canaries);
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Leaves descriptors of a file and a directory open, and marks them so that children inherit them: what a careless host
/// would do.
///
/// # Errors
/// If they cannot be opened.
pub fn leave_descriptors_open(targets: &Targets) -> io::Result<()> {
    for path in [targets.dir.join("canary"), targets.dir.clone()] {
        let fd = fs::File::open(path)?.into_raw_fd();
        // SAFETY: numbers, and a descriptor that is ours and stays open.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes what a fair attempt needs: a filter's program that nobody sealed; or namespaces in which this user is root and which nobody else sees, if the probe wants that, with a mount of its own on a
/// target directory. One way: this process stays there.
///
/// # Errors
/// Naming the step that failed.
pub fn prepare(probe: &Probe, arg: &str) -> io::Result<()> {
    if probe.group == "filters" {
        return crate::probes::filters::lay_out();
    }
    if !probe.namespaced {
        return Ok(());
    }
    let step = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    // SAFETY: numbers.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP;
    // SAFETY: a number.
    done(unsafe { libc::unshare(flags) }).map_err(step("namespaces for the control"))?;
    fs::write("/proc/self/setgroups", "deny").map_err(step("setgroups"))?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(step("uid_map"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(step("gid_map"))?;
    let none = std::ptr::null();
    // SAFETY: strings are static, the rest are numbers; our mounts must not travel to the host.
    done(unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) })
        .map_err(step("private mounts"))?;
    if probe.target == Target::CanaryDir {
        let dir = std::ffi::CString::new(if arg.is_empty() { "/tmp" } else { arg })?;
        // SAFETY: strings live for the call.
        done(unsafe { libc::mount(c"none".as_ptr(), dir.as_ptr(), c"tmpfs".as_ptr(), 0, none.cast()) })
            .map_err(step("a mount on the target directory"))?;
    }
    Ok(())
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
