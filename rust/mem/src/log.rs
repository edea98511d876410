//! The dirty log of a live migration: which pages of the guest's memory the device has written
//! (vhost-user specification, "Migration"). Bit N of byte N / 8 is page N of 4 KiB of guest
//! physical addresses, which are this crate's IOVAs.

use crate::{Iova, Perm, Region};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8,
    Ordering::{Relaxed, SeqCst},
};

/// Bytes of memory a bit (VHOST_LOG_PAGE).
const PAGE: u64 = 4096;
/// Most bytes: a bit for each page of 52-bit physical addresses, which no machine exceeds.
const MAX_BYTES: u64 = 1 << 37;

/// Where writes are marked. The other side reads and clears it at any time, and may take its
/// memory away.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Arc<Region>,
    /// By virtqueue: where writes to its device area are marked, if they are.
    used: BTreeMap<u32, Iova>,
    /// A write lay beyond the last bit.
    has_missed: AtomicBool,
}

impl DirtyLog {
    /// Maps the `size` bytes at `offset` of a shared memory file. `used`: by virtqueue, the
    /// address at which writes to its device area count; others' are not marked.
    ///
    /// # Errors
    /// `EINVAL`: no bytes, more than a log can need, or past the file's end; otherwise mmap's.
    pub fn map(
        file: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        used: BTreeMap<u32, Iova>,
    ) -> io::Result<DirtyLog> {
        let there = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        let end = offset.checked_add(size).ok_or(Errno::INVAL)?;
        if size == 0 || size > MAX_BYTES || end > there {
            return Err(Errno::INVAL.into());
        }
        Ok(DirtyLog {
            bits: Region::map(file, offset, size as usize, Perm::Rw)?,
            used,
            has_missed: AtomicBool::new(false),
        })
    }

    /// Where writes to the device area of a virtqueue are marked; `None`: they are not.
    pub fn used(&self, queue: u32) -> Option<Iova> {
        self.used.get(&queue).copied()
    }

    /// Marks the pages of `len` bytes at `iova` as written: after they were, and before the
    /// driver hears of it.
    pub fn mark(&self, iova: Iova, len: u64) {
        if len == 0 {
            return;
        }
        let last = iova.0.saturating_add(len - 1) / PAGE;
        let end = self.bits.len() as u64 * 8;
        if last >= end {
            self.has_missed.store(true, Relaxed);
        }
        let (mut page, last) = (iova.0 / PAGE, last.min(end - 1));
        while page <= last {
            let upto = last.min(page | 7);
            let mask = (0xff_u8 << (page % 8)) & (0xff_u8 >> (7 - upto % 8));
            self.byte(page / 8).fetch_or(mask, SeqCst);
            page = upto + 1;
        }
    }

    /// Whether a write could not be marked, because the log has no bit for it: whoever reads the
    /// log would miss it, so the device must stop.
    #[inline]
    pub fn has_missed(&self) -> bool {
        self.has_missed.load(Relaxed)
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.bits
    }

    /// A byte of the log, `index` below its length.
    fn byte(&self, index: u64) -> &AtomicU8 {
        let index = index as usize;
        assert!(index < self.bits.len());
        // SAFETY: the byte lies in the region, which `self` keeps mapped; shared memory is only
        // ever accessed atomically here.
        unsafe { AtomicU8::from_ptr(self.bits.as_ptr().add(index)) }
    }
}
