//! Every byte that the device writes into a ring is marked in the dirty log, and not all of the
//! ring with it.

use crate::testing::{BASE, DESC, DEVICE, Memory, Random, segment};
use crate::{Chain, Layout, RingLog};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vduse_mem::{DirtyLog, Iova};

const PAGE: u64 = 4096;
/// A bit for each page of 1 GiB.
const BYTES: usize = 1 << 15;
/// Where writes to the device area count: not where it is.
const ELSEWHERE: u64 = 1 << 29;

struct Log {
    file: OwnedFd,
    log: Arc<DirtyLog>,
}

impl Log {
    fn new() -> Log {
        let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, BYTES as u64).unwrap();
        let log = DirtyLog::map(file.as_fd(), 0, BYTES as u64, BTreeMap::new()).unwrap();
        Log {
            file,
            log: Arc::new(log),
        }
    }

    fn of(&self, memory: &Memory) -> RingLog {
        RingLog {
            log: self.log.clone(),
            desc: Iova(memory.area_addresses()[0]),
            device: Iova(ELSEWHERE),
        }
    }

    /// The pages that are marked, which are not any more.
    fn take(&self) -> BTreeSet<u64> {
        let mut bits = vec![0; BYTES];
        pread(&self.file, &mut bits[..], 0).unwrap();
        pwrite(&self.file, &vec![0; BYTES], 0).unwrap();
        let pages = 0..8 * BYTES as u64;
        let is_set = |page: &u64| bits[(page / 8) as usize] >> (page % 8) & 1 == 1;
        pages.filter(is_set).collect()
    }
}

/// The pages of the ring whose bytes differ, as the log should have them.
fn changed(memory: &Memory, before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for (part, counts_at) in [(DESC, None), (DEVICE, Some(ELSEWHERE))] {
        let start = memory.area_addresses()[part];
        let offset = (start - BASE) as usize;
        for k in 0..memory.length(part) {
            if before[offset + k] != after[offset + k] {
                pages.insert((counts_at.unwrap_or(start) + k as u64) / PAGE);
            }
        }
    }
    pages
}

fn run(layout: Layout, seed: u64) {
    let memory = Memory::new(layout);
    let (mut driver, mut device) = (memory.driver(), memory.device());
    let (mut view, mut chain) = (memory.view(), Chain::default());
    let log = Log::new();
    device.set_log(&layout, Some(log.of(&memory)));
    let [desc, _, used] = layout.area_sizes();
    let whole = |at: u64, bytes: u64| at / PAGE..(at + bytes).div_ceil(PAGE);
    let mut all: BTreeSet<u64> = whole(ELSEWHERE, used).collect();
    if layout.packed {
        all.extend(whole(memory.area_addresses()[0], desc));
    }
    assert_eq!(log.take(), all, "what may have been written before");
    let mut random = Random(seed);
    let mut taken = Vec::new();
    let mut most = 0;
    for round in 0..3_000 {
        for _ in 0..random.below(4) {
            let segments = vec![segment(0x1000, 16); 1 + random.below(3) as usize];
            let _ = driver.add(&[], &segments, round);
        }
        driver.publish();
        let before = memory.snapshot();
        match random.below(4) {
            0 => device.suppress_kicks(),
            1 => drop(device.enable_kicks()),
            _ => {}
        }
        while device.pop(&mut view, &mut chain).unwrap() {
            taken.push((chain.id, chain.slots));
        }
        for _ in 0..random.below(taken.len() as u64 + 1) {
            let (id, slots) = taken.swap_remove(random.below(taken.len() as u64) as usize);
            device.complete(id, slots, random.below(9) as u32);
        }
        device.publish();
        let (changed, marked) = (changed(&memory, &before, &memory.snapshot()), log.take());
        assert!(marked.is_superset(&changed), "{layout:?}: {changed:?}");
        most = most.max(marked.len());
        while driver.pop_used().unwrap().is_some() {}
    }
    assert!(
        most < all.len() || all.len() < 4,
        "all of it is marked always"
    );
    device.set_log(&layout, None);
    device.enable_kicks();
    assert_eq!(log.take(), BTreeSet::new());
}

#[test]
fn all_that_the_device_writes_is_marked() {
    for packed in [false, true] {
        for event_idx in [false, true] {
            for size in [1, 8, 256, 4096] {
                let layout = Layout {
                    size,
                    packed,
                    event_idx,
                    indirect: size == 8,
                };
                run(layout, 7 + u64::from(size));
            }
        }
    }
    run(
        Layout {
            size: 1000,
            packed: true,
            event_idx: true,
            indirect: false,
        },
        3,
    );
}
