//! The terms on which one plugin runs: what its manifest asks for and the operator allows, its limits, and for everything that
//! was not given the reason and the line that would change it. Pure: a manifest and a configuration in, terms out.

use super::grants::{reaches, Asking, Grants, Reach, Reaches, Subject};
use super::manifest::{Asked, Manifest, Word};
use super::process::Sandbox;
use crate::config::{Budget, ForPlugin, Giving, ManifestLimits, Overflow, Permission, Rule};
use serde::Serialize;
use std::collections::BTreeMap;
use thenodes::host::NodeInfo;
use thenodes::realms::RealmInfo;
use thenodes_ipc::launch::{PathGrant, ProcessLimits, SeccompMode};
use thenodes_ipc::PluginName;

/// What became of one wish, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The permission.
    pub permission: String,
    /// Scopes that were asked for.
    pub asked: Vec<String>,
    /// Why the plugin wants it, in its author's words.
    pub reason: Option<String>,
    /// The plugin works without it.
    pub optional: bool,
    /// File and line of the wish.
    pub place: String,
    /// `granted`, `narrowed` or `denied`.
    pub verdict: &'static str,
    /// Scopes that were given; empty is everything, if the verdict is not `denied`.
    pub granted: Vec<String>,
    /// Why it is not all, and the line that would change it.
    pub why: Option<String>,
}

/// Something that an operator should know about the terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A stable word.
    pub action: &'static str,
    /// For people.
    pub detail: String,
}

/// The terms of one plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// Its name.
    pub plugin: PluginName,
    /// Its manifest.
    pub manifest: Option<Manifest>,
    /// What it may do.
    pub grants: Grants,
    /// Limits from all who may say so.
    pub limits: ManifestLimits,
    /// What the kernel holds its process to.
    pub process: ProcessLimits,
    /// What the node holds it to from outside.
    pub budget: Budget,
    /// What happens when too many messages wait for it; the operator's alone.
    pub queue: Overflow,
    /// What its sandbox has beside the walls that all have.
    pub sandbox: Sandbox,
    /// Wish by wish.
    pub outcomes: Vec<Outcome>,
    /// What to tell the operator at the start.
    pub notes: Vec<Note>,
    /// Why it does not start, if it does not.
    pub refusal: Option<String>,
}

impl Terms {
    /// Finds the terms. `most`: what no process goes beyond.
    pub fn agree(
        plugin: PluginName,
        manifest: Option<Manifest>,
        giving: &Giving,
        most: ProcessLimits,
        budget: Budget,
    ) -> Terms {
        let nothing = ForPlugin::default();
        let has_table = giving.by_name.contains_key(&plugin);
        let own = giving.by_name.get(&plugin).unwrap_or(&nothing);
        let mut agreement = Agreement {
            plugin: &plugin,
            has_table,
            allowed: reaches(giving.policy.iter().chain(&own.allow)),
            denied: reaches(&own.deny),
            given: Reaches::new(),
            outcomes: Vec::new(),
            notes: Vec::new(),
            missing: Vec::new(),
        };
        let mut asked: BTreeMap<Permission, (Reach, usize)> = BTreeMap::new();
        match &manifest {
            None => agreement.defaults(&giving.defaults),
            Some(manifest) => {
                for key in &manifest.without_effect {
                    let detail = format!("{}: {key}", manifest.path.display());
                    agreement.note("manifest_key_without_effect", detail);
                }
                for wish in &manifest.permissions {
                    agreement.wish(manifest, wish);
                    if let Word::Served(permission) = wish.word {
                        let entry = asked.entry(permission).or_insert((Reach::default(), wish.line));
                        entry.0 = joined(&entry.0, &reach_of(wish));
                    }
                }
            }
        }
        let wanted: Reaches = match &manifest {
            None => reaches(&giving.defaults),
            Some(_) => asked.iter().map(|(permission, (reach, _))| (*permission, reach.clone())).collect(),
        };
        agreement.beyond(&own.allow, &wanted, giving.widen);
        let of_manifest = manifest.as_ref().map(|manifest| manifest.limits).unwrap_or_default();
        let limits = of_manifest.tighter(&own.limits).tighter(&giving.limits);
        let (process, budget) = (limits.process(most), limits.budget(budget));
        let (seccomp, calls) = agreement.seccomp(manifest.as_ref(), giving, own);
        if let Some(manifest) = &manifest {
            agreement.lowered(manifest, process);
        }
        let Agreement { allowed, denied, given, mut outcomes, notes, missing, .. } = agreement;
        let refusal = manifest.as_ref().and_then(|manifest| refusal(manifest, &plugin, &missing, has_table));
        let asking = manifest.as_ref().map(|manifest| Asking {
            path: manifest.path.clone(),
            lines: manifest.lines,
            asked,
            allowed,
        });
        let grants = Grants { plugin: plugin.clone(), given, denied, asking };
        let wanted = manifest.as_ref().and_then(|manifest| manifest.sandbox.tmp_mb);
        let temporary = wanted.map_or(0, |mb| mb.saturating_mul(1024 * 1024)).min(budget.tmp);
        let sandbox = Sandbox { seccomp, calls, paths: grants.paths(), temporary, without: None };
        let refusal = refusal.or_else(|| with_holes(&plugin, &mut outcomes, &sandbox.paths));
        // What may be written needs a size: that of one file, or of all of them where that is known.
        let writes = temporary > 0 || sandbox.paths.iter().any(|path| path.write);
        // A MiB more than the temporary storage: that it is full is for itself to say, as an error and not as a death.
        let of_temporary = if temporary > 0 { temporary + (1 << 20) } else { 0 };
        let file_size = if writes { process.file_size.max(of_temporary) } else { 0 };
        let process = ProcessLimits { file_size, ..process };
        Terms {
            queue: own.queue,
            budget,
            sandbox,
            process,
            plugin,
            manifest,
            grants,
            limits,
            outcomes,
            notes,
            refusal,
        }
    }
}

