//! A plugin file becomes an image: read once, checked, and sealed in memory. What was checked is what will be loaded; the
//! path is never opened again. The file comes from an author the node does not trust, so nothing here runs or maps it.

use crate::text::hex;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Object, ObjectSymbol};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use thenodes_ipc::{abi, limits, PluginName};

/// Where shared libraries of the system are looked for, in this order. The loader's configuration is not read: a plugin
/// gets what a plain program would find.
const LIBRARY_DIRS: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// Why a file is no plugin. Each says what was looked at and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file name gives no plugin name.
    #[error("{0}: the file name makes no plugin name; use lib<name>.so with a-z, 0-9, '.', '_', '-'")]
    Name(PathBuf),
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no regular file, or too large.
    #[error("{path}: {what}")]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// It is not ELF.
    #[error("{0}: not an ELF file; build the plugin with crate-type = [\"cdylib\"]")]
    NotElf(PathBuf),
    /// It is ELF for something else.
    #[error(
        "{path}: an ELF file for {found}, this node runs on {here}; rebuild the plugin for this machine"
    )]
    OtherMachine {
        /// The file.
        path: PathBuf,
        /// What it was built for.
        found: String,
        /// What this is.
        here: &'static str,
    },
    /// It is ELF, but no shared library, or damaged.
    #[error("{path}: {what}")]
    BadElf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The entry symbol is missing.
    #[error("{0}: exports no symbol register_plugin; is it a plugin? See docs/authoring.md")]
    NoEntry(PathBuf),
    /// A shared library it needs is not there.
    #[error(
        "{path}: needs the shared library {soname}, which is in none of the system's library directories"
    )]
    MissingLibrary {
        /// The file.
        path: PathBuf,
        /// What is missing.
        soname: String,
    },
}

/// A file in memory that nobody can change any more.
#[derive(Debug)]
pub struct Sealed {
    /// The memory file.
    pub fd: OwnedFd,
    /// Its size in bytes.
    pub size: u64,
}

/// How often sealing is tried.
const SEALING_TRIES: usize = 5;

impl Sealed {
    /// A copy of these bytes that nobody can change any more. The name is for people: it stands in lists of mappings, and so in
    /// records of what was refused.
    pub fn new(name: &str, bytes: &[u8]) -> io::Result<Sealed> {
        let name = name.get(..200).unwrap_or(name); // the kernel takes 249 bytes
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        // The kernel wants every page for itself, waits some 150 ms for that and then says EBUSY. Nobody else has this file, so
        // it is the kernel's own housekeeping that holds one, and lets go.
        let mut sealed = fcntl(&file, FcntlArg::F_ADD_SEALS(seals));
        for _ in 1..SEALING_TRIES {
            if sealed != Err(Errno::EBUSY) {
                break;
            }
            sealed = fcntl(&file, FcntlArg::F_ADD_SEALS(seals));
        }
        sealed?;
        Ok(Sealed { size: bytes.len() as u64, fd: file.into() })
    }
}

/// A checked plugin, ready to be sent to a runner.
#[derive(Debug)]
pub struct Image {
    /// Name, from the file name.
    pub name: PluginName,
    /// Where it came from, for people.
    pub path: PathBuf,
    /// SHA-256 of the library, lower-case hex.
    pub sha256: String,
    /// The library.
    pub library: Sealed,
    /// What it needs beside the libraries of the runner itself, dependencies first.
    pub needed: Vec<(String, Sealed)>,
}

impl Image {
    /// Reads and checks a plugin file, whose name makes the plugin's. `provided`: libraries that every runner has mapped already.
    pub fn read(path: &Path, provided: &BTreeSet<String>) -> Result<Image, ImageError> {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = PluginName::from_file_stem(stem).map_err(|_| ImageError::Name(path.into()))?;
        Image::read_as(name, path, provided)
    }

