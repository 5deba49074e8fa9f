//! The interactive prompt (`--prompt`), with upstream's commands. Works on a terminal and with piped input; the end of the
//! input ends the node. What plugins answer is made printable before it is shown.

use crate::admin::{Question, View};
use crate::security::bindings::Bindings;
use crate::security::directory::{self, Trusting};
use crate::security::pki;
use crate::text::printable;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use thenodes::constants::{build_timestamp, full_version, PROTOCOL_VERSION};
use thenodes::host::HostError;
use thenodes::network::DeliveryClass;
use tokio::sync::{mpsc, oneshot};

/// Longest line of a plugin's answer that is shown, bytes.
const SHOWN: usize = 64 * 1024;

/// Words that can stand first at the root.
const WORDS: [&str; 13] = [
    "about",
    "connect",
    "disconnect",
    "exit",
    "help",
    "node",
    "peers",
    "plugins",
    "relay",
    "send",
    "status",
    "trust",
    "version",
];
/// Lines of history that are kept.
const HISTORY: usize = 1000;

/// Completes first words, prompts of plugins, and ids of peers.
struct Words(View);

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(completions(line.get(..at).unwrap_or(line), || self.0.prompts(), || self.0.peer_ids()))
    }
}

/// Where the last word of a line begins, and what it may become.
fn completions(
    before: &str,
    prompts: impl FnOnce() -> Vec<String>,
    peers: impl FnOnce() -> Vec<String>,
) -> (usize, Vec<String>) {
    let start = before.rfind(' ').map_or(0, |blank| blank + 1);
    let (first, word) = (before.split(' ').next().unwrap_or_default(), &before[start..]);
    let candidates: Vec<String> = match (start, first) {
        (0, _) => WORDS.iter().map(|word| (*word).to_owned()).chain(prompts()).collect(),
        (_, "send" | "disconnect") => peers(),
        (_, "trust") => {
            ["own", "trusted", "observed", "promote", "add", "list", "reload"].map(Into::into).into()
        }
        _ => Vec::new(),
    };
    let mut fitting: Vec<String> =
        candidates.into_iter().filter(|candidate| candidate.starts_with(word)).collect();
    fitting.sort();
    (start, fitting)
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

/// Where lines of earlier prompts are, as upstream has it; none without a home.
fn history() -> Option<PathBuf> {
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".thenodes_history"))
}

/// Reads lines on a thread of its own: waiting for a person must not hold a runtime thread.
fn reader(view: View, lines: mpsc::Sender<(String, oneshot::Sender<String>)>) {
    let config = rustyline::Config::builder().max_history_size(HISTORY).map(|config| config.build());
    let Ok(mut editor) = Editor::<Words, _>::with_config(config.unwrap_or_default()) else { return };
    editor.set_helper(Some(Words(view)));
    let file = history();
    // A history is a comfort: without one the prompt works all the same.
    file.as_ref().map(|file| editor.load_history(file));
    let mut label = "TheNodes> ".to_owned();
    loop {
        match editor.readline(&label) {
            Ok(line) => {
                if editor.add_history_entry(line.trim()).unwrap_or(false) {
                    file.as_ref().map(|file| editor.append_history(file));
                }
                let (next, answered) = oneshot::channel();
                if lines.blocking_send((line, next)).is_err() {
                    return;
                }
                match answered.blocking_recv() {
                    Ok(next_label) => label = next_label,
                    Err(_) => return,
                }
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) | Err(_) => return,
        }
    }
}

/// Where the person is.
enum Place {
    Root,
    Plugin(String),
    /// Asked whether to leave.
    Leaving,
}

/// Serves the prompt until `exit` or the end of the input.
pub async fn run(view: View) {
    let (lines_in, mut lines) = mpsc::channel(1);
    let completing = view.clone();
    std::thread::spawn(move || reader(completing, lines_in));
    let mut place = Place::Root;
    while let Some((line, next)) = lines.recv().await {
        let line = line.trim().to_owned();
        let (now, output) = step(place, &line, &view).await;
        if !output.is_empty() {
            let _ = writeln!(std::io::stdout().lock(), "{output}");
        }
        let label = match &now {
            None => return,
            Some(Place::Root) => "TheNodes> ".to_owned(),
            Some(Place::Plugin(prefix)) => format!("{prefix}> "),
            Some(Place::Leaving) => "Confirm exit? [y/N] ".to_owned(),
        };
        let _ = next.send(label);
        match now {
            Some(now) => place = now,
            None => return,
        }
    }
}

