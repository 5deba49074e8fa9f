//! The names most plugins need, as upstream's prelude has them (the `Plugin` trait is left out there too).

pub use crate::config::{Config, ConfigDefaults};
pub use crate::network::message::{Message, MessageType, Payload};
pub use crate::realms::RealmInfo;
