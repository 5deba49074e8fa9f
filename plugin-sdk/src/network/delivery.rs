//! How a message is to be delivered, and what became of it: the words of upstream 0.4, for plugins of any age.

pub use super::message::DeliveryClass;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a sender asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryOptions {
    /// Guarantee.
    pub class: DeliveryClass,
    /// Stream within which order is kept; only with [`DeliveryClass::OrderedReliable`], and needed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering_key: Option<String>,
    /// Patience, milliseconds; at most 25 000. The node's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Repetitions; at most 100. The node's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<u32>,
}

impl DeliveryOptions {
    /// Options with the node's own patience.
    pub fn new(class: DeliveryClass) -> Self {
        Self { class, ordering_key: None, timeout_ms: None, retry_budget: None }
    }

    /// In this stream.
    pub fn with_ordering_key(mut self, key: impl Into<String>) -> Self {
        self.ordering_key = Some(key.into());
        self
    }

    /// With this patience.
    pub fn with_timeout(mut self, patience: Duration) -> Self {
        self.timeout_ms = Some(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// With so many repetitions.
    pub fn with_retry_budget(mut self, retries: u32) -> Self {
        self.retry_budget = Some(retries);
        self
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeliveryOutcome {
    /// The node has it. (Upstream's word; this node always says more.)
    LocalAccepted,
    /// It is on its way; nobody will say that it arrived.
    ForwardedToTransport,
    /// The node it was for says that it was taken there.
    AcknowledgedByPeer,
    /// It did not arrive, as far as this node knows.
    DeliveryFailed {
        /// Why.
        reason: DeliveryFailureReason,
    },
    /// Nobody said within the patience that it arrived.
    Expired,
    /// The way to that node cannot carry it.
    UnsupportedOnPath,
}

impl DeliveryOutcome {
    /// True if the message is known to have arrived, or if that was not asked.
    pub fn is_success(self) -> bool {
        matches!(
            self,
            DeliveryOutcome::LocalAccepted
                | DeliveryOutcome::ForwardedToTransport
                | DeliveryOutcome::AcknowledgedByPeer
        )
    }
}

/// Why a message did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeliveryFailureReason {
    /// No connection to that node and no relay.
    NoRoute,
    /// Not allowed, or too many messages wait already.
    PolicyDenied,
    /// It was sent as often as allowed.
    RetryBudgetExhausted,
    /// The way was lost.
    PathLostDuringDelivery,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_outcomes_survive_the_link() {
        let options = DeliveryOptions::new(DeliveryClass::OrderedReliable)
            .with_ordering_key("k")
            .with_timeout(Duration::from_secs(3))
            .with_retry_budget(2);
        let packed = thenodes_ipc::pack::encode(&options).expect("packs");
        assert_eq!(thenodes_ipc::pack::decode::<DeliveryOptions>(&packed), Ok(options));
        let failed = DeliveryOutcome::DeliveryFailed { reason: DeliveryFailureReason::NoRoute };
        for outcome in [failed, DeliveryOutcome::AcknowledgedByPeer, DeliveryOutcome::Expired] {
            let packed = thenodes_ipc::pack::encode(&outcome).expect("packs");
            assert_eq!(thenodes_ipc::pack::decode(&packed), Ok(outcome));
            assert_eq!(outcome.is_success(), outcome == DeliveryOutcome::AcknowledgedByPeer);
        }
    }
}
