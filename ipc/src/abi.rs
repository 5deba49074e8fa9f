//! The C table between a runner and the library it opened: plain data and functions, nothing that knows Rust.
//!
//! Size- and version-checked in both directions: each struct begins with its own size, a reader uses only the fields that
//! the size covers, and both sides compare [`ABI_VERSION`]. No trait object, no Rust enum and no panic crosses here.
//! This file only describes; the unsafe code lives in the runner's `library` and the SDK's `export`.
//! `plugin-sdk/include/thenodes_plugin.h` says the same in C and a test compiles the two against each other.

use std::ffi::c_void;

/// Version of this table. Also the `PLUGIN_ABI_VERSION` that plugin authors compare with.
pub const ABI_VERSION: u32 = 1;

/// Name of the one symbol a plugin library exports.
pub const ENTRY_SYMBOL: &str = "register_plugin";

/// Borrowed bytes. The pointer is valid only for the call it is passed to; null with length zero is empty.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Bytes {
    /// First byte.
    pub ptr: *const u8,
    /// Number of bytes.
    pub len: usize,
}

impl Bytes {
    /// No bytes.
    pub const EMPTY: Bytes = Bytes { ptr: std::ptr::null(), len: 0 };

    /// Lends a slice.
    pub fn lend(slice: &[u8]) -> Bytes {
        Bytes { ptr: slice.as_ptr(), len: slice.len() }
    }
}

/// A call with an answer.
pub const KIND_CALL: u32 = 1;
/// A call without an answer.
pub const KIND_NOTIFY: u32 = 2;
/// An answer.
pub const KIND_REPLY: u32 = 3;
/// The caller no longer waits.
pub const KIND_CANCEL: u32 = 4;

/// A frame, in either direction. Unused fields are zero or empty.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FrameView {
    /// Size of this struct as its writer knows it.
    pub size: usize,
    /// One of the `KIND_` values.
    pub kind: u32,
    /// Milliseconds left for a call; zero is the default.
    pub deadline_ms: u32,
    /// Number of the call, chosen by the caller.
    pub id: u64,
    /// Call of the other side that caused this one.
    pub cause: u64,
    /// Method of a call or notice.
    pub method: Bytes,
    /// Error code of a reply; empty if it went well.
    pub code: Bytes,
    /// Arguments, result, or error text.
    pub body: Bytes,
    /// Toward the library: not zero if another whole frame has arrived and follows at once. Since 0.1.1; see `size`.
    pub more: u32,
    /// Zero.
    pub reserved: u32,
}

/// Size of the first [`FrameView`]: what every runner and every library has.
pub const FRAME_VIEW_FIRST: usize = std::mem::offset_of!(FrameView, more);
/// Size of the first [`HostTable`].
pub const HOST_TABLE_FIRST: usize = std::mem::offset_of!(HostTable, pump);
/// Size of the first [`PluginTable`].
pub const PLUGIN_TABLE_FIRST: usize = std::mem::offset_of!(PluginTable, run);
/// Size of a [`PluginTable`] that has `run`.
pub const PLUGIN_TABLE_WITH_RUN: usize = std::mem::offset_of!(PluginTable, features);

/// Success of a table function.
pub const OK: i32 = 0;
/// The frame is longer than the cap.
pub const TOO_LONG: i32 = -1;
/// The link has ended.
pub const CLOSED: i32 = -2;
/// A pointer, size or value of the caller is wrong.
pub const INVALID: i32 = -3;
/// The other side has another ABI version.
pub const WRONG_VERSION: i32 = -4;
/// A field that was asked for is not there.
pub const ABSENT: i32 = -5;

/// What the runner offers to a library, from `start` until the process ends.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct HostTable {
    /// Size of this struct as the runner knows it.
    pub size: usize,
    /// [`ABI_VERSION`] of the runner.
    pub abi_version: u32,
    /// Zero.
    pub reserved: u32,
    /// Passed back to each function.
    pub context: *mut c_void,
    /// Sends a frame. From any thread; blocks while the socket is full. [`OK`], [`TOO_LONG`], [`CLOSED`] or [`INVALID`].
    pub send: Option<unsafe extern "C" fn(context: *mut c_void, frame: *const FrameView) -> i32>,
    /// A fresh id for a call of the plugin. Never zero.
    pub next_id: Option<unsafe extern "C" fn(context: *mut c_void) -> u64>,
    /// Finds the value at a dotted path (`payload.value`) in a MessagePack body; strings and byte strings come back as
    /// their bytes, anything else as its MessagePack. For authors without a MessagePack library.
    pub field: Option<unsafe extern "C" fn(body: Bytes, path: Bytes, out: *mut Bytes) -> i32>,
    /// Waits until frames have arrived and hands them to `receive`, on the calling thread. Only within `run`, and by one thread
    /// at a time until it has handed them all over. Does not return when the node has closed the link: the process ends.
    /// [`OK`] or [`INVALID`]. Since 0.1.1; see `size`.
    pub pump: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
}

