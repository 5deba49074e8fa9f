//! The start-up exchange, in order. The runner is our own code until `proceed`; from then on it counts as hostile.
//!
//! | step | from | body | meaning |
//! |---|---|---|---|
//! | `hello` | node | [`NodeHello`] + the report pipe, the library and what it needs as descriptors | who you are, what to open, your limits |
//! | `hello` | runner | [`RunnerHello`] | the versions I speak; ends here if there is none in common |
//! | `confined` | runner | [`Confinement`] | every wall, measured from inside |
//! | `proceed` | node | empty | good enough: open the library |
//! | `registered` | runner | [`Registration`] | what the plugin says about itself |
//! | `refused` | runner | [`Refusal`] | instead of any step: why I stop |

use crate::id::{Generation, PluginName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of the link protocol. It is not the product's version and changes only when the protocol does.
pub const PROTOCOL: u32 = 1;

/// Range of protocol versions that one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest.
    pub min: u32,
    /// Newest.
    pub max: u32,
}

impl Versions {
    /// What this build speaks.
    pub const OURS: Versions = Versions { min: PROTOCOL, max: PROTOCOL };

    /// The newest version both speak.
    pub fn common(self, other: Versions) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// One shared library the plugin needs, sent as a descriptor beside the library's own, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needed {
    /// Its SONAME: a bare file name, no slash.
    pub soname: String,
}

/// What the kernel is told to hold the plugin to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Memory the plugin may write to, bytes. The runner adds the stacks of its threads and sets `RLIMIT_DATA`.
    pub memory: u64,
    /// Threads of the plugin (`RLIMIT_NPROC` in its user namespace).
    pub threads: u64,
    /// Open descriptors (`RLIMIT_NOFILE`).
    pub descriptors: u64,
    /// Seconds of processor time in one life (`RLIMIT_CPU`): SIGXCPU at this many, SIGKILL one later. `None`: no such limit.
    #[serde(default)]
    pub cpu_seconds: Option<u64>,
    /// Size of a file the plugin writes, bytes (`RLIMIT_FSIZE`); zero as long as nothing lets it write one.
    #[serde(default)]
    pub file_size: u64,
}

impl ProcessLimits {
    /// Stack of a thread in Rust and tokio; counted by `RLIMIT_DATA` when the thread starts.
    const THREAD_STACK: u64 = 2 * 1024 * 1024;
    /// Warden, stub and the runner's first thread live in the same user namespace and the same control group.
    const OWN_PROCESSES: u64 = 3;

    /// What `RLIMIT_DATA` is set to: the plugin's memory and the stacks of its threads.
    pub fn data(&self) -> u64 {
        self.memory.saturating_add(self.threads.saturating_mul(Self::THREAD_STACK))
    }

    /// Processes and threads of the whole tree: what `RLIMIT_NPROC` and a control group count.
    pub fn tasks(&self) -> u64 {
        self.threads.saturating_add(Self::OWN_PROCESSES)
    }
}

/// First frame: node to runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHello {
    /// Protocol versions of the node.
    pub versions: Versions,
    /// Largest frame the node takes and sends.
    pub max_frame: u32,
    /// Process id of the node: when it is gone, so is the plugin.
    pub node_pid: i32,
    /// Name of the plugin; becomes the process name.
    pub plugin: PluginName,
    /// Which start this is.
    pub generation: Generation,
    /// Unprivileged uid and gid to become, when the node runs as root.
    pub run_as: Option<u32>,
    /// Size of the library, whose descriptor comes with this frame; zero for a probe without a library (`doctor`).
    pub library_size: u64,
    /// Libraries it needs beside those of the runner.
    pub needed: Vec<Needed>,
    /// Limits.
    pub limits: ProcessLimits,
    /// Which system calls it may make.
    #[serde(default)]
    pub seccomp: SeccompMode,
    /// System calls beside those of the mode, by name; only with [`SeccompMode::Custom`].
    #[serde(default)]
    pub calls: Vec<String>,
    /// Paths of the host that it may use.
    #[serde(default)]
    pub paths: Vec<PathGrant>,
    /// Size of a writable `/tmp` of the plugin's own, bytes; zero for none. It counts as memory and is gone with the process.
    #[serde(default)]
    pub temporary: u64,
    /// A shared-memory region comes with this frame, behind the report pipe: after the start-up exchange frames travel
    /// through its rings ([`crate::ring`]), and the socket carries only bytes that say "look".
    #[serde(default)]
    pub ring: bool,
    /// Microseconds that a runner which has just worked looks for more before it sleeps; zero where there is one processor for
    /// both, and looking would cost what would bring it: there it lets the node go first a few times.
    #[serde(default)]
    pub spin_us: u32,
    /// Takes walls away, for tests of the others. Only a runner built for such tests knows it; every other refuses to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<Without>,
}

