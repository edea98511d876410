//! Dirty logging: every page that the device writes is marked before the driver hears of it.

use super::*;
use crate::testing::Random;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use vduse_mem::DirtyLog;
use vduse_ring::Segment;

const PAGE: u64 = 4096;
/// Bytes of a log for all of the guest.
pub(super) const BYTES: usize = ((BASE + GUEST) / PAGE / 8) as usize;

pub(super) struct Log(OwnedFd);

impl Log {
    pub(super) fn new() -> Log {
        let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, BYTES as u64).unwrap();
        Log(file)
    }

    /// Its first `bytes` bytes, for queue 0's ring too.
    pub(super) fn map(&self, bytes: usize) -> DirtyLog {
        let used = BTreeMap::from([(0, Iova(BASE + AREAS[2]))]);
        DirtyLog::map(self.0.as_fd(), 0, bytes as u64, used).unwrap()
    }

    /// The guest's pages that are marked, which are not any more.
    pub(super) fn take(&self) -> BTreeSet<u64> {
        let mut bits = [0; BYTES];
        pread(&self.0, &mut bits, 0).unwrap();
        pwrite(&self.0, &[0; BYTES], 0).unwrap();
        let first = BASE / PAGE;
        assert!(bits[..(first / 8) as usize].iter().all(|&byte| byte == 0));
        let is_set = |page: &u64| bits[((first + page) / 8) as usize] >> (page % 8) & 1 == 1;
        (0..GUEST / PAGE).filter(is_set).collect()
    }
}

fn pages(segments: &[Segment]) -> impl Iterator<Item = u64> + '_ {
    segments.iter().flat_map(|segment| {
        let start = segment.iova.0 - BASE;
        start / PAGE..(start + u64::from(segment.len)).div_ceil(PAGE)
    })
}

/// Pages of the ring that the device writes.
fn ring_pages(packed: bool) -> BTreeSet<u64> {
    let areas = match packed {
        false => &AREAS[2..],
        true => &[AREAS[0], AREAS[2]],
    };
    areas.iter().map(|at| at / PAGE).collect()
}

/// A request of a random kind, in random pieces, some of it wrong; its segments.
fn request(rig: &Rig, random: &mut Random, token: u64) -> (Vec<Segment>, Vec<Segment>) {
    /// Bytes for a request.
    const ROOM: u64 = 0x1_8000;
    let at = BUFFERS + token * ROOM;
    // In, out, flush, get id, and nothing that there is.
    let kind = [0, 0, 0, 1, 4, 8, 77][random.below(7) as usize];
    // Some beyond the disk's end.
    let sector = random.below(DISK / 512 + 100);
    let mut header = (kind as u32).to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    rig.guest.write(at, &header);
    let mut data_at = at + PAGE + random.below(PAGE);
    rig.guest.write(data_at, &[0xee; 0xe000]);
    let mut data = Vec::new();
    for _ in 0..random.below(3) {
        // Sometimes not whole sectors.
        let len = 512 * (1 + random.below(40)) + random.below(8) / 7;
        data.push(Guest::segment(data_at, len as u32));
        data_at += len + random.below(PAGE);
    }
    let status_at = at + ROOM - 1 - random.below(PAGE);
    rig.guest.write(status_at, &[0xff]);
    let (header, status) = (Guest::segment(at, 16), Guest::segment(status_at, 1));
    match kind {
        1 => ([vec![header], data].concat(), vec![status]),
        _ => (vec![header], [data, vec![status]].concat()),
    }
}

/// Random requests: what has changed is marked, and only what may have been written.
fn run(backend: &dyn Fn() -> Arc<dyn Backend>, packed: bool, seed: u64) {
    let pool = pool();
    let mut random = Random::new(seed);
    let mut rig = Rig::idle(&pool, backend(), packed);
    let log = Log::new();
    assert!(
        rig.path.set_log(Some(log.map(BYTES)), LONG),
        "nobody to wait for"
    );
    let mut state = QueueState::initial(packed);
    for round in 0..200 {
        let requests: Vec<_> = (0..4)
            .map(|token| request(&rig, &mut random, token))
            .collect();
        let setup = QueueSetup {
            state,
            ..rig.setup()
        };
        rig.path.start_queue(0, setup).unwrap();
        if round == 0 {
            assert!(
                log.take().is_superset(&ring_pages(packed)),
                "its start marks them"
            );
        }
        let before = rig.guest.read(0, GUEST);
        let mut expected = ring_pages(packed);
        for (token, (readable, writable)) in (0..).zip(&requests) {
            rig.driver.add(readable, writable, token).unwrap();
            expected.extend(pages(writable));
        }
        if rig.driver.publish() {
            rig.kick();
        }
        for _ in &requests {
            rig.wait();
        }
        state = rig.path.stop_queue(0, LONG).unwrap().unwrap();
        let (after, marked) = (rig.guest.read(0, GUEST), log.take());
        for page in 0..GUEST / PAGE {
            // The driver's own area; a split ring's descriptors are the driver's, too.
            let is_drivers = page == AREAS[1] / PAGE || (!packed && page == AREAS[0] / PAGE);
            let bytes = (page * PAGE) as usize..((page + 1) * PAGE) as usize;
            if before[bytes.clone()] != after[bytes] && !is_drivers {
                assert!(marked.contains(&page), "page {page:#x} is not marked");
            }
        }
        assert_eq!(marked, expected, "marked without need, or not marked");
    }
}

