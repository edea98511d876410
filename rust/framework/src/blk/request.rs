//! What a program asks of the disk.

use super::Sectors;
use crate::Buffer;

/// One request of a program, of any length.
#[derive(Debug)]
pub enum Request {
    /// `VIRTIO_BLK_T_IN`; the buffer holds whole sectors.
    Read {
        /// First sector.
        sector: Sectors,
        /// Where the data goes.
        buffer: Buffer,
    },
    /// `VIRTIO_BLK_T_OUT`; the buffer holds whole sectors.
    Write {
        /// First sector.
        sector: Sectors,
        /// The data.
        buffer: Buffer,
    },
    /// `VIRTIO_BLK_T_FLUSH`; nothing to do where the device has no volatile cache.
    Flush,
    /// `VIRTIO_BLK_T_DISCARD`.
    Discard {
        /// First sector.
        sector: Sectors,
        /// How many.
        count: Sectors,
    },
    /// `VIRTIO_BLK_T_WRITE_ZEROES`.
    WriteZeroes {
        /// First sector.
        sector: Sectors,
        /// How many.
        count: Sectors,
        /// The device may deallocate them.
        unmap: bool,
    },
    /// `VIRTIO_BLK_T_GET_ID`: the serial, into at least 20 bytes.
    GetId {
        /// Where it goes, NUL-padded.
        buffer: Buffer,
    },
}

/// A request's type, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes { unmap: bool },
    GetId,
}

impl Kind {
    /// `type` of the request header (virtio 1.3, section 5.2.6).
    pub(super) fn code(self) -> u32 {
        match self {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Flush => 4,
            Kind::GetId => 8,
            Kind::Discard => 11,
            Kind::WriteZeroes { .. } => 13,
        }
    }
}

/// Bytes of a serial (`VIRTIO_BLK_ID_BYTES`).
pub(super) const ID_BYTES: usize = 20;

impl Request {
    /// Whether it is a discard or write-zeroes.
    pub(super) fn is_ranged(&self) -> bool {
        matches!(self, Request::Discard { .. } | Request::WriteZeroes { .. })
    }

    /// Type, first sector, bytes to move or to work on, buffer. `None` where bytes are no whole
    /// sectors or beyond 2^64.
    pub(super) fn into_parts(self) -> Option<(Kind, Sectors, u64, Option<Buffer>)> {
        let ranged = |kind, sector, count: Sectors| Some((kind, sector, count.bytes()?, None));
        let moving = |kind, sector, buffer: Buffer| {
            let bytes = buffer.len() as u64;
            Sectors::from_bytes(bytes)?;
            Some((kind, sector, bytes, Some(buffer)))
        };
        match self {
            Request::Read { sector, buffer } => moving(Kind::Read, sector, buffer),
            Request::Write { sector, buffer } => moving(Kind::Write, sector, buffer),
            Request::Flush => Some((Kind::Flush, Sectors(0), 0, None)),
            Request::Discard { sector, count } => ranged(Kind::Discard, sector, count),
            Request::WriteZeroes {
                sector,
                count,
                unmap,
            } => ranged(Kind::WriteZeroes { unmap }, sector, count),
            Request::GetId { buffer } => {
                (buffer.len() >= ID_BYTES).then_some((Kind::GetId, Sectors(0), 0, Some(buffer)))
            }
        }
    }
}
