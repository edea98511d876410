//! Coherent memory: rings and request headers, each an IOTLB entry of its own, with real pages.

use super::range::Ranges;
use super::streaming::GRANULE;
use crate::DmaError;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Allocations by their first byte, which is both IOVA and offset in the domain's file.
#[derive(Debug)]
pub(super) struct CoherentSpace(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    ranges: Ranges,
    /// Bytes by first byte.
    live: BTreeMap<u64, u64>,
}

impl CoherentSpace {
    /// The addresses `[start, end)`, whole pages.
    pub(super) fn new(start: u64, end: u64) -> CoherentSpace {
        CoherentSpace(Mutex::new(Inner {
            ranges: Ranges::new(page(start), page(end)),
            live: BTreeMap::new(),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `len` bytes, rounded up to pages, and gives them zeroed memory in `file`: first
    /// byte and length.
    pub(super) fn alloc(&self, file: BorrowedFd<'_>, len: u64) -> Result<(u64, u64), DmaError> {
        let pages = u32::try_from(len.div_ceil(GRANULE as u64))
            .ok()
            .filter(|&pages| pages > 0)
            .ok_or(DmaError::Length(len as usize))?;
        let mut inner = self.inner();
        let first = inner
            .ranges
            .take(pages)
            .ok_or(DmaError::Memory(Errno::NOMEM))?;
        let (start, len) = (bytes(first), bytes(pages));
        if let Err(errno) = fallocate(file, FallocateFlags::empty(), start, len) {
            inner.ranges.give(first, pages);
            return Err(DmaError::Memory(errno));
        }
        inner.live.insert(start, len);
        Ok((start, len))
    }

    /// Gives an allocation back, and its memory to the system.
    pub(super) fn free(&self, file: BorrowedFd<'_>, start: u64) {
        let mut inner = self.inner();
        let Some(len) = inner.live.remove(&start) else {
            return;
        };
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Where the hole cannot be punched the addresses stay taken: the next owner must find
        // zeroes.
        if fallocate(file, punch, start, len).is_ok() {
            inner.ranges.give(page(start), page(len));
        }
    }

    /// Allocations, ordered by address: first byte and bytes.
    pub(super) fn live(&self) -> Vec<(u64, u64)> {
        self.inner()
            .live
            .iter()
            .map(|(&start, &len)| (start, len))
            .collect()
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.inner().live.values().sum()
    }
}

/// Addresses of a domain are below 2 GiB: their page numbers fit 32 bits.
fn page(bytes: u64) -> u32 {
    (bytes / GRANULE as u64) as u32
}

fn bytes(pages: u32) -> u64 {
    u64::from(pages) * GRANULE as u64
}