async fn step(place: Place, line: &str, view: &View) -> (Option<Place>, String) {
    match place {
        Place::Leaving if matches!(line, "y" | "Y" | "yes") => (None, "👋 Exiting.".into()),
        Place::Leaving => (Some(Place::Root), String::new()),
        Place::Plugin(_) if matches!(line, "exit" | "quit" | "/quit") => (Some(Place::Root), String::new()),
        Place::Plugin(prefix) => {
            let output = if line.is_empty() { String::new() } else { in_plugin(view, &prefix, line).await };
            (Some(Place::Plugin(prefix)), output)
        }
        Place::Root if matches!(line, "exit" | "quit" | "/quit") => (Some(Place::Leaving), String::new()),
        Place::Root if !line.is_empty() && view.has_prompt(line) => {
            (Some(Place::Plugin(line.into())), String::new())
        }
        Place::Root => (Some(Place::Root), at_root(view, line).await),
    }
}

async fn in_plugin(view: &View, prefix: &str, line: &str) -> String {
    match view.prompt(prefix, line).await {
        Ok(Some(output)) => output.lines().map(|line| printable(line, SHOWN)).collect::<Vec<_>>().join("\n"),
        Ok(None) => "⚠️ Unhandled input".into(),
        Err(error) => format!("⚠️ {}", printable(&error.to_string(), SHOWN)),
    }
}

async fn at_root(view: &View, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [] => String::new(),
        ["version" | "/version" | "about" | "/about"] => {
            let about = format!(
                "TheNodes version {} (protocol={PROTOCOL_VERSION})\ncommit: {}",
                full_version(),
                crate::COMMIT
            );
            match build_timestamp() {
                "unknown" => about, // the same source is to give the same program
                time => format!("{about}\nbuilt: {time}"),
            }
        }
        ["help" | "/help"] => {
            let mut text = String::from(
                "version | node | peers | peers known | connect HOST:PORT | disconnect NODE | send NODE TEXT | send reliable NODE TEXT | relay | status | plugins | trust own list | trust trusted list | trust observed list | trust promote FINGERPRINT | trust add FINGERPRINT | trust reload | exit",
            );
            for prefix in view.prompts() {
                text.push_str(&format!(
                    "\n{prefix}: enters the prompt of a plugin; `{prefix} LINE` passes it one line"
                ));
            }
            text
        }
        ["peers" | "/peers"] => shown(view.answer(Question::Peers, "prompt").await, crate::cli::peers_listed),
        ["peers", "known"] => shown(view.answer(Question::PeersKnown, "prompt").await, |value| {
            let line = |known: &Value| format!("{} {}", word(&known["addr"]), word(&known["node_id"]));
            known_or(value["known"].as_array(), line, "No known addresses.")
        }),
        ["connect", target] => {
            let order = Question::PeerConnect { target: (*target).to_owned() };
            shown(view.answer(order, "prompt").await, |value| {
                format!("✅ Connected to {}", word(&value["connected"]))
            })
        }
        ["disconnect", node_id] => {
            let order = Question::PeerDisconnect { node_id: (*node_id).to_owned() };
            shown(view.answer(order, "prompt").await, |value| {
                format!("✅ Disconnected from {}; held off until `connect`", word(&value["disconnected"]))
            })
        }
        ["send", "reliable", node_id, _, ..] => {
            send(view, node_id, rest(line, 3), DeliveryClass::Reliable).await
        }
        ["send", node_id, _, ..] => send(view, node_id, rest(line, 2), DeliveryClass::FireAndForget).await,
        ["node" | "/node"] => shown(view.answer(Question::Status, "prompt").await, |value| {
            format!(
                "node {} realm {} port {}",
                word(&value["node_id"]),
                word(&value["realm"]["name"]),
                value["port"]
            )
        }),
        ["relay" | "/relay"] => {
            shown(view.answer(Question::Relay, "prompt").await, |value| crate::cli::pairs(&value["relay"]))
        }
        ["status" | "/status"] => match view.answer(Question::Status, "prompt").await {
            Ok(value) => format!(
                "--- Connection Status ---\n{}\n-------------------------",
                crate::cli::status_lines(&value)
            ),
            Err(error) => error.to_string(),
        },
        ["plugins" | "/plugins"] => match view.answer(Question::PluginList, "prompt").await {
            Ok(value) => crate::cli::table(&value),
            Err(error) => error.to_string(),
        },
        ["trust", "reload"] => {
            shown(view.answer(Question::TrustReload, "prompt").await, crate::cli::reloaded)
        }
        ["trust", rest @ ..] => trust(view, rest),
        [prefix, ..] if view.has_prompt(prefix) => {
            in_plugin(view, prefix, line.split_once(' ').map_or("", |(_, rest)| rest)).await
        }
        _ => format!("⚠️ Unknown command or plugin: {}", printable(line, 200)),
    }
}

