//! The part of linux/vduse.h that the data path speaks.

use vduse_mem::{Entry, Iova, Perm};

/// `_IOC(direction, 0x81, nr, size)` of asm-generic/ioctl.h.
const fn ioc(direction: u32, nr: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0x81 << 8 | nr
}

/// The bytes of the struct that an ioctl's argument points to, as its number says.
pub(crate) const fn size_of_argument(nr: u32) -> usize {
    (nr >> 16 & 0x3fff) as usize
}

/// `VDUSE_IOTLB_GET_FD`: `_IOWR(0x81, 0x10, struct vduse_iotlb_entry)`.
pub(crate) const IOTLB_GET_FD: u32 = ioc(3, 0x10, IOTLB_ENTRY_SIZE);
/// `VDUSE_IOTLB_GET_FD2`: `_IOWR(0x81, 0x1b, struct vduse_iotlb_entry_v2)`, API version 1.
pub(crate) const IOTLB_GET_FD2: u32 = ioc(3, 0x1b, IOTLB_ENTRY_V2_SIZE);
/// `VDUSE_VQ_INJECT_IRQ`: `_IOW(0x81, 0x17, __u32)`.
pub(crate) const VQ_INJECT_IRQ: u32 = ioc(1, 0x17, size_of::<u32>());

/// `struct vduse_iotlb_entry`: u64 offset, start, last; u8 perm; 7 bytes of padding.
pub(crate) const IOTLB_ENTRY_SIZE: usize = 32;
/// `struct vduse_iotlb_entry_v2`: a `vduse_iotlb_entry`; u32 asid; 44 bytes reserved.
pub(crate) const IOTLB_ENTRY_V2_SIZE: usize = 80;

/// The entry that asks for the first mapping which overlaps `[start, last]`.
pub(crate) fn iotlb_request(start: Iova, last: Iova) -> [u8; IOTLB_ENTRY_SIZE] {
    let mut entry = [0; IOTLB_ENTRY_SIZE];
    entry[8..16].copy_from_slice(&start.0.to_ne_bytes());
    entry[16..24].copy_from_slice(&last.0.to_ne_bytes());
    entry
}

/// The entry as it came back; `None` for another size or a permission that there is not.
/// Whether the addresses make sense is for the IOTLB to say.
pub(crate) fn iotlb_entry(bytes: &[u8]) -> Option<Entry> {
    let bytes: &[u8; IOTLB_ENTRY_SIZE] = bytes.try_into().ok()?;
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    Some(Entry {
        offset: word(0),
        start: Iova(word(8)),
        last: Iova(word(16)),
        perm: Perm::from_raw(bytes[24])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_of_linux_vduse_h() {
        assert_eq!(IOTLB_GET_FD, 0xc020_8110);
        assert_eq!(IOTLB_GET_FD2, 0xc050_811b);
        assert_eq!(VQ_INJECT_IRQ, 0x4004_8117);
    }

    #[test]
    fn iotlb_entry_layout_of_linux_vduse_h() {
        let mut bytes = iotlb_request(Iova(0x1000), Iova(0x2fff));
        assert_eq!(iotlb_entry(&bytes), None, "perm 0 is none");
        bytes[..8].copy_from_slice(&0x5000_u64.to_ne_bytes());
        bytes[24] = 3;
        let expected = Entry {
            start: Iova(0x1000),
            last: Iova(0x2fff),
            offset: 0x5000,
            perm: Perm::Rw,
        };
        assert_eq!(iotlb_entry(&bytes), Some(expected));
        assert_eq!(iotlb_entry(&bytes[..31]), None);
    }
}
