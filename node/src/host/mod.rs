//! The hall where the two wings meet: messages of peers go to the plugins that want them ([`inbound`]), requests of plugins
//! become messages to peers, events and lookups ([`api`]).

pub mod api;
pub mod inbound;
pub mod scopes;
