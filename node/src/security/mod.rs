//! Who may connect: own key and certificate ([`pki`]), the secure channel ([`tls`]), and the verdict about a peer ([`trust`]).

pub mod bindings;
pub mod pki;
pub mod tls;
pub mod trust;
