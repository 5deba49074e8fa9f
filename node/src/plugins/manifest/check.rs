//! From the written manifest to one whose values are possible. Every refusal has its place in the file and says what to write.

use super::raw::{RawHook, RawManifest, RawPermission, RawSandbox};
use super::value::{Check, Checked};
use super::{Asked, Depends, Export, Hook, Library, Manifest, PluginKind, Provides, Sandbox, Word};
use crate::config::scope::{Scope, Scoping};
use crate::config::{ManifestLimits, Origin, Permission};
use crate::text::printable;
use semver::VersionReq;
use serde_spanned::Spanned;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use thenodes_ipc::PluginName;

/// Most entries of every list that has no number of its own.
const MAX_LIST: usize = 64;

/// Reads and checks. The text is short enough already.
pub(super) fn manifest(path: &Path, text: &str) -> Checked<Manifest> {
    let origin = Origin::new(path, text);
    let raw: RawManifest =
        toml::from_str(text).map_err(|e| origin.error(e.span().unwrap_or(0..0), e.message(), None))?;
    let mut check = Check { origin: &origin, without_effect: Vec::new() };
    let manifest = check.all(raw)?;
    Ok(Manifest { without_effect: check.without_effect, ..manifest })
}

impl Check<'_> {
    fn all(&mut self, raw: RawManifest) -> Checked<Manifest> {
        if *raw.schema.get_ref() != 1 {
            return self.wrong(raw.schema.span(), "no such schema", "write schema = 1");
        }
        let named = |list: &[Spanned<String>]| list.first().map(Spanned::span);
        let handles = self.list(&raw.handles, MAX_LIST, "handles", |check, text| {
            let handle = check.text(text, 256)?;
            let plain = handle.bytes().all(|b| b.is_ascii_graphic());
            check.when(
                plain,
                text,
                "not the name of a request",
                "use printable characters without a space",
            )?;
            Ok(handle)
        })?;
        self.no_effect(named(&raw.handles), "handles", "plugins get no requests in this release");
        self.no_effect(
            raw.priority.as_ref().map(Spanned::span),
            "priority",
            "plugins get no requests in this release",
        );
        self.no_effect(
            raw.concurrency.as_ref().map(Spanned::span),
            "concurrency",
            "plugins get no requests in this release",
        );
        self.no_effect(
            raw.min_api.as_ref().map(Spanned::span),
            "min_api",
            "the library itself says its interface",
        );
        let kind = match self.one_of(&raw.kind, &["service", "processor", "tool", "store"])?.as_deref() {
            Some("processor") => PluginKind::Processor,
            Some("tool") => PluginKind::Tool,
            Some("store") => PluginKind::Store,
            Some(_) | None => PluginKind::Service,
        };
        if kind != PluginKind::Service {
            self.no_effect(raw.kind.as_ref().map(Spanned::span), "kind", "every plugin is run as a service");
        }
        let limits = match &raw.limits {
            None => ManifestLimits::default(),
            Some(limits) => limits.check(self.origin)?,
        };
        for key in limits.without_effect() {
            self.without_effect.push(format!("limits.{key}: not enforced in this release"));
        }
        Ok(Manifest {
            path: self.origin.path.clone(),
            lines: self.origin.text.lines().count(),
            name: self.parsed(&raw.name, 64, PluginName::new)?,
            version: self.version(&raw.version)?,
            title: self.maybe(&raw.title, 128)?,
            description: self.maybe(&raw.description, 1024)?,
            author: self.maybe(&raw.author, 256)?,
            license: self.maybe(&raw.license, 256)?,
            repository: self.maybe(&raw.repository, 1024)?,
            homepage: self.maybe(&raw.homepage, 1024)?,
            tags: self.list(&raw.tags, 16, "tags", |check, text| check.text(text, 64))?,
            kind,
            min_api: raw.min_api.as_ref().map(|text| self.version(text)).transpose()?,
            min_host: match &raw.min_host {
                None => None,
                Some(text) => Some((self.version(text)?, self.origin.line(text.span().start))),
            },
            handles,
            priority: self.number(&raw.priority, 0..=999)?,
            concurrency: self.number(&raw.concurrency, 1..=64)?,
            provides: self.provides(&raw)?,
            permissions: self.permissions(&raw.permission)?,
            limits,
            sandbox: self.sandbox(raw.sandbox.as_ref())?,
            depends: self.depends(&raw)?,
            exports: self.exports(&raw)?,
            hooks: self.hooks(&raw.hook)?,
            libraries: self.libraries(&raw)?,
            config: self.config(raw.config)?,
            without_effect: Vec::new(),
        })
    }

    fn permissions(&mut self, list: &[RawPermission]) -> Checked<Vec<Asked>> {
        self.bounded(list.iter().map(|entry| entry.name.span()), MAX_LIST, "[[permission]]")?;
        let mut asked: Vec<Asked> = Vec::new();
        // What was asked before, and where: the same door twice is a mistake in one of the two.
        let mut before: BTreeMap<(Word, Option<Scope>), usize> = BTreeMap::new();
        for entry in list {
            let line = self.origin.line(entry.name.span().start);
            let word = self.word(entry)?;
            let reason = self.maybe(&entry.reason, 512)?;
            let mut scopes = Vec::new();
            match word {
                // Bounded like any other, but what they mean is another release's business.
                Word::NotServed(_) => {
                    self.list(&entry.scope, MAX_LIST, "scope", |check, text| check.text(text, 1024))?;
                }
                Word::Served(permission) => {
                    self.bounded(entry.scope.iter().map(Spanned::span), MAX_LIST, "scope")?;
                    if let (Scoping::Mandatory(_), []) = (permission.scoping(), entry.scope.as_slice()) {
                        return self.wrong(
                            entry.name.span(),
                            format!("{permission} without a scope"),
                            "add scope = [\"..\"] with what is needed and no more",
                        );
                    }
                    for text in &entry.scope {
                        match Scope::parse(permission, text.get_ref()) {
                            Ok(scope) => scopes.push((scope, text.span())),
                            Err(bad) => return self.wrong(text.span(), bad.what, bad.help),
                        }
                    }
                }
            }
            let places = scopes.iter().map(|(scope, span)| (Some(scope.clone()), span.clone()));
            let whole = scopes.is_empty().then(|| (None, entry.name.span()));
            for (scope, span) in places.chain(whole) {
                let all = before.get(&(word, None)).copied();
                let same = before.insert((word, scope.clone()), self.origin.line(span.start));
                let any = || {
                    scope
                        .is_none()
                        .then(|| before.range((word, None)..).find(|((w, s), _)| *w == word && s.is_some()))
                        .flatten()
                        .map(|(_, line)| *line)
                };
                if let Some(first) = same.or(all).or_else(any) {
                    return self.wrong(
                        span,
                        format!("{word} is asked for twice, first in line {first}"),
                        "keep one of the two",
                    );
                }
            }
            asked.push(Asked {
                word,
                scopes: scopes.into_iter().map(|(scope, _)| scope).collect(),
                reason,
                optional: entry.optional,
                line,
            });
        }
        Ok(asked)
    }

    fn word(&mut self, entry: &RawPermission) -> Checked<Word> {
        let text = entry.name.get_ref().as_str();
        if let Some(permission) = Permission::parse(text) {
            return Ok(Word::Served(permission));
        }
        let span = entry.name.span();
        match Permission::NOT_SERVED.into_iter().find(|word| *word == text) {
            Some(word) if entry.optional => {
                self.no_effect(Some(span), word, "this release does not serve it; it is not granted");
                Ok(Word::NotServed(word))
            }
            Some(word) => self.wrong(
                span,
                format!("this release does not serve {word}"),
                "write optional = true if the plugin works without it",
            ),
            None => {
                let help = match Permission::nearest(text) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("there are {}", Permission::ALL.map(Permission::name).join(", ")),
                };
                self.wrong(span, format!("no such permission: {}", printable(text, 64)), &help)
            }
        }
    }

    fn sandbox(&mut self, raw: Option<&RawSandbox>) -> Checked<Sandbox> {
        let Some(raw) = raw else { return Ok(Sandbox::default()) };
        const ALWAYS: &str = "plugins reach the network only through the node";
        self.no_effect(raw.network.as_ref().map(Spanned::span), "sandbox.network", ALWAYS);
        Ok(Sandbox {
            seccomp: self.one_of(&raw.seccomp, &["strict", "basic", "moderate", "permissive"])?,
            network: self.one_of(&raw.network, &["none", "proxy", "full"])?,
            tmp_mb: self.number(&raw.tmp_mb, 0..=4096)?,
        })
    }

    fn provides(&mut self, raw: &RawManifest) -> Checked<Vec<Provides>> {
        self.bounded(raw.provides.iter().map(|entry| entry.what.span()), MAX_LIST, "[[provides]]")?;
        self.no_effect(
            raw.provides.first().map(|e| e.what.span()),
            "provides",
            "nobody looks plugins up by it yet",
        );
        let mut out = Vec::new();
        for entry in &raw.provides {
            out.push(Provides { what: self.text(&entry.what, 128)?, more: entry.more.clone() });
        }
        Ok(out)
    }

    fn depends(&mut self, raw: &RawManifest) -> Checked<Vec<Depends>> {
        self.bounded(raw.depends.iter().map(|entry| entry.name.span()), 16, "[[depends]]")?;
        self.no_effect(
            raw.depends.first().map(|e| e.name.span()),
            "depends",
            "plugins start without each other",
        );
        let mut out: Vec<Depends> = Vec::new();
        for entry in &raw.depends {
            let name = self.parsed(&entry.name, 64, PluginName::new)?;
            let twice = out.iter().any(|before| before.name == name);
            self.when(!twice, &entry.name, "named twice", "keep one of the two")?;
            self.when(
                raw.name.get_ref() != name.as_str(),
                &entry.name,
                "the plugin itself",
                "remove the entry",
            )?;
            let version = self.parsed(&entry.version, 128, |text| VersionReq::from_str(&text))?;
            out.push(Depends { name, version, optional: entry.optional });
        }
        Ok(out)
    }

    fn exports(&mut self, raw: &RawManifest) -> Checked<Vec<Export>> {
        self.bounded(raw.exports.iter().map(|entry| entry.method.span()), MAX_LIST, "[[exports]]")?;
        self.no_effect(
            raw.exports.first().map(|e| e.method.span()),
            "exports",
            "plugins do not call each other yet",
        );
        let mut out: Vec<Export> = Vec::new();
        for entry in &raw.exports {
            let method = self.text(&entry.method, 64)?;
            let plain = is_topic(&method);
            self.when(
                plain,
                &entry.method,
                "not a method name",
                "use a-z, 0-9, '_' and '-', in parts joined by dots",
            )?;
            let twice = out.iter().any(|before| before.method == method);
            self.when(!twice, &entry.method, "named twice", "keep one of the two")?;
            let description = self.maybe(&entry.description, 1024)?;
            out.push(Export { method, params: entry.params.clone(), description });
        }
        Ok(out)
    }

    fn hooks(&mut self, list: &[RawHook]) -> Checked<Vec<Hook>> {
        self.bounded(list.iter().map(|entry| entry.pattern.span()), 16, "[[hook]]")?;
        self.no_effect(list.first().map(|e| e.pattern.span()), "hook", "there are no hooks in this release");
        let mut out: Vec<Hook> = Vec::new();
        for entry in list {
            let pattern = self.text(&entry.pattern, 256)?;
            self.when(
                is_pattern(&pattern),
                &entry.pattern,
                "not a hook pattern",
                "write 1 to 16 parts of a-z, 0-9, '_', '-' joined by dots; '*' is one whole part, '>' the whole rest",
            )?;
            let mode =
                self.one_of(&entry.mode, &["observe", "intercept"])?.unwrap_or_else(|| "observe".into());
            let twice = out.iter().any(|before| before.pattern == pattern && before.mode == mode);
            self.when(!twice, &entry.pattern, "named twice", "keep one of the two")?;
            out.push(Hook {
                pattern,
                mode,
                priority: self.number(&entry.priority, 0..=999)?.unwrap_or(200),
                timeout_ms: self.number(&entry.timeout_ms, 1..=300_000)?.unwrap_or(5000),
                policy: self
                    .one_of(&entry.policy, &["chain", "stop-on-error", "collect-all", "first-answer"])?,
            });
        }
        Ok(out)
    }

    fn libraries(&mut self, raw: &RawManifest) -> Checked<Vec<Library>> {
        self.bounded(raw.lib.iter().map(|entry| entry.target.span()), 16, "[[lib]]")?;
        self.no_effect(
            raw.lib.first().map(|e| e.target.span()),
            "lib",
            "the library is the one beside the manifest",
        );
        let mut out: Vec<Library> = Vec::new();
        for entry in &raw.lib {
            let target = self.text(&entry.target, 64)?;
            let plain = target.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            self.when(plain, &entry.target, "not a target", "write one like x86_64-unknown-linux-gnu")?;
            let twice = out.iter().any(|before| before.target == target);
            self.when(!twice, &entry.target, "named twice", "keep one of the two")?;
            let path = self.text(&entry.path, 1024)?;
            let inside = !path.split('/').any(|part| matches!(part, "" | "." | ".."));
            self.when(
                inside,
                &entry.path,
                "not a path inside the package",
                "write it relative, without '..'",
            )?;
            out.push(Library { target, path });
        }
        Ok(out)
    }

    fn config(&mut self, raw: Option<Spanned<toml::Table>>) -> Checked<Option<toml::Table>> {
        let Some(table) = raw else { return Ok(None) };
        if table.get_ref().get("schema").is_some_and(|schema| !schema.is_table()) {
            return self.wrong(table.span(), "config.schema is no table", "write [config.schema]");
        }
        self.no_effect(Some(table.span()), "config", "plugins get no configuration of their own yet");
        Ok(Some(table.into_inner()))
    }
}

fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

/// A topic of hooks: parts joined by dots.
fn is_topic(text: &str) -> bool {
    text.split('.').count() <= 16 && text.split('.').all(is_part)
}

/// A pattern of topics: `*` as a whole part, `>` as the whole last part.
pub(super) fn is_pattern(text: &str) -> bool {
    let mut parts: Vec<&str> = text.split('.').collect();
    if parts.last() == Some(&">") {
        parts.pop();
    }
    parts.len() <= 16 && parts.iter().all(|part| *part == "*" || is_part(part))
}
