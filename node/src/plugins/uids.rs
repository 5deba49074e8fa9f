//! Which plugin has which uid under a root node. A number is a plugin's for good: files that one plugin made must not become
//! another's because somebody added a third. Kept in the node's state directory, one line per plugin: `NAME NUMBER`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thenodes_ipc::PluginName;

/// Largest file that is read, bytes: some thousand plugins.
const MAX_FILE: u64 = 256 * 1024;

/// Numbers end here.
const MOST: u32 = 1 << 24;

/// The numbers given out so far.
#[derive(Debug, Default)]
pub struct Uids {
    path: Option<PathBuf>,
    numbers: BTreeMap<PluginName, u32>,
}

impl Uids {
    /// Reads the file, if there is one. A file that cannot be understood is an error: numbers must not be given out twice.
    pub fn open(path: &Path) -> io::Result<Uids> {
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
        Ok(Uids { path: Some(path.into()), numbers })
    }

    /// Numbers for this run only: of a node that is not root, whose plugins all have its own uid.
    pub fn for_this_run() -> Uids {
        Uids::default()
    }

    /// The number of a plugin: the one it always had, or the next that nobody ever had.
    ///
    /// # Errors
    /// If a new number cannot be written down; it must not be used then.
    pub fn of(&mut self, plugin: &PluginName) -> io::Result<u32> {
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

    #[test]
    fn a_number_is_a_plugins_for_good_whoever_comes_and_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/plugin-uids");
        let mut first = Uids::open(&path).expect("none yet");
        assert_eq!((first.of(&name("mk")).ok(), first.of(&name("zz")).ok()), (Some(0), Some(1)));
        let mut later = Uids::open(&path).expect("read");
        assert_eq!((later.of(&name("aaa")).ok(), later.of(&name("mk")).ok()), (Some(2), Some(0)));
        assert_eq!(Uids::open(&path).expect("read").numbers.len(), 3);
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
        let mut uids = Uids { path: Some(dir.path().join("state/plugin-uids")), numbers: BTreeMap::new() };
        assert!(uids.of(&name("a")).is_err() && uids.numbers.is_empty());
    }
}
