//! The dirty log: which bits a write sets, and what a log cannot be.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, pread, pwrite};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vduse_mem::{Backing, DirtyLog, Entry, Iotlb, Iova, Resolver, View};

/// Pages that [`SIZE`] bytes have bits for.
const PAGES: u64 = 8 * SIZE;
const SIZE: u64 = 32;
const OFFSET: u64 = 4100;
const PAGE: u64 = 4096;

struct File(OwnedFd);

impl File {
    fn new() -> File {
        let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, OFFSET + SIZE).unwrap();
        File(file)
    }

    fn map(&self, offset: u64, size: u64) -> std::io::Result<DirtyLog> {
        DirtyLog::map(self.0.as_fd(), offset, size, BTreeMap::new())
    }

    fn log(&self) -> DirtyLog {
        self.map(OFFSET, SIZE).unwrap()
    }

    /// The pages that are marked, which are not any more.
    fn take(&self) -> BTreeSet<u64> {
        let mut bits = [0; SIZE as usize];
        pread(&self.0, &mut bits, OFFSET).unwrap();
        pwrite(&self.0, &[0; SIZE as usize], OFFSET).unwrap();
        let is_set = |page: &u64| bits[(page / 8) as usize] >> (page % 8) & 1 == 1;
        (0..PAGES).filter(is_set).collect()
    }
}

#[test]
fn every_page_of_a_write_is_marked_and_no_other() {
    let file = File::new();
    let log = file.log();
    for first in 0..40 {
        for pages in 1..40 {
            // From the last byte of the first page to the first one of the last.
            let (start, len) = match pages {
                1 => (first * PAGE + 17, 1),
                _ => (first * PAGE + PAGE - 1, (pages - 2) * PAGE + 2),
            };
            log.mark(Iova(start), len);
            assert_eq!(
                file.take(),
                (first..first + pages).collect(),
                "{start} {len}"
            );
        }
    }
    log.mark(Iova(5 * PAGE), 0);
    assert_eq!(file.take(), BTreeSet::new());
    assert!(!log.has_missed());
}

#[test]
fn marks_are_added_to_what_is_there() {
    let file = File::new();
    let log = Arc::new(file.log());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || {
                (0..PAGES / 4).for_each(|page| log.mark(Iova((4 * page + thread) * PAGE), 1));
            });
        }
    });
    assert_eq!(file.take().len() as u64, PAGES);
}

#[test]
fn what_has_no_bit_is_told_and_nothing_else_is_written() {
    let file = File::new();
    for (start, len, marked) in [
        (PAGES * PAGE, 1, vec![]),
        (u64::MAX, 1, vec![]),
        ((PAGES - 1) * PAGE, PAGE + 1, vec![PAGES - 1]),
        (PAGE, u64::MAX, (1..PAGES).collect()),
    ] {
        let log = file.log();
        log.mark(Iova(start), len);
        assert!(log.has_missed());
        assert_eq!(file.take(), marked.into_iter().collect());
    }
    let log = file.log();
    log.mark(Iova((PAGES - 1) * PAGE), PAGE);
    assert!(!log.has_missed());
}

#[test]
fn a_log_lies_in_its_file() {
    let file = File::new();
    let refused = |offset, size| Errno::from_io_error(&file.map(offset, size).unwrap_err());
    for (offset, size) in [
        (0, 0),
        (0, OFFSET + SIZE + 1),
        (OFFSET + 1, SIZE),
        (u64::MAX, 2),
        (u64::MAX - 1, 1),
        (0, u64::MAX),
    ] {
        assert_eq!(refused(offset, size), Some(Errno::INVAL), "{offset} {size}");
    }
    let huge = File::new();
    ftruncate(&huge.0, 1 << 40).unwrap();
    assert!(huge.map(0, 1 << 37).is_ok());
    assert!(huge.map(0, (1 << 37) + 1).is_err());
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    assert!(DirtyLog::map(pipe.as_fd(), 0, 1, BTreeMap::new()).is_err());
}

/// Nothing is mapped.
struct Empty;

impl Resolver for Empty {
    fn resolve(&self, _: Iova, _: Iova) -> Result<(Backing, Entry), Errno> {
        Err(Errno::INVAL)
    }
}

#[test]
fn a_log_is_of_the_generation_that_is_acknowledged() {
    let file = File::new();
    let iotlb = Iotlb::new(Arc::new(Empty));
    let mut view = View::new(iotlb.clone());
    let generation = iotlb.set_log(Some(file.log()));
    assert!(view.log().is_none());
    assert_eq!(view.refresh(), generation);
    assert!(view.log().is_some());
    iotlb.invalidate(Iova(0), Iova(u64::MAX));
    view.refresh();
    assert!(view.log().is_some(), "it is no mapping");
    assert!(View::new(iotlb.clone()).log().is_some());
    iotlb.set_log(None);
    assert!(view.log().is_some());
    view.refresh();
    assert!(view.log().is_none());
}

#[test]
fn a_log_whose_file_was_truncated_poisons_its_device() {
    let file = File::new();
    let iotlb = Iotlb::new(Arc::new(Empty));
    iotlb.set_log(Some(file.log()));
    let view = View::new(iotlb.clone());
    ftruncate(&file.0, 0).unwrap();
    assert!(!iotlb.is_poisoned());
    view.log().unwrap().mark(Iova(0), 1);
    assert!(iotlb.is_poisoned());
}
