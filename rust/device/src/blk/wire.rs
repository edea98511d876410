//! What is on the wire (virtio 1.3, sections 5.2.3 and 5.2.6). All fields little-endian.

/// VIRTIO_BLK_F_SIZE_MAX.
pub(super) const F_SIZE_MAX: u64 = 1 << 1;
/// VIRTIO_BLK_F_SEG_MAX.
pub(super) const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
pub(super) const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_FLUSH.
pub(super) const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_DISCARD.
pub(super) const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// VIRTIO_BLK_T_IN.
pub(super) const T_IN: u32 = 0;
/// VIRTIO_BLK_T_OUT.
pub(super) const T_OUT: u32 = 1;
/// VIRTIO_BLK_T_FLUSH.
pub(super) const T_FLUSH: u32 = 4;
/// VIRTIO_BLK_T_GET_ID.
pub(super) const T_GET_ID: u32 = 8;
/// VIRTIO_BLK_T_DISCARD.
pub(super) const T_DISCARD: u32 = 11;
/// VIRTIO_BLK_T_WRITE_ZEROES.
pub(super) const T_WRITE_ZEROES: u32 = 13;

/// Bytes of the device ID string.
pub(crate) const ID_BYTES: usize = 20;

/// A request's status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoErr = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupp = 2,
}

/// struct virtio_blk_req without data and status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) sector: u64,
}

impl Header {
    pub(super) const BYTES: usize = 16;

    pub(super) fn from_bytes(bytes: [u8; Header::BYTES]) -> Header {
        let value = u128::from_le_bytes(bytes);
        Header {
            kind: value as u32,
            // Bits 32 to 63 are reserved.
            sector: (value >> 64) as u64,
        }
    }
}

/// struct virtio_blk_discard_write_zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RangeEntry {
    pub(super) sector: u64,
    pub(super) num_sectors: u32,
    pub(super) flags: u32,
}

impl RangeEntry {
    pub(super) const BYTES: usize = 16;
    /// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
    pub(super) const UNMAP: u32 = 1;

    pub(super) fn from_bytes(bytes: [u8; RangeEntry::BYTES]) -> RangeEntry {
        let value = u128::from_le_bytes(bytes);
        RangeEntry {
            sector: value as u64,
            num_sectors: (value >> 64) as u32,
            flags: (value >> 96) as u32,
        }
    }
}
