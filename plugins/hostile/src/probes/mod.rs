//! The attacks on walls, as data: one entry per way out that somebody could try. Every one is a fair attempt: without walls
//! it succeeds (`hostile-control` shows that, as root and as an ordinary user), so that a refusal in a runner means something.
//! And it is harmless when it succeeds: it asks, or it changes only what was made for it.
//!
//! Two rules for writing one. The call that matters comes first, before anything that only leads up to it, if need be with
//! arguments that cannot work (`touch!`): a filter then refuses the thing itself. And helpers must not need calls of
//! their own that the filter refuses, such as `getuid`.

#[macro_use]
mod call;

mod descriptors;
mod filesystem;
pub(crate) mod filters;
mod ipc;
mod kernel;
mod leaks;
mod loading;
mod memory;
mod mounts;
mod namespaces;
mod network;
mod privileges;
mod process;
mod resources;
mod signals;

use std::fmt;

/// What an attempt needs to be fair, and so what its argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nothing; there is no argument.
    None,
    /// Path of a file of this user's with [`SECRET`] in it, in a directory of this user's.
    CanaryFile,
    /// Path of a directory of this user's, in which the attempt makes something.
    CanaryDir,
    /// Port on 127.0.0.1 where somebody listens.
    TcpPort,
    /// Port on 127.0.0.1 where somebody takes datagrams.
    UdpPort,
    /// Path of a stream socket where somebody listens.
    UnixPath,
    /// Path of a datagram socket.
    UnixDatagram,
    /// Name of an abstract stream socket where somebody listens, without the leading zero byte.
    AbstractName,
    /// Pid of another process of this user's, made for the purpose.
    Pid,
}

impl Target {
    /// Every kind.
    pub const ALL: [Target; 9] = [
        Target::None,
        Target::CanaryFile,
        Target::CanaryDir,
        Target::TcpPort,
        Target::UdpPort,
        Target::UnixPath,
        Target::UnixDatagram,
        Target::AbstractName,
        Target::Pid,
    ];

    /// Its word in lists.
    pub const fn word(self) -> &'static str {
        match self {
            Target::None => "none",
            Target::CanaryFile => "canary-file",
            Target::CanaryDir => "canary-dir",
            Target::TcpPort => "tcp-port",
            Target::UdpPort => "udp-port",
            Target::UnixPath => "unix-path",
            Target::UnixDatagram => "unix-datagram",
            Target::AbstractName => "abstract-name",
            Target::Pid => "pid",
        }
    }
}

/// What the canary file says.
pub const SECRET: &str = "canary-secret";

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Refused, and how.
    Denied(String),
    /// It worked.
    Through(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Denied(how) => write!(f, "denied: {how}"),
            Outcome::Through(what) => write!(f, "GOT THROUGH: {what}"),
        }
    }
}

/// One attack.
#[derive(Clone, Copy)]
pub struct Probe {
    /// Kebab-case, at most 32 bytes.
    pub name: &'static str,
    /// The kind of wall it runs against.
    pub group: &'static str,
    /// One line.
    pub what: &'static str,
    /// What a fair attempt needs.
    pub target: Target,
    /// Does it; the argument is the target's.
    pub run: fn(&str) -> Outcome,
    /// Only root can do it even without walls.
    pub root_only: bool,
    /// The control first enters namespaces of its own ([`crate::control::prepare`]), where this user may do it and nobody else
    /// notices. The attempt itself is the bare call: run as root without that preparation it would change the machine.
    pub namespaced: bool,
    /// It succeeds without walls. Where it cannot, no refusal proves anything, but getting through still does.
    pub control: bool,
    /// Why it is for root only, or has no control; else empty.
    pub reason: &'static str,
}

impl Probe {
    const fn root_only(self, reason: &'static str) -> Self {
        Self { root_only: true, reason, ..self }
    }

    const fn namespaced(self) -> Self {
        Self { namespaced: true, ..self }
    }

    const fn no_control(self, reason: &'static str) -> Self {
        Self { control: false, reason, ..self }
    }
}

/// Every probe, by group.
pub const PROBES: &[&[Probe]] = &[
    filesystem::PROBES,
    mounts::PROBES,
    namespaces::PROBES,
    network::PROBES,
    process::PROBES,
    signals::PROBES,
    privileges::PROBES,
    kernel::PROBES,
    memory::PROBES,
    loading::PROBES,
    filters::PROBES,
    ipc::PROBES,
    resources::PROBES,
    descriptors::PROBES,
    leaks::PROBES,
];

/// Every probe.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    PROBES.iter().copied().flatten()
}

/// The probe of this name.
pub fn find(name: &str) -> Option<&'static Probe> {
    all().find(|probe| probe.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_short_unique_and_kebab_case_and_every_exception_has_a_reason() {
        let mut seen = BTreeSet::new();
        for probe in all() {
            let name = probe.name;
            assert!(seen.insert(name), "{name} stands twice");
            assert!((2..=32).contains(&name.len()), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
            assert!(!probe.what.is_empty() && !probe.what.contains('\n'), "{name}");
            assert_eq!(
                probe.reason.is_empty(),
                probe.control && !probe.root_only,
                "{name}: {}",
                probe.reason
            );
        }
        assert!(seen.len() >= 150, "{} probes", seen.len());
    }

    #[test]
    fn no_two_probes_claim_the_same() {
        let mut seen = BTreeSet::new();
        for probe in all() {
            assert!(seen.insert(probe.what), "{}: {}", probe.name, probe.what);
        }
    }
}