impl NodeHello {
    /// Every path with contents inside: the granted ones, and the plugin's own temporary one.
    pub fn all_paths(&self) -> Vec<PathGrant> {
        let temporary = PathGrant { path: TEMPORARY.into(), read: true, write: true, create: true };
        self.paths.iter().cloned().chain((self.temporary > 0).then_some(temporary)).collect()
    }
}

/// Where a plugin's own temporary storage is, inside.
pub const TEMPORARY: &str = "/tmp";

/// What a test takes away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Without {
    /// These walls are not put up.
    pub layers: Vec<Layer>,
    /// These system calls are taken off the allow-list, by name.
    pub calls: Vec<String>,
    /// Calls that would end the process fail with `EPERM`.
    pub gentle: bool,
}

/// How long the list of allowed system calls is. Every mode is an allow-list; what none of them contains is listed in
/// `docs/isolation.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeccompMode {
    /// What a Rust plugin with tokio really uses.
    #[default]
    Strict,
    /// And harmless questions about oneself, pipes and timers.
    Basic,
    /// And signals as descriptors, locks and advice on own files, threads on processors of one's own.
    Moderate,
    /// And everything else that neither makes a process nor reaches out of the sandbox by itself.
    Permissive,
    /// `strict` and the calls that the operator names.
    Custom,
}

impl SeccompMode {
    /// All of them.
    pub const ALL: [SeccompMode; 5] = [
        SeccompMode::Strict,
        SeccompMode::Basic,
        SeccompMode::Moderate,
        SeccompMode::Permissive,
        SeccompMode::Custom,
    ];

    /// How wide the mode's own list is: each number contains the smaller ones. What an operator adds to `custom` does not count.
    pub fn width(self) -> u8 {
        match self {
            SeccompMode::Strict | SeccompMode::Custom => 0,
            SeccompMode::Basic => 1,
            SeccompMode::Moderate => 2,
            SeccompMode::Permissive => 3,
        }
    }

    /// The word in configuration.
    pub fn word(self) -> &'static str {
        match self {
            SeccompMode::Strict => "strict",
            SeccompMode::Basic => "basic",
            SeccompMode::Moderate => "moderate",
            SeccompMode::Permissive => "permissive",
            SeccompMode::Custom => "custom",
        }
    }

    /// The mode of this name.
    pub fn parse(word: &str) -> Option<SeccompMode> {
        Self::ALL.into_iter().find(|mode| mode.word() == word)
    }
}

/// A path of the host inside the sandbox, under the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathGrant {
    /// Absolute, normalized.
    pub path: String,
    /// Files may be read and directories listed.
    #[serde(default)]
    pub read: bool,
    /// Existing files may be changed.
    #[serde(default)]
    pub write: bool,
    /// Files and directories may be made, renamed and removed below it.
    #[serde(default)]
    pub create: bool,
}

/// First frame back: runner to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerHello {
    /// Protocol versions of the runner.
    pub versions: Versions,
    /// Largest frame the runner takes and sends.
    pub max_frame: u32,
    /// Version of the runner program, for people.
    pub build: String,
}