    /// Reads and checks the file of a plugin that has its name already.
    pub fn read_as(name: PluginName, path: &Path, provided: &BTreeSet<String>) -> Result<Image, ImageError> {
        let bytes = read_whole(path)?;
        let direct = check(path, &bytes, true)?;
        let mut needed = Vec::new();
        let mut seen = provided.clone();
        for soname in direct {
            gather(path, &soname, &mut seen, &mut needed)?;
        }
        let sealed = |name: &str, bytes: &[u8]| {
            Sealed::new(name, bytes).map_err(|source| ImageError::Read { path: path.into(), source })
        };
        let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or(name.as_str());
        Ok(Image {
            sha256: hex(&Sha256::digest(&bytes)),
            library: sealed(file_name, &bytes)?,
            needed: needed
                .into_iter()
                .map(|(soname, bytes)| {
                    let file = sealed(&soname, &bytes)?;
                    Ok((soname, file))
                })
                .collect::<Result<_, ImageError>>()?,
            path: path.into(),
            name,
        })
    }
}

/// Libraries that a program maps when it starts: what its own runner need not be sent.
pub fn libraries_of_program(path: &Path) -> Result<BTreeSet<String>, ImageError> {
    let direct = check(path, &read_whole(path)?, false)?;
    let mut seen = BTreeSet::new();
    for soname in direct {
        gather(path, &soname, &mut seen, &mut Vec::new())?;
    }
    Ok(seen)
}

fn read_whole(path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read { path: path.into(), source };
    // Without blocking: a FIFO in the directory must not hold the node up.
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).map_err(|e| failed(e.into()))?;
    let mut file = File::from(fd);
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(ImageError::NotAFile { path: path.into(), what: "not a regular file".into() });
    }
    if about.len() > limits::MAX_LIBRARY {
        let what = format!("{} bytes; a plugin has at most {}", about.len(), limits::MAX_LIBRARY);
        return Err(ImageError::NotAFile { path: path.into(), what });
    }
    let mut bytes = Vec::with_capacity(about.len() as usize);
    // Bounded even if the file grows while it is read.
    Read::by_ref(&mut file).take(limits::MAX_LIBRARY).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Checks an ELF file for this machine and returns the names of the libraries it needs directly.
fn check(path: &Path, bytes: &[u8], plugin: bool) -> Result<Vec<String>, ImageError> {
    let bad = |what: String| ImageError::BadElf { path: path.into(), what };
    if bytes.get(..4) != Some(&elf::ELFMAG) {
        return Err(ImageError::NotElf(path.into()));
    }
    let (machine, here) = if cfg!(target_arch = "x86_64") {
        (elf::EM_X86_64, "x86-64, 64 bit")
    } else {
        (elf::EM_AARCH64, "AArch64, 64 bit")
    };
    let found_machine = bytes.get(18..20).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    if bytes.get(4..6) != Some(&[elf::ELFCLASS64, elf::ELFDATA2LSB]) || found_machine != machine {
        let bits = if bytes.get(4) == Some(&elf::ELFCLASS64) { 64 } else { 32 };
        let found = match found_machine {
            elf::EM_386 => format!("x86, {bits} bit"),
            elf::EM_X86_64 => format!("x86-64, {bits} bit"),
            elf::EM_AARCH64 => format!("AArch64, {bits} bit"),
            elf::EM_ARM => format!("ARM, {bits} bit"),
            elf::EM_RISCV => format!("RISC-V, {bits} bit"),
            other => format!("machine number {other}, {bits} bit"),
        };
        return Err(ImageError::OtherMachine { path: path.into(), found, here });
    }
    let file =
        ElfFile64::<object::Endianness>::parse(bytes).map_err(|e| bad(format!("damaged ELF file: {e}")))?;
    let endian = file.endian();
    if plugin && file.elf_header().e_type(endian) != elf::ET_DYN {
        return Err(
            bad("an ELF file, but no shared library; build it with crate-type = [\"cdylib\"]".into()),
        );
    }
    if plugin {
        let entry = |name: Result<&str, _>| matches!(name, Ok(abi::ENTRY_SYMBOL));
        if !file.dynamic_symbols().any(|symbol| symbol.is_definition() && entry(symbol.name())) {
            return Err(ImageError::NoEntry(path.into()));
        }
    }
    let sections = file.elf_section_table();
    let dynamic =
        sections.dynamic(endian, bytes).map_err(|e| bad(format!("damaged dynamic section: {e}")))?;
    let Some((entries, link)) = dynamic else { return Ok(Vec::new()) };
    let strings =
        sections.strings(endian, bytes, link).map_err(|e| bad(format!("damaged string table: {e}")))?;
    let mut needed = Vec::new();
    for entry in entries {
        let tag = entry.d_tag(endian);
        if tag == elf::DT_NEEDED {
            let name =
                entry.string(endian, strings).map_err(|e| bad(format!("damaged DT_NEEDED entry: {e}")))?;
            let name = String::from_utf8_lossy(name).into_owned();
            if name.is_empty() || name.contains('/') || name.len() > 255 || name == ".." || name == "." {
                return Err(bad(format!(
                    "needs a library by the path {name:?}; only plain names are resolved"
                )));
            }
            needed.push(name);
        }
    }
    Ok(needed)
}

