//! Serves the plugin to the node: frames from the link to the table, frames from the table to the link. Nothing is
//! decoded here but headers; bodies pass as they are. The node is trusted; the plugin shares this process and is not: what
//! it does to this code it does to itself.
//!
//! A library that has `run` reads by itself, with `pump`, from threads of its own; for others the loop is here.
#![allow(unsafe_code)]

use crate::library::Plugin;
use crate::link::{Link, Reader, Writer};
use crate::sys;
use std::ffi::c_void;
use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use thenodes_ipc::abi::{self, Bytes, FrameView, HostTable};
use thenodes_ipc::{CallId, Code, Frame, FrameError, Generation};

/// The plugin refused its own way to the node, or the node sent something that is no frame.
const EXIT_LINK: u8 = 71;

/// The node's question whether anybody reads: answered here, so that a plugin that is slow is told from one that is stuck.
const PING: &str = "link.ping";

/// What the table's functions find behind their context.
struct Host {
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
    plugin: Plugin,
    generation: Generation,
    counter: AtomicU64,
}

/// Carries frames until the node closes the link.
pub(crate) fn until_the_end(link: Link, plugin: Plugin, generation: Generation) -> u8 {
    let Ok((reader, writer)) = link.split() else { return EXIT_LINK };
    // Lives as long as the process: threads of the plugin may use it at any time.
    let host: &'static Host = Box::leak(Box::new(Host {
        reader: Mutex::new(reader),
        writer: Mutex::new(writer),
        plugin,
        generation,
        counter: AtomicU64::new(1),
    }));
    let table: &'static HostTable = Box::leak(Box::new(HostTable {
        size: size_of::<HostTable>(),
        abi_version: abi::ABI_VERSION,
        reserved: 0,
        context: std::ptr::from_ref(host).cast_mut().cast(),
        send: Some(send),
        next_id: Some(next_id),
        field: Some(field),
        pump: Some(pump),
    }));
    if let Err(error) = host.plugin.start(table) {
        eprintln!("{error}");
        return EXIT_LINK;
    }
    if let Some(status) = host.plugin.run() {
        eprintln!("the plugin does not read its link any more (status {status})");
        return EXIT_LINK;
    }
    loop {
        pump_once(host);
    }
}

unsafe extern "C" fn pump(context: *mut c_void) -> i32 {
    // SAFETY: the context is the leaked Host.
    let Some(host) = (unsafe { context.cast::<Host>().as_ref() }) else { return abi::INVALID };
    pump_once(host);
    abi::OK
}

/// Waits for frames and hands them over. Ends the process with the link: no destructors, they would be the plugin's.
fn pump_once(host: &Host) {
    let mut reader = host.reader.lock().unwrap_or_else(PoisonError::into_inner);
    let mut frames = match reader.wait() {
        Ok(Some(frames)) => frames,
        Ok(None) => sys::exit_now(0),
        Err(error) => ended(&error),
    };
    // Others may read while a handler runs below; they get bytes of their own.
    drop(reader);
    loop {
        let frame = match frames.next() {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => ended(&error),
        };
        if let Frame::Call { id, method: PING, .. } = frame {
            let _ = put(host, &Frame::Reply { id, failed: None, body: &[] }, &[]);
            continue;
        }
        // What is behind this frame is known before it is handed over: a handler may run in there for as long as it likes.
        let Some(mut view) = view(&frame) else { continue };
        view.more = u32::from(frames.has_next());
        let status = host.plugin.receive(&view);
        if status != abi::OK {
            eprintln!("the plugin refused a frame (status {status})");
        }
    }
    // The buffer is used again, unless somebody else waits with one of his own.
    if let Ok(mut reader) = host.reader.try_lock() {
        reader.give_back(frames);
    }
}

fn ended(error: &dyn std::fmt::Display) -> ! {
    eprintln!("the link failed: {error}");
    sys::exit_now(i32::from(EXIT_LINK))
}

/// The frame as the table shows it; `None` for those that are not the plugin's business.
fn view(frame: &Frame<'_>) -> Option<FrameView> {
    let none = Bytes::EMPTY;
    let mut view = FrameView {
        size: size_of::<FrameView>(),
        kind: 0,
        deadline_ms: 0,
        id: 0,
        cause: 0,
        method: none,
        code: none,
        body: Bytes::lend(frame.body()),
        more: 0,
        reserved: 0,
    };
    match frame {
        Frame::Call { id, cause, method, deadline_ms, .. } => {
            view.kind = abi::KIND_CALL;
            view.id = id.0;
            view.cause = cause.map_or(0, |cause| cause.0);
            view.method = Bytes::lend(method.as_bytes());
            view.deadline_ms = *deadline_ms;
        }
        Frame::Notify { method, .. } => {
            view.kind = abi::KIND_NOTIFY;
            view.method = Bytes::lend(method.as_bytes());
        }
        Frame::Reply { id, failed, .. } => {
            view.kind = abi::KIND_REPLY;
            view.id = id.0;
            view.code = failed.as_ref().map_or(none, |code| Bytes::lend(code.as_str().as_bytes()));
        }
        Frame::Cancel { id } => {
            view.kind = abi::KIND_CANCEL;
            view.id = id.0;
        }
        Frame::Launch { .. } | Frame::Ignored => return None,
    }
    Some(view)
}