/// The walls, one name each. The order is the order in which they are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Own user, mount, pid, network, ipc, uts and cgroup namespaces.
    Namespaces,
    /// An empty read-only root without `/proc`.
    Root,
    /// Nothing inherited: environment, arguments, descriptors.
    CleanState,
    /// Kernel limits on memory, threads, descriptors, files.
    Rlimits,
    /// No capability, and no way to one (`no_new_privs`).
    Privileges,
    /// Not dumpable, not traceable from its own uid.
    NotDumpable,
    /// Memory is writable or executable, never both, never in turn (`PR_SET_MDWE`).
    WriteXorExecute,
    /// Landlock: no path but the library, no TCP, no signal or abstract socket outward.
    Landlock,
    /// The seccomp allow-list, on all threads.
    Seccomp,
}

impl Layer {
    /// All walls, in order.
    pub const ALL: [Layer; 9] = [
        Layer::Namespaces,
        Layer::Root,
        Layer::CleanState,
        Layer::Rlimits,
        Layer::Privileges,
        Layer::NotDumpable,
        Layer::WriteXorExecute,
        Layer::Landlock,
        Layer::Seccomp,
    ];
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layer::Namespaces => "namespaces",
            Layer::Root => "root",
            Layer::CleanState => "clean-state",
            Layer::Rlimits => "rlimits",
            Layer::Privileges => "privileges",
            Layer::NotDumpable => "not-dumpable",
            Layer::WriteXorExecute => "write-xor-execute",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
        })
    }
}

/// One wall as the runner measured it from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Which wall.
    pub layer: Layer,
    /// True only if a test of what must fail has failed.
    pub in_force: bool,
    /// What was measured, or what is missing, for people.
    pub detail: String,
}

/// The report a runner gives before it opens anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// One entry per wall, in the order of [`Layer::ALL`].
    pub layers: Vec<LayerReport>,
}

impl Confinement {
    /// The level these measurements amount to. A wall that is not reported is a wall that is missing.
    pub fn level(&self) -> Level {
        let missing: Vec<Layer> = Layer::ALL
            .into_iter()
            .filter(|layer| {
                let mut of_layer = self.layers.iter().filter(|report| report.layer == *layer);
                // Exactly one report, and a good one: two that contradict each other prove nothing.
                !matches!((of_layer.next(), of_layer.next()), (Some(report), None) if report.in_force)
            })
            .collect();
        match missing {
            missing if missing.is_empty() => Level::Full,
            // Without the allow-list and without no_new_privs nothing else can be relied on.
            missing if missing.contains(&Layer::Seccomp) || missing.contains(&Layer::Privileges) => {
                Level::Refused(missing)
            }
            // What namespaces do not hide, Landlock must refuse; with neither there is no wall around files.
            missing if missing.contains(&Layer::Landlock) && missing.contains(&Layer::Root) => {
                Level::Refused(missing)
            }
            missing => Level::Reduced(missing),
        }
    }
}

/// How well a plugin is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Every wall stands.
    Full,
    /// These walls are missing; the rest stands.
    Reduced(Vec<Layer>),
    /// Too little stands to run anything.
    Refused(Vec<Layer>),
}

impl Level {
    /// The word for status lists: `full`, `reduced`, `refused`.
    pub fn word(&self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::Reduced(_) => "reduced",
            Level::Refused(_) => "refused",
        }
    }

    /// The walls that are missing.
    pub fn missing(&self) -> &[Layer] {
        match self {
            Level::Full => &[],
            Level::Reduced(missing) | Level::Refused(missing) => missing,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        let missing: Vec<String> = self.missing().iter().map(Layer::to_string).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            write!(f, " (missing: {})", missing.join(", "))
        }
    }
}