/// An answer as text, or why there is none.
fn shown(answer: Result<Value, HostError>, show: impl FnOnce(&Value) -> String) -> String {
    match answer {
        Ok(value) => show(&value),
        Err(error) => format!("⚠️ {}", printable(&error.to_string(), SHOWN)),
    }
}

fn word(value: &Value) -> String {
    printable(value.as_str().unwrap_or("-"), 256)
}

fn known_or(list: Option<&Vec<Value>>, line: impl Fn(&Value) -> String, none: &str) -> String {
    match list {
        Some(list) if !list.is_empty() => list.iter().map(line).collect::<Vec<_>>().join("\n"),
        _ => none.into(),
    }
}

/// What stands behind so many words.
fn rest(line: &str, words: usize) -> String {
    let mut rest = line.trim_start();
    for _ in 0..words {
        rest = rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start());
    }
    rest.to_owned()
}

async fn send(view: &View, node_id: &str, text: String, class: DeliveryClass) -> String {
    let order = Question::Send { node_id: node_id.to_owned(), text, class, key: None };
    shown(view.answer(order, "prompt").await, |value| format!("✅ {}", word(&value["outcome"])))
}

fn trust(view: &View, words: &[&str]) -> String {
    let Some(rules) = view.rules() else {
        return "encryption is off: nobody is trusted or refused".into();
    };
    let encryption = &rules.encryption;
    let list = |of: Result<directory::Trusted, pki::PkiError>| match of {
        Ok(of) if of.keys.is_empty() => "(none)".to_owned(),
        Ok(of) => of.keys.iter().map(|key| of.shown(key)).collect::<Vec<_>>().join("\n"),
        Err(error) => error.to_string(),
    };
    match words {
        ["own", "list"] => match pki::fingerprints(&encryption.own_certificate) {
            Ok(list) => list.join("\n"),
            Err(error) => error.to_string(),
        },
        ["trusted", "list"] => list(directory::trusted(&encryption.trusted_dir)),
        ["observed", "list"] => list(directory::trusted(&encryption.observed_dir)),
        [order @ ("promote" | "add"), fingerprint] => {
            let dir = &encryption.trusted_dir;
            let done = match *order {
                "promote" => {
                    let bindings = Bindings::below(&encryption.observed_dir);
                    // What is another key's is replaced by the command line alone, where one can think it over.
                    let trusting = Trusting { dir, bindings, replace: false };
                    trusting.promote(&encryption.observed_dir, fingerprint)
                }
                _ => directory::trust_fingerprint(dir, fingerprint).map(Some),
            };
            let fingerprint = printable(fingerprint, 80);
            let fingerprint = match directory::trusted(dir) {
                Ok(of) => of.shown(&fingerprint.to_ascii_lowercase()),
                Err(_) => fingerprint,
            };
            match done {
                Ok(Some(true)) => format!("✅ {fingerprint} is trusted from the next connection on"),
                Ok(Some(false)) => format!("ℹ️ Nothing to do: {fingerprint} is trusted already"),
                Ok(None) => format!("⚠️ {fingerprint}: no certificate with this fingerprint was kept; `trust observed list` shows those that were, and `trust add` trusts any"),
                Err(error) => format!("⚠️ {}", printable(&error.to_string(), SHOWN)),
            }
        }
        _ => "trust own list | trust trusted list | trust observed list | trust promote FINGERPRINT | trust add FINGERPRINT | trust reload".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_prompt_plugins_and_peers_are_completed_where_they_may_stand() {
        let complete = |before: &str| {
            completions(
                before,
                || vec!["kv".into()],
                || vec!["node-b".into(), "node-a".into(), "other".into()],
            )
        };
        assert_eq!(complete("con"), (0, vec!["connect".into()]));
        assert_eq!(complete("k"), (0, vec!["kv".into()]));
        assert_eq!(complete("send node-"), (5, vec!["node-a".into(), "node-b".into()]));
        assert_eq!(complete("disconnect o"), (11, vec!["other".into()]));
        assert_eq!(complete("trust o"), (6, vec!["observed".into(), "own".into()]));
        assert_eq!(complete("kv "), (3, vec![]), "the plugin's own");
        assert_eq!(complete("nothing"), (0, vec![]));
        assert!(complete("").1.len() > WORDS.len());
    }
}
