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
fn words_are_checked_at_set_up() {
    let all = Pinned::whole(region());
    assert_eq!(all.words::<u64>(0, LEN / 8).unwrap().len(), LEN / 8);
    assert!(all.words::<u16>(LEN, 0).is_some());
    assert!(all.words::<u64>(0, LEN / 8 + 1).is_none());
    assert!(all.words::<u64>(8, LEN / 8).is_none());
    assert!(all.words::<u32>(2, 1).is_none(), "unaligned");
    assert!(all.words::<u64>(8, usize::MAX).is_none());
    assert!(all.words::<u16>(usize::MAX, 1).is_none());
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
    assert!(foreign.part(0, 1).is_none() && foreign.words::<u16>(0, 1).is_none());
    let longer = Pinned {
        len: 2 * LEN,
        ..other
    };
    assert!(longer.words::<u16>(0, LEN / 2).is_some());
    assert!(longer.part(LEN, 1).is_none() && longer.words::<u16>(LEN, 1).is_none());
}

#[test]
#[should_panic(expected = "word 4 of 4")]
fn an_index_past_the_words_panics() {
    let words = Pinned::whole(region()).words::<u16>(0, 4).unwrap();
    words.load(4);
}

#[test]
fn words_and_copies_see_the_same_bytes() {
    let all = Pinned::whole(region());
    let piece = all.piece().part(8, 16).unwrap();
    assert!(all.piece().part(LEN - 1, 2).is_none());
    // SAFETY: `all` keeps the memory mapped, readable and writable.
    unsafe {
        assert_eq!(piece.write_from(b"0123456789abcdefghij"), 16);
        let mut back = [0; 4];
        assert_eq!(piece.read_into(&mut back), 4);
        assert_eq!(&back, b"0123");
        let mut whole = [0_u8; 16];
        piece.read_to(whole.as_mut_ptr());
        assert_eq!(&whole, b"0123456789abcdef");
    }
    let words = all.words::<u32>(8, 4).unwrap();
    assert_eq!(words.load_acquire(1), u32::from_ne_bytes(*b"4567"));
    words.store(1, u32::from_ne_bytes(*b"wxyz"));
    let source = [b'#'; 16];
    let mut text = [0; 24];
    // SAFETY: as above.
    unsafe {
        piece.part(12, 4).unwrap().write_at(source.as_ptr());
        all.piece().read_into(&mut text);
    }
    assert_eq!(&text, b"\0\0\0\0\0\0\0\x000123wxyz89ab####");
}