#[test]
fn every_page_written_is_marked_split_and_packed() {
    for packed in [false, true] {
        run(&memory, packed, 1);
        run(&|| Arc::new(Late), packed, 2);
    }
}

/// A backend whose reads end later, on another thread, or fail after they have written something.
struct Late;

impl Backend for Late {
    fn info(&self) -> Info {
        disk(Kind::Direct)
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(LateEngine(local.completer.clone())))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct LateEngine(Completer);

impl Engine for LateEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let completer = self.0.clone();
        std::thread::spawn(move || {
            let mut result = Ok(());
            if let Op::Read { extent, buffer } = op {
                buffer.write(&vec![0x42; buffer.len() as usize]);
                if extent.offset().0 % 1024 == 0 {
                    result = Err(rustix::io::Errno::IO);
                }
            }
            completer.complete(Completion {
                token,
                result,
                data: None,
            });
        });
        Submitted::Pending
    }

    fn cancel(&mut self, _token: Token) {}
}

#[test]
fn requests_in_flight_when_logging_begins_are_marked_when_they_complete() {
    let pool = pool();
    for (kind, packed) in [(Kind::Direct, false), (Kind::Detachable, true)] {
        let (gate, mut rig) = gate(&pool, kind, packed);
        rig.send(1, None, 1);
        gate.wait_held(1);
        let log = Log::new();
        assert!(rig.path.set_log(Some(log.map(BYTES)), LONG));
        gate.release();
        rig.wait();
        rig.path.stop_queue(0, LONG).unwrap();
        let mut expected = ring_pages(packed);
        expected.insert((BUFFERS + SLOT) / PAGE);
        assert_eq!(log.take(), expected);
    }
}

#[test]
fn nothing_is_marked_once_logging_has_ended() {
    let pool = pool();
    for packed in [false, true] {
        let mut rig = Rig::new(&pool, memory(), packed);
        let log = Log::new();
        assert!(rig.path.set_log(Some(log.map(BYTES)), LONG));
        rig.send(1, None, 1);
        rig.wait();
        assert!(rig.path.set_log(None, LONG));
        assert!(!log.take().is_empty());
        rig.send(1, None, 1);
        rig.wait();
        // A reset ends it, too.
        assert!(rig.path.set_log(Some(log.map(BYTES)), LONG));
        assert!(rig.path.reset(LONG));
        log.take();
        rig.driver = fresh_driver(&rig.guest, packed);
        rig.start().unwrap();
        rig.send(1, None, 1);
        rig.wait();
        assert_eq!(log.take(), BTreeSet::new());
    }
}

#[test]
fn a_ring_that_is_not_to_be_logged_is_not_marked() {
    let pool = pool();
    for packed in [false, true] {
        let mut rig = Rig::new(&pool, memory(), packed);
        let log = Log::new();
        let other = BTreeMap::from([(1, Iova(BASE))]);
        let mapped = DirtyLog::map(log.0.as_fd(), 0, BYTES as u64, other).unwrap();
        assert!(rig.path.set_log(Some(mapped), LONG));
        rig.send(1, None, 1);
        rig.wait();
        rig.path.stop_queue(0, LONG).unwrap();
        assert_eq!(log.take(), BTreeSet::from([(BUFFERS + SLOT) / PAGE]));
    }
}

/// Section "Migration" of the vhost-user specification gives the log a bit for all memory: what
/// has none would be lost at the destination, so the device goes no further.
#[test]
fn a_log_that_is_too_small_stops_its_device_alone() {
    let pool = TestPool::new(1);
    let mut good = Rig::new(&pool, memory(), false);
    let mut bad = Rig::new(&pool, memory(), false);
    let log = Log::new();
    // The ring has bits, the buffers have none.
    assert!(bad.path.set_log(Some(log.map(BYTES / 2 + 1)), LONG));
    bad.send(1, None, 1);
    bad.kick();
    let message = bad.wait_broken();
    assert!(message.contains("dirty log"), "{message}");
    assert_eq!(
        bad.driver.pop_used(),
        Ok(None),
        "the driver does not hear of it"
    );
    good.send(1, Some(7), 7);
    assert_eq!(good.wait(), (1, 0));
    assert!(bad.path.reset(LONG));
}

#[test]
fn a_log_that_is_taken_away_stops_its_device_alone() {
    let pool = TestPool::new(1);
    let mut good = Rig::new(&pool, memory(), false);
    let mut bad = Rig::new(&pool, memory(), false);
    let log = Log::new();
    assert!(bad.path.set_log(Some(log.map(BYTES)), LONG));
    ftruncate(&log.0, 0).unwrap();
    bad.send(1, None, 1);
    bad.kick();
    let message = bad.wait_broken();
    assert!(message.contains("taken away"), "{message}");
    good.send(1, Some(7), 7);
    assert_eq!(good.wait(), (1, 0));
}
