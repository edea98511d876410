//! Memory to test with: one memory file that both sides map, resolved like an IOTLB miss.

use crate::{Areas, DeviceQueue, DriverQueue, Layout, QueueState, RingError, Segment};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vduse_mem::{Backing, Entry, Iotlb, Iova, Perm, Pinned, Region, Resolver, View};

/// Where the memory starts, as the device sees it.
pub(crate) const BASE: u64 = 0x10_0000;

struct OneFile {
    fd: OwnedFd,
    len: u64,
}

impl Resolver for OneFile {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        let end = BASE + self.len - 1;
        if start.0 > end || last.0 < BASE {
            return Err(Errno::INVAL);
        }
        let entry = Entry {
            start: Iova(BASE),
            last: Iova(end),
            offset: 0,
            perm: Perm::Rw,
        };
        Ok((fcntl_dupfd_cloexec(&self.fd, 0)?.into(), entry))
    }
}

/// A shared memory file of the rings, the record, indirect tables and buffers of one queue.
pub(crate) struct Memory {
    pub(crate) layout: Layout,
    memory: Pinned,
    iotlb: Arc<Iotlb>,
}

/// Bytes for indirect tables at the most.
const TABLES: u64 = DriverQueue::INDIRECT_SEGMENTS as u64 * 16;

impl Memory {
    /// Zeroed memory for a queue of `layout`.
    pub(crate) fn new(layout: Layout) -> Memory {
        let [desc, driver, device] = layout.area_sizes();
        let rings = [desc, driver, device, DeviceQueue::inflight_size(&layout)];
        let len = rings
            .iter()
            .map(|bytes| bytes.next_multiple_of(4096))
            .sum::<u64>()
            + (TABLES * u64::from(layout.size)).next_multiple_of(4096)
            + 4096;
        let fd = memfd_create("ring-test", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, len).expect("memfd size");
        let region = Region::map(fd.as_fd(), 0, len as usize, Perm::Rw).expect("map");
        Memory {
            layout,
            memory: Pinned::whole(region),
            iotlb: Iotlb::new(Arc::new(OneFile { fd, len })),
        }
    }

    /// Offset and bytes of the part `index`: descriptor, driver, device area, record, tables,
    /// scratch page.
    fn place(&self, index: usize) -> (usize, usize) {
        let [desc, driver, device] = self.layout.area_sizes();
        let record = DeviceQueue::inflight_size(&self.layout);
        let tables = TABLES * u64::from(self.layout.size);
        let parts = [desc, driver, device, record, tables, 4096];
        let offset: u64 = parts[..index]
            .iter()
            .map(|part| part.next_multiple_of(4096))
            .sum();
        (offset as usize, parts[index] as usize)
    }

    /// Bytes of a part.
    pub(crate) fn length(&self, index: usize) -> usize {
        self.place(index).1
    }

    fn part(&self, index: usize) -> Pinned {
        let (offset, bytes) = self.place(index);
        self.memory.part(offset, bytes).expect("inside")
    }

    pub(crate) fn areas(&self) -> Areas {
        Areas {
            desc: self.part(0),
            driver: self.part(1),
            device: self.part(2),
        }
    }

    pub(crate) fn record(&self) -> Pinned {
        self.part(3)
    }

    /// The indirect tables, as the driver takes them.
    pub(crate) fn tables(&self) -> (Pinned, Iova) {
        (self.part(4), Iova(BASE + self.place(4).0 as u64))
    }

    /// A page for anything: indirect tables written by hand.
    pub(crate) fn scratch(&self) -> (Pinned, Iova) {
        (self.part(5), Iova(BASE + self.place(5).0 as u64))
    }

    /// IOVAs of the descriptor, driver and device areas.
    pub(crate) fn area_addresses(&self) -> [u64; 3] {
        [0, 1, 2].map(|index| BASE + self.place(index).0 as u64)
    }

    /// All bytes as they are now.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.memory.len];
        // SAFETY: `self.memory` keeps itself mapped, read-write.
        unsafe { self.memory.piece().read_into(&mut bytes) };
        bytes
    }

    /// One past the last IOVA of the memory.
    pub(crate) fn end(&self) -> u64 {
        BASE + self.memory.len as u64
    }

    pub(crate) fn view(&self) -> View {
        View::new(self.iotlb.clone())
    }

    pub(crate) fn device(&self) -> DeviceQueue {
        let state = QueueState::initial(self.layout.packed);
        DeviceQueue::new(self.layout, self.areas(), state).expect("device queue")
    }

    pub(crate) fn device_with_record(&self) -> Result<DeviceQueue, RingError> {
        let state = QueueState::initial(self.layout.packed);
        DeviceQueue::with_inflight(self.layout, self.areas(), state, self.record())
    }

    pub(crate) fn driver(&self) -> DriverQueue {
        let tables = self.layout.indirect.then(|| self.tables());
        DriverQueue::new(self.layout, self.areas(), tables).expect("driver queue")
    }

    /// Writes bytes at an offset of a part, as a hostile or legal peer might.
    pub(crate) fn poke(&self, part: usize, offset: usize, bytes: &[u8]) {
        let target = self.part(part).part(offset, bytes.len()).expect("inside");
        // SAFETY: `target` keeps the memory mapped, read-write, and is as long as `bytes`.
        unsafe { target.piece().write_from(bytes) };
    }

    /// Reads bytes at an offset of a part.
    pub(crate) fn peek<const N: usize>(&self, part: usize, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        let source = self.part(part).part(offset, N).expect("inside");
        // SAFETY: `source` keeps the memory mapped, read-write.
        unsafe { source.piece().read_into(&mut bytes) };
        bytes
    }
}

/// Parts of a [`Memory`], for `poke` and `peek`.
pub(crate) const DESC: usize = 0;
pub(crate) const DRIVER: usize = 1;
pub(crate) const DEVICE: usize = 2;
pub(crate) const RECORD: usize = 3;
pub(crate) const SCRATCH: usize = 5;

pub(crate) fn segment(iova: u64, len: u32) -> Segment {
    Segment {
        iova: Iova(iova),
        len,
    }
}

/// A small deterministic generator (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Stops this thread's stores to shared memory after a number of them: a process killed there.
#[cfg(test)]
pub(crate) mod fuse {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// Lets `stores` more stores through.
    pub(crate) fn set(stores: u64) {
        LEFT.set(stores);
    }

    /// Lets every store through again; whether the fuse had blown.
    pub(crate) fn reset() -> bool {
        LEFT.replace(u64::MAX) == 0
    }

    /// Whether the next store goes through.
    pub(crate) fn burn() -> bool {
        let left = LEFT.get();
        if left != 0 && left != u64::MAX {
            LEFT.set(left - 1);
        }
        left != 0
    }
}
