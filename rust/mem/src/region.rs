//! A mapped piece of memory, shared with the other side: of a file, or our own.

use crate::sigbus::Guard;
use crate::{Perm, Piece};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// The largest huge pages of x86-64.
const LARGEST_PAGE: usize = 1 << 30;

/// A shared mapping of part of a file, or of memory of our own; unmapped when its last reference
/// goes.
#[derive(Debug)]
pub struct Region {
    /// First byte asked for.
    ptr: NonNull<u8>,
    /// Bytes asked for.
    len: usize,
    /// Bytes mapped before `ptr`, down to the page's start.
    lead: usize,
    /// Bytes mapped, whole pages.
    whole: usize,
    /// Dropped by hand, before the memory is unmapped. `None`: our own, which nobody can take away.
    guard: ManuallyDrop<Option<Guard>>,
}

// SAFETY: a Region is an address range; its methods do not touch the memory, and unmapping
// may be done by any thread.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes at `offset` (in bytes, any alignment) of `fd`, shared, with the
    /// protection `perm` asks for, and puts the region under the SIGBUS handler's guard.
    ///
    /// # Errors
    /// `EINVAL` for no bytes or more than an object may have, otherwise mmap's; `ENOMEM`
    /// also when the process has more regions than the guard's table holds.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, len: usize, perm: Perm) -> io::Result<Arc<Region>> {
        let page = page_size(fd)?;
        let lead = (offset % page as u64) as usize;
        let whole = len
            .checked_add(lead)
            .and_then(|bytes| bytes.checked_next_multiple_of(page))
            .filter(|&whole| len > 0 && whole <= isize::MAX as usize)
            .ok_or(Errno::INVAL)?;
        let protection = match perm {
            Perm::Ro => ProtFlags::READ,
            Perm::Wo => ProtFlags::WRITE,
            Perm::Rw => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                whole,
                protection,
                // Huge pages are reserved by whose file it is, or not at all: one that is
                // missing then is missing like any other.
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                offset - lead as u64,
            )
        }?;
        let guard = match Guard::new(base as usize, whole) {
            Ok(guard) => ManuallyDrop::new(Some(guard)),
            Err(error) => {
                // SAFETY: the mapping made above, which nobody has seen.
                unsafe { munmap(base, whole) }?;
                return Err(error);
            }
        };
        // SAFETY: `lead` lies in the mapping of `whole` bytes at `base`.
        let ptr = unsafe { base.cast::<u8>().add(lead) };
        let ptr = NonNull::new(ptr).expect("mmap never maps address 0 unasked");
        Ok(Arc::new(Region {
            ptr,
            len,
            lead,
            whole,
            guard,
        }))
    }

    /// Maps `len` bytes of new memory, zeroes, which nobody else has until they are told of it. A
    /// forked child shares it: whoever pins its pages keeps those that this process sees.
    ///
    /// # Errors
    /// `EINVAL` unless `len` is whole pages and not 0; otherwise mmap's.
    pub fn own(len: usize) -> io::Result<Arc<Region>> {
        let page = rustix::param::page_size();
        if len == 0 || !len.is_multiple_of(page) || len > isize::MAX as usize {
            return Err(Errno::INVAL.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, flags) }?;
        let ptr = NonNull::new(base.cast()).expect("mmap never maps address 0 unasked");
        Ok(Arc::new(Region {
            ptr,
            len,
            lead: 0,
            whole: len,
            guard: ManuallyDrop::new(None),
        }))
    }

    /// Whether it is memory of our own ([`Region::own`]): it may be used however late, since what
    /// it holds is the other side's no longer than we say.
    #[inline]
    pub fn is_own(&self) -> bool {
        self.guard.is_none()
    }

    /// Whether all of `piece` lies in it.
    #[inline]
    pub fn contains(&self, piece: &Piece) -> bool {
        let before = piece.ptr.addr().get().checked_sub(self.ptr.addr().get());
        before.is_some_and(|before| before <= self.len && piece.len <= self.len - before)
    }

    /// The first byte.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes mapped.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a page of this region was found missing (SIGBUS): what it holds is no longer
    /// shared with the other side, and every request that touched it must fail.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_poisoned)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: dropped once, here. First the guard, so that the handler can never map
        // pages over an address range that belongs to somebody else by then.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        // SAFETY: exactly the range `map` mapped. Nobody has it any more: every piece's
        // holder keeps this region alive. Failing (ENOMEM by splitting) is impossible for a
        // whole mapping, and there is nobody to tell.
        let _ = unsafe { munmap(self.ptr.as_ptr().sub(self.lead).cast(), self.whole) };
    }
}

/// Bytes that only go together: pages, or the huge pages that a file is made of, which are its
/// block size. (Some disk file systems name larger blocks: then more is mapped, and no harm.)
/// Asked without a sync: the other side may serve the file's attributes, and let us wait.
fn page_size(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let block = statx(fd, c"", how, StatxFlags::empty())?.stx_blksize as usize;
    let page = rustix::param::page_size();
    let huge = block.is_power_of_two() && (page..=LARGEST_PAGE).contains(&block);
    Ok(if huge { block } else { page })
}
