//! Which plugin has which uid under a root node. A number is a plugin's for good: files that one plugin made must not become
//! another's because somebody added a third. Kept in the node's state directory, one line per plugin: `NAME NUMBER`.
//!
//! A uid belongs to one node of this machine at a time: processes of one uid may look into each other. Root nodes claim each by
//! a lock on a file in a directory that only root can write to; the kernel drops the lock with the node, however it ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thenodes_ipc::PluginName;

/// Largest file that is read, bytes: some thousand plugins.
const MAX_FILE: u64 = 256 * 1024;

/// Numbers end here.
const MOST: u32 = 1 << 24;

/// Where root nodes claim uids. Nodes that do not see each other's `/run`, as in containers, do not see each other's claims.
pub const CLAIMS: &str = "/run/thenodes-uids";

/// The numbers given out so far.
#[derive(Debug, Default)]
pub struct Uids {
    path: Option<PathBuf>,
    numbers: BTreeMap<PluginName, u32>,
    claims: Option<Claims>,
}

/// The uids of a node's plugins, nobody else's as long as this lives.
#[derive(Debug)]
pub struct Claims {
    dir: PathBuf,
    base: u32,
    held: BTreeMap<u32, fs::File>,
}

impl Claims {
    /// Claims in this directory, for numbers from this uid on.
    pub fn new(dir: &Path, base: u32) -> Claims {
        Claims { dir: dir.into(), base, held: BTreeMap::new() }
    }

    fn claim(&mut self, number: u32) -> io::Result<()> {
        let uid = self.base.saturating_add(number);
        if self.held.contains_key(&uid) {
            return Ok(());
        }
        let (path, dir) = (self.dir.join(uid.to_string()), &self.dir);
        let about = |what: &str, e: io::Error| {
            let to_do = "two root nodes must not share uids, so this must work";
            io::Error::new(e.kind(), format!("claiming uid {uid}: {what}: {e}; {to_do}"))
        };
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(about(&format!("making {}", dir.display()), error));
            }
            _ => {}
        }
        // Whoever can write there could hold every uid, or take a lock's file away.
        let found = fs::symlink_metadata(dir).map_err(|e| about(&dir.display().to_string(), e))?;
        let own = nix::unistd::geteuid().as_raw();
        if !found.is_dir() || found.uid() != own || found.mode() & 0o022 != 0 {
            let what =
                format!("{}: not a directory that only uid {own} can write to; remove it", dir.display());
            return Err(io::Error::other(what));
        }
        let mut options = fs::OpenOptions::new();
        let flags = nix::fcntl::OFlag::O_NOFOLLOW.bits();
        let file =
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&path);
        let file = file.map_err(|e| about(&path.display().to_string(), e))?;
        match file.try_lock() {
            Ok(()) => drop(self.held.insert(uid, file)),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other(format!(
                    "uid {uid} is that of a plugin of another node on this machine; give each root node a range of its own: \
                     [plugins.sandbox] uid_base (now {})",
                    self.base
                )));
            }
            Err(fs::TryLockError::Error(error)) => return Err(about(&path.display().to_string(), error)),
        }
        Ok(())
    }
}

