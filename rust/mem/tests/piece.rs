//! Ways to touch shared memory: what does not lie inside is refused at set-up.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::AsFd;
use std::sync::Arc;
use vduse_mem::{Perm, Pinned, Region};

const LEN: usize = 4096;

fn region() -> Arc<Region> {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, LEN as u64).unwrap();
    Region::map(fd.as_fd(), 0, LEN, Perm::Rw).unwrap()
}

#[test]
fn a_region_of_no_bytes_or_too_many_is_refused() {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    for len in [0, usize::MAX, isize::MAX as usize + 1, usize::MAX - 4095] {
        for offset in [0, 5] {
            let error = Region::map(fd.as_fd(), offset, len, Perm::Rw).unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EINVAL),
                "{len} at {offset}"
            );
        }
    }
}

#[test]
fn a_part_lies_inside_or_is_refused() {
    let all = Pinned::whole(region());
    assert_eq!(all.part(8, LEN - 8).unwrap().len, LEN - 8);
    for (offset, len) in [(0, LEN + 1), (LEN, 1), (8, usize::MAX), (usize::MAX, 1)] {
        assert!(all.part(offset, len).is_none(), "{len} at {offset}");
        assert!(all.piece().part(offset, len).is_none(), "{len} at {offset}");
    }
}

#[test]
fn a_pinned_that_does_not_lie_in_its_region_gives_nothing() {
    let [one, other] = [region(), region()].map(Pinned::whole);
    let (ptr, len) = (one.ptr, one.len);
    let foreign = Pinned {
        ptr,
        len,
        region: other.region.clone(),
    };
    assert!(foreign.part(0, 1).is_none());
    let longer = Pinned {
        len: 2 * LEN,
        ..other
    };
    assert!(longer.part(0, LEN).is_some());
    assert!(longer.part(LEN, 1).is_none());
}

#[test]
fn copies_end_where_piece_or_buffer_ends() {
    let all = Pinned::whole(region());
    let piece = all.piece().part(8, 16).unwrap();
    // SAFETY: `all` keeps the memory mapped, readable and writable.
    unsafe {
        assert_eq!(piece.write_from(b"0123456789abcdefghij"), 16);
        let mut back = [0; 4];
        assert_eq!(piece.read_into(&mut back), 4);
        assert_eq!(&back, b"0123");
        assert_eq!(piece.part(12, 4).unwrap().write_from(b"##"), 2);
        let mut text = [0; 25];
        assert_eq!(all.piece().read_into(&mut text), 25);
        assert_eq!(&text, b"\0\0\0\0\0\0\0\x000123456789ab##ef\0");
    }
}
