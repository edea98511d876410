//! The IOVA domain of virtio_vdpa.

use crate::{Buffer, Coherent, Direction, Dma, DmaError, Mapping};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use vduse_mem::Entry;

/// What a domain holds, in bytes, and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainStats {
    /// Bounce bytes of live mappings.
    pub bounce_in_use: u64,
    /// Bounce bytes that have memory.
    pub bounce_allocated: u64,
    /// Most that ever had.
    pub bounce_peak: u64,
    /// Given back by reclaim, in total.
    pub bounce_reclaimed: u64,
    /// Coherent bytes.
    pub coherent: u64,
    /// Streaming mappings made.
    pub maps: u64,
    /// Times a driver had to wait for room.
    pub map_waits: u64,
}

/// One anonymous file: bounce pages below `bounce_size`, coherent memory above.
pub struct Domain {}

impl Domain {
    /// A domain with `bounce_size` bytes of bounce pages: whole pages, 1 MiB to 1 GiB.
    pub fn new(_bounce_size: u64) -> io::Result<Arc<Domain>> {
        todo!()
    }

    /// Bytes of the bounce region.
    pub fn bounce_size(&self) -> u64 {
        todo!()
    }

    /// Whether the bounce entry exists: a first buffer was mapped since the last reset.
    pub fn bounce_mapped(&self) -> bool {
        todo!()
    }

    /// The IOTLB entries, ordered by address.
    pub fn entries(&self) -> Vec<Entry> {
        todo!()
    }

    /// Device reset: the bounce entry goes, coherent ones stay.
    pub fn reset_bounce_map(&self) {
        todo!()
    }

    /// `VDUSE_IOTLB_REG_UMEM`: the daemon's memory at `uaddr` of process `pid` takes the place
    /// of the bounce pages. `EEXIST`; `EINVAL` before the first map; or as process_vm_writev.
    pub fn reg_umem(&self, _pid: u32, _uaddr: u64) -> Result<(), Errno> {
        todo!()
    }

    /// `VDUSE_IOTLB_DEREG_UMEM`: back to the domain's pages. `ENOENT`.
    pub fn dereg_umem(&self) -> Result<(), Errno> {
        todo!()
    }

    /// Gives idle bounce chunks back to the system, from the top; bytes freed.
    pub fn reclaim(&self, _max_bytes: Option<u64>) -> io::Result<u64> {
        todo!()
    }

    /// What it holds and has done.
    pub fn stats(&self) -> DomainStats {
        todo!()
    }
}

impl AsFd for Domain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}

impl Dma for Domain {
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
