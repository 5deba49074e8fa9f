//! `thenodes peers` and `thenodes send`: connections of a running node, and a message by hand.

use super::show::{lines, text};
use super::{show, Cli, Failure};
use crate::admin::Question;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::process::ExitCode;
use thenodes::network::DeliveryClass;

#[derive(Debug, Subcommand)]
pub(super) enum PeersCommand {
    /// List connected peers (what happens without a word).
    List,
    /// List all addresses that the node knows.
    Known,
    /// Dial a node, and wait until it is let in.
    Connect {
        /// `host:port`.
        target: String,
    },
    /// Close the connection to a node, and let it in no more until `connect` or the next start.
    Disconnect {
        /// Its node id.
        node_id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct SendArgs {
    /// Node id of the receiver.
    node_id: String,
    /// The text.
    text: String,
    /// `reliable` waits for its acknowledgement; `ordered` also keeps the order of its key.
    #[arg(long, value_parser = class, default_value = "plain")]
    class: DeliveryClass,
    /// Stream of an ordered message.
    #[arg(long)]
    key: Option<String>,
}

fn class(word: &str) -> Result<DeliveryClass, String> {
    match word {
        "plain" | "fire_and_forget" => Ok(DeliveryClass::FireAndForget),
        "reliable" => Ok(DeliveryClass::Reliable),
        "ordered" | "ordered_reliable" => Ok(DeliveryClass::OrderedReliable),
        _ => Err("use plain, reliable or ordered".into()),
    }
}

/// Connected peers for people.
pub(crate) fn listed(value: &Value) -> String {
    let line = |peer: &Value| {
        format!(
            "{:<40} {:<24} {:<8} {:>6} s  {}",
            text(&peer["node_id"]),
            text(&peer["addr"]),
            text(&peer["direction"]),
            peer["connected_s"],
            peer["capabilities"]
                .as_array()
                .map(|words| words.iter().map(text).collect::<Vec<_>>().join(","))
                .unwrap_or_default()
        )
    };
    lines(value["peers"].as_array(), line, "No connected peers.")
}

pub(super) fn run(cli: &Cli, command: Option<&PeersCommand>) -> Result<ExitCode, Failure> {
    match command {
        None | Some(PeersCommand::List) => show(cli, &Question::Peers, listed),
        Some(PeersCommand::Known) => show(cli, &Question::PeersKnown, |value| {
            let line = |known: &Value| {
                format!(
                    "{:<24} {:<10} failures={:<4} {}",
                    text(&known["addr"]),
                    text(&known["source"]),
                    known["failures"],
                    text(&known["node_id"])
                )
            };
            lines(value["known"].as_array(), line, "no known addresses")
        }),
        Some(PeersCommand::Connect { target }) => {
            show(cli, &Question::PeerConnect { target: target.clone() }, |value| {
                format!("connected to {}", text(&value["connected"]))
            })
        }
        Some(PeersCommand::Disconnect { node_id }) => {
            show(cli, &Question::PeerDisconnect { node_id: node_id.clone() }, |value| {
                format!("disconnected from {}; held off until connected again", text(&value["disconnected"]))
            })
        }
    }
}

pub(super) fn send(cli: &Cli, args: &SendArgs) -> Result<ExitCode, Failure> {
    let question = Question::Send {
        node_id: args.node_id.clone(),
        text: args.text.clone(),
        class: args.class,
        key: args.key.clone(),
    };
    show(cli, &question, |value| format!("to {}: {}", text(&value["to"]), text(&value["outcome"])))
}