/// What a plugin says about itself once its library is open. Hostile input: the node checks every field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its own name, at most 128 bytes; shown beside the name the node gave it.
    pub id: String,
    /// Version of the SDK it was built with, for people.
    pub sdk: String,
    /// Prompt prefixes of its handlers.
    pub prompts: Vec<String>,
    /// MessagePack of the SDK's `Vec<ConfigDefaults>`; empty for none.
    #[serde(with = "bytes")]
    pub config_defaults: Vec<u8>,
    /// EXTENSION kinds it wants; `None` is all.
    #[serde(default)]
    pub extension_kinds: Option<Vec<String>>,
    /// It takes several messages in one call.
    #[serde(default)]
    pub messages: bool,
}

/// Steps of the runner, named in refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Reading `hello`.
    Hello,
    /// Putting up the walls.
    Confine,
    /// `dlopen`: mapping, relocating, constructors.
    Open,
    /// Finding and calling `register_plugin`.
    Register,
}

/// Why a runner stops before `registered`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Where it stopped.
    pub step: Step,
    /// Why, for people.
    pub reason: String,
}

/// Byte strings as MessagePack `bin`, not as arrays of numbers (120 times slower at 64 KiB).
mod bytes {
    use serde::{de, Deserializer, Serializer};
    use std::fmt;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        d.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack;

    fn all_but(missing: &[Layer]) -> Confinement {
        let report =
            |layer: Layer| LayerReport { layer, in_force: !missing.contains(&layer), detail: String::new() };
        Confinement { layers: Layer::ALL.map(report).to_vec() }
    }

    #[test]
    fn every_wall_counts_and_silence_about_one_is_its_absence() {
        assert_eq!(all_but(&[]).level(), Level::Full);
        assert_eq!(Confinement { layers: vec![] }.level(), Level::Refused(Layer::ALL.to_vec()));
        for layer in Layer::ALL {
            let level = all_but(&[layer]).level();
            assert_eq!(level.missing(), [layer], "{level}");
            let hopeless = matches!(layer, Layer::Seccomp | Layer::Privileges);
            assert_eq!(level.word() == "refused", hopeless, "{level}");
        }
        assert_eq!(all_but(&[Layer::Landlock, Layer::Root]).level().word(), "refused");
        let mut twice = all_but(&[Layer::Root]);
        twice.layers.extend(all_but(&[]).layers);
        assert_eq!(twice.level(), Level::Refused(Layer::ALL.to_vec()), "contradictions prove nothing");
    }

    #[test]
    fn versions_meet_at_the_newest_both_speak_or_not_at_all() {
        let range = |min, max| Versions { min, max };
        assert_eq!(range(1, 3).common(range(2, 9)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 2)), None);
        assert_eq!(range(4, 5).common(range(1, 4)), Some(4));
    }

    #[test]
    fn limits_of_an_older_node_mean_no_files_and_no_bound_on_processor_time() {
        #[derive(Serialize)]
        struct Older {
            memory: u64,
            threads: u64,
            descriptors: u64,
        }
        let older = Older { memory: 1 << 20, threads: 4, descriptors: 16 };
        let read: ProcessLimits = pack::decode(&pack::encode(&older).expect("encodes")).expect("decodes");
        assert_eq!((read.cpu_seconds, read.file_size), (None, 0));
        assert_eq!((read.data(), read.tasks()), (9 << 20, 7));
    }

    #[test]
    fn a_registration_with_fields_from_the_future_is_read() {
        #[derive(Serialize)]
        struct Newer<'a> {
            id: &'a str,
            sdk: &'a str,
            prompts: Vec<String>,
            #[serde(with = "bytes")]
            config_defaults: Vec<u8>,
            colour: &'a str,
        }
        let newer = Newer { id: "x", sdk: "9", prompts: vec![], config_defaults: vec![1, 2], colour: "red" };
        let read: Registration = pack::decode(&pack::encode(&newer).expect("encodes")).expect("decodes");
        assert_eq!(read.config_defaults, [1, 2]);
    }
}
