//! From descriptors to a [`Chain`]: the rules both formats share, and indirect tables.

use super::{Chain, Malformed, RingError};
use crate::Segment;
use crate::layout::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc, Layout};
use vduse_mem::{Access, Iova, Pieces, View};

/// The longest buffer, in bytes (virtio 1.3, section 2.7.5.2; packed rings are held to it too).
const MAX_BYTES: u64 = 1 << 32;

/// Descriptors of the longest chain, where the queue is not longer itself. The queue's size is
/// what the specification allows (section 2.7.5.3.1), but Linux sizes indirect tables by virtio-blk's
/// SEG_MAX alone, and a VMM may have made the queue shorter than its device knows; QEMU's and
/// Linux' own devices take as many as this.
pub(crate) const MAX_SEGMENTS: u16 = 1024;

/// Checks and collects the descriptors of one chain after the other.
pub(crate) struct Collector {
    most: u16,
    indirect: bool,
    packed: bool,
    segments: u16,
    bytes: u64,
    pieces: Pieces,
    table: Vec<[u8; 16]>,
}

impl Collector {
    /// For the chains of a queue of `layout`.
    pub(crate) fn new(layout: &Layout) -> Collector {
        Collector {
            most: layout.size.max(MAX_SEGMENTS),
            indirect: layout.indirect,
            packed: layout.packed,
            segments: 0,
            bytes: 0,
            pieces: Pieces::new(),
            table: Vec::new(),
        }
    }

    /// Starts a new chain in `chain`.
    #[inline]
    pub(crate) fn start(&mut self, chain: &mut Chain) {
        chain.readable.clear();
        chain.writable.clear();
        self.segments = 0;
        self.bytes = 0;
    }

    /// Adds a descriptor's buffer to the chain.
    #[inline]
    pub(crate) fn push(&mut self, chain: &mut Chain, desc: Desc) -> Result<(), Malformed> {
        if self.segments == self.most {
            return Err(Malformed::TooLong);
        }
        if desc.len == 0 {
            return Err(Malformed::ZeroLength(desc.index));
        }
        self.segments += 1;
        self.bytes += u64::from(desc.len);
        if self.bytes > MAX_BYTES {
            return Err(Malformed::TooManyBytes);
        }
        let segment = Segment {
            iova: Iova(desc.addr),
            len: desc.len,
        };
        if desc.flags & DESC_F_WRITE != 0 {
            chain.writable.push(segment);
        } else if chain.writable.is_empty() {
            chain.readable.push(segment);
        } else {
            return Err(Malformed::Order);
        }
        Ok(())
    }

    /// Adds all buffers of the indirect table that `desc` refers to. Split tables are linked
    /// by `next`; packed ones are taken in order, and of their flags only WRITE has a meaning
    /// (section 2.8.7), but INDIRECT is refused as the driver must not set it (2.8.19).
    pub(crate) fn push_table(
        &mut self,
        view: &mut View,
        chain: &mut Chain,
        desc: Desc,
    ) -> Result<(), RingError> {
        if !self.indirect || desc.flags & DESC_F_NEXT != 0 {
            return Err(Malformed::Indirect.into());
        }
        let entries = desc.len / 16;
        if entries == 0 || !desc.len.is_multiple_of(16) || entries > u32::from(self.most) {
            return Err(Malformed::IndirectSize(desc.len).into());
        }
        self.copy_table(view, desc.addr, desc.len)?;
        let mut index = 0;
        for _ in 0..entries {
            let entry = self.entry(index);
            if entry.flags & DESC_F_INDIRECT != 0 {
                return Err(Malformed::Indirect.into());
            }
            self.push(chain, entry)?;
            if self.packed {
                index += 1;
            } else if entry.flags & DESC_F_NEXT == 0 {
                return Ok(());
            } else if u32::from(entry.tag) < entries {
                index = entry.tag;
            } else {
                return Err(Malformed::Index(entry.tag).into());
            }
        }
        if self.packed {
            Ok(())
        } else {
            Err(Malformed::TooLong.into())
        }
    }

    /// Copies the table to private memory, so that each byte of it is read once.
    #[inline]
    fn copy_table(&mut self, view: &mut View, addr: u64, len: u32) -> Result<(), RingError> {
        self.pieces.clear();
        view.translate(Iova(addr), len, Access::Read, &mut self.pieces)?;
        let _pin = view.pin();
        self.table.resize(len as usize / 16, [0; 16]);
        let mut rest = self.table.as_flattened_mut();
        for piece in &self.pieces {
            // SAFETY: `_pin` is alive, and the pieces were translated for reading.
            let copied = unsafe { piece.read_into(rest) };
            rest = &mut rest[copied..];
        }
        Ok(())
    }

    /// An entry of the private copy of the table.
    #[inline]
    fn entry(&self, index: u16) -> Desc {
        let raw = u128::from_le_bytes(self.table[usize::from(index)]);
        let (third, fourth) = ((raw >> 96) as u16, (raw >> 112) as u16);
        let (flags, tag) = if self.packed {
            (fourth, third)
        } else {
            (third, fourth)
        };
        Desc {
            addr: raw as u64,
            len: (raw >> 64) as u32,
            flags,
            tag,
            index,
        }
    }
}
