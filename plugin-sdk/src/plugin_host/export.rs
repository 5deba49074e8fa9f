//! The glue between the author's Rust and the C table of `thenodes_ipc::abi`: the only file of this crate with `unsafe`.
//!
//! What crosses is plain data; every function that the runner may call catches panics; every pointer from the runner is
//! checked for null, every struct for its size, before a field is read. The runner is our own code, but it may be older or
//! newer than this SDK.
#![allow(unsafe_code)]

use super::library::{Incoming, Library};
use super::{Plugin, PluginApiError};
use std::ffi::c_void;
use std::mem::size_of;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};
use thenodes_ipc::abi::{self, Bytes, Description, FrameView, HostTable, PluginTable, RegistrarApi};

/// What `register_plugin` receives from the host. `repr(C)`, see `thenodes_plugin.h`.
#[repr(transparent)]
pub struct PluginRegistrarApi(RegistrarApi);

/// The one library object of this plugin file. Several `register_plugin` calls add handlers to it.
static LIBRARY: OnceLock<Arc<Library>> = OnceLock::new();

impl PluginRegistrarApi {
    /// Checks the pointer and nothing else; versions are compared when a plugin is registered.
    ///
    /// # Safety
    /// `api` is null or points to a registrar that lives for the whole call of `register_plugin`.
    pub unsafe fn from_raw<'a>(api: *const PluginRegistrarApi) -> Result<&'a Self, PluginApiError> {
        // SAFETY: the caller promises that a non-null pointer is a live registrar.
        unsafe { api.as_ref() }.ok_or(PluginApiError::NullApi)
    }

    /// The host's ABI version.
    pub fn abi_version(&self) -> u32 {
        self.0.abi_version
    }

    /// Hands a plugin to the host. May be called several times; the handlers share one process.
    pub fn register_plugin(&self, plugin: Box<dyn Plugin>) -> Result<(), PluginApiError> {
        if self.0.abi_version != abi::ABI_VERSION {
            return Err(PluginApiError::VersionMismatch {
                expected: abi::ABI_VERSION,
                received: self.0.abi_version,
            });
        }
        let register = self.0.register_handler.ok_or(PluginApiError::MissingHandler)?;
        if self.0.host_context.is_null() {
            return Err(PluginApiError::NullContext);
        }
        if let Some(library) = LIBRARY.get() {
            library.add(plugin);
            return Ok(());
        }
        // A runtime may panic where it cannot start, and no panic may reach the runner.
        let library = match catch_unwind(Library::start) {
            Ok(started) => started.map_err(|e| PluginApiError::Runtime(e.to_string()))?,
            Err(_) => return Err(PluginApiError::Runtime("it panicked; see the lines above".into())),
        };
        library.add(plugin);
        let library = LIBRARY.get_or_init(|| library);
        let table = PluginTable {
            size: size_of::<PluginTable>(),
            abi_version: abi::ABI_VERSION,
            reserved: 0,
            instance: Arc::as_ptr(library).cast_mut().cast(),
            describe: Some(describe),
            start: Some(start),
            receive: Some(receive),
            run: Some(run),
            features: abi::FEATURE_MESSAGES,
        };
        // SAFETY: the host gave this function together with this context and copies the table before it returns.
        match unsafe { register(self.0.host_context, &table) } {
            abi::OK => Ok(()),
            status => Err(PluginApiError::Refused { status }),
        }
    }
}

/// Reads bytes lent by the runner.
///
/// # Safety
/// A non-null pointer is valid for `len` bytes until the current table function returns.
unsafe fn borrow<'a>(bytes: Bytes) -> &'a [u8] {
    if bytes.ptr.is_null() || bytes.len == 0 {
        &[]
    } else {
        // SAFETY: the caller passes on the runner's promise about pointer and length.
        unsafe { std::slice::from_raw_parts(bytes.ptr, bytes.len) }
    }
}

/// Runs a table function's body so that no panic leaves the library.
fn guarded(body: impl FnOnce() -> i32) -> i32 {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(abi::INVALID)
}

/// Lends bytes to the runner for the life of the process; used for a few words, once.
fn lend(text: Vec<u8>) -> Bytes {
    Bytes::lend(text.leak())
}

unsafe extern "C" fn describe(_instance: *mut c_void, out: *mut Description) -> i32 {
    guarded(|| {
        // SAFETY: the runner passes a Description of its own, alive for this call and nobody else's meanwhile.
        let Some(out) = (unsafe { out.as_mut() }) else { return abi::INVALID };
        let (Some(library), true) = (LIBRARY.get(), out.size >= size_of::<Description>()) else {
            return abi::INVALID;
        };
        let about = library.describe();
        out.id = lend(about.id.into_bytes());
        out.sdk = lend(format!("thenodes-plugin-sdk {}", crate::constants::APP_VERSION).into_bytes());
        out.prompts = lend(about.prompts.join("\n").into_bytes());
        out.config_defaults = lend(about.config_defaults);
        out.extension_kinds = match about.extension_kinds {
            None => Bytes::EMPTY,
            // A Vec that is empty still has a pointer that is not null, which is what tells none from all.
            Some(kinds) => lend(kinds.join("\n").into_bytes()),
        };
        abi::OK
    })
}