impl Terms {
    /// What the plugin is told about its node: without `node.info` not which one it is.
    pub fn info(&self, info: &NodeInfo) -> NodeInfo {
        let mine = NodeInfo { plugin: self.plugin.to_string(), ..info.clone() };
        if self.grants.allows(Permission::NodeInfo, Subject::Whole) {
            return mine;
        }
        let realm = RealmInfo { name: String::new(), code: None, version: String::new() };
        NodeInfo { node_id: String::new(), realm, session_id: String::new(), ..mine }
    }
}

/// A path of which only a part is denied cannot be given: says so in the outcome, and returns why the plugin does not start if it
/// requires such a one.
fn with_holes(plugin: &PluginName, outcomes: &mut [Outcome], paths: &[PathGrant]) -> Option<String> {
    let mut refusal = None;
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.verdict != "denied") {
        let holds = |grant: &PathGrant| match outcome.permission.as_str() {
            "fs.read" => grant.read,
            "fs.write" => grant.write,
            "fs.create" => grant.create,
            _ => true,
        };
        if !outcome.permission.starts_with("fs.") {
            continue;
        }
        let there: Vec<String> = outcome
            .granted
            .iter()
            .filter(|path| paths.iter().any(|grant| grant.path == **path && holds(grant)))
            .cloned()
            .collect();
        if there.len() < outcome.granted.len() {
            let why = format!(
                "[plugins.for.{plugin}] deny takes a part of it away, and a mount cannot have a hole"
            );
            outcome.verdict = if there.is_empty() { "denied" } else { "narrowed" };
            if there.is_empty() && !outcome.optional {
                refusal = Some(format!("{}: requires {}; {why}", outcome.place, outcome.permission));
            }
            outcome.granted = there;
            outcome.why = Some(why);
        }
    }
    refusal
}

/// A required wish, or a part of it, that is not given.
struct Missing {
    line: usize,
    rule: String,
    denied: bool,
}

struct Agreement<'a> {
    plugin: &'a PluginName,
    /// The configuration has a table for it.
    has_table: bool,
    allowed: Reaches,
    denied: Reaches,
    given: Reaches,
    outcomes: Vec<Outcome>,
    notes: Vec<Note>,
    missing: Vec<Missing>,
}

