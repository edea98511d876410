//! Backend `nbd`: the client's side of NBD's transmission phase (NBD protocol document). Sockets
//! come from elsewhere, past the handshake ([`Control`]); a connection that is lost asks for another.
//!
//! A connection is a task on a worker ([`link`]). Engines leave requests in its letter box, with
//! memory of their own; one system call sends many, one takes many replies. The server is not
//! trusted: what it sends is held against what was asked, and a mistake ends its connection.

mod backend;
mod engine;
mod facts;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod idle;
mod link;
mod outstanding;
mod post;
mod question;
mod replies;
mod request;
mod shared;
mod stale;
mod state;
mod stream;
#[cfg(test)]
mod tests;

pub use backend::{Control, Nbd};
pub use facts::Facts;
pub use shared::{OnError, Options};
