//! Memory shared with the other side, as this crate touches it: little-endian atomics at
//! checked offsets, never a Rust reference.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use vduse_mem::Pinned;

/// One area: a piece of shared memory of a known length and alignment.
pub(crate) struct Shared {
    at: Pinned,
}

macro_rules! accessors {
    ($load:ident, $store:ident, $int:ty, $atomic:ty) => {
        /// One load of the little-endian integer at `offset` bytes.
        #[inline]
        pub(crate) fn $load(&self, offset: usize, order: Ordering) -> $int {
            let at = self.address(offset, size_of::<$int>()).cast();
            // SAFETY: `address` checked that the integer lies inside the area and is aligned;
            // `self.at` keeps it mapped; shared bytes are only ever accessed atomically here.
            <$int>::from_le(unsafe { <$atomic>::from_ptr(at) }.load(order))
        }

        /// One store of the little-endian integer at `offset` bytes.
        #[inline]
        pub(crate) fn $store(&self, offset: usize, value: $int, order: Ordering) {
            #[cfg(test)]
            if !crate::testing::fuse::burn() {
                return;
            }
            let at = self.address(offset, size_of::<$int>()).cast();
            // SAFETY: as for the load.
            unsafe { <$atomic>::from_ptr(at) }.store(value.to_le(), order);
        }
    };
}

impl Shared {
    /// The area, if it holds `bytes` and starts at a multiple of `align` (a power of two).
    pub(crate) fn new(at: Pinned, bytes: u64, align: usize) -> Option<Shared> {
        let at = at.part(0, usize::try_from(bytes).ok()?)?;
        (at.ptr.addr().get() % align == 0).then_some(Shared { at })
    }

    /// Whether the memory was taken away (SIGBUS).
    pub(crate) fn is_poisoned(&self) -> bool {
        self.at.region.is_poisoned()
    }

    /// The address of `bytes` bytes at `offset`, naturally aligned. The checks never fail
    /// (offsets come from masked indices); they make every access above sound by itself.
    #[inline]
    fn address(&self, offset: usize, bytes: usize) -> *mut u8 {
        let at = self.at.ptr.as_ptr().wrapping_add(offset);
        let inside = offset <= self.at.len && bytes <= self.at.len - offset;
        assert!(inside && at.addr().is_multiple_of(bytes));
        at
    }

    accessors!(load8, store8, u8, AtomicU8);
    accessors!(load16, store16, u16, AtomicU16);
    accessors!(load32, store32, u32, AtomicU32);
    accessors!(load64, store64, u64, AtomicU64);
}
