//! One version of a plugin: the checked library, the terms on which it runs, and the node as it sees it. An upgrade replaces the
//! whole of it. What a version asks for is its author's word; that it asks for more than the one before is the operator's to accept.

use super::image::Image;
use super::supervisor::HostMaker;
use super::terms::Terms;
use crate::text::printable;
use std::sync::Arc;

/// A version, ready to be started.
pub struct Version {
    /// The checked file.
    pub image: Arc<Image>,
    /// What it is given and held to.
    pub terms: Arc<Terms>,
    /// The text of its manifest.
    pub manifest: Option<Arc<str>>,
    /// Makes the node for each of its processes.
    pub host: HostMaker,
}

impl Version {
    /// For people: the author's number, if there is a manifest, and the beginning of the content's hash, which does not lie.
    pub fn label(&self) -> String {
        label(
            self.terms.manifest.as_ref().map(|manifest| manifest.version.to_string()).as_deref(),
            &self.image.sha256,
        )
    }
}

/// The author's number and the beginning of the hash.
pub fn label(version: Option<&str>, sha256: &str) -> String {
    let short = sha256.get(..12).unwrap_or(sha256);
    match version {
        Some(version) => format!("{} ({short})", printable(version, 64)),
        None => format!("({short})"),
    }
}

/// What new terms give that old ones do not, a line each. Nothing at all: an upgrade takes no more than there was.
pub fn growth(old: &Terms, new: &Terms) -> Vec<String> {
    let mut more = new.grants.beyond(&old.grants);
    for path in &new.sandbox.paths {
        let had = old.sandbox.paths.iter().any(|had| {
            had.path == path.path
                && had.read >= path.read
                && had.write >= path.write
                && had.create >= path.create
        });
        // A path that a permission line names already is not told twice.
        if !had && !more.iter().any(|line| line.contains(&path.path)) {
            more.push(format!("+ path {}", path.path));
        }
    }
    if new.sandbox.seccomp.width() > old.sandbox.seccomp.width() {
        let (new, old) = (new.sandbox.seccomp.word(), old.sandbox.seccomp.word());
        more.push(format!("+ system calls: {new} instead of {old}"));
    }
    let new_calls: Vec<&str> = new
        .sandbox
        .calls
        .iter()
        .filter(|call| !old.sandbox.calls.contains(call))
        .map(String::as_str)
        .collect();
    if !new_calls.is_empty() {
        more.push(format!("+ system calls: {}", new_calls.join(" ")));
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Raw;
    use crate::plugins::manifest::Manifest;
    use std::path::Path;
    use thenodes_ipc::PluginName;

    fn terms(permissions: &str) -> Terms {
        let text = format!("schema = 1\nname = \"x\"\nversion = \"1.0.0\"\n{permissions}");
        let manifest = Manifest::parse(Path::new("plugin.toml"), &text).expect("a manifest");
        let config = "[plugins.for.x]\nallow = [\"fs.read:/srv\", \"net.connect:a.example:443\"]\n";
        let config = Raw::parse(Path::new("c.toml"), config).and_then(Raw::validate).expect("valid");
        let name = PluginName::new("x").expect("a name");
        let plugins = config.plugins;
        Terms::agree(name, Some(manifest), &plugins.giving, plugins.limits, plugins.budget)
    }

    #[test]
    fn only_what_is_new_and_given_needs_a_word_of_the_operator() {
        let few = "[[permission]]\nname = \"random\"\n";
        let files =
            "[[permission]]\nname = \"random\"\n[[permission]]\nname = \"fs.read\"\nscope = [\"/srv/a\"]\n";
        let less = "[[permission]]\nname = \"fs.read\"\nscope = [\"/srv/a/b\"]\n";
        assert_eq!(growth(&terms(few), &terms(few)), Vec::<String>::new());
        assert_eq!(growth(&terms(files), &terms(few)), Vec::<String>::new(), "giving up is no growth");
        assert_eq!(growth(&terms(few), &terms(files)), ["+ fs.read: /srv/a"]);
        let wider = "[[permission]]\nname = \"fs.read\"\nscope = [\"/srv/a/b\", \"/srv\"]\n";
        assert_eq!(growth(&terms(less), &terms(wider)), ["+ fs.read: /srv"]);
        // Asked for and not allowed: nothing is given, so nothing grew.
        let env = "[[permission]]\nname = \"env.read\"\nscope = [\"HOME\"]\noptional = true\n";
        assert_eq!(growth(&terms(few), &terms(env)), Vec::<String>::new());
    }
}
