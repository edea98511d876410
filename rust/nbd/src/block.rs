//! Memory for the data of requests.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use vduse_framework::Buffer;

/// Bytes of the smallest block; sizes are powers of two.
const SMALLEST: usize = 4096;
/// Sizes: 4 KiB to 32 MiB, the largest payload.
const CLASSES: usize = 14;
/// Bytes that are kept for the next request.
const KEPT: usize = 8 << 20;

/// Memory of one request's data.
#[derive(Debug)]
pub(crate) struct Block {
    start: NonNull<u8>,
    class: usize,
}

impl Block {
    fn new(class: usize) -> Option<Block> {
        // SAFETY: no class has the size 0.
        let start = unsafe { alloc_zeroed(Block::layout(class)?) };
        Some(Block {
            start: NonNull::new(start)?,
            class,
        })
    }

    fn layout(class: usize) -> Option<Layout> {
        Layout::from_size_align(SMALLEST << class, 16).ok()
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        SMALLEST << self.class
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are allocated and initialised, and while they are lent nobody
        // calls this ([`Block::lend`]).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len()) }
    }

    /// The first `len` bytes (at most all) for a request to the driver.
    ///
    /// # Safety
    /// Until the request has ended, or its `BlkQueue` was dropped, the block is left alone: not
    /// read, not written, not dropped.
    pub(crate) unsafe fn lend(&self, len: usize) -> Buffer {
        // SAFETY: the bytes are allocated; the caller leaves them to the request.
        unsafe { Buffer::new(self.start, len.min(self.len())) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(layout) = Block::layout(self.class) {
            // SAFETY: allocated with this layout, and not used any more.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

/// The size of a block for `len` bytes.
fn class(len: usize) -> usize {
    len.div_ceil(SMALLEST).next_power_of_two().trailing_zeros() as usize
}

/// A connection's blocks.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    free: [Vec<Block>; CLASSES],
    /// Bytes of free blocks.
    kept: usize,
    /// Bytes of blocks that were taken.
    taken: usize,
}

impl Blocks {
    /// Bytes in use at once, at most: what one client can make us hold.
    pub(crate) const MOST: usize = 64 << 20;

    /// Bytes of blocks in use.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Whether a block of `len` bytes can be taken now: one of the largest at least can, while
    /// none is in use.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.taken + (SMALLEST << class(len)) <= Blocks::MOST
    }

    /// A block of at least `len` bytes; `None` if there is no memory, or for more than the
    /// largest payload.
    pub(crate) fn take(&mut self, len: usize) -> Option<Block> {
        let class = class(len);
        let block = match self.free.get_mut(class)?.pop() {
            Some(block) => {
                self.kept -= block.len();
                block
            }
            None => Block::new(class)?,
        };
        self.taken += block.len();
        Some(block)
    }

    /// A block is not used any more.
    pub(crate) fn give(&mut self, block: Block) {
        self.taken -= block.len();
        if self.kept + block.len() <= KEPT {
            self.kept += block.len();
            self.free[block.class].push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_next_power_of_two() {
        let mut blocks = Blocks::default();
        for (asked, len) in [
            (512, 4096),
            (4096, 4096),
            (4097, 8192),
            (32 << 20, 32 << 20),
        ] {
            let block = blocks.take(asked).unwrap();
            assert_eq!((block.len(), block.bytes().len()), (len, len));
            assert_eq!(blocks.taken(), len);
            blocks.give(block);
        }
        assert!(blocks.take((32 << 20) + 1).is_none());
        assert_eq!(blocks.taken(), 0);
    }

    #[test]
    fn free_blocks_are_kept_up_to_a_bound() {
        let mut blocks = Blocks::default();
        let taken: Vec<_> = (0..20).map(|_| blocks.take(1 << 20).unwrap()).collect();
        taken.into_iter().for_each(|block| blocks.give(block));
        assert_eq!((blocks.kept, blocks.taken()), (KEPT, 0));
    }
}
