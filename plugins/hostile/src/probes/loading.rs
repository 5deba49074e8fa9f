//! A second stage: code that came after the first was verified. A library made of a few bytes is enough to show it.

use super::call::{c, fresh, no, owned, At};
use super::Probe;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

const GROUP: &str = "loading";

pub(super) const PROBES: &[Probe] = &[
    // Part of every glibc, and since 2.34 nothing needs it any more: whoever gets it got it from the host.
    probe!("load-host-library", "loading a library of the host", None, |_| load("libutil.so.1")),
    probe!("load-written", "loading a library that it wrote itself", CanaryDir, |arg| written(arg, false)),
    probe!("load-execstack", "loading a library that wants an executable stack", CanaryDir, |arg| {
        written(arg, true)
    }),
    probe!("load-memfd", "loading a library that lies in memory", None, |_| {
        let memory = owned(sys!(SYS_memfd_create, c"x".as_ptr(), 0)).at("memfd_create")?;
        let bytes = library(false);
        sys!(SYS_write, memory.as_raw_fd(), bytes.as_ptr(), bytes.len())?;
        load(&format!("/proc/self/fd/{}", memory.as_raw_fd()))
    }),
    probe!("map-host-code", "mapping a host library's code", None, |_| {
        let candidates = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/lib"];
        let file = candidates
            .iter()
            .find_map(|dir| super::call::open(&format!("{dir}/libutil.so.1"), libc::O_RDONLY).ok());
        let Some(file) = file else { return no("no such library can be opened") };
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        super::call::page(protection, libc::MAP_PRIVATE, file.as_raw_fd()).map(drop)
    }),
];

fn load(path: &str) -> io::Result<()> {
    let path = c(path);
    // SAFETY: libraries without code of their own at load, or the system's.
    let (handle, error) = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        (handle, libc::dlerror())
    };
    if handle.is_null() {
        if error.is_null() {
            return no("dlopen");
        }
        // SAFETY: a string of the loader's, valid until its next call.
        return no(unsafe { CStr::from_ptr(error) }.to_string_lossy());
    }
    Ok(())
}

fn written(arg: &str, execstack: bool) -> io::Result<()> {
    let name = fresh(arg, if execstack { "stack.so" } else { "second.so" });
    std::fs::write(&name, library(execstack))?;
    let loaded = load(&name);
    std::fs::remove_file(name)?;
    loaded
}

/// The smallest shared library that glibc loads: a header, three segments, and a dynamic section with empty tables.
fn library(execstack: bool) -> Vec<u8> {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    const DYNAMIC: u64 = HEADER + 3 * SEGMENT;
    const ENTRIES: u64 = 6;
    const TABLES: u64 = DYNAMIC + ENTRIES * 16;
    const END: u64 = TABLES + 64;
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let mut bytes = Vec::new();
    let half = |bytes: &mut Vec<u8>, value: u16| bytes.extend(value.to_le_bytes());
    bytes.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut bytes, 3); // a shared object
    half(&mut bytes, machine);
    bytes.extend(1u32.to_le_bytes());
    for word in [0, HEADER, 0] {
        bytes.extend(u64::to_le_bytes(word)); // entry, segments, sections
    }
    bytes.extend(0u32.to_le_bytes());
    for value in [HEADER as u16, SEGMENT as u16, 3, 64, 0, 0] {
        half(&mut bytes, value);
    }
    let mut segment = |kind: u32, flags: u32, at: u64, size: u64, align: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        for word in [at, at, at, size, size, align] {
            bytes.extend(word.to_le_bytes());
        }
    };
    let (read, write, execute) = (4, 2, 1);
    segment(1, read | write, 0, END, 65536); // all of it, writable because the loader relocates the dynamic section
    segment(2, read | write, DYNAMIC, ENTRIES * 16, 8);
    segment(0x6474_e551, read | write | if execstack { execute } else { 0 }, 0, 0, 16);
    // String table, its size, symbol table, a symbol's size, hash table, end.
    for (tag, value) in [(5u64, TABLES), (10, 1), (6, TABLES + 8), (11, 24), (4, TABLES + 32), (0, 0)] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.resize(TABLES as usize + 32, 0);
    // One bucket, one chain entry, both empty.
    for word in [1u32, 1, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(END as usize, 0);
    bytes
}
