//! What the device writes into a ring, marked in the dirty log of a migration.

use crate::Layout;
use std::sync::Arc;
use vduse_mem::{DirtyLog, Iova};

/// The log of one virtqueue's ring, and where its areas count as being.
#[derive(Clone, Debug)]
pub struct RingLog {
    /// Where writes are marked.
    pub log: Arc<DirtyLog>,
    /// Address of the descriptor area (a packed ring's descriptors are written back).
    pub desc: Iova,
    /// Address at which writes to the device area count.
    pub device: Iova,
}

impl RingLog {
    /// Marks all that the device may write.
    pub(super) fn mark_all(&self, layout: &Layout) {
        let [desc, _, device] = layout.area_sizes();
        self.mark_device(0, device as usize);
        if layout.packed {
            self.mark_desc(0, desc as usize);
        }
    }

    /// Marks `bytes` bytes at `offset` of the device area.
    #[cold]
    pub(super) fn mark_device(&self, offset: usize, bytes: usize) {
        self.mark(self.device, offset, bytes);
    }

    /// The same of the descriptor area.
    #[cold]
    pub(super) fn mark_desc(&self, offset: usize, bytes: usize) {
        self.mark(self.desc, offset, bytes);
    }

    fn mark(&self, area: Iova, offset: usize, bytes: usize) {
        // An address that wraps is marked at the end, where no log has a bit: it is found out.
        let at = Iova(area.0.saturating_add(offset as u64));
        self.log.mark(at, bytes as u64);
    }
}

/// The entries from `first` on, `count` of them, of a ring of `size` (`count` is not above it), as
/// runs of (first entry, entries).
pub(super) fn runs(first: u16, count: u16, size: u16) -> [(usize, usize); 2] {
    let before_end = count.min(size - first);
    [
        (first.into(), before_end.into()),
        (0, (count - before_end).into()),
    ]
}