/// What a library says about itself. Pointers stay valid until the next call into the library.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// Size of this struct as the runner knows it.
    pub size: usize,
    /// Its name, UTF-8.
    pub id: Bytes,
    /// What it was built with, UTF-8.
    pub sdk: Bytes,
    /// Prompt prefixes, UTF-8, one per line.
    pub prompts: Bytes,
    /// MessagePack array of configuration defaults, or empty.
    pub config_defaults: Bytes,
    /// EXTENSION kinds it wants, UTF-8, one per line. Null: all. Not null and empty: none.
    pub extension_kinds: Bytes,
}

/// What a library hands over in `register_plugin`. Copied by the runner before the function returns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PluginTable {
    /// Size of this struct as the library knows it.
    pub size: usize,
    /// [`ABI_VERSION`] of the library.
    pub abi_version: u32,
    /// Zero.
    pub reserved: u32,
    /// Passed back to each function.
    pub instance: *mut c_void,
    /// Called once after `register_plugin` returned.
    pub describe: Option<unsafe extern "C" fn(instance: *mut c_void, out: *mut Description) -> i32>,
    /// Called once, before the first frame. The table stays valid until the process ends.
    pub start: Option<unsafe extern "C" fn(instance: *mut c_void, host: *const HostTable) -> i32>,
    /// One frame from the node. Always from the same thread; must return soon, because the link waits meanwhile. Both are
    /// different for a library that has `run`: then on whatever thread called `pump`.
    pub receive: Option<unsafe extern "C" fn(instance: *mut c_void, frame: *const FrameView) -> i32>,
    /// May be null. Called once after `start`, on the process's first thread, in place of the runner's own reading: the library
    /// reads with the host's `pump`. The process ends when it returns. Since 0.1.1; see `size`.
    pub run: Option<unsafe extern "C" fn(instance: *mut c_void) -> i32>,
    /// What the library can do beside that: `FEATURE_` bits. Since 0.1.2; see `size`.
    pub features: u64,
}

/// The library takes `messages`: several messages of peers in one call. Its body is a MessagePack array, with a length of two bytes,
/// of what `message` has as its body. Each has the number of the call plus its place in the array; an answer to one of these
/// numbers answers those before it too, which went well.
pub const FEATURE_MESSAGES: u64 = 1;

/// What `register_plugin` receives. The first three fields and the size are TheNodes' own since 0.1.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RegistrarApi {
    /// [`ABI_VERSION`] of the runner.
    pub abi_version: u32,
    /// Passed back to `register_handler`.
    pub host_context: *mut c_void,
    /// Takes the plugin's table. [`OK`], [`WRONG_VERSION`] or [`INVALID`].
    pub register_handler:
        Option<unsafe extern "C" fn(context: *mut c_void, plugin: *const PluginTable) -> i32>,
    /// `reserved[0]` is the size of this struct as the runner knows it; the rest is zero.
    pub reserved: [usize; 4],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    /// Plugins in the field were compiled against these numbers.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_layout_of_the_table_does_not_change() {
        assert_eq!((size_of::<Bytes>(), size_of::<FrameView>(), FRAME_VIEW_FIRST), (16, 88, 80));
        assert_eq!((offset_of!(FrameView, method), offset_of!(FrameView, body)), (32, 64));
        assert_eq!((size_of::<HostTable>(), HOST_TABLE_FIRST, offset_of!(HostTable, send)), (56, 48, 24));
        assert_eq!(
            (size_of::<PluginTable>(), PLUGIN_TABLE_FIRST, offset_of!(PluginTable, describe)),
            (64, 48, 24)
        );
        assert_eq!(PLUGIN_TABLE_WITH_RUN, 56);
        assert_eq!((size_of::<RegistrarApi>(), offset_of!(RegistrarApi, register_handler)), (56, 16));
        assert_eq!(size_of::<Description>(), 88);
    }
}
