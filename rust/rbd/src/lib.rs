//! Backend `rbd`: a RADOS block device image of a Ceph cluster, by librbd.
//!
//! librados and librbd are loaded when the first image is opened. librbd is asynchronous: a
//! request costs no thread here, and its answer comes on a thread of librbd's, from where it goes to
//! the worker that asked. All calls into the libraries, and all unsafe code, are in `library` (the
//! declarations) and `session` (a safe face: handles that close themselves, operations that own
//! their memory until they end).
//!
//! A cluster that stalls stalls calls of librbd that are not asynchronous: opening, looking at the size,
//! closing. Those run on a thread of their own, made for the call and awaited for a bounded time
//! (`patience`); no worker makes one. What lies where is asked on a thread, too, one for all questions,
//! which only closing awaits (`allocation`).

mod allocation;
mod backend;
mod connecting;
mod engine;
mod gather;
mod library;
mod locking;
mod options;
mod patience;
mod session;
mod status;

pub use backend::Rbd;
pub use library::Library;
pub use options::{Key, Lock, Options};
