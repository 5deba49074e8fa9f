//! Carries messages by every way the network has, and keeps a book of those that came. At its prompt:
//!
//! | line | what it does |
//! |------|--------------|
//! | `send NODE TEXT` | fire and forget |
//! | `reliable NODE TEXT` | acknowledged, repeated until then |
//! | `ordered NODE KEY TEXT` | acknowledged, in the order of this key |
//! | `bind RELAY_ADDR TARGET [QOS]` | asks a relay for a route that keeps messages while the target is away |
//! | `forward RELAY_ADDR TARGET TEXT` | sends a text through that relay |
//! | `json NODE JSON`, `bytes NODE TEXT` | fire and forget, as EXTENSION `courier.note` with this JSON, or the bytes of this text |
//! | `got` | the messages that came, one a line: sender, the relay if there was one, text |

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use thenodes::network::message::{Message, MessageType, Payload};
use thenodes::network::relay::{RelayBindBuilder, RelayForwardBuilder};
use thenodes::network::{DeliveryClass, DeliveryOptions};
use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};

/// Messages that the book holds; the oldest leave first.
const BOOK: usize = 10_000;

/// The kind of notes that are no text.
const NOTE: &str = "courier.note";

/// The plugin.
#[derive(Default)]
pub struct Courier {
    book: Mutex<Vec<String>>,
}

impl Courier {
    fn note(&self, line: String) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if book.len() >= BOOK {
            book.remove(0);
        }
        book.push(line);
    }

    async fn deliver(ctx: &PluginContext, to: &str, text: &str, options: DeliveryOptions) -> String {
        let text = MessageType::Text(text.into());
        let message = Message::new(ctx.node_id(), to, text, None, ctx.realm().cloned());
        match ctx.send_message(to, message, options).await {
            Ok(outcome) => format!("{outcome:?}"),
            Err(error) => error.to_string(),
        }
    }

    async fn command(&self, input: &str, ctx: &PluginContext) -> Result<String, String> {
        let words: Vec<&str> = input.splitn(4, ' ').collect();
        let addr = |text: &str| text.parse::<SocketAddr>().map_err(|e| format!("{text}: {e}"));
        let realm = ctx.realm().cloned();
        match words[..] {
            ["got"] => {
                let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(book.join("\n"))
            }
            ["send", to, ..] => {
                let options = DeliveryOptions::new(DeliveryClass::FireAndForget);
                Ok(Self::deliver(ctx, to, after(input, 2), options).await)
            }
            [form @ ("json" | "bytes"), to, ..] => {
                let text = after(input, 2);
                let payload = match form {
                    "json" => Payload::Json(text.parse().map_err(|e| format!("{text}: {e}"))?),
                    _ => Payload::Binary(text.as_bytes().to_vec()),
                };
                let kind = MessageType::Extension { kind: NOTE.into() };
                let message = Message::new(ctx.node_id(), to, kind, Some(payload), realm);
                let options = DeliveryOptions::new(DeliveryClass::FireAndForget);
                let sent = ctx.send_message(to, message, options).await;
                Ok(sent.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}")))
            }
            ["reliable", to, ..] => {
                let options = DeliveryOptions::new(DeliveryClass::Reliable);
                Ok(Self::deliver(ctx, to, after(input, 2), options).await)
            }
            ["ordered", to, key, text] => {
                let options = DeliveryOptions::new(DeliveryClass::OrderedReliable).with_ordering_key(key);
                Ok(Self::deliver(ctx, to, text, options).await)
            }
            ["bind", relay, target, ..] => {
                let qos = words.get(3).copied().unwrap_or("reliable");
                let bind = RelayBindBuilder::new(ctx.node_id(), target).store_forward(true).qos(qos).ttl(3600);
                bind.try_send(ctx.peer_manager(), &addr(relay)?, realm).await.map(|()| "asked".into())
            }
            ["forward", relay, target, text] => {
                let frame = RelayForwardBuilder::new(ctx.node_id(), target).payload_text(text);
                frame.try_send(ctx.peer_manager(), &addr(relay)?, realm).await.map(|()| "sent".into())
            }
            _ => Err("send NODE TEXT | json NODE JSON | bytes NODE TEXT | reliable NODE TEXT | ordered NODE KEY TEXT | bind RELAY_ADDR TARGET [QOS] | forward RELAY_ADDR TARGET TEXT | got".into()),
        }
    }
}

/// What stands behind so many words.
fn after(line: &str, words: usize) -> &str {
    line.splitn(words + 1, ' ').nth(words).unwrap_or("")
}

#[async_trait::async_trait]
impl Plugin for Courier {
    fn on_message(&self, message: &Message, _ctx: &PluginContext) {
        let text = match (&message.msg_type, &message.payload) {
            (MessageType::Text(text), _) => text.clone(),
            (MessageType::Extension { kind }, Some(Payload::Json(value))) if kind == NOTE => {
                format!("(json) {value}")
            }
            (MessageType::Extension { kind }, Some(Payload::Binary(bytes))) if kind == NOTE => {
                format!("(bytes) {bytes:?}")
            }
            (MessageType::RelayForward { .. }, Some(Payload::Text(text))) => format!("(frame) {text}"),
            (MessageType::RelayBindAck { ok, reason, .. }, _) => format!("(bound) {ok} {reason:?}"),
            (MessageType::RelayNotify { notif_type, detail, .. }, _) => {
                format!("(notice) {notif_type:?} {}", detail.as_deref().unwrap_or(""))
            }
            _ => return,
        };
        let via = message.via.as_ref().map_or_else(String::new, |via| format!(" via {via}"));
        self.note(format!("{}{via}: {text}", message.from));
    }

    async fn on_prompt(&self, input: &str, ctx: &PluginContext) -> Option<String> {
        Some(self.command(input, ctx).await.unwrap_or_else(|why| format!("failed: {why}")))
    }

    fn prompt_prefix(&self) -> Option<&str> {
        Some("courier")
    }

    fn plugin_id(&self) -> &str {
        "courier"
    }
}

/// Entry point; see `thenodes::plugin_host`.
///
/// # Safety
/// Called by the runner with a registrar that lives for the call.
#[no_mangle]
pub unsafe extern "C" fn register_plugin(api: *const PluginRegistrarApi) {
    let registered =
        PluginRegistrarApi::from_raw(api).and_then(|api| api.register_plugin(Box::new(Courier::default())));
    if let Err(error) = registered {
        eprintln!("courier: {error}");
    }
}
