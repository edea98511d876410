//! The data buffers of a load: one block for each request in flight, and the pattern by which
//! a block read is told from any other. The buffers may be shared with a device, so no Rust
//! reference to their bytes is formed, except by an engine that does not share them.

use crate::random::mix;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use vduse_framework::Buffer;
use vduse_mem::{Perm, Region};

/// Which contents a block was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Byte offset of the block on the disk.
    pub offset: u64,
    /// The how-manieth write of this block.
    pub sequence: u32,
}

impl Pattern {
    fn word(self, index: usize) -> u64 {
        // Every word tells where it belongs and which write it came from.
        mix((self.offset + 8 * index as u64) ^ (u64::from(self.sequence) << 40))
    }
}

/// Blocks of equal size.
#[derive(Debug)]
pub struct Buffers {
    base: NonNull<u8>,
    block_size: usize,
    blocks: u32,
    memory: Memory,
}

// SAFETY: the mapping belongs to no thread, and what is written and read through `&self` is
// shared with a device in any case, so by raw and volatile access only.
unsafe impl Send for Buffers {}

/// What the blocks lie in, which keeps them mapped.
#[derive(Debug)]
enum Memory {
    Own(OwnedFd, #[expect(dead_code, reason = "held")] Arc<Region>),
    Lent(#[expect(dead_code, reason = "held")] Buffer),
}

impl Buffers {
    /// Blocks in a memory file of their own, all pages in place: a load times no page faults.
    pub fn new(blocks: u32, block_size: u32) -> io::Result<Buffers> {
        let len = blocks as usize * block_size as usize;
        let fd = memfd_create("vduse-load", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, len as u64)?;
        let region = Region::map(fd.as_fd(), 0, len, Perm::Rw)?;
        let mut buffers = Buffers {
            base: NonNull::new(region.as_ptr()).ok_or(Errno::FAULT)?,
            block_size: block_size as usize,
            blocks,
            memory: Memory::Own(fd, region),
        };
        let blank = Pattern {
            offset: 0,
            sequence: 0,
        };
        (0..blocks).for_each(|block| buffers.fill(block, blank));
        Ok(buffers)
    }

    /// As many blocks as `buffer` holds, which must be 8-byte aligned: else `EINVAL`.
    pub fn lent(buffer: Buffer, block_size: u32) -> io::Result<Buffers> {
        if !buffer.as_ptr().cast::<u64>().is_aligned() {
            return Err(Errno::INVAL.into());
        }
        Ok(Buffers {
            base: buffer.as_ptr(),
            block_size: block_size as usize,
            blocks: (buffer.len() / block_size as usize) as u32,
            memory: Memory::Lent(buffer),
        })
    }

    /// The memory file behind blocks of their own: all of it is blocks.
    pub fn memory_file(&self) -> Option<RawFd> {
        match &self.memory {
            Memory::Own(fd, _) => Some(fd.as_raw_fd()),
            Memory::Lent(_) => None,
        }
    }

    /// Bytes of all blocks.
    pub fn len(&self) -> usize {
        self.blocks as usize * self.block_size
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The first byte of a block; valid for `block_size` bytes while `self` lives. Panics
    /// where there is no such block.
    pub fn block(&self, block: u32) -> NonNull<u8> {
        assert!(block < self.blocks);
        // SAFETY: the constructors counted only blocks that lie in the memory.
        unsafe { self.base.add(block as usize * self.block_size) }
    }

    /// A block's bytes.
    ///
    /// # Safety
    /// Nobody else, no device either, may use the block while the reference lives.
    pub(crate) unsafe fn as_slice_mut(&mut self, block: u32) -> &mut [u8] {
        let len = self.block_size;
        // SAFETY: `block_size` bytes are mapped there; alone with them is what the caller owes.
        unsafe { std::slice::from_raw_parts_mut(self.block(block).as_ptr(), len) }
    }

    /// Writes a pattern over a block.
    pub fn fill(&mut self, block: u32, pattern: Pattern) {
        let words = self.block(block).cast::<u64>();
        for index in 0..self.block_size / 8 {
            // SAFETY: within the block, which is 8-byte aligned and mapped read-write.
            unsafe { words.add(index).write_volatile(pattern.word(index)) };
        }
    }

    /// Where a block first differs from a pattern, in bytes from its start.
    pub fn mismatch(&self, block: u32, pattern: Pattern) -> Option<usize> {
        let words = self.block(block).cast::<u64>();
        (0..self.block_size / 8)
            // SAFETY: as in `fill`.
            .find(|&index| unsafe { words.add(index).read_volatile() } != pattern.word(index))
            .map(|index| 8 * index)
    }
}
