//! Files of huge pages, as many VMs have them: what lies anywhere in one is mapped, guarded and
//! unmapped as what lies in any other file. No machine needs huge pages to spare for that: a
//! page that cannot be had is one more that is missing.

use rustix::fs::{MemfdFlags, fstatfs, ftruncate, memfd_create};
use std::os::fd::AsFd;
use vduse_mem::{Perm, Pinned, Region};

fn is_mapped(name: &str) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.contains(name)
}

#[test]
fn a_part_of_a_huge_page_is_mapped_read_and_unmapped() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    let Ok(fd) = memfd_create("huge-region", flags) else {
        return; // a kernel without them
    };
    let page = fstatfs(&fd).unwrap().f_bsize as u64;
    ftruncate(&fd, 3 * page).unwrap();
    // [0xc0000, ...) of a PC's memory, say: neither end is a huge page's.
    let (offset, len) = (0xc_0000, page as usize);
    let region = Region::map(fd.as_fd(), offset, len, Perm::Rw).unwrap();
    assert_eq!(region.len(), len);
    let piece = Pinned::whole(region.clone()).piece();
    let mut bytes = vec![1; len];
    // SAFETY: `region` is alive and readable.
    assert_eq!(unsafe { piece.read_into(&mut bytes) }, len);
    assert!(bytes.iter().all(|&byte| byte == 0));
    drop(region);

    let whole = Region::map(fd.as_fd(), page, 1, Perm::Ro).unwrap();
    assert!(is_mapped("huge-region"));
    drop(whole);
    assert!(!is_mapped("huge-region"));
}
