//! The contract between a node and the runner processes it does not trust.
//!
//! One page of rules, read by both sides and by whoever writes a runner in another language
//! (`docs/protocol.md` says the same in prose):
//!
//! 1. The link is a Unix stream socket made by the node and inherited by the runner. Nobody connects to anything.
//! 2. Everything on it is a [`frame`]: a length checked before anything is allocated, a small MessagePack header,
//!    and a raw body which only its final reader decodes.
//! 3. First the [`launch`] exchange (`hello`, `hello`, `confined`, `proceed`, `registered`, `start`), then calls both ways.
//! 4. Ids carry the generation of the process ([`id`]), so that nothing from a dead process can answer for a living one.
//! 5. [`abi`] is the other border: the C table between the runner and the library it opened.
//! 6. [`ring`] is a shorter way beside the socket: bytes through memory that both processes see. The socket stays the truth.
//!
//! No sockets are opened here and no runtime is chosen: bytes in, values out. Whatever a runner sends is hostile input.

pub mod abi;
pub mod code;
pub mod frame;
mod header;
pub mod id;
pub mod janitor;
pub mod launch;
pub mod limits;
pub mod pack;
pub mod report;
pub mod ring;

pub use code::Code;
pub use frame::{Frame, FrameDecoder, FrameError};
pub use id::{CallId, Generation, PluginName};
