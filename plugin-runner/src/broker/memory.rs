//! Reads the runner's memory through descriptors that the runner opened on itself before it became undumpable. The content is
//! the plugin's to write: it is used for records, and for a path only as a copy that we then open ourselves.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Longest text that is read: that of the longest path.
const MAX_TEXT: usize = 4096;
/// Most text about mappings that is looked at: as many as the kernel lets a process have (65,530), 256 bytes each. The plugin
/// makes the mappings, and it is the one that waits.
const MAX_MAPS: u64 = 16 * 1024 * 1024;
/// Longest time for it; a record without a place is better than a warden that does not look up.
const MAPS_PATIENCE: Duration = Duration::from_millis(200);
/// Bytes of one line.
const MAX_LINE: u64 = 8192;
const BUFFER: usize = 16 * 1024;
const PAGE: u64 = 4096;

/// The memory of one process.
pub(crate) struct Memory {
    bytes: File,
    maps: File,
}

impl Memory {
    /// From `/proc/self/mem` and `/proc/self/maps` of the runner.
    pub(crate) fn new(bytes: File, maps: File) -> Memory {
        Memory { bytes, maps }
    }

    /// Bytes at an address.
    pub(crate) fn bytes(&self, address: u64, count: usize) -> Option<Vec<u8>> {
        let mut found = vec![0; count];
        self.bytes.read_exact_at(&mut found, address).ok()?;
        Some(found)
    }

    /// The text at an address, up to its zero byte. `None` if there is no memory, or no end within the longest path.
    pub(crate) fn text(&self, address: u64) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        let mut at = address;
        while text.len() < MAX_TEXT {
            // Up to the end of the page: the next one may not be there, and need not be.
            let mut part = vec![0; (PAGE - at % PAGE) as usize];
            let got = self.bytes.read_at(&mut part, at).ok().filter(|got| *got > 0)?;
            if let Some(end) = part[..got].iter().position(|byte| *byte == 0) {
                text.extend_from_slice(&part[..end]);
                return (text.len() < MAX_TEXT).then_some(text);
            }
            text.extend_from_slice(&part[..got]);
            at = at.checked_add(got as u64)?;
        }
        None
    }

    /// Library and offset of an address: `libc.so.6+0xd1e2b`.
    pub(crate) fn locate(&self, address: u64) -> Option<String> {
        let mut maps = BufReader::with_capacity(BUFFER, &self.maps);
        maps.rewind().ok()?;
        search(maps.take(MAX_MAPS), address, Instant::now() + MAPS_PATIENCE)
    }
}

/// The line about this address, in as much as there is to read and until this moment.
fn search(mut maps: impl BufRead, address: u64, until: Instant) -> Option<String> {
    let mut line = String::new();
    loop {
        line.clear();
        if maps.by_ref().take(MAX_LINE).read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(found) = within(&line, address) {
            return Some(found);
        }
        if Instant::now() >= until {
            return None;
        }
    }
}

/// `start-end perms offset dev inode path`, as far as it is about this address.
fn within(line: &str, address: u64) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    if !(start..end).contains(&address) {
        return None;
    }
    let offset = number(words.nth(1)?)?;
    let name = words.nth(2).unwrap_or("anonymous memory");
    let name = name.strip_prefix("/memfd:").unwrap_or(name);
    let name = name.rsplit('/').next().unwrap_or(name);
    Some(format!("{name}+{:#x}", address - start + offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_its_library() {
        let line = "7f00-7f80 r-xp 00001000 00:01 42                         /memfd:echo (deleted)";
        assert_eq!(within(line, 0x7f10).as_deref(), Some("echo+0x1010"));
        assert_eq!(within(line, 0x7f80), None);
        assert_eq!(
            within("7f00-7f80 rw-p 00000000 00:00 0", 0x7f01).as_deref(),
            Some("anonymous memory+0x1")
        );
        assert_eq!(within("nonsense", 0), None);
    }

    #[test]
    fn text_is_read_to_its_end_and_not_from_nowhere() {
        let open = |name: &str| File::open(format!("/proc/self/{name}")).expect("our own memory");
        let memory = Memory::new(open("mem"), open("maps"));
        let text = c"/some/path";
        assert_eq!(memory.text(text.as_ptr() as u64).as_deref(), Some(&b"/some/path"[..]));
        assert_eq!(memory.text(8), None);
        assert_eq!(memory.text(u64::MAX - 3), None);
        let endless = vec![b'x'; 3 * MAX_TEXT];
        assert_eq!(memory.text(endless.as_ptr() as u64), None);
        assert!(memory.locate(within as *const () as u64).is_some_and(|at| at.contains("+0x")));
    }

    #[test]
    fn an_address_is_found_behind_as_many_mappings_as_there_can_be_and_the_search_ends() {
        let mut maps: String = (1..65_530u64)
            .map(|n| format!("{:x}-{:x} rw-p 00000000 00:00 0\n", n << 13, (n << 13) + 4096))
            .collect();
        maps.push_str("7f0000000000-7f0000001000 r-xp 00001000 00:01 42 /memfd:echo (deleted)\n");
        assert!(maps.len() < MAX_MAPS as usize);
        let later = Instant::now() + Duration::from_secs(60);
        let found = search(maps.as_bytes(), 0x7f00_0000_0010, later);
        assert_eq!(found.as_deref(), Some("echo+0x1010"));
        let endless = |byte| BufReader::new(std::io::repeat(byte));
        assert_eq!(search(endless(b'x').take(MAX_MAPS), 1, later), None, "so many bytes");
        assert_eq!(search(endless(b'\n'), 1, Instant::now() + MAPS_PATIENCE), None, "so long");
    }
}
