//! Messages, peers and relays as a plugin sees them.

pub mod delivery;
pub mod message;
pub mod peer_manager;
pub mod peer_store;
pub mod relay;

pub use delivery::{DeliveryFailureReason, DeliveryOptions, DeliveryOutcome};
pub use message::{DeliveryClass, DeliveryMetadata, Message, MessageType, Payload, Reason};
pub use peer_manager::PeerManager;
pub use peer_store::{PeerSource, PeerStore};