/// Adds a library and what it needs itself, dependencies first.
fn gather(
    path: &Path,
    soname: &str,
    seen: &mut BTreeSet<String>,
    out: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), ImageError> {
    // The loader itself is mapped in every process.
    if soname.starts_with("ld-linux") || !seen.insert(soname.to_owned()) {
        return Ok(());
    }
    if seen.len() > limits::MAX_NEEDED_LIBRARIES * 4 || out.len() >= limits::MAX_NEEDED_LIBRARIES {
        let what = format!("needs more than {} shared libraries", limits::MAX_NEEDED_LIBRARIES);
        return Err(ImageError::BadElf { path: path.into(), what });
    }
    for dir in LIBRARY_DIRS {
        let candidate = Path::new(dir).join(soname);
        let Ok(bytes) = read_whole(&candidate) else { continue };
        let Ok(direct) = check(&candidate, &bytes, false) else { continue };
        for next in direct {
            gather(path, &next, seen, out)?;
        }
        out.push((soname.to_owned(), bytes));
        return Ok(());
    }
    Err(ImageError::MissingLibrary { path: path.into(), soname: soname.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Image, ImageError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        Image::read(&path, &BTreeSet::new())
    }

    #[test]
    fn what_is_no_plugin_is_refused_with_its_own_reason() {
        let me = std::fs::read("/proc/self/exe").expect("this test");
        let mut other_machine = me.clone();
        other_machine[18..20].copy_from_slice(&elf::EM_RISCV.to_le_bytes());
        assert!(matches!(read("libx.so", b"#!/bin/sh"), Err(ImageError::NotElf(_))));
        assert!(matches!(read("libx.so", b""), Err(ImageError::NotElf(_))));
        assert!(matches!(
            read("libx.so", &me[..64]),
            Err(ImageError::BadElf { .. } | ImageError::NoEntry(_))
        ));
        let Err(error @ ImageError::OtherMachine { .. }) = read("libx.so", &other_machine) else { panic!() };
        assert!(error.to_string().contains("RISC-V"), "{error}");
        assert!(matches!(read("libx.so", &me), Err(ImageError::NoEntry(_))));
        assert!(matches!(read("lib..X y.so", &me), Err(ImageError::Name(_))));
    }

    #[test]
    fn a_fifo_or_a_directory_does_not_hold_the_node_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("libfifo.so");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        assert!(matches!(Image::read(&path, &BTreeSet::new()), Err(ImageError::NotAFile { .. })));
        let path = dir.path().join("libdir.so");
        std::fs::create_dir(&path).expect("a directory");
        assert!(matches!(Image::read(&path, &BTreeSet::new()), Err(ImageError::NotAFile { .. })));
    }

    #[test]
    fn a_sealed_image_cannot_be_changed() {
        let sealed = Sealed::new("x", b"bytes").expect("sealed");
        let mut file = File::from(sealed.fd);
        assert!(file.write_all(b"other").is_err());
        assert!(file.set_len(0).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_after_an_elf_header_panic_the_reader(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let mut bytes = std::fs::read("/proc/self/exe").expect("this test")[..64].to_vec();
            bytes.extend(tail);
            let _ = check(Path::new("x"), &bytes, true);
        }
    }
}