unsafe extern "C" fn start(_instance: *mut c_void, host: *const HostTable) -> i32 {
    guarded(|| {
        if host.is_null() {
            return abi::INVALID;
        }
        // SAFETY: the runner passes its table, which lives until the process ends; size and version are its first fields.
        let (size, version) = unsafe { ((*host).size, (*host).abi_version) };
        if version != abi::ABI_VERSION {
            return abi::WRONG_VERSION;
        }
        let (Some(library), true) = (LIBRARY.get(), size >= abi::HOST_TABLE_FIRST) else {
            return abi::INVALID;
        };
        // SAFETY: the table has at least its first fields, and `pump` only if the size covers it.
        match unsafe { Wire::new(host) }.map(|wire| library.connect(wire)) {
            Some(true) => abi::OK,
            Some(false) | None => abi::INVALID,
        }
    })
}

unsafe extern "C" fn run(_instance: *mut c_void) -> i32 {
    guarded(|| {
        let Some(library) = LIBRARY.get() else { return abi::INVALID };
        match library.read_to_the_end() {
            Ok(()) => abi::OK,
            Err(why) => {
                eprintln!("{why}");
                abi::INVALID
            }
        }
    })
}

/// The fields that every runner's frames have.
struct FirstFrameView {
    kind: u32,
    id: u64,
    method: Bytes,
    code: Bytes,
    body: Bytes,
}

impl FirstFrameView {
    /// # Safety
    /// `frame` points to at least [`abi::FRAME_VIEW_FIRST`] bytes of a frame.
    unsafe fn read(frame: *const FrameView) -> Self {
        // SAFETY: each field lies within the first bytes, which the caller promises.
        unsafe {
            Self {
                kind: (*frame).kind,
                id: (*frame).id,
                method: (*frame).method,
                code: (*frame).code,
                body: (*frame).body,
            }
        }
    }
}

unsafe extern "C" fn receive(_instance: *mut c_void, frame: *const FrameView) -> i32 {
    guarded(|| {
        if frame.is_null() {
            return abi::INVALID;
        }
        // SAFETY: a frame begins there, and its first field says how much of it there is.
        let size = unsafe { (*frame).size };
        let (Some(library), true) = (LIBRARY.get(), size >= abi::FRAME_VIEW_FIRST) else {
            return abi::INVALID;
        };
        // An older runner knows no `more`, and calls from one thread that must not be held up: there is always more.
        // SAFETY: the size says that the field is there.
        let last = size >= size_of::<FrameView>() && unsafe { (*frame).more } == 0;
        // SAFETY: of an older runner only the fields are read that its frames have.
        let frame = unsafe { FirstFrameView::read(frame) };
        // SAFETY: the runner's bytes are valid for this call, which does not keep them.
        let (method, code, body) = unsafe { (borrow(frame.method), borrow(frame.code), borrow(frame.body)) };
        let (Ok(method), Ok(code)) = (std::str::from_utf8(method), std::str::from_utf8(code)) else {
            return abi::INVALID;
        };
        library.receive(
            match frame.kind {
                abi::KIND_CALL => Incoming::Call { id: frame.id, method, body },
                abi::KIND_NOTIFY => Incoming::Notify { method, body },
                abi::KIND_REPLY => Incoming::Reply { id: frame.id, code, body },
                abi::KIND_CANCEL => Incoming::Cancel { id: frame.id },
                _ => return abi::INVALID,
            },
            last,
        );
        abi::OK
    })
}

/// The runner's side of the table, as safe functions.
pub(super) struct Wire {
    context: *mut c_void,
    send: unsafe extern "C" fn(*mut c_void, *const FrameView) -> i32,
    next_id: unsafe extern "C" fn(*mut c_void) -> u64,
    pump: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
}

// SAFETY: the ABI says that the runner's functions may be called from any thread with this context.
unsafe impl Send for Wire {}
// SAFETY: as above; the runner serialises writes itself.
unsafe impl Sync for Wire {}

impl Wire {
    /// # Safety
    /// `host` points to at least [`abi::HOST_TABLE_FIRST`] bytes of a table, and to as many as its first field says.
    unsafe fn new(host: *const HostTable) -> Option<Self> {
        // SAFETY: these fields are among the first; `pump` is read only if the table is as large as ours.
        unsafe {
            let grown = (*host).size >= size_of::<HostTable>();
            Some(Self {
                context: (*host).context,
                send: (*host).send?,
                next_id: (*host).next_id?,
                pump: if grown { (*host).pump } else { None },
            })
        }
    }

    /// Reads the link once and hands over what came, on this thread. False when that cannot be done any more.
    pub(super) fn pump(&self) -> bool {
        // SAFETY: the function came with this context.
        self.pump.is_some_and(|pump| unsafe { pump(self.context) } == abi::OK)
    }

    /// Sends a frame; an error is one of the ABI's negative numbers.
    pub(super) fn send(
        &self,
        kind: u32,
        id: u64,
        cause: u64,
        words: [&str; 2],
        body: &[u8],
    ) -> Result<(), i32> {
        let [method, code] = words.map(|word| Bytes::lend(word.as_bytes()));
        let body = Bytes::lend(body);
        let frame = FrameView {
            size: size_of::<FrameView>(),
            kind,
            deadline_ms: 0,
            id,
            cause,
            method,
            code,
            body,
            more: 0,
            reserved: 0,
        };
        // SAFETY: the function came with this context, and the frame lives for the call.
        match unsafe { (self.send)(self.context, &frame) } {
            abi::OK => Ok(()),
            status => Err(status),
        }
    }

    /// A fresh id for a call.
    pub(super) fn next_id(&self) -> u64 {
        // SAFETY: the function came with this context.
        unsafe { (self.next_id)(self.context) }
    }
}
