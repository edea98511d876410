//! IOTLB and views against resolvers, honest and hostile.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, dup, pwrite};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use vduse_mem::{Access, Backing, Entry, Fault, Iotlb, Iova, Perm, Pieces, Resolver, View};

const PAGE: u64 = 4096;

/// A file of `bytes` in which every byte at offset n is n / 4096 + 1.
fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes).unwrap();
    for page in 0..bytes / PAGE {
        pwrite(&fd, &[page as u8 + 1; PAGE as usize], page * PAGE).unwrap();
    }
    fd
}

fn entry(start: u64, last: u64, offset: u64, perm: Perm) -> Entry {
    let (start, last) = (Iova(start), Iova(last));
    Entry {
        start,
        last,
        offset,
        perm,
    }
}

type Answer = Result<Entry, Errno>;

/// Answers from `answer`, all of them in one file.
struct Fake<F> {
    fd: OwnedFd,
    answer: F,
}

impl<F: Fn(u64, u64) -> Answer + Send + Sync> Resolver for Fake<F> {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        let entry = (self.answer)(start.0, last.0)?;
        Ok((dup(&self.fd)?.into(), entry))
    }
}

fn iotlb(pages: u64, answer: impl Fn(u64, u64) -> Answer + Send + Sync + 'static) -> Arc<Iotlb> {
    let fd = memfd(pages * PAGE);
    Iotlb::new(Arc::new(Fake { fd, answer }))
}

/// The framework as it should be: the first entry that overlaps.
fn honest(entries: Vec<Entry>) -> impl Fn(u64, u64) -> Answer {
    move |start, last| {
        let overlaps = |entry: &&Entry| entry.start.0 <= last && start <= entry.last.0;
        entries.iter().find(overlaps).copied().ok_or(Errno::INVAL)
    }
}

fn translate(view: &mut View, iova: u64, len: u32, access: Access) -> Result<Pieces, Fault> {
    let mut pieces = Pieces::new();
    view.translate(Iova(iova), len, access, &mut pieces)?;
    Ok(pieces)
}

/// The bytes of a range, as the device reads them.
fn read(view: &mut View, iova: u64, len: u32) -> Result<Vec<u8>, Fault> {
    let pieces = translate(view, iova, len, Access::Read)?;
    Ok(bytes_of(&pieces))
}

fn bytes_of(pieces: &Pieces) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        let mut part = vec![0; piece.len];
        // SAFETY: the views of these tests are not refreshed between translation and here,
        // or a pin is held; the mappings allow reading.
        unsafe { piece.read_into(&mut part) };
        bytes.extend(part);
    }
    bytes
}

#[test]
fn an_entry_at_an_unaligned_offset_starts_at_the_right_byte() {
    let map = honest(vec![entry(0x1_0005, 0x1_0804, PAGE - 3, Perm::Ro)]);
    let mut view = View::new(iotlb(2, map));
    assert_eq!(read(&mut view, 0x1_0005, 5), Ok(vec![1, 1, 1, 2, 2]));
    assert_eq!(read(&mut view, 0x1_0007, 2), Ok(vec![1, 2]));
}

#[test]
fn a_range_over_two_mappings_is_two_pieces_in_order() {
    let iotlb = iotlb(
        2,
        honest(vec![
            entry(0x1000, 0x1fff, PAGE, Perm::Rw),
            entry(0x2000, 0x2fff, 0, Perm::Rw),
        ]),
    );
    let mut view = View::new(iotlb.clone());
    let pieces = translate(&mut view, 0x1ffe, 4, Access::Read).unwrap();
    assert_eq!(pieces.len(), 2);
    assert_eq!(bytes_of(&pieces), [2, 2, 1, 1]);
    assert_eq!(iotlb.misses(), 2);
    // Both are there now, and one range may follow another in `out`.
    let mut pieces = pieces;
    let more = view.translate(Iova(0x2000), 1, Access::Write, &mut pieces);
    assert_eq!((more, pieces.len(), iotlb.misses()), (Ok(()), 3, 2));
}

