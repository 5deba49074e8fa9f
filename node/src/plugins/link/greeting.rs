//! The start-up exchange of one runner, read step by step. The runner is our own program until it opens the library, but it
//! counts as hostile here already: the order of steps, their sizes and their deadlines are checked.

use super::{Counters, Ended, Link};
use crate::plugins::lifecycle::Cause;
use crate::plugins::rate::LinkRates;
use interprocess::os::unix::uds_local_socket::tokio::Stream;
use std::sync::Arc;
use thenodes::host::Host;
use thenodes_ipc::launch::{Confinement, Refusal, Registration, RunnerHello, Versions};
use thenodes_ipc::ring::Region;
use thenodes_ipc::{limits, pack, Frame, FrameDecoder, Generation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{timeout_at, Instant};

/// The start-up exchange of one runner.
pub struct Greeting {
    stream: Stream,
    ring: Option<Region>,
    decoder: FrameDecoder,
    deadline: Instant,
    step: &'static str,
    takes_many: bool,
}

impl Greeting {
    /// Begins with the runner's `hello`; walls must stand within [`limits::CONFINE_DEADLINE`].
    pub fn new(stream: Stream, ring: Option<Region>) -> Self {
        let deadline = Instant::now() + limits::CONFINE_DEADLINE;
        Self {
            stream,
            ring,
            decoder: FrameDecoder::new(limits::MAX_FRAME),
            deadline,
            step: "putting up the walls",
            takes_many: false,
        }
    }

    /// Reads the runner's versions and its report about the walls.
    pub async fn confined(&mut self) -> Result<Confinement, Ended> {
        let hello: RunnerHello = self.expect("hello").await?;
        if hello.versions.common(Versions::OURS).is_none() {
            return Err(Ended::Because(Cause::Violation(format!(
                "no link protocol version in common: the runner speaks {} to {}, this node {}; install runner and node of one release",
                hello.versions.min,
                hello.versions.max,
                Versions::OURS.max,
            ))));
        }
        self.decoder.set_cap(hello.max_frame as usize);
        self.expect("confined").await
    }

    /// Lets the runner open the library, and reads what the plugin says about itself.
    pub async fn registered(&mut self) -> Result<Registration, Ended> {
        self.deadline = Instant::now() + limits::REGISTER_DEADLINE;
        self.step = "constructors and register_plugin";
        let mut out = Vec::new();
        Frame::Launch { step: "proceed", body: &[] }
            .encode(&mut out, limits::MAX_FRAME)
            .map_err(|e| Ended::Because(Cause::Violation(e.to_string())))?;
        let written = timeout_at(self.deadline, (&self.stream).write_all(&out)).await;
        match written {
            Ok(Ok(())) => {
                let registration: Registration = self.expect("registered").await?;
                self.takes_many = registration.messages;
                Ok(registration)
            }
            Ok(Err(_)) => Err(Ended::Closed),
            Err(_) => Err(Ended::Because(Cause::Deadline(self.step))),
        }
    }

    async fn expect<T: serde::de::DeserializeOwned>(&mut self, wanted: &str) -> Result<T, Ended> {
        // Errors quote what they did not understand, which may be a megabyte.
        let violation = |what: String| Ended::Because(Cause::Violation(crate::text::printable(&what, 500)));
        loop {
            match self.decoder.next().map_err(|e| violation(e.to_string()))? {
                Some(Frame::Launch { step, body }) if step == wanted => {
                    return pack::decode(body).map_err(|e| violation(format!("{wanted}: {e}")));
                }
                Some(Frame::Launch { step: "refused", body }) => {
                    let refusal: Refusal =
                        pack::decode(body).map_err(|e| violation(format!("refused: {e}")))?;
                    let reason = crate::text::printable(&refusal.reason, 2000);
                    return Err(Ended::Because(Cause::Refused(refusal.step, reason)));
                }
                Some(Frame::Ignored) => continue,
                Some(_) => return Err(violation(format!("another frame where {wanted} was due"))),
                None => {}
            }
            let buffer = self.decoder.room(super::READ);
            match timeout_at(self.deadline, (&self.stream).read_buf(buffer)).await {
                Ok(Ok(0) | Err(_)) => return Err(Ended::Closed),
                Ok(Ok(_)) => {}
                Err(_) => return Err(Ended::Because(Cause::Deadline(self.step))),
            }
        }
    }

    /// Goes on with calls, read no faster than these rates.
    pub fn run(
        self,
        generation: Generation,
        host: Arc<dyn Host>,
        counters: Arc<Counters>,
        rates: LinkRates,
    ) -> Link {
        let Self { stream, decoder, ring, takes_many, .. } = self;
        Link::start(stream, decoder, ring, generation, host, counters, rates, takes_many)
    }
}
