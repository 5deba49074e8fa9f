//! Events as lines for people, in upstream's form, on standard output. Text from peers and plugins is made printable.

use crate::text::printable;
use std::io::Write;
use thenodes::constants::ICON_PLACEHOLDER as INDENT;
use thenodes::events::model::LogEvent;
use thenodes::events::LogSink;

/// Longest detail on a line, bytes.
const DETAIL: usize = 1000;

/// Prints events.
#[derive(Debug, Default)]
pub struct Console;

impl Console {
    /// The line of an event.
    pub fn line(event: &LogEvent) -> String {
        let word = |text: &Option<String>| match text {
            Some(text) => format!("Some({:?})", printable(text, DETAIL)),
            None => "None".into(),
        };
        let safe = |text: &str| printable(text, DETAIL);
        // What a plugin says about itself, or about another, is its word and not the node's.
        let component = &event.meta().component;
        let by =
            if component.starts_with("plugin.") { format!("({}) ", safe(component)) } else { String::new() };
        let lead = format!("{INDENT}{by}");
        match event {
            LogEvent::Network(e) => {
                format!(
                    "{lead}NET action={} addr={} detail={} corr={}",
                    safe(&e.action),
                    word(&e.addr),
                    word(&e.detail),
                    word(&e.meta.corr_id)
                )
            }
            LogEvent::TrustDecision(e) => format!(
                "{lead}TRUST role={} decision={} reason={} mode={} fp={} addr={} todo={} time={}",
                e.role,
                e.decision,
                e.reason,
                e.mode,
                word(&e.fingerprint),
                word(&e.peer_addr),
                word(&e.override_action),
                word(&e.time_reason)
            ),
            LogEvent::Promotion(e) => {
                format!(
                    "{lead}PROMOTE fp={} from={} to={} success={}",
                    safe(&e.fingerprint),
                    safe(&e.from_store),
                    safe(&e.to_store),
                    e.success
                )
            }
            LogEvent::Plugin(e) => {
                format!(
                    "{lead}PLUGIN name={} action={} detail={}",
                    safe(&e.plugin),
                    safe(&e.action),
                    word(&e.detail)
                )
            }
            LogEvent::System(e) => {
                format!("{lead}SYS action={} detail={}", safe(&e.action), word(&e.detail))
            }
        }
    }
}

#[async_trait::async_trait]
impl LogSink for Console {
    async fn handle(&self, event: &LogEvent) {
        if !event.meta().suppress_console {
            // A closed standard output must not end a node.
            let _ = writeln!(std::io::stdout().lock(), "{}", Console::line(event));
        }
    }
}