#[test]
fn a_fault_leaves_out_as_it_was() {
    let map = honest(vec![
        entry(0x1000, 0x1fff, 0, Perm::Rw),
        entry(0x2000, 0x2fff, 0, Perm::Ro),
        entry(0x4000, 0x4fff, 0, Perm::Wo),
    ]);
    let mut view = View::new(iotlb(1, map));
    let mut out = translate(&mut view, 0x1000, 1, Access::Read).unwrap();
    let mut fails = |iova, len, access| {
        let fault = view.translate(Iova(iova), len, access, &mut out);
        assert_eq!(out.len(), 1);
        fault.unwrap_err()
    };
    use Access::{Read, Write};
    assert_eq!(fails(0x1fff, 2, Write), Fault::Denied(Iova(0x2000), Write));
    assert_eq!(fails(0x2000, 1, Write), Fault::Denied(Iova(0x2000), Write));
    assert_eq!(fails(0x4000, 1, Read), Fault::Denied(Iova(0x4000), Read));
    assert_eq!(fails(0x2fff, 2, Read), Fault::Unmapped(Iova(0x3000)));
    // The first overlap starts further on: GET_FD answers with that.
    assert_eq!(fails(0x3800, 0x1000, Read), Fault::Unmapped(Iova(0x3800)));
    assert_eq!(fails(0x1000, 0, Read), Fault::Range(Iova(0x1000), 0));
    let (top, len) = (u64::MAX - 1, 3);
    assert_eq!(fails(top, len, Read), Fault::Range(Iova(top), 3));
}

#[test]
fn the_last_page_of_the_address_space_is_usable() {
    let start = u64::MAX - (PAGE - 1);
    let map = honest(vec![entry(start, u64::MAX, 0, Perm::Rw)]);
    let mut view = View::new(iotlb(1, map));
    assert_eq!(read(&mut view, u64::MAX, 1), Ok(vec![1]));
    assert_eq!(read(&mut view, start, PAGE as u32).unwrap().len(), 4096);
}

#[test]
fn entries_that_make_no_sense_are_faults() {
    let resolve = |errno| Fault::Resolve(Iova(0x5000), errno);
    let cases: [(&str, Answer, Fault); 8] = [
        ("nothing", Err(Errno::INVAL), Fault::Unmapped(Iova(0x5000))),
        ("gone", Err(Errno::CONNRESET), resolve(Errno::CONNRESET)),
        (
            "ends before it starts",
            Ok(entry(0x5000, 0x4fff, 0, Perm::Rw)),
            resolve(Errno::PROTO),
        ),
        (
            "starts after its end, both around the address",
            Ok(entry(0x6000, 0x5000, 0, Perm::Rw)),
            resolve(Errno::PROTO),
        ),
        (
            "lies before",
            Ok(entry(0, 0x4fff, 0, Perm::Rw)),
            resolve(Errno::PROTO),
        ),
        (
            "everything",
            Ok(entry(0, u64::MAX, 0, Perm::Rw)),
            resolve(Errno::NOSPC),
        ),
        (
            "more than the process could spare",
            Ok(entry(0, 1 << 44, 0, Perm::Rw)),
            resolve(Errno::NOSPC),
        ),
        (
            "offset that wraps",
            Ok(entry(0, 0xffff, u64::MAX - PAGE + 1, Perm::Rw)),
            resolve(Errno::OVERFLOW),
        ),
    ];
    for (case, answer, fault) in cases {
        let mut view = View::new(iotlb(1, move |_, _| answer));
        assert_eq!(read(&mut view, 0x5000, 16), Err(fault), "{case}");
        assert_eq!(
            view.pinned(Iova(0x5000), 16, Access::Read).unwrap_err(),
            fault,
            "{case}"
        );
    }
}

#[test]
fn mappings_of_a_device_are_limited() {
    let own_byte = |start, _| Ok(entry(start, start, 0, Perm::Ro));
    let mut view = View::new(iotlb(1, own_byte));
    for byte in 0..4096 {
        assert_eq!(read(&mut view, byte, 1), Ok(vec![1]));
    }
    let full = Fault::Resolve(Iova(4096), Errno::NOSPC);
    assert_eq!(read(&mut view, 4096, 1), Err(full));
}

#[test]
fn what_one_view_fetched_others_find() {
    let iotlb = iotlb(2, honest(vec![entry(0, 0x1fff, 0, Perm::Rw)]));
    let mut views = [View::new(iotlb.clone()), View::new(iotlb.clone())];
    for view in &mut views {
        assert_eq!(read(view, 0xfff, 2), Ok(vec![1, 2]));
    }
    assert_eq!(iotlb.misses(), 1);
}

#[test]
fn invalidate_drops_what_overlaps_and_nothing_else() {
    let iotlb = iotlb(
        2,
        honest(vec![
            entry(0x1000, 0x1fff, 0, Perm::Rw),
            entry(0x2000, 0x2fff, PAGE, Perm::Rw),
        ]),
    );
    let mut view = View::new(iotlb.clone());
    assert_eq!(read(&mut view, 0x1fff, 2), Ok(vec![1, 2]));
    assert_eq!(iotlb.invalidate(Iova(0x2fff), Iova(0x3000)), 1);
    // Still at the old generation: nothing is looked up anew.
    assert_eq!(read(&mut view, 0x1fff, 2), Ok(vec![1, 2]));
    assert_eq!(iotlb.misses(), 2);
    assert_eq!((view.refresh(), iotlb.generation()), (1, 1));
    assert_eq!(read(&mut view, 0x1000, 1), Ok(vec![1]));
    assert_eq!(iotlb.misses(), 2);
    assert_eq!(read(&mut view, 0x2000, 1), Ok(vec![2]));
    assert_eq!(iotlb.misses(), 3);
}

