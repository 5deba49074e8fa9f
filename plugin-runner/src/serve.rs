//! Serves the plugin to the node: frames from the socket to the table, frames from the table to the socket. Nothing is
//! decoded here but headers; bodies pass as they are.
#![allow(unsafe_code)]

use crate::library::Plugin;
use crate::link::Link;
use crate::sys;
use std::ffi::c_void;
use std::io::{self, IoSlice, Write};
use std::mem::size_of;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use thenodes_ipc::abi::{self, Bytes, FrameView, HostTable};
use thenodes_ipc::{CallId, Code, Frame, FrameError, Generation};

/// The plugin refused its own way to the node, or the node sent something that is no frame.
const EXIT_LINK: u8 = 71;

/// What the table's functions find behind their context.
struct Host {
    writer: Mutex<UnixStream>,
    cap: usize,
    generation: Generation,
    counter: AtomicU64,
}

/// Carries frames until the node closes the link.
pub(crate) fn until_the_end(link: &mut Link, plugin: Plugin, generation: Generation) -> u8 {
    let Ok(writer) = link.writer() else { return EXIT_LINK };
    // Lives as long as the process: threads of the plugin may use it at any time.
    let host: &'static Host = Box::leak(Box::new(Host {
        writer: Mutex::new(writer),
        cap: link.cap(),
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
    }));
    if let Err(error) = plugin.start(table) {
        eprintln!("{error}");
        return EXIT_LINK;
    }
    loop {
        let drained = link.drain(|frame| {
            if let Some(view) = view(&frame) {
                let status = plugin.receive(&view);
                if status != abi::OK {
                    eprintln!("the plugin refused a frame (status {status})");
                }
            }
        });
        match drained.map_err(io::Error::other).and_then(|()| link.fill()) {
            Ok(true) => {}
            // The node closed the link: the end. No destructors: they would be the plugin's.
            Ok(false) => sys::exit_now(0),
            Err(error) => {
                eprintln!("the link failed: {error}");
                sys::exit_now(i32::from(EXIT_LINK));
            }
        }
    }
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
    // SAFETY: the context is the leaked Host; the frame is the plugin's and lives for the call.
    let (Some(host), Some(view)) = (unsafe { (context.cast::<Host>().as_ref(), frame.as_ref()) }) else {
        return abi::INVALID;
    };
    if view.size < size_of::<FrameView>() {
        return abi::INVALID;
    }
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
    let mut head = Vec::with_capacity(128);
    match frame.encode_head(&mut head, host.cap) {
        Ok(()) => {}
        Err(FrameError::TooLong { .. }) => return abi::TOO_LONG,
        Err(_) => return abi::INVALID,
    }
    let writer = host.writer.lock().unwrap_or_else(PoisonError::into_inner);
    match write_both(&writer, &head, body) {
        Ok(()) => abi::OK,
        Err(_) => abi::CLOSED,
    }
}

/// Writes header and body, in one system call if the socket takes them.
fn write_both(mut writer: &UnixStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut written = 0;
    let total = head.len() + body.len();
    while written < total {
        let head_left = head.get(written..).unwrap_or(&[]);
        let body_left = &body[written.saturating_sub(head.len())..];
        match writer.write_vectored(&[IoSlice::new(head_left), IoSlice::new(body_left)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
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
