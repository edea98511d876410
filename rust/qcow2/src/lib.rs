//! The qcow2 backend: QEMU's copy-on-write images, versions 2 and 3, by crate imago.
//!
//! An image's way: [`chain`] opens its files and refuses by name what is not supported ([`header`]);
//! a task on a worker ([`task`]) runs imago's futures ([`executor`], [`image`]), and these read and
//! write through the engines of the file backend on the same worker ([`storage`], [`files`]).
//! What is mapped already does not go there: each virtqueue has a [`shortcut`].

mod backend;
mod chain;
mod door;
mod executor;
mod files;
mod fresh;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod glance;
pub mod header;
mod image;
mod order;
mod shortcut;
mod start;
mod status;
mod storage;
mod task;

pub use backend::Qcow2;
pub use chain::{Beneath, Options};