/// A resolver whose one mapping's page can be changed.
fn switched(page: &Arc<Mutex<u64>>) -> Arc<Iotlb> {
    let page = page.clone();
    iotlb(4, move |_, _| {
        let offset = *page.lock().unwrap() * PAGE;
        Ok(entry(0x1000, 0x1fff, offset, Perm::Rw))
    })
}

#[test]
fn a_pin_keeps_old_mappings_until_it_is_dropped() {
    let page = Arc::new(Mutex::new(0));
    let iotlb = switched(&page);
    let mut view = View::new(iotlb.clone());
    let old = translate(&mut view, 0x1000, 4, Access::Read).unwrap();
    let region = view.pinned(Iova(0x1000), 4, Access::Read).unwrap().region;
    let pin = view.pin();
    *page.lock().unwrap() = 2;
    iotlb.invalidate(Iova(0), Iova(u64::MAX));
    view.refresh();
    assert_eq!(read(&mut view, 0x1000, 2), Ok(vec![3, 3]));
    assert_eq!(bytes_of(&old), [1; 4]);
    assert_eq!(Arc::strong_count(&region), 2, "ours and the pin's");
    drop(pin);
    assert_eq!(Arc::strong_count(&region), 1);
}

#[test]
fn a_view_that_grows_leaves_pins_alone() {
    let map = |start, _| Ok(entry(start, start | 0xfff, 0, Perm::Rw));
    let mut view = View::new(iotlb(1, map));
    let first = translate(&mut view, 0x3000, 1, Access::Read).unwrap();
    let pin = view.pin();
    for page in 0..64 {
        read(&mut view, page * PAGE, 1).unwrap();
    }
    assert_eq!(bytes_of(&first), [1]);
    drop(pin);
    assert_eq!(read(&mut view, 0x3000, 1), Ok(vec![1]));
}

#[test]
fn an_entry_that_overlaps_an_older_one_only_fills_the_hole() {
    let wide = Arc::new(Mutex::new(false));
    let answer = wide.clone();
    let iotlb = iotlb(8, move |start, _| {
        if *answer.lock().unwrap() {
            return Ok(entry(0, 8 * PAGE - 1, 0, Perm::Rw));
        }
        let start = start & !0xfff;
        Ok(entry(start, start + PAGE - 1, 7 * PAGE, Perm::Rw))
    });
    let mut view = View::new(iotlb);
    let pages = |view: &mut View| {
        let byte = |page| read(view, page * PAGE + 5, 1).unwrap()[0];
        (0..8).map(byte).collect::<Vec<_>>()
    };
    for page in [1, 4] {
        assert_eq!(read(&mut view, page * PAGE, 1), Ok(vec![8]));
    }
    *wide.lock().unwrap() = true;
    assert_eq!(pages(&mut view), [1, 8, 3, 4, 8, 6, 7, 8]);
    let pieces = translate(&mut view, 0, 8 * PAGE as u32, Access::Read).unwrap();
    let sizes: Vec<_> = pieces.iter().map(|piece| piece.len / 4096).collect();
    assert_eq!(sizes, [1, 1, 2, 1, 3]);
}

/// An IOTLB that gets an invalidation while it waits for its resolver, `times` times. Every
/// fetch finds the next page of the file.
fn overtaken(times: u64) -> Arc<Iotlb> {
    let own = Arc::new(OnceLock::<Weak<Iotlb>>::new());
    let (inner, fetches) = (own.clone(), Mutex::new(0));
    let iotlb = iotlb(4, move |_, _| {
        let mut fetches = fetches.lock().unwrap();
        let offset = *fetches % 4 * PAGE;
        if *fetches < times {
            let iotlb = inner.get().and_then(Weak::upgrade).unwrap();
            iotlb.invalidate(Iova(0), Iova(u64::MAX));
        }
        *fetches += 1;
        Ok(entry(0x1000, 0x1fff, offset, Perm::Rw))
    });
    own.set(Arc::downgrade(&iotlb)).ok().unwrap();
    iotlb
}

#[test]
fn a_mapping_fetched_during_an_invalidation_does_not_survive_it() {
    let iotlb = overtaken(1);
    let mut view = View::new(iotlb.clone());
    assert_eq!(read(&mut view, 0x1000, 1), Ok(vec![2]));
    assert_eq!((view.refresh(), iotlb.misses()), (1, 2));
    assert_eq!(read(&mut view, 0x1000, 1), Ok(vec![2]));
    assert_eq!(iotlb.misses(), 2);
}