impl Agreement<'_> {
    fn note(&mut self, action: &'static str, detail: String) {
        self.notes.push(Note { action, detail });
    }

    /// Without a manifest the operator's own word is the wish.
    fn defaults(&mut self, defaults: &[Rule]) {
        self.given = reaches(defaults);
        for (permission, reach) in &self.given {
            let taken = self.denied.get(permission);
            let verdict = match taken {
                Some(Reach::All) => "denied",
                Some(Reach::Scopes(_)) => "narrowed",
                None => "granted",
            };
            self.outcomes.push(Outcome {
                permission: permission.to_string(),
                asked: texts(reach),
                reason: None,
                optional: true,
                place: "[plugins.defaults] permissions".into(),
                verdict,
                granted: if verdict == "denied" { Vec::new() } else { texts(reach) },
                why: taken.map(|_| format!("[plugins.for.{}] deny takes it away", self.plugin)),
            });
        }
    }

    /// One `[[permission]]`, scope by scope.
    fn wish(&mut self, manifest: &Manifest, wish: &Asked) {
        let place = format!("{}:{}", manifest.path.display(), wish.line);
        let mut outcome = Outcome {
            permission: wish.word.to_string(),
            asked: wish.scopes.iter().map(ToString::to_string).collect(),
            reason: wish.reason.clone(),
            optional: wish.optional,
            place: place.clone(),
            verdict: "granted",
            granted: Vec::new(),
            why: None,
        };
        let Word::Served(permission) = wish.word else {
            outcome.verdict = "denied";
            outcome.why = Some("this release does not serve it".into());
            return self.outcomes.push(outcome);
        };
        let none = Reach::default();
        let allowed = self.allowed.get(&permission).unwrap_or(&none).clone();
        let denied = self.denied.get(&permission).cloned();
        let (mut given, mut whole) = (Reach::default(), true);
        let mut missing = Vec::new();
        let parts = wish.scopes.iter().cloned().map(Some);
        for part in parts.chain(wish.scopes.is_empty().then_some(None)) {
            let mut one = Reach::default();
            one.add(part.clone());
            let met = one.meet(&allowed);
            let taken = denied.as_ref().is_some_and(|denied| denied.contains(&one));
            if taken || met.is_empty() {
                let rule = Rule { permission, scope: part };
                missing.push(Missing { line: wish.line, rule: rule.to_string(), denied: taken });
                continue;
            }
            whole &= met == one && denied.as_ref().is_none_or(|denied| denied.meet(&one).is_empty());
            given = joined(&given, &met);
        }
        if given.is_empty() {
            outcome.verdict = "denied";
        } else if !whole || !missing.is_empty() {
            outcome.verdict = "narrowed";
        }
        outcome.granted = texts(&given);
        if let Some(remedy) = remedy(self.plugin, &missing, self.has_table) {
            outcome.why = Some(remedy);
        } else if outcome.verdict == "narrowed" {
            outcome.why = Some("the operator allows less than it asks for".into());
        }
        let why = outcome.why.clone().unwrap_or_default();
        if !missing.is_empty() && wish.optional {
            let rules: Vec<_> = missing.iter().map(|missing| missing.rule.as_str()).collect();
            let detail = format!("{} ({place}) is optional: starts without it; {why}", rules.join(", "));
            self.note("permission_not_granted", detail);
        } else if missing.is_empty() && outcome.verdict == "narrowed" {
            let granted = outcome.granted.join(", ");
            self.note("permission_narrowed", format!("{permission} ({place}): {why}; granted: {granted}"));
        }
        if !wish.optional {
            self.missing.append(&mut missing);
        }
        self.outcomes.push(outcome);
        let entry = self.given.entry(permission).or_default();
        *entry = joined(entry, &given);
    }

    /// Limits that the manifest wanted larger.
    fn lowered(&mut self, manifest: &Manifest, process: ProcessLimits) {
        let wanted = manifest.limits;
        for (key, wanted, held) in [
            ("memory_mb", wanted.memory_mb, process.memory / (1024 * 1024)),
            ("threads", wanted.threads, process.threads),
            ("fds", wanted.fds, process.descriptors),
        ] {
            if let Some(wanted) = wanted.filter(|wanted| *wanted > held) {
                let path = manifest.path.display();
                self.note(
                    "limit_lowered",
                    format!("{path}: limits.{key} = {wanted}, but the node's limit is {held}"),
                );
            }
        }
    }

    /// The list of system calls: the operator's word for this plugin, else the stricter of the operator's for all and the
    /// manifest's.
    fn seccomp(
        &mut self,
        manifest: Option<&Manifest>,
        giving: &Giving,
        own: &ForPlugin,
    ) -> (SeccompMode, Vec<String>) {
        if let Some((mode, calls)) = &own.seccomp {
            return (*mode, calls.clone());
        }
        let (mode, calls) = giving.seccomp.clone();
        let asked =
            manifest.and_then(|manifest| manifest.sandbox.seccomp.as_deref()).and_then(SeccompMode::parse);
        match asked {
            // Strict is within every list; of the others only a narrower one of the same kind is surely within.
            Some(SeccompMode::Strict) => (SeccompMode::Strict, Vec::new()),
            Some(asked) if asked.width() < mode.width() => (asked, Vec::new()),
            Some(asked) if asked.width() > mode.width() => {
                let detail = format!(
                    "the manifest asks for seccomp = {:?}, the node gives {:?}; write seccomp = {:?} in [plugins.for.{}] to allow it",
                    asked.word(), mode.word(), asked.word(), self.plugin
                );
                self.note("seccomp_stricter_than_asked", detail);
                (mode, calls)
            }
            _ => (mode, calls),
        }
    }

    /// What the operator allows and nobody asked for.
    fn beyond(&mut self, allow: &[Rule], wanted: &Reaches, widen: bool) {
        for rule in allow {
            let mut one = Reach::default();
            one.add(rule.scope.clone());
            let met = wanted.get(&rule.permission).map(|wanted| wanted.meet(&one)).unwrap_or_default();
            if met == one || (!widen && !met.is_empty()) {
                continue;
            }
            if widen {
                self.given.entry(rule.permission).or_default().add(rule.scope.clone());
                self.note(
                    "permission_widened",
                    format!(
                        "{rule}: [plugins.for.{}] allow gives it, though the plugin does not ask for it",
                        self.plugin
                    ),
                );
            } else {
                self.note("allow_without_effect", format!("{rule} in [plugins.for.{}] allow: the plugin does not ask for it; remove it, or write [plugins.policy] widen = true", self.plugin));
            }
        }
    }
}

