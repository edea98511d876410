//! A connection's bytes on their way, plain or under TLS, for both sides of NBD. Nothing waits.

mod socket;
mod tls;

pub use socket::{Moved, Socket};
pub use tls::{Client, Failure, Server, Tls};