impl Uids {
    /// Reads the file, if there is one. A file that cannot be understood is an error: numbers must not be given out twice.
    pub fn open(path: &Path, claims: Claims) -> io::Result<Uids> {
        let mut text = String::new();
        match fs::File::open(path) {
            Ok(file) => {
                file.take(MAX_FILE + 1).read_to_string(&mut text)?;
                if text.len() as u64 > MAX_FILE {
                    let what = format!("{}: more than {MAX_FILE} bytes", path.display());
                    return Err(io::Error::other(what));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let numbers = parse(&text).map_err(|line| {
            io::Error::other(format!(
                "{}: line {line:?} is no plugin and number; mend it, the files of plugins depend on it",
                path.display()
            ))
        })?;
        Ok(Uids { path: Some(path.into()), numbers, claims: Some(claims) })
    }

    /// Numbers for this run only: of a node that is not root, whose plugins all have its own uid.
    pub fn for_this_run() -> Uids {
        Uids::default()
    }

    /// The number of a plugin: the one it always had, or the next that nobody ever had.
    ///
    /// # Errors
    /// If a new number cannot be written down, or the uid is another node's; it must not be used then.
    pub fn of(&mut self, plugin: &PluginName) -> io::Result<u32> {
        let number = self.number(plugin)?;
        if let Some(claims) = &mut self.claims {
            claims.claim(number)?;
        }
        Ok(number)
    }

    /// What keeps the uids this node's: to be kept as long as its plugins.
    pub fn take_claims(&mut self) -> Option<Claims> {
        self.claims.take()
    }

    fn number(&mut self, plugin: &PluginName) -> io::Result<u32> {
        if let Some(number) = self.numbers.get(plugin) {
            return Ok(*number);
        }
        let number = self.numbers.values().max().map_or(0, |most| most + 1);
        if number >= MOST || self.numbers.len() as u64 * 80 >= MAX_FILE {
            return Err(io::Error::other("no number is left for another plugin"));
        }
        self.numbers.insert(plugin.clone(), number);
        match self.save() {
            Ok(()) => Ok(number),
            Err(error) => {
                self.numbers.remove(plugin);
                Err(error)
            }
        }
    }

    /// Writes the whole file beside the old one and puts it in its place.
    fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let beside = path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        for (plugin, number) in &self.numbers {
            writeln!(file, "{plugin} {number}")?;
        }
        file.sync_all()?;
        fs::rename(beside, path)
    }
}

fn parse(text: &str) -> Result<BTreeMap<PluginName, u32>, String> {
    let mut numbers = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let entry = line.split_once(' ').and_then(|(name, number)| {
            let number = number.parse::<u32>().ok().filter(|number| *number < MOST)?;
            Some((PluginName::new(name).ok()?, number))
        });
        let Some((plugin, number)) = entry else { return Err(line.chars().take(100).collect()) };
        if numbers.values().any(|taken| *taken == number) || numbers.insert(plugin, number).is_some() {
            return Err(line.to_owned());
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PluginName {
        PluginName::new(text).expect("a name")
    }

    fn claims(dir: &Path) -> Claims {
        Claims::new(&dir.join("claims"), 5000)
    }

    #[test]
    fn two_nodes_never_have_one_uid_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let node = |state: &str, base: u32| {
            let claims = Claims::new(&dir.path().join("claims"), base);
            Uids::open(&dir.path().join(state).join("plugin-uids"), claims).expect("none yet")
        };
        let mut one = node("one", 5000);
        assert_eq!((one.of(&name("a")).ok(), one.of(&name("b")).ok()), (Some(0), Some(1)));
        assert_eq!(one.of(&name("a")).ok(), Some(0), "its own claim is no obstacle");
        // The ranges need not begin at the same uid: the second's first is the first's second.
        for base in [5000, 5001] {
            let error = node(&base.to_string(), base).of(&name("c")).expect_err("taken").to_string();
            assert!(error.contains(&format!("[plugins.sandbox] uid_base (now {base})")), "{error}");
        }
        assert_eq!(node("two", 5002).of(&name("c")).ok(), Some(0), "a range of its own");
        let kept = one.take_claims();
        drop(one);
        assert!(node("three", 5000).of(&name("c")).is_err(), "claims outlive the book");
        drop(kept);
        assert_eq!(node("three", 5000).of(&name("c")).ok(), Some(0), "and end with the node");
    }

    #[test]
    fn a_place_that_others_can_write_to_or_that_cannot_be_made_is_no_place_for_claims() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = dir.path().join("open");
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("set");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).expect("linked");
        for place in [open, link, dir.path().join("no/such")] {
            let mut uids =
                Uids::open(&dir.path().join("plugin-uids"), Claims::new(&place, 1)).expect("none yet");
            assert!(uids.of(&name("a")).is_err(), "{}", place.display());
        }
    }

    #[test]
    fn a_number_is_a_plugins_for_good_whoever_comes_and_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/plugin-uids");
        let mut first = Uids::open(&path, claims(dir.path())).expect("none yet");
        assert_eq!((first.of(&name("mk")).ok(), first.of(&name("zz")).ok()), (Some(0), Some(1)));
        drop(first);
        let mut later = Uids::open(&path, claims(dir.path())).expect("read");
        assert_eq!((later.of(&name("aaa")).ok(), later.of(&name("mk")).ok()), (Some(2), Some(0)));
        assert_eq!(Uids::open(&path, claims(dir.path())).expect("read").numbers.len(), 3);
    }

    #[test]
    fn a_file_that_gives_one_number_twice_is_refused() {
        for wrong in ["a 1\nb 1", "a 1\na 2", "a", "A 1", "a -1", "a 99999999"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse("a 1\n\nb 7\n").map(|numbers| numbers.len()), Ok(2));
    }

    #[test]
    fn a_number_that_cannot_be_written_down_is_not_given_out() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("state"), "a file where a directory must be").expect("written");
        let mut uids = Uids { path: Some(dir.path().join("state/plugin-uids")), ..Uids::default() };
        assert!(uids.of(&name("a")).is_err() && uids.numbers.is_empty());
    }
}