fn reach_of(wish: &Asked) -> Reach {
    if wish.scopes.is_empty() {
        Reach::All
    } else {
        Reach::Scopes(wish.scopes.clone())
    }
}

fn joined(a: &Reach, b: &Reach) -> Reach {
    let mut reach = a.clone();
    match b {
        Reach::All => reach.add(None),
        Reach::Scopes(scopes) => scopes.iter().for_each(|scope| reach.add(Some(scope.clone()))),
    }
    reach
}

fn texts(reach: &Reach) -> Vec<String> {
    match reach {
        Reach::All => Vec::new(),
        Reach::Scopes(scopes) => scopes.iter().map(ToString::to_string).collect(),
    }
}

/// What the operator would write.
fn remedy(plugin: &PluginName, missing: &[Missing], has_table: bool) -> Option<String> {
    let list = |denied: bool| {
        let rules: Vec<_> =
            missing.iter().filter(|m| m.denied == denied).map(|m| format!("{:?}", m.rule)).collect();
        (!rules.is_empty()).then(|| rules.join(", "))
    };
    // A table that stands in the file already cannot be written a second time.
    let allow = list(false).map(|rules| match has_table {
        true => format!("to allow it, add {rules} to [plugins.for.{plugin}] allow"),
        false => format!("to allow it, write [plugins.for.{plugin}] allow = [{rules}]"),
    });
    let deny = list(true).map(|rules| format!("[plugins.for.{plugin}] deny takes {rules} away"));
    match (deny, allow) {
        (Some(deny), Some(allow)) => Some(format!("{deny}; {allow}")),
        (one, other) => one.or(other),
    }
}

fn refusal(manifest: &Manifest, plugin: &PluginName, missing: &[Missing], has_table: bool) -> Option<String> {
    let first = missing.first()?;
    let rules: Vec<_> = missing.iter().map(|missing| missing.rule.as_str()).collect();
    Some(format!(
        "{}:{}: requires {} and was not given it; {}",
        manifest.path.display(),
        first.line,
        rules.join(", "),
        remedy(plugin, missing, has_table).unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests;
