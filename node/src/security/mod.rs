//! Who may connect: own key and certificate ([`pki`]), those of others ([`directory`]), the secure channel ([`tls`]), authorities ([`chain`]), and the verdict about a peer ([`trust`]).

pub mod bindings;
pub mod chain;
pub mod directory;
pub mod owners;
pub mod pki;
pub mod tls;
pub mod trust;
