//! A driver's own memory, shared by fd: what is allocated in it needs no copy.

use crate::{Buffer, Coherent, Direction, Dma, DmaError, Mapping};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use vduse_mem::Iova;

/// One memory file, mapped by the device at `iova` and by the driver here. Buffers allocated in
/// it are reached directly; others are copied through it.
pub struct Arena {}

impl Arena {
    /// `size` bytes (whole pages), whose first byte is at `iova`.
    pub fn new(_size: u64, _iova: Iova) -> io::Result<Arc<Arena>> {
        todo!()
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// IOVA of the first byte.
    pub fn iova(&self) -> Iova {
        todo!()
    }

    /// Takes `len` bytes, page-aligned, for the program; their offset. They are not given back
    /// before the arena goes.
    pub fn alloc(&self, _len: usize) -> Result<usize, DmaError> {
        todo!()
    }

    /// The bytes at `offset` as a buffer that needs no copy; `None` out of range.
    pub fn buffer(&self, _offset: usize, _len: usize) -> Option<Buffer> {
        todo!()
    }

    /// Copies bytes out of the arena; false out of range.
    pub fn read(&self, _offset: usize, _out: &mut [u8]) -> bool {
        todo!()
    }

    /// Copies bytes into the arena; false out of range.
    pub fn write(&self, _offset: usize, _data: &[u8]) -> bool {
        todo!()
    }

    /// Changes the file's size under everybody's mapping (hostile tests).
    pub fn truncate(&self, _size: u64) -> io::Result<()> {
        todo!()
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}

impl Dma for Arena {
    fn alloc_coherent(&self, _len: u64) -> Result<Coherent, DmaError> {
        todo!()
    }

    fn free_coherent(&self, _memory: Coherent) {
        todo!()
    }

    fn map(&self, _buffer: Buffer, _direction: Direction) -> Result<Mapping, DmaError> {
        todo!()
    }

    fn unmap(&self, _mapping: Mapping, _copy: bool) -> Result<(), DmaError> {
        todo!()
    }

    fn max_mapping(&self) -> usize {
        todo!()
    }

    fn wait_room(&self, _timeout: Duration, _retry: &mut dyn FnMut() -> bool) {
        todo!()
    }
}
