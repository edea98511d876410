//! What this crate's tests share: guest memory behind a resolver, and random numbers.

use crate::backend::{Backend, Piece as Part, StatusRequest};
use crate::{Buffer, Extent};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vduse_channel::IrqSink;
use vduse_mem::{Backing, Entry, Iotlb, Iova, Perm, Piece, Pinned, Region, Resolver, View};
use vduse_ring::Segment;

/// IOVA of the guest's first byte.
pub(crate) const BASE: u64 = 0x10_0000;

/// A guest's memory: a memory file, mapped by both sides. Only its first `mapped` bytes are
/// in the IOTLB.
pub(crate) struct Guest {
    fd: OwnedFd,
    memory: Pinned,
    mapped: AtomicU64,
    /// Where in the memory file the IOTLB's first byte is.
    moved: AtomicU64,
    pub(crate) irqs: AtomicU64,
}

impl Guest {
    pub(crate) fn new(len: u64) -> Arc<Guest> {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        let region = Region::map(fd.as_fd(), 0, len as usize, Perm::Rw).unwrap();
        Arc::new(Guest {
            fd,
            memory: Pinned::whole(region),
            mapped: AtomicU64::new(len),
            moved: AtomicU64::new(0),
            irqs: AtomicU64::new(0),
        })
    }

    pub(crate) fn view(self: &Arc<Guest>) -> View {
        View::new(Iotlb::new(self.clone()))
    }

    /// From now on the IOTLB has only the first `len` bytes.
    pub(crate) fn map_only(&self, len: u64) {
        self.mapped.store(len, Ordering::Relaxed);
    }

    /// From now on the IOTLB has the first `len` bytes, at `offset` of the memory.
    pub(crate) fn map_moved(&self, len: u64, offset: u64) {
        self.map_only(len);
        self.moved.store(offset, Ordering::Relaxed);
    }

    /// Takes the memory away from under every mapping but the first `len` bytes.
    pub(crate) fn truncate(&self, len: u64) {
        ftruncate(&self.fd, len).unwrap();
    }

    pub(crate) fn part(&self, offset: u64, len: u64) -> Pinned {
        self.memory.part(offset as usize, len as usize).unwrap()
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let piece = self.part(offset, bytes.len() as u64).piece();
        // SAFETY: the guest keeps its memory mapped.
        unsafe { piece.write_from(bytes) };
    }

    pub(crate) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        // SAFETY: as above.
        unsafe { self.part(offset, len).piece().read_into(&mut bytes) };
        bytes
    }

    /// The bytes at `offset`, as a descriptor names them.
    pub(crate) fn segment(offset: u64, len: u32) -> Segment {
        Segment {
            iova: Iova(BASE + offset),
            len,
        }
    }
}

impl Resolver for Guest {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        let mapped = self.mapped.load(Ordering::Relaxed);
        if mapped == 0 || start.0 >= BASE + mapped || last.0 < BASE {
            return Err(Errno::INVAL);
        }
        let entry = Entry {
            start: Iova(BASE),
            last: Iova(BASE + mapped - 1),
            offset: self.moved.load(Ordering::Relaxed),
            perm: Perm::Rw,
        };
        Ok((fcntl_dupfd_cloexec(&self.fd, 0)?.into(), entry))
    }
}

impl IrqSink for Guest {
    fn inject_irq(&self, _index: u32) -> Result<(), Errno> {
        self.irqs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A buffer of private memory, cut at `cuts` (ascending).
///
/// # Safety
/// `memory` outlives the buffer and everything that works on it.
pub(crate) unsafe fn buffer(memory: &mut [u8], cuts: &[usize]) -> Buffer {
    let mut pieces = vduse_mem::Pieces::new();
    let mut rest = memory;
    let mut before = 0;
    for &cut in cuts {
        let (piece, after) = rest.split_at_mut(cut - before);
        pieces.push(as_piece(piece));
        rest = after;
        before = cut;
    }
    pieces.push(as_piece(rest));
    pieces.retain(|piece| piece.len > 0);
    // SAFETY: the caller's promise.
    unsafe { Buffer::borrowed(pieces) }
}

fn as_piece(bytes: &mut [u8]) -> Piece {
    Piece {
        ptr: std::ptr::NonNull::from(&mut *bytes).cast(),
        len: bytes.len(),
    }
}

/// xorshift64*: the same sequence in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % limit
    }

    /// Ascending cuts of `len` bytes, at multiples of `unit`.
    pub(crate) fn cuts(&mut self, len: usize, unit: usize, most: u64) -> Vec<usize> {
        let count = self.below(most + 1);
        let mut cuts: Vec<usize> = (0..count)
            .map(|_| self.below(len as u64 + 1) as usize / unit * unit)
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }
}

/// Worker threads with the device side's task on each.
pub(crate) struct TestPool {
    threads: vduse_worker::Pool,
    queues: crate::Pool,
}

impl TestPool {
    pub(crate) fn new(workers: usize) -> TestPool {
        let threads = vduse_worker::Pool::new(Some(workers)).unwrap();
        TestPool {
            queues: crate::Pool::new(&threads.handle()),
            threads,
        }
    }

    pub(crate) fn close(&self) {
        self.threads.close();
    }
}

impl std::ops::Deref for TestPool {
    type Target = crate::Pool;

    fn deref(&self) -> &crate::Pool {
        &self.queues
    }
}

/// What a backend answers, whenever it does.
pub(crate) fn status_of(
    backend: &dyn Backend,
    extent: Extent,
    most: usize,
) -> Result<Vec<Part>, Errno> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let tell = move |answer| sender.send(answer).unwrap();
    backend.block_status(StatusRequest::new(extent, most, tell));
    receiver.recv().unwrap()
}
