//! Host memory shared with the other side, and how its bytes are copied.
//!
//! Copies are memcpy behind a compiler fence. Crate `vm-memory` is not used: its
//! `VolatileSlice` copies more than eight bytes with a plain memcpy too, which the optimiser
//! may forward to a later copy, reading what was checked a second time; the fence forbids
//! that.

use crate::Region;
use smallvec::SmallVec;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

/// One contiguous piece of host memory, shared with the other side: never form a Rust
/// reference to its bytes. Valid while a [`Pin`](crate::Pin) taken after the translation lives.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Bytes.
    pub len: usize,
}

// SAFETY: a Piece is an address; using it needs the caller to hold the Pin, on any thread.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

/// The pieces of one translated range, in order.
pub type Pieces = SmallVec<[Piece; 4]>;

/// Copies bytes between shared memory and memory of our own, either way round.
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[inline]
unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: the caller's promise. That the other side writes at the same time can only
    // give arbitrary bytes, each of which is a valid u8.
    unsafe { ptr::copy_nonoverlapping(source, target, len) };
    // Later reads of `target` read `target`, not the shared memory again.
    compiler_fence(SeqCst);
}

impl Piece {
    /// Copies the piece's first bytes into `buffer`, as many as both hold; returns how many.
    ///
    /// # Safety
    /// A [`Pin`](crate::Pin) of the view that made this piece is alive, and the translation
    /// was for [`Access::Read`](crate::Access::Read).
    #[inline]
    pub unsafe fn read_into(&self, buffer: &mut [u8]) -> usize {
        let len = self.len.min(buffer.len());
        // SAFETY: `len` fits both; the pin keeps the piece mapped; own memory is not shared.
        unsafe { copy(self.ptr.as_ptr(), buffer.as_mut_ptr(), len) };
        len
    }

    /// Copies `data`'s first bytes into the piece, as many as both hold; returns how many.
    ///
    /// # Safety
    /// A [`Pin`](crate::Pin) of the view that made this piece is alive, and the translation
    /// was for [`Access::Write`](crate::Access::Write).
    #[inline]
    pub unsafe fn write_from(&self, data: &[u8]) -> usize {
        let len = self.len.min(data.len());
        // SAFETY: `len` fits both; the pin keeps the piece mapped; own memory is not shared.
        unsafe { copy(data.as_ptr(), self.ptr.as_ptr(), len) };
        len
    }

    /// The part of `len` bytes at `offset`; `None` if it does not lie in the piece.
    #[inline]
    pub fn part(&self, offset: usize, len: usize) -> Option<Piece> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` is not past the end of the piece, which is one mapping.
        let ptr = unsafe { self.ptr.add(offset) };
        Some(Piece { ptr, len })
    }
}

/// A contiguous piece together with what keeps it mapped: ring areas, in-flight records.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Bytes.
    pub len: usize,
    /// The mapping it lies in. The methods check that it does.
    pub region: Arc<Region>,
}

// SAFETY: as for Piece; the Arc keeps the memory mapped.
unsafe impl Send for Pinned {}
// SAFETY: as above; the methods only copy addresses.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// All of a region.
    pub fn whole(region: Arc<Region>) -> Pinned {
        let ptr = NonNull::new(region.as_ptr()).expect("a mapping is never at address 0");
        Pinned {
            ptr,
            len: region.len(),
            region,
        }
    }

    /// The same memory as a piece; valid while this (or a clone) lives.
    #[inline]
    pub fn piece(&self) -> Piece {
        Piece {
            ptr: self.ptr,
            len: self.len,
        }
    }

    /// The part of `len` bytes at `offset`; `None` if it does not lie inside.
    pub fn part(&self, offset: usize, len: usize) -> Option<Pinned> {
        let before = self
            .ptr
            .addr()
            .get()
            .checked_sub(self.region.as_ptr().addr())?;
        let end = before.checked_add(offset)?.checked_add(len)?;
        if end > self.region.len() {
            return None;
        }
        let Piece { ptr, len } = self.piece().part(offset, len)?;
        Some(Pinned {
            ptr,
            len,
            region: self.region.clone(),
        })
    }
}
