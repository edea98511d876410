//! A mapped piece of a file, shared with the other side.

use crate::Perm;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A shared mapping of part of a file, unmapped when its last reference goes.
#[derive(Debug)]
pub struct Region {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: skeleton, to be replaced.
unsafe impl Send for Region {}
// SAFETY: skeleton, to be replaced.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes at `offset` of `fd`, shared, with the protection `perm` asks for,
    /// and puts the region under the SIGBUS handler's guard.
    pub fn map(
        _fd: BorrowedFd<'_>,
        _offset: u64,
        _len: usize,
        _perm: Perm,
    ) -> io::Result<Arc<Region>> {
        todo!()
    }

    /// The first byte.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Bytes mapped.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a page of this region was found missing (SIGBUS): what it holds is no longer
    /// shared with the other side, and every request that touched it must fail.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        todo!()
    }
}
