//! Memory registered with an io_uring (IORING_REGISTER_BUFFERS): its pages are pinned once, not
//! once a request. For memory of our own alone: what the framework gave us it may take back.

use io_uring::IoUring;
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use vduse_mem::Region;

/// Regions registered with one ring at a time, one a device with pages of its own.
const SLOTS: u32 = 256;

/// A registered region, until the last owner goes.
pub(super) struct Fixed {
    index: u16,
    region: Arc<Region>,
    freed: Rc<RefCell<Vec<u16>>>,
}

impl Fixed {
    /// Its place in the ring's table.
    pub(super) fn index(&self) -> u16 {
        self.index
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

fn update(ring: &IoUring, index: u16, memory: libc::iovec) -> std::io::Result<()> {
    // SAFETY: the memory is a region that the table's Fixed owns, or nothing. The kernel pins the
    // pages themselves: operations may end after it was unmapped.
    unsafe {
        ring.submitter()
            .register_buffers_update(index.into(), &[memory], None)
    }
}
