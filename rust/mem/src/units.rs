//! Units are types: an I/O virtual address is not an offset and not a host pointer.

use std::fmt;

/// An I/O virtual address: what descriptors and rings carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Iova(pub u64);

impl Iova {
    /// The address `bytes` further on; `None` past 2^64.
    #[inline]
    pub fn checked_add(self, bytes: u64) -> Option<Iova> {
        self.0.checked_add(bytes).map(Iova)
    }

    /// The last address of `len` bytes from here; `None` for no bytes or past 2^64.
    #[inline]
    pub fn last(self, len: u64) -> Option<Iova> {
        self.0.checked_add(len.checked_sub(1)?).map(Iova)
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What the device does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The device reads (a device-readable descriptor, the avail ring).
    Read,
    /// The device writes (a device-writable descriptor, the used ring).
    Write,
}

/// What an IOTLB entry permits (`VDUSE_ACCESS_RO`, `WO`, `RW` of linux/vduse.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Perm {
    /// The device may read.
    Ro = 1,
    /// The device may write.
    Wo = 2,
    /// The device may read and write.
    Rw = 3,
}

impl Perm {
    /// The value on the wire as a permission; `None` for anything else.
    pub fn from_raw(raw: u8) -> Option<Perm> {
        match raw {
            1 => Some(Perm::Ro),
            2 => Some(Perm::Wo),
            3 => Some(Perm::Rw),
            _ => None,
        }
    }

    /// Whether `access` is permitted.
    #[inline]
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self != Perm::Wo,
            Access::Write => self != Perm::Ro,
        }
    }
}
