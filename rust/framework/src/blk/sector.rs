//! Sectors: virtio-blk's unit of position and length, 512 bytes whatever the block size
//! (virtio 1.3, section 5.2.4).

/// A position on the disk, or a length, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Sectors(pub u64);

impl Sectors {
    /// Bytes of one sector.
    pub const SIZE: u64 = 512;

    /// `bytes` in sectors; `None` where they are no whole number of them.
    #[inline]
    pub fn from_bytes(bytes: u64) -> Option<Sectors> {
        bytes
            .is_multiple_of(Sectors::SIZE)
            .then_some(Sectors(bytes / Sectors::SIZE))
    }

    /// In bytes; `None` past 2^64.
    #[inline]
    pub fn bytes(self) -> Option<u64> {
        self.0.checked_mul(Sectors::SIZE)
    }

    /// The sum; `None` past 2^64.
    #[inline]
    pub fn checked_add(self, other: Sectors) -> Option<Sectors> {
        self.0.checked_add(other.0).map(Sectors)
    }
}
