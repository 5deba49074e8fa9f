//! `thenodes plugin call`: a request to a plugin, bytes in and bytes out. The answer is a plugin's, so a terminal gets it printable;
//! a pipe gets it byte for byte.

use super::{ask_node, print, Cli, Failure};
use crate::admin::{Question, MAX_BODY};
use crate::text::{hex, printable, unhex};
use clap::Args;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use thenodes_ipc::Code;

/// What to send.
#[derive(Debug, Args)]
pub(super) struct Wish {
    /// Name of the plugin.
    name: String,
    /// Name of the request; the plugin knows which there are.
    request: String,
    /// What to send: this text, or standard input for `-`; nothing by default.
    body: Option<String>,
    /// Print the answer as hex digits.
    #[arg(long)]
    hex: bool,
}

/// The exit code of a request that failed; see docs/operating.md. The numbers are those of sysexits.h.
fn exit(code: &Code) -> u8 {
    match code {
        Code::InvalidInput => 65,
        Code::NotFound => 66,
        Code::Unavailable => super::EXIT_UNAVAILABLE,
        Code::PluginCrashed | Code::Internal => 70,
        Code::Timeout | Code::ResourceExhausted | Code::Cancelled => 75,
        Code::Unhandled | Code::NotImplemented => 76,
        Code::PermissionDenied => 77,
        Code::Conflict
        | Code::NetworkError
        | Code::ConfigError
        | Code::Incompatible
        | Code::SandboxFailed
        | Code::Other(_) => 1,
    }
}

fn failed(code: &Code, text: String) -> Failure {
    Failure { exit: exit(code), code: code.to_string(), text }
}

pub(super) fn run(cli: &Cli, wish: &Wish) -> Result<ExitCode, Failure> {
    let body = match wish.body.as_deref() {
        None => Vec::new(),
        Some("-") => {
            let mut body = Vec::new();
            let read = std::io::stdin().lock().take(MAX_BODY as u64 + 1).read_to_end(&mut body);
            read.map_err(|e| failed(&Code::InvalidInput, format!("reading standard input: {e}")))?;
            body
        }
        Some(text) => text.as_bytes().to_vec(),
    };
    if body.len() > MAX_BODY {
        let text = format!("a request to plugin {} has at most {MAX_BODY} bytes; send less", wish.name);
        return Err(failed(&Code::ResourceExhausted, text));
    }
    let (name, request) = (wish.name.clone(), wish.request.clone());
    let question = Question::PluginCall { name, request, body: hex(&body) };
    let value = ask_node(cli, &question)
        .map_err(|error| Failure { exit: exit(&Code::parse(&error.code)), ..error })?;
    let answer = value["body"].as_str().and_then(unhex);
    let answer = answer.ok_or_else(|| failed(&Code::Internal, "the node's answer holds no body".into()))?;
    let mut out = std::io::stdout().lock();
    // A reader that went away is no failure of the request.
    if cli.json {
        drop(out);
        print(true, &value, String::new);
    } else if wish.hex {
        let _ = writeln!(out, "{}", hex(&answer));
    } else if !out.is_terminal() {
        let _ = out.write_all(&answer).and_then(|()| out.flush());
    } else {
        let _ = match std::str::from_utf8(&answer) {
            Ok(text) => text.lines().try_for_each(|line| writeln!(out, "{}", printable(line, MAX_BODY))),
            Err(_) => writeln!(out, "{} bytes: {}", answer.len(), hex(&answer)),
        };
    }
    Ok(ExitCode::SUCCESS)
}
