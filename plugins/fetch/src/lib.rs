//! Fetches a line over TCP, without a socket: the node connects for it, where the operator lets it. `fetch example.org:7 hello`
//! at the prompt sends `hello` and shows the line that comes back; the same text in a message from a peer does it too, there
//! from a method that is not async. What the other side sends is a stranger's: one line, of at most 4 KiB, within ten seconds.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use thenodes::host::HostError;
use thenodes::net::TcpStream;
use thenodes::network::message::{Message, MessageType};
use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};

/// Longest line that is taken from the other side, bytes.
const MAX_LINE: usize = 4096;
/// How long the other side has for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The plugin.
#[derive(Default)]
pub struct Fetch {
    /// Connections that `hold` keeps.
    held: Mutex<Vec<TcpStream>>,
}

/// Splits `host:port rest`; the host of an IPv6 address is in brackets.
fn target(input: &str) -> Option<(&str, u16, &str)> {
    let (target, rest) = input.split_once(' ').unwrap_or((input, ""));
    let (host, port) = target.rsplit_once(':')?;
    Some((host, port.parse().ok()?, rest))
}

/// Sends a line and waits for one.
async fn line(ctx: &PluginContext, host: &str, port: u16, text: &str) -> Result<String, HostError> {
    let mut stream = ctx.net().connect(host, port).await?;
    stream.write_all(format!("{text}\n").as_bytes()).await?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 512]);
    while answer.len() < MAX_LINE && !answer.contains(&b'\n') {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    answer.truncate(answer.iter().position(|byte| *byte == b'\n').unwrap_or(MAX_LINE));
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The same where nothing is async.
fn line_here(ctx: &PluginContext, host: &str, port: u16, text: &str) -> std::io::Result<String> {
    let connecting = ctx.net().connect(host, port);
    let mut stream = tokio::runtime::Handle::current().block_on(connecting)?.into_blocking();
    stream.write_all(format!("{text}\n").as_bytes())?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_LINE as u64).read_until(b'\n', &mut answer)?;
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

impl Fetch {
    /// Opens connections and keeps them, to see where the node's limit is.
    async fn hold(&self, ctx: &PluginContext, host: &str, port: u16, count: usize) -> String {
        let mut refused = String::new();
        for _ in 0..count {
            match ctx.net().connect(host, port).await {
                Ok(stream) => self.held.lock().unwrap_or_else(PoisonError::into_inner).push(stream),
                Err(error) => refused = error.to_string(),
            }
        }
        format!("{} held; {refused}", self.held.lock().unwrap_or_else(PoisonError::into_inner).len())
    }
}

/// What a prompt shows: the answer, or the error in its place.
async fn shown(work: impl Future<Output = Result<String, HostError>>) -> Option<String> {
    Some(work.await.unwrap_or_else(|error| error.to_string()))
}

#[async_trait::async_trait]
impl Plugin for Fetch {
    async fn on_prompt(&self, input: &str, ctx: &PluginContext) -> Option<String> {
        let (word, rest) = input.split_once(' ').unwrap_or((input, ""));
        match (word, target(rest), target(input)) {
            ("env", _, _) => {
                shown(async { Ok(ctx.env(rest).await?.unwrap_or_else(|| "(not set)".into())) }).await
            }
            ("random", _, _) => {
                let count = rest.parse().ok()?;
                shown(async { Ok(format!("{:02x?}", ctx.random(count).await?)) }).await
            }
            ("node", _, _) => shown(async { Ok(ctx.ask_node_info().await?.node_id) }).await,
            ("hold", Some((host, port, count)), _) => {
                Some(self.hold(ctx, host, port, count.parse().ok()?).await)
            }
            ("drop", _, _) => {
                self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
                Some("dropped".into())
            }
            (_, _, Some((host, port, text))) => {
                match tokio::time::timeout(PATIENCE, shown(line(ctx, host, port, text))).await {
                    Ok(answer) => answer,
                    Err(_) => Some(format!("no line within {PATIENCE:?}")),
                }
            }
            _ => Some(
                "fetch host:port text | fetch hold host:port count | fetch drop | fetch env NAME | fetch random count | fetch node"
                    .into(),
            ),
        }
    }

    fn on_message(&self, message: &Message, ctx: &PluginContext) {
        let MessageType::Text(text) = &message.msg_type else { return };
        let Some((host, port, text)) = text.strip_prefix("fetch ").and_then(target) else { return };
        match line_here(ctx, host, port, text) {
            Ok(answer) => println!("{host}:{port} says {answer}"),
            Err(error) => eprintln!("{host}:{port}: {error}"),
        }
    }

    fn prompt_prefix(&self) -> Option<&str> {
        Some("fetch")
    }

    fn plugin_id(&self) -> &str {
        "fetch"
    }
}

/// Entry point; see `thenodes::plugin_host`.
///
/// # Safety
/// Called by the runner with a registrar that lives for the call.
#[no_mangle]
pub unsafe extern "C" fn register_plugin(api: *const PluginRegistrarApi) {
    let registered =
        PluginRegistrarApi::from_raw(api).and_then(|api| api.register_plugin(Box::new(Fetch::default())));
    if let Err(error) = registered {
        eprintln!("fetch: {error}");
    }
}