/// # Safety
/// Bytes of a plugin: a non-null pointer is valid for `len` bytes during the call.
unsafe fn borrow<'a>(bytes: Bytes) -> &'a [u8] {
    if bytes.ptr.is_null() || bytes.len == 0 {
        return &[];
    }
    // SAFETY: the contract of the table, passed on by the caller. A plugin that lies reads its own memory.
    unsafe { std::slice::from_raw_parts(bytes.ptr, bytes.len) }
}

unsafe extern "C" fn send(context: *mut c_void, frame: *const FrameView) -> i32 {
    // SAFETY: the context is the leaked Host.
    let Some(host) = (unsafe { context.cast::<Host>().as_ref() }) else { return abi::INVALID };
    // SAFETY: a frame that is not null begins with its size.
    if frame.is_null() || unsafe { (*frame).size } < abi::FRAME_VIEW_FIRST {
        return abi::INVALID;
    }
    // SAFETY: the size says that the fields read here are there; none behind the first ones is.
    let view = unsafe { Sent::read(frame) };
    // SAFETY: the contract of the table.
    let (method, code, body) = unsafe { (borrow(view.method), borrow(view.code), borrow(view.body)) };
    let (Ok(method), Ok(code)) = (std::str::from_utf8(method), std::str::from_utf8(code)) else {
        return abi::INVALID;
    };
    let id = CallId(view.id);
    let frame = match view.kind {
        abi::KIND_CALL => {
            let cause = Some(CallId(view.cause)).filter(|cause| cause.0 != 0);
            Frame::Call { id, cause, method, deadline_ms: view.deadline_ms, body }
        }
        abi::KIND_NOTIFY => Frame::Notify { method, body },
        abi::KIND_REPLY => Frame::Reply { id, failed: (!code.is_empty()).then(|| Code::parse(code)), body },
        abi::KIND_CANCEL => Frame::Cancel { id },
        _ => return abi::INVALID,
    };
    put(host, &frame, body)
}

/// Writes a frame, from any thread; waits while the way is full.
fn put(host: &Host, frame: &Frame<'_>, body: &[u8]) -> i32 {
    let mut writer = host.writer.lock().unwrap_or_else(PoisonError::into_inner);
    match writer.put(frame, body) {
        Ok(Ok(())) => abi::OK,
        Ok(Err(_)) => abi::CLOSED,
        Err(FrameError::TooLong { .. }) => abi::TOO_LONG,
        Err(_) => abi::INVALID,
    }
}

/// The fields that every library's frames have.
struct Sent {
    kind: u32,
    deadline_ms: u32,
    id: u64,
    cause: u64,
    method: Bytes,
    code: Bytes,
    body: Bytes,
}

impl Sent {
    /// # Safety
    /// `frame` points to at least [`abi::FRAME_VIEW_FIRST`] bytes of a frame.
    unsafe fn read(frame: *const FrameView) -> Self {
        // SAFETY: each field lies within the first bytes, which the caller promises.
        unsafe {
            Self {
                kind: (*frame).kind,
                deadline_ms: (*frame).deadline_ms,
                id: (*frame).id,
                cause: (*frame).cause,
                method: (*frame).method,
                code: (*frame).code,
                body: (*frame).body,
            }
        }
    }
}

unsafe extern "C" fn next_id(context: *mut c_void) -> u64 {
    // SAFETY: the context is the leaked Host.
    let Some(host) = (unsafe { context.cast::<Host>().as_ref() }) else { return 0 };
    CallId::new(host.generation, host.counter.fetch_add(1, Ordering::Relaxed)).0
}

unsafe extern "C" fn field(body: Bytes, path: Bytes, out: *mut Bytes) -> i32 {
    // SAFETY: the contract of the table; the result points into the body that the plugin passed.
    let (body, path, out) = unsafe { (borrow(body), borrow(path), out.as_mut()) };
    let (Ok(path), Some(out)) = (std::str::from_utf8(path), out) else { return abi::INVALID };
    match thenodes_ipc::pack::field(body, path) {
        Some(found) => {
            *out = Bytes::lend(found);
            abi::OK
        }
        None => abi::ABSENT,
    }
}
