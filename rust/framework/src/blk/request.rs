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