#[test]
fn invalidations_without_end_are_a_fault() {
    let mut view = View::new(overtaken(u64::MAX));
    let again = Fault::Resolve(Iova(0x1000), Errno::AGAIN);
    assert_eq!(read(&mut view, 0x1000, 1), Err(again));
}

#[test]
fn pinned_memory_outlives_invalidation_and_view() {
    let page = Arc::new(Mutex::new(1));
    let iotlb = switched(&page);
    let mut view = View::new(iotlb.clone());
    let pinned = view.pinned(Iova(0x1008), 16, Access::Write).unwrap();
    iotlb.invalidate(Iova(0), Iova(u64::MAX));
    drop((view, iotlb));
    let word = pinned.piece().part(14, 2).unwrap();
    let mut bytes = [0; 2];
    // SAFETY: `pinned` keeps the memory mapped, readable and writable.
    unsafe {
        word.read_into(&mut bytes);
        assert_eq!(bytes, [2, 2]);
        word.write_from(&[0xcd, 0xab]);
        word.read_into(&mut bytes);
    }
    assert_eq!(bytes, [0xcd, 0xab]);
}

#[test]
fn pinned_needs_one_mapping() {
    let map = honest(vec![
        entry(0x1000, 0x1fff, 0, Perm::Ro),
        entry(0x2000, 0x2fff, PAGE, Perm::Rw),
    ]);
    let mut view = View::new(iotlb(2, map));
    let mut pinned = |iova, len, access| view.pinned(Iova(iova), len, access).err();
    assert_eq!(pinned(0x1000, PAGE, Access::Read), None);
    let two = Fault::Range(Iova(0x1ff0), 0x20);
    assert_eq!(pinned(0x1ff0, 0x20, Access::Read), Some(two));
    let none = Fault::Range(Iova(0x1000), 0);
    assert_eq!(pinned(0x1000, 0, Access::Read), Some(none));
    let wraps = Fault::Range(Iova(0x1000), u64::MAX);
    assert_eq!(pinned(0x1000, u64::MAX, Access::Read), Some(wraps));
    let denied = Fault::Denied(Iova(0x1000), Access::Write);
    assert_eq!(pinned(0x1000, 1, Access::Write), Some(denied));
}

#[test]
fn truncated_memory_is_reported_by_view_pin_and_iotlb() {
    let fd = memfd(2 * PAGE);
    let file = dup(&fd).unwrap();
    let answer = |_, _| Ok(entry(0, 2 * PAGE - 1, 0, Perm::Rw));
    let iotlb = Iotlb::new(Arc::new(Fake { fd, answer }));
    let other = switched(&Arc::new(Mutex::new(0)));
    let mut view = View::new(iotlb.clone());
    let mut untouched = View::new(other.clone());
    read(&mut untouched, 0x1000, 1).unwrap();
    let pieces = translate(&mut view, PAGE, 1, Access::Read).unwrap();
    let pin = view.pin();
    ftruncate(&file, PAGE).unwrap();
    assert!(!pin.is_poisoned());
    assert_eq!(bytes_of(&pieces), [0]);
    assert!(pin.is_poisoned() && iotlb.is_poisoned());
    let taken = Fault::Poisoned(Iova(0));
    assert_eq!(read(&mut view, 0, 1), Err(taken));
    assert!(!other.is_poisoned() && !untouched.pin().is_poisoned());
    // It was handed out: the device has seen wrong bytes, invalidated or not.
    iotlb.invalidate(Iova(0), Iova(u64::MAX));
    assert!(iotlb.is_poisoned());
}

/// Random maps, random ranges: every byte is the one that the map says.
#[test]
fn translation_agrees_with_the_map_byte_by_byte() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..50 {
        let (mut entries, mut next) = (Vec::new(), 0x10_0000);
        for _ in 0..12 {
            let start = next + random(2) * (1 + random(3000));
            let last = start + random(5000);
            entries.push(entry(start, last, random(16 * PAGE), Perm::Rw));
            next = last + 1;
        }
        let expected = |iova: u64| {
            let entry = entries
                .iter()
                .find(|e| e.start.0 <= iova && iova <= e.last.0)?;
            Some(((entry.offset + iova - entry.start.0) / PAGE) as u8 + 1)
        };
        let mut view = View::new(iotlb(32, honest(entries.clone())));
        for _ in 0..200 {
            let iova = 0x10_0000 + random(next - 0x10_0000);
            let len = 1 + random(8000);
            let hole = (iova..iova + len).find(|&iova| expected(iova).is_none());
            let result = match hole {
                Some(hole) => Err(Fault::Unmapped(Iova(hole))),
                None => Ok((iova..iova + len).filter_map(expected).collect()),
            };
            assert_eq!(read(&mut view, iova, len as u32), result);
        }
    }
}
