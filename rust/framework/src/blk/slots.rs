//! Headers, ranges and status bytes of requests in flight: coherent memory, one slot a request,
//! allocated with the queue, never bounced.

use super::request::{ID_BYTES, Kind};
use crate::{Coherent, Dma, DmaError};
use std::ptr::NonNull;
use vduse_mem::Iova;
use vduse_ring::Segment;

/// Bytes of a slot, a cache line: header at 0 (16), discard or write-zeroes range at 16 (16),
/// status at 32 (1), serial at 36 (20).
const SLOT: usize = 64;
const RANGE: usize = 16;
const STATUS: usize = 32;
const ID: usize = 36;

/// No status (virtio 1.3, section 5.2.6 knows 0, 1 and 2): what stays where the device wrote none.
const UNWRITTEN: u8 = 0xff;

/// The slots of one queue.
#[derive(Debug)]
pub(super) struct Slots {
    memory: Coherent,
    free: Vec<u32>,
}

impl Slots {
    /// As many slots.
    pub(super) fn new(dma: &dyn Dma, slots: u16) -> Result<Slots, DmaError> {
        Ok(Slots {
            memory: dma.alloc_coherent(u64::from(slots) * SLOT as u64)?,
            free: (0..u32::from(slots)).rev().collect(),
        })
    }

    /// Whether the memory was taken away (SIGBUS).
    pub(super) fn is_poisoned(&self) -> bool {
        self.memory.memory.region.is_poisoned()
    }

    /// The coherent memory, for giving it back.
    pub(super) fn memory(&self) -> Coherent {
        self.memory.clone()
    }

    /// A slot for a request: its number.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// The request has ended.
    pub(super) fn give(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// Fills in header and, where the type has one, range; `bytes` is the range's length.
    pub(super) fn fill(&self, slot: u32, kind: Kind, sector: u64, bytes: u64) {
        let range = matches!(kind, Kind::Discard | Kind::WriteZeroes { .. });
        let header_sector = if range { 0 } else { sector };
        let mut frame = [0; STATUS];
        frame[..4].copy_from_slice(&kind.code().to_le_bytes());
        frame[8..16].copy_from_slice(&header_sector.to_le_bytes());
        if range {
            let unmap = matches!(kind, Kind::WriteZeroes { unmap: true });
            // Limits hold a range to 2^32 - 1 sectors.
            let count = (bytes / super::Sectors::SIZE) as u32;
            frame[16..24].copy_from_slice(&sector.to_le_bytes());
            frame[24..28].copy_from_slice(&count.to_le_bytes());
            frame[28..32].copy_from_slice(&u32::from(unmap).to_le_bytes());
        }
        let at = self.at(slot, 0);
        // SAFETY: the slot's first 32 bytes lie in the coherent memory; the device gets to know
        // of them when the ring publishes, which orders these plain writes before it.
        unsafe {
            at.cast::<[u8; STATUS]>().write_unaligned(frame);
            at.add(STATUS).write_volatile(UNWRITTEN);
        }
    }

    /// The status byte, read once.
    pub(super) fn status(&self, slot: u32) -> u8 {
        // SAFETY: inside the slot; the device may write it at any time, hence volatile.
        unsafe { self.at(slot, STATUS).read_volatile() }
    }

    /// The serial that the device wrote.
    pub(super) fn id(&self, slot: u32) -> [u8; ID_BYTES] {
        // SAFETY: inside the slot; volatile as for the status.
        unsafe { self.at(slot, ID).cast::<[u8; ID_BYTES]>().read_volatile() }
    }

    /// The header as the device sees it.
    pub(super) fn header_segment(&self, slot: u32) -> Segment {
        self.segment(slot, 0, 16)
    }

    /// The range of a discard or write-zeroes.
    pub(super) fn range_segment(&self, slot: u32) -> Segment {
        self.segment(slot, RANGE, 16)
    }

    /// The serial.
    pub(super) fn id_segment(&self, slot: u32) -> Segment {
        self.segment(slot, ID, ID_BYTES as u32)
    }

    /// The status byte.
    pub(super) fn status_segment(&self, slot: u32) -> Segment {
        self.segment(slot, STATUS, 1)
    }

    fn segment(&self, slot: u32, offset: usize, len: u32) -> Segment {
        let at = slot as usize * SLOT + offset;
        Segment {
            iova: Iova(self.memory.iova.0 + at as u64),
            len,
        }
    }

    /// Host address; `slot` came from [`Slots::take`], so it lies in the memory.
    fn at(&self, slot: u32, offset: usize) -> *mut u8 {
        let base: NonNull<u8> = self.memory.memory.ptr;
        base.as_ptr().wrapping_add(slot as usize * SLOT + offset)
    }
}
