//! A disk in this process's memory, sparse: a page takes space once it is written and gives
//! it back when it is discarded.

mod written;

use super::{Backend, Engine, Error, Info, Kind, Local, Op, StatusRequest, Submitted, Token};
use crate::{Extent, Length, Offset};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ptr::NonNull;
use std::sync::Arc;
use written::Written;

/// A disk that lives as long as its process.
pub struct Memory {
    store: Arc<Store>,
}

impl Memory {
    /// Of `size` bytes, a multiple of 512, all zero.
    pub fn new(size: u64) -> Result<Memory, Error> {
        let size = super::disk_size(size)?;
        Ok(Memory {
            store: Arc::new(Store::new(size)?),
        })
    }
}

impl Backend for Memory {
    fn info(&self) -> Info {
        Info {
            size: Length(self.store.len as u64),
            block_size: 512,
            read_only: false,
            can_discard: true,
            kind: Kind::Direct,
        }
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(MemoryEngine(self.store.clone())))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn block_status(&self, request: StatusRequest) {
        let pieces = self.store.written.pieces(request.extent());
        request.answer(Ok(pieces));
    }
}

/// Everything is done during `submit`.
struct MemoryEngine(Arc<Store>);

impl Engine for MemoryEngine {
    fn submit(&mut self, _token: Token, op: Op) -> Submitted {
        Submitted::Done(self.0.run(&op))
    }
}

struct Store {
    base: NonNull<u8>,
    len: usize,
    page: usize,
    written: Written,
}

// SAFETY: the mapping belongs to the store alone and is only touched by raw copies. Guests may
// race on overlapping requests; they get a mix of their own bytes, as from any disk.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    fn new(size: Length) -> Result<Store, Error> {
        let len = usize::try_from(size.0).map_err(|_| Errno::NOMEM)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        Ok(Store {
            base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?,
            len,
            page: rustix::param::page_size(),
            written: Written::new(size.0),
        })
    }

    fn run(&self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Flush => Ok(()),
            Op::Read { extent, buffer } => {
                let mut at = self.at(*extent)?;
                for piece in buffer.pieces() {
                    // SAFETY: `at` has as many bytes left in the mapping as the buffer has
                    // (checked), the buffer keeps its piece mapped, and guest memory is never
                    // this private mapping.
                    unsafe {
                        at.copy_to_nonoverlapping(piece.ptr, piece.len);
                        at = at.add(piece.len);
                    }
                }
                Ok(())
            }
            Op::Write { extent, buffer } => {
                let mut at = self.at(*extent)?;
                for piece in buffer.pieces() {
                    // SAFETY: as for reads.
                    unsafe {
                        at.copy_from_nonoverlapping(piece.ptr, piece.len);
                        at = at.add(piece.len);
                    }
                }
                self.written.set(*extent);
                Ok(())
            }
            Op::Discard { extent } | Op::WriteZeroes { extent, .. } => self.zero(*extent),
        }
    }

    /// Where the range begins; ENOSPC unless all of it is inside.
    fn at(&self, extent: Extent) -> Result<NonNull<u8>, Errno> {
        if !extent.within(Length(self.len as u64)) {
            return Err(Errno::NOSPC);
        }
        // SAFETY: within the mapping, or one past its end for an empty range.
        Ok(unsafe { self.base.add(extent.offset().0 as usize) })
    }

    /// Whole pages are given back, the rest is overwritten.
    fn zero(&self, extent: Extent) -> Result<(), Errno> {
        let first = self.at(extent)?;
        let len = extent.len().0 as usize;
        let head = first.as_ptr().align_offset(self.page).min(len);
        let pages = (len - head) / self.page * self.page;
        let tail = len - head - pages;
        let whole = Offset(extent.offset().0 + head as u64);
        let whole = Extent::new(whole, Length(pages as u64)).ok_or(Errno::NOSPC)?;
        self.written.clear(whole);
        // SAFETY: head + pages + tail = len bytes from `first`, all inside the mapping;
        // `first + head` is page-aligned whenever `pages` is not 0.
        unsafe {
            first.write_bytes(0, head);
            if pages > 0 {
                let start = first.add(head).as_ptr().cast();
                if let Err(errno) = madvise(start, pages, Advice::LinuxDontNeed) {
                    self.written.set(whole);
                    return Err(errno);
                }
            }
            first.add(head + pages).write_bytes(0, tail);
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing refers to it once the last owner is gone.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
