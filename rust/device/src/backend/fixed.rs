//! Memory registered with an io_uring (IORING_REGISTER_BUFFERS): its pages are pinned once, not
//! once a request. For memory of our own alone: what the framework gave us it may take back.

use super::file::Direction;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use vduse_mem::Region;

/// Regions registered with one ring at a time, one a device with pages of its own.
const SLOTS: u32 = 256;

/// A registered region, until the last owner goes.
pub(super) struct Fixed {
    index: u16,
    /// The kernel takes several pieces at once (Linux 6.15).
    takes_vectors: bool,
    region: Arc<Region>,
    freed: Rc<RefCell<Vec<u16>>>,
}

impl Fixed {
    /// A read or write of registered memory; `None` where it has more pieces than the kernel takes.
    pub(super) fn entry(
        &self,
        fd: types::Fd,
        direction: Direction,
        iovecs: &[libc::iovec],
        offset: u64,
    ) -> Option<squeue::Entry> {
        if let [one] = iovecs {
            let (base, len) = (one.iov_base, u32::try_from(one.iov_len).ok()?);
            return Some(match direction {
                Direction::Read => opcode::ReadFixed::new(fd, base.cast(), len, self.index)
                    .offset(offset)
                    .build(),
                Direction::Write => opcode::WriteFixed::new(fd, base.cast(), len, self.index)
                    .offset(offset)
                    .build(),
            });
        }
        let (base, len) = (iovecs.as_ptr(), iovecs.len() as u32); // UIO_MAXIOV at most
        self.takes_vectors.then(|| match direction {
            Direction::Read => opcode::ReadvFixed::new(fd, base, len, self.index)
                .offset(offset)
                .build(),
            Direction::Write => opcode::WritevFixed::new(fd, base, len, self.index)
                .offset(offset)
                .build(),
        })
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        self.freed.borrow_mut().push(self.index);
    }
}

/// The table of one ring.
#[derive(Default)]
pub(super) struct FixedTable {
    /// Empty until the first registration.
    slots: Vec<Weak<Fixed>>,
    takes_vectors: bool,
    /// Without owners, and registered still.
    freed: Rc<RefCell<Vec<u16>>>,
}

impl FixedTable {
    /// The region's place in the table of `ring`, registered if need be; `None` where the kernel
    /// refuses that (RLIMIT_MEMLOCK, before Linux 5.19) or there is no place left.
    pub(super) fn register(&mut self, ring: &IoUring, region: &Arc<Region>) -> Option<Rc<Fixed>> {
        self.tidy(ring);
        let known = self.slots.iter().filter_map(Weak::upgrade);
        for fixed in known {
            if Arc::ptr_eq(&fixed.region, region) {
                return Some(fixed);
            }
        }
        if self.slots.is_empty() {
            ring.submitter().register_buffers_sparse(SLOTS).ok()?;
            self.slots.resize_with(SLOTS as usize, Weak::new);
            self.takes_vectors = takes_vectors(ring);
        }
        let place = self.slots.iter().position(|it| it.strong_count() == 0)?;
        let index = place as u16; // below SLOTS
        let memory = libc::iovec {
            iov_base: region.as_ptr().cast(),
            iov_len: region.len(),
        };
        update(ring, index, memory).ok()?;
        let fixed = Rc::new(Fixed {
            index,
            takes_vectors: self.takes_vectors,
            region: region.clone(),
            freed: self.freed.clone(),
        });
        self.slots[place] = Rc::downgrade(&fixed);
        Some(fixed)
    }

    /// Unpins what has no owner any more.
    pub(super) fn tidy(&mut self, ring: &IoUring) {
        for index in self.freed.borrow_mut().drain(..) {
            let nothing = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            // What cannot be unpinned now is when its place is taken, or with the ring.
            let _ = update(ring, index, nothing);
        }
    }
}

fn takes_vectors(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    let both = [opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE];
    let is_known = ring.submitter().register_probe(&mut probe).is_ok();
    is_known && both.iter().all(|&code| probe.is_supported(code))
}

fn update(ring: &IoUring, index: u16, memory: libc::iovec) -> std::io::Result<()> {
    // SAFETY: the memory is a region that the table's Fixed owns, or nothing. The kernel pins the
    // pages themselves: operations may end after it was unmapped.
    unsafe {
        ring.submitter()
            .register_buffers_update(index.into(), &[memory], None)
    }
}
