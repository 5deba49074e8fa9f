//! The smallest file system that somebody serves: one empty directory over `/dev/fuse`. A grant on such a thing must be refused, and
//! only a real one shows that it is. Needs root. It answers what a look at the directory asks and nothing else.

use nix::mount::{mount, umount2, MntFlags, MsFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// Size of a request's header, and of the largest request that the kernel may send to a server with small writes.
const HEADER: usize = 40;
const MAX_REQUEST: usize = 128 * 1024;
/// What is answered: attributes of the directory, figures of the file system, the first handshake.
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;

/// Mounted until dropped.
pub struct Served {
    at: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Served {
    /// Mounts one on this directory, for everybody to see.
    ///
    /// # Errors
    /// Where there is no `/dev/fuse`, or this user may not mount.
    pub fn on(at: &Path) -> io::Result<Served> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(
            Some("served"),
            at,
            Some("fuse"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(options.as_str()),
        )?;
        let server = std::thread::spawn(move || serve(device));
        Ok(Served { at: at.into(), server: Some(server) })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // With force: what still waits for an answer gets an error, and the server's reading ends.
        let _ = umount2(&self.at, MntFlags::MNT_FORCE);
        if umount2(&self.at, MntFlags::MNT_DETACH).is_err() {
            if let Some(server) = self.server.take() {
                let _ = server.join();
            }
        }
    }
}

fn serve(mut device: File) {
    let mut request = vec![0; MAX_REQUEST];
    // An error is the end: the file system was unmounted.
    while let Ok(size) = device.read(&mut request) {
        let word =
            |at: usize| request[..size].get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        let (Some(opcode), Some(id)) = (word(4), request[..size].get(8..16)) else { return };
        if size < HEADER {
            return;
        }
        let (error, body) = match opcode {
            INIT => (0, numbers(&[7, 31, 4096, 0, 0, 4096, 1], 64)),
            // 16 bytes before the attributes, and the mode at byte 60 of these.
            GETATTR => (0, [numbers(&[], 76), numbers(&[0o40_777, 2], 28)].concat()),
            STATFS => (0, numbers(&[], 80)),
            OPENDIR => (0, numbers(&[], 16)),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut answer = (16 + body.len() as u32).to_ne_bytes().to_vec();
        answer.extend_from_slice(&error.to_ne_bytes());
        answer.extend_from_slice(id);
        answer.extend_from_slice(&body);
        // Requests that want no answer, and those that were given up, take none.
        let _ = device.write(&answer);
    }
}

/// These numbers, and zeros up to a size.
fn numbers(words: &[u32], size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(size, 0);
    bytes
}
