//! No bytes at all: every operation succeeds at once. As QEMU's null-co with `read-zeroes=off`
//! (its default) a read leaves the memory as the driver handed it over: the driver gets back what
//! lay there, its own earlier data where that is a bounce page.

use super::{Backend, Engine, Error, Info, Kind, Local, Op, Submitted, Token};
use crate::Length;

/// A disk that keeps nothing.
pub struct Null {
    size: Length,
}

impl Null {
    /// Of `size` bytes, a multiple of 512.
    pub fn new(size: u64) -> Result<Null, Error> {
        Ok(Null {
            size: super::disk_size(size)?,
        })
    }
}

impl Backend for Null {
    fn info(&self) -> Info {
        Info {
            size: self.size,
            block_size: 512,
            read_only: false,
            can_discard: true,
            kind: Kind::Direct,
        }
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(NullEngine))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct NullEngine;

impl Engine for NullEngine {
    fn submit(&mut self, _token: Token, _op: Op) -> Submitted {
        Submitted::Done(Ok(()))
    }
}
