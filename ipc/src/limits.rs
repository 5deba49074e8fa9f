//! Every bound of the link in one place, with its reason. Bytes, unless the name says otherwise.

use std::time::Duration;

/// Largest frame after its length prefix, either way, before the two sides agree on less. A larger length ends the link
/// before a byte of it is read.
pub const MAX_FRAME: usize = 1024 * 1024;

/// Largest header inside a frame. Headers name a method and carry a few numbers; 4 KiB is generous.
pub const MAX_HEADER: usize = 4096;

/// Longest method name.
pub const MAX_METHOD: usize = 64;

/// Calls a plugin may have open toward the node. The next one is refused with `RESOURCE_EXHAUSTED`.
pub const MAX_CALLS_FROM_PLUGIN: usize = 64;

/// Calls the node keeps open toward one plugin. More wait for their turn, until their deadline.
pub const MAX_CALLS_TO_PLUGIN: usize = 64;

/// Messages that may be with one plugin at once, beside its calls. More wait in that plugin's bounded queue.
pub const MAX_MESSAGES_TO_PLUGIN: usize = 32;

/// The same for a plugin that takes several in one call and is done with them within [`SOON`]. What is with a plugin when its process ends
/// is lost: no more than keeps it busy while the next ones are on their way.
pub const MAX_MESSAGES_AT_ONCE: usize = 256;

/// A plugin that is done with a message so soon after it was handed over may have more of them at once; one that takes twice as long has
/// less.
pub const SOON: Duration = Duration::from_millis(5);

/// Bytes of messages in one call; a longer message has a call of its own.
pub const MAX_MESSAGES_BYTES: usize = 64 * 1024;

/// Messages that may wait for one plugin before new ones are dropped and counted.
pub const PLUGIN_QUEUE: usize = 256;

/// Bytes of messages that may wait for one plugin.
pub const PLUGIN_QUEUE_BYTES: usize = 8 * MAX_FRAME;

/// Most bytes of a network stream in one call: large enough that the round trip does not show, small enough that all open
/// calls of a plugin together ([`MAX_CALLS_FROM_PLUGIN`]) hold 4 MiB of them at most.
pub const MAX_STREAM_CHUNK: usize = 64 * 1024;

/// Most random bytes in one call.
pub const MAX_RANDOM: usize = 64 * 1024;

/// Default deadline of a message, an event and every other short call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Default deadline of a request or a prompt line.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// No deadline is longer than this.
pub const MAX_DEADLINE: Duration = Duration::from_secs(300);

/// How long the runner may take from its start until its walls stand.
pub const CONFINE_DEADLINE: Duration = Duration::from_secs(5);

/// How long the library's constructors and `register_plugin` may take together.
pub const REGISTER_DEADLINE: Duration = Duration::from_secs(5);

/// How long `on_load` may take.
pub const LOAD_DEADLINE: Duration = Duration::from_secs(10);

/// How long a plugin may go on after its call was cancelled before the runner is replaced.
pub const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// How long a stopping plugin may finish what it does.
pub const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How long open calls may end before a plugin is told to stop.
pub const STOP_DRAIN: Duration = Duration::from_secs(2);

/// How long an old version may finish its open calls after an upgrade; no call that a request's deadline allows is cut off.
pub const UPGRADE_DRAIN: Duration = REQUEST_DEADLINE;

/// How long open calls may end before the old version is told to stop because the new one asked for its state; they may go on until
/// [`UPGRADE_DRAIN`]. Together with [`STOP_DEADLINE`] less than [`LOAD_DEADLINE`], within which the new one waits.
pub const HAND_OVER_DRAIN: Duration = Duration::from_secs(4);

/// After the end of its link: how long a process may take to end by itself, and after TERM, before KILL.
pub const TERM_GRACE: Duration = Duration::from_millis(500);

/// A call that is older makes the node ask whether the runner still reads.
pub const SLOW_CALL: Duration = Duration::from_secs(1);

/// How long a runner may take to say that it still reads.
pub const PING_DEADLINE: Duration = Duration::from_secs(2);

/// Largest state that a process may leave to the next one.
pub const MAX_STATE: usize = 1024 * 1024;

/// Most bytes of a state in one call: far below a frame.
pub const MAX_STATE_CHUNK: usize = 256 * 1024;

/// Longest line of plugin output kept as one log line; the rest of the line is cut and said to be cut.
pub const MAX_LOG_LINE: usize = 4096;

/// Shared libraries one plugin may need beside those of the runner itself.
pub const MAX_NEEDED_LIBRARIES: usize = 32;

/// Largest plugin library (and largest needed library).
pub const MAX_LIBRARY: u64 = 256 * 1024 * 1024;
