//! Host memory shared with the other side, and the only ways to touch it.
//!
//! Bulk copies are memcpy behind a compiler fence. Crate `vm-memory` is not used: its
//! `VolatileSlice` copies more than eight bytes with a plain memcpy too, which the optimiser
//! may forward to a later copy, reading what was checked a second time; the fence forbids
//! that. Single words are relaxed atomics: read exactly once, never torn.

use crate::Region;
use smallvec::SmallVec;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU16, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    compiler_fence,
};

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

    /// Copies the whole piece to `target`.
    ///
    /// # Safety
    /// As [`Piece::read_into`]; `target` is valid for writes of `len` bytes outside the piece.
    #[inline]
    pub unsafe fn read_to(&self, target: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { copy(self.ptr.as_ptr(), target, self.len) }
    }

    /// Fills the whole piece from `source`.
    ///
    /// # Safety
    /// As [`Piece::write_from`]; `source` is valid for reads of `len` bytes outside the piece.
    #[inline]
    pub unsafe fn write_at(&self, source: *const u8) {
        // SAFETY: the caller's promise.
        unsafe { copy(source, self.ptr.as_ptr(), self.len) }
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

    /// `count` words from `offset` (bytes) on; `None` if they do not lie inside or are not
    /// aligned to their size. The one check of a ring's set-up.
    pub fn words<W: Word>(&self, offset: usize, count: usize) -> Option<Words<W>> {
        let part = self.part(offset, count.checked_mul(size_of::<W>())?)?;
        let first = part.ptr.cast::<W>();
        first.is_aligned().then_some(Words {
            first,
            count,
            _region: part.region,
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A word that memory loads and stores as a whole: u16, u32, u64, in native byte order
/// (little-endian, as virtio 1.3 has it).
pub trait Word: Copy + sealed::Sealed {
    /// Loads, relaxed or acquiring.
    ///
    /// # Safety
    /// `at` is aligned and valid for reads.
    #[doc(hidden)]
    unsafe fn load(at: *mut Self, acquire: bool) -> Self;
    /// Stores, relaxed or releasing.
    ///
    /// # Safety
    /// `at` is aligned and valid for writes.
    #[doc(hidden)]
    unsafe fn store(at: *mut Self, value: Self, release: bool);
}

macro_rules! word {
    ($word:ty, $atomic:ty) => {
        impl sealed::Sealed for $word {}
        impl Word for $word {
            #[inline(always)]
            unsafe fn load(at: *mut Self, acquire: bool) -> Self {
                let order = if acquire { Acquire } else { Relaxed };
                // SAFETY: the caller's promise; shared memory is only touched atomically
                // or by copies into private memory.
                unsafe { <$atomic>::from_ptr(at) }.load(order)
            }
            #[inline(always)]
            unsafe fn store(at: *mut Self, value: Self, release: bool) {
                let order = if release { Release } else { Relaxed };
                // SAFETY: as above.
                unsafe { <$atomic>::from_ptr(at) }.store(value, order)
            }
        }
    };
}

word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);

/// An array of words in shared memory. Loads and stores never tear and happen once; the
/// index is checked, since it is the one thing that may be wrong after set-up.
///
/// Loading needs memory that was translated for [`Access::Read`](crate::Access::Read),
/// storing for [`Access::Write`](crate::Access::Write): the wrong one faults.
#[derive(Clone, Debug)]
pub struct Words<W> {
    first: NonNull<W>,
    count: usize,
    _region: Arc<Region>,
}

// SAFETY: an address kept mapped by the Arc; the words are only touched atomically.
unsafe impl<W: Word> Send for Words<W> {}
// SAFETY: as above.
unsafe impl<W: Word> Sync for Words<W> {}

impl<W: Word> Words<W> {
    /// Words.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.count
    }

    /// # Panics
    /// If there is no word `index`: callers check or mask what the other side says.
    #[inline(always)]
    fn at(&self, index: usize) -> *mut W {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: within the `count` words that set-up found inside the region.
        unsafe { self.first.add(index) }.as_ptr()
    }

    /// Word `index`, relaxed.
    #[inline(always)]
    pub fn load(&self, index: usize) -> W {
        // SAFETY: `at` is checked, aligned since set-up, mapped by the Arc.
        unsafe { W::load(self.at(index), false) }
    }

    /// Word `index`; what its writer stored before it is visible after.
    #[inline(always)]
    pub fn load_acquire(&self, index: usize) -> W {
        // SAFETY: as above.
        unsafe { W::load(self.at(index), true) }
    }

    /// Sets word `index`, relaxed.
    #[inline(always)]
    pub fn store(&self, index: usize, value: W) {
        // SAFETY: as above.
        unsafe { W::store(self.at(index), value, false) }
    }

    /// Sets word `index`; what was stored before it is visible to who acquires it.
    #[inline(always)]
    pub fn store_release(&self, index: usize, value: W) {
        // SAFETY: as above.
        unsafe { W::store(self.at(index), value, true) }
    }
}
