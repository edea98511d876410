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

/// `VDUSE_IOTLB_REG_UMEM`: `_IOW(0x81, 0x18, struct vduse_iova_umem)`.
pub(crate) const IOTLB_REG_UMEM: u32 = ioc(1, 0x18, IOVA_UMEM_SIZE);
/// `VDUSE_IOTLB_DEREG_UMEM`: `_IOW(0x81, 0x19, struct vduse_iova_umem)`.
pub(crate) const IOTLB_DEREG_UMEM: u32 = ioc(1, 0x19, IOVA_UMEM_SIZE);
/// `VDUSE_IOTLB_GET_INFO`: `_IOWR(0x81, 0x1a, struct vduse_iova_info)`.
pub(crate) const IOTLB_GET_INFO: u32 = ioc(3, 0x1a, IOVA_INFO_SIZE);

/// `struct vduse_iova_umem`: u64 uaddr, iova, size; 24 bytes reserved, of which API version 1 has
/// made the first four the address space.
pub(crate) const IOVA_UMEM_SIZE: usize = 48;
/// `struct vduse_iova_info`: u64 start, last, capability; 24 bytes as above.
pub(crate) const IOVA_INFO_SIZE: usize = 48;
/// `VDUSE_IOVA_CAP_UMEM`.
const IOVA_CAP_UMEM: u64 = 1;

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

/// The memory at `address` for the `size` bytes from IOVA 0 on, address space 0.
pub(crate) fn iova_umem(address: usize, size: u64) -> [u8; IOVA_UMEM_SIZE] {
    let mut umem = [0; IOVA_UMEM_SIZE];
    umem[..8].copy_from_slice(&(address as u64).to_ne_bytes());
    umem[16..24].copy_from_slice(&size.to_ne_bytes());
    umem
}

/// Asks what the first region is that overlaps `[start, last]`.
pub(crate) fn iova_info(start: Iova, last: Iova) -> [u8; IOVA_INFO_SIZE] {
    let mut info = [0; IOVA_INFO_SIZE];
    info[..8].copy_from_slice(&start.0.to_ne_bytes());
    info[8..16].copy_from_slice(&last.0.to_ne_bytes());
    info
}

/// Bytes of the region that came back, where it begins at IOVA 0, holds `iova` and takes user
/// memory; `None` for any other.
pub(crate) fn umem_size(info: &[u8], iova: Iova) -> Option<u64> {
    let info: &[u8; IOVA_INFO_SIZE] = info.try_into().ok()?;
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| info[at + byte]));
    let (start, last, capability) = (word(0), word(8), word(16));
    let takes_umem = capability & IOVA_CAP_UMEM != 0 && start == 0 && iova.0 <= last;
    last.checked_add(1).filter(|_| takes_umem)
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
        assert_eq!(IOTLB_REG_UMEM, 0x4030_8118);
        assert_eq!(IOTLB_DEREG_UMEM, 0x4030_8119);
        assert_eq!(IOTLB_GET_INFO, 0xc030_811a);
    }

    #[test]
    fn only_the_bounce_region_takes_user_memory() {
        let answer = |start: u64, last: u64, capability: u64| {
            let mut info = iova_info(Iova(start), Iova(last));
            info[16..24].copy_from_slice(&capability.to_ne_bytes());
            info
        };
        assert_eq!(
            umem_size(&answer(0, 0xffff, 1), Iova(0xffff)),
            Some(0x1_0000)
        );
        assert_eq!(
            umem_size(&answer(0, 0xffff, 0), Iova(0)),
            None,
            "no capability"
        );
        assert_eq!(umem_size(&answer(0x1000, 0xffff, 1), Iova(0x1000)), None);
        assert_eq!(
            umem_size(&answer(0, 0xfff, 1), Iova(0x1000)),
            None,
            "not there"
        );
        assert_eq!(umem_size(&answer(0, u64::MAX, 1), Iova(0)), None);
        assert_eq!(umem_size(&[0; 47], Iova(0)), None);
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
