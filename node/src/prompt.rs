//! The interactive prompt (`--prompt`), with upstream's commands. Works on a terminal and with piped input; the end of the
//! input ends the node. What plugins answer is made printable before it is shown.

use crate::admin::{Question, View};
use crate::security::pki;
use crate::text::printable;
use crate::Config;
use rustyline::error::ReadlineError;
use std::io::Write;
use thenodes::constants::{build_timestamp, full_version, git_commit, PROTOCOL_VERSION};
use tokio::sync::{mpsc, oneshot};

/// Longest line of a plugin's answer that is shown, bytes.
const SHOWN: usize = 64 * 1024;

/// Reads lines on a thread of its own: waiting for a person must not hold a runtime thread.
fn reader(lines: mpsc::Sender<(String, oneshot::Sender<String>)>) {
    let Ok(mut editor) = rustyline::DefaultEditor::new() else { return };
    let mut label = "TheNodes> ".to_owned();
    loop {
        match editor.readline(&label) {
            Ok(line) => {
                let _ = editor.add_history_entry(line.trim());
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
pub async fn run(view: View, config: Config) {
    let (lines_in, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || reader(lines_in));
    let mut place = Place::Root;
    while let Some((line, next)) = lines.recv().await {
        let line = line.trim().to_owned();
        let (now, output) = step(place, &line, &view, &config).await;
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

async fn step(place: Place, line: &str, view: &View, config: &Config) -> (Option<Place>, String) {
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
        Place::Root => (Some(Place::Root), at_root(view, config, line).await),
    }
}

async fn in_plugin(view: &View, prefix: &str, line: &str) -> String {
    match view.prompt(prefix, line).await {
        Ok(Some(output)) => output.lines().map(|line| printable(line, SHOWN)).collect::<Vec<_>>().join("\n"),
        Ok(None) => "⚠️ Unhandled input".into(),
        Err(error) => format!("⚠️ {}", printable(&error.to_string(), SHOWN)),
    }
}

async fn at_root(view: &View, config: &Config, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [] => String::new(),
        ["version" | "/version" | "about" | "/about"] => format!(
            "TheNodes version {} (protocol={PROTOCOL_VERSION})\ncommit: {}\nbuilt: {}",
            full_version(),
            git_commit(),
            build_timestamp()
        ),
        ["help" | "/help"] => {
            let mut text = String::from(
                "version | peers | status | plugins | trust own list | trust trusted list | trust observed list | trust promote FINGERPRINT | exit",
            );
            for prefix in view.prompts() {
                text.push_str(&format!("\n{prefix}: enters the prompt of a plugin; `{prefix} LINE` passes it one line"));
            }
            text
        }
        ["peers" | "/peers"] => match view.answer(Question::Peers, "prompt").await {
            Ok(value) => {
                let peers: Vec<String> = value["peers"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|peer| format!("{} {}", peer["addr"].as_str().unwrap_or("?"), peer["node_id"].as_str().unwrap_or("?")))
                    .collect();
                if peers.is_empty() { "No connected peers.".into() } else { peers.join("\n") }
            }
            Err(error) => error.to_string(),
        },
        ["status" | "/status"] => match view.answer(Question::Status, "prompt").await {
            Ok(value) => format!(
                "--- Connection Status ---\nnode {} on port {}, {} peers, {} plugins\n-------------------------",
                value["node_id"].as_str().unwrap_or("?"),
                value["port"],
                value["peers"],
                value["plugins"]
            ),
            Err(error) => error.to_string(),
        },
        ["plugins" | "/plugins"] => match view.answer(Question::PluginList, "prompt").await {
            Ok(value) => crate::cli::table(&value),
            Err(error) => error.to_string(),
        },
        ["trust", rest @ ..] => trust(config, rest),
        [prefix, ..] if view.has_prompt(prefix) => {
            in_plugin(view, prefix, line.split_once(' ').map_or("", |(_, rest)| rest)).await
        }
        _ => format!("⚠️ Unknown command or plugin: {}", printable(line, 200)),
    }
}

fn trust(config: &Config, words: &[&str]) -> String {
    let Some(encryption) = &config.encryption else {
        return "encryption is off: nobody is trusted or refused".into();
    };
    let list = |set: Result<std::collections::BTreeSet<String>, pki::PkiError>| match set {
        Ok(set) if set.is_empty() => "(none)".to_owned(),
        Ok(set) => set.into_iter().collect::<Vec<_>>().join("\n"),
        Err(error) => error.to_string(),
    };
    match words {
        ["own", "list"] => match pki::fingerprints(&encryption.own_certificate) {
            Ok(list) => list.join("\n"),
            Err(error) => error.to_string(),
        },
        ["trusted", "list"] => list(pki::trusted(&encryption.trusted_dir)),
        ["observed", "list"] => list(pki::trusted(&encryption.observed_dir)),
        ["promote" | "add", fingerprint] => {
            match pki::trust_fingerprint(&encryption.trusted_dir, fingerprint) {
                Ok(true) => format!("✅ {fingerprint} is trusted from the next connection on"),
                Ok(false) => format!("ℹ️ Nothing to do: {fingerprint} is trusted already"),
                Err(error) => format!("⚠️ {error}"),
            }
        }
        _ => "trust own list | trust trusted list | trust observed list | trust promote FINGERPRINT".into(),
    }
}
