//! Units are types: a sector is not a byte offset, an offset is not a length. Arithmetic on
//! what a driver or a file says is checked.

/// Bytes of a sector, whatever the logical block size (virtio 1.3, section 5.2.4).
pub const SECTOR_SIZE: u64 = 512;

/// A position on the disk in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sector(pub u64);

/// A position on the disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offset(pub u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Length(pub u64);

impl Sector {
    /// Where the sector begins; `None` past 2^64 bytes.
    pub fn offset(self) -> Option<Offset> {
        self.0.checked_mul(SECTOR_SIZE).map(Offset)
    }
}

impl Length {
    /// Bytes of `count` sectors; `None` past 2^64 bytes.
    pub fn of_sectors(count: u64) -> Option<Length> {
        count.checked_mul(SECTOR_SIZE).map(Length)
    }

    /// Whether this is a whole number of sectors.
    pub fn is_sectors(self) -> bool {
        self.0.is_multiple_of(SECTOR_SIZE)
    }
}

/// A range of bytes on the disk whose end is known not to overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    offset: Offset,
    len: Length,
}

impl Extent {
    /// `None` if the end lies past 2^64 bytes.
    pub fn new(offset: Offset, len: Length) -> Option<Extent> {
        offset.0.checked_add(len.0)?;
        Some(Extent { offset, len })
    }

    /// First byte.
    pub fn offset(self) -> Offset {
        self.offset
    }

    /// Bytes.
    pub fn len(self) -> Length {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// The byte after the last.
    pub fn end(self) -> Offset {
        Offset(self.offset.0 + self.len.0)
    }

    /// Whether it lies on a disk of `size` bytes.
    pub fn within(self, size: Length) -> bool {
        self.end().0 <= size.0
    }

    /// The smallest range of whole blocks around this one; `block` is a power of two. `None`
    /// past 2^64 bytes.
    pub fn aligned_out(self, block: u64) -> Option<Extent> {
        let first = self.offset.0 & !(block - 1);
        let end = self.end().0.checked_next_multiple_of(block)?;
        Extent::new(Offset(first), Length(end - first))
    }

    /// Whether offset and length are multiples of `block`, a power of two.
    pub fn is_aligned(self, block: u64) -> bool {
        (self.offset.0 | self.len.0) & (block - 1) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_past_two_to_the_64_bytes_has_no_offset() {
        assert_eq!(Sector(3).offset(), Some(Offset(1536)));
        assert_eq!(Sector(u64::MAX / 512 + 1).offset(), None);
    }

    #[test]
    fn an_extent_never_wraps() {
        assert_eq!(Extent::new(Offset(u64::MAX), Length(1)), None);
        let extent = Extent::new(Offset(u64::MAX - 1), Length(1)).unwrap();
        assert_eq!(extent.end(), Offset(u64::MAX));
        assert_eq!(extent.aligned_out(512), None);
    }

    #[test]
    fn aligned_out_covers_the_range() {
        let extent = Extent::new(Offset(700), Length(400)).unwrap();
        let blocks = extent.aligned_out(512).unwrap();
        assert_eq!((blocks.offset(), blocks.len()), (Offset(512), Length(1024)));
        assert!(blocks.is_aligned(512) && !extent.is_aligned(512));
    }
}
