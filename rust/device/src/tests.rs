//! The whole data path: a driver's ring on one side, test backends on the other.

mod chains;
mod hot;
mod irqs;
mod log;
mod panics;
mod pause;
mod races;
mod stacked;
mod statistics;

use crate::backend::{
    Backend, Completion, Engine, Error, Info, Kind, Local, Memory, Op, Submitted, Token,
};
use crate::testing::{BASE, Guest, TestPool};
use crate::{
    Completer, DataPath, Disk, Event, Hookup, Length, Limits, NotRunning, Pool, QueueSetup,
    StartError,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::fcntl_dupfd_cloexec;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use vduse_mem::{Iova, Pinned};
use vduse_ring::{Areas, DriverQueue, Layout, QueueState, RingError};

const LONG: Duration = Duration::from_secs(30);
const DISK: u64 = 1 << 20;
const GUEST: u64 = 1 << 20;
/// Where requests' buffers begin; the ring is below.
const BUFFERS: u64 = 0x10000;
/// Bytes of one request's buffers: header, status, data from 512 on.
const SLOT: u64 = 0x2000;
const SIZE: u16 = 16;

fn layout(packed: bool) -> Layout {
    Layout {
        size: SIZE,
        packed,
        event_idx: true,
        indirect: false,
    }
}

/// A guest with one queue on a device.
struct Rig {
    guest: Arc<Guest>,
    path: Arc<DataPath>,
    driver: DriverQueue,
    packed: bool,
    kick: OwnedFd,
    call: OwnedFd,
}

const AREAS: [u64; 3] = [0, 0x1000, 0x2000];
const RECORD: u64 = 0x3000;

fn fresh_driver(guest: &Guest, packed: bool) -> DriverQueue {
    guest.write(0, &[0; RECORD as usize]);
    let layout = layout(packed);
    let sizes = layout.area_sizes();
    let area = |n: usize| -> Pinned { guest.part(AREAS[n], sizes[n]) };
    let areas = Areas {
        desc: area(0),
        driver: area(1),
        device: area(2),
    };
    DriverQueue::new(layout, areas, None).unwrap()
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn dup(fd: &OwnedFd) -> OwnedFd {
    fcntl_dupfd_cloexec(fd, 0).unwrap()
}

impl Rig {
    fn new(pool: &Pool, backend: Arc<dyn Backend>, packed: bool) -> Rig {
        let rig = Rig::idle(pool, backend, packed);
        rig.start().unwrap();
        rig
    }

    /// With the queue not yet started.
    fn idle(pool: &Pool, backend: Arc<dyn Backend>, packed: bool) -> Rig {
        let disk = Disk::new(backend, DISK / 512, Limits::default(), b"test");
        Rig::of(pool, &Arc::new(disk), packed)
    }

    /// The same of a disk that the test keeps, too.
    fn of(pool: &Pool, disk: &Arc<Disk>, packed: bool) -> Rig {
        Rig::on(packed, |hookup| {
            DataPath::blk(pool, hookup, disk.clone()).unwrap()
        })
    }

    /// On any data path.
    fn on(packed: bool, path: impl FnOnce(Hookup) -> DataPath) -> Rig {
        let guest = Guest::new(GUEST);
        let hookup = Hookup {
            resolver: guest.clone(),
            irq_sink: guest.clone(),
            umem: None,
        };
        Rig {
            path: Arc::new(path(hookup)),
            driver: fresh_driver(&guest, packed),
            guest,
            packed,
            kick: event(),
            call: event(),
        }
    }

    fn setup(&self) -> QueueSetup {
        QueueSetup {
            layout: layout(self.packed),
            features: 1 << 9,
            areas: AREAS.map(|offset| Iova(BASE + offset)),
            state: QueueState::initial(self.packed),
            kick: dup(&self.kick),
            call: Some(dup(&self.call)),
            inflight: None,
        }
    }

    fn start(&self) -> Result<(), StartError> {
        self.path.start_queue(0, self.setup())
    }

    /// Makes a request of one sector available; its token is its slot of buffers.
    fn send(&mut self, token: u32, write: Option<u8>, sector: u64) {
        let at = BUFFERS + u64::from(token) * SLOT;
        let mut header = u32::from(write.is_some()).to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.guest.write(at, &header);
        self.guest.write(at + 16, &[0xff]);
        self.guest.write(at + 512, &[write.unwrap_or(0xee); 512]);
        let header = Guest::segment(at, 16);
        let data = Guest::segment(at + 512, 512);
        let status = Guest::segment(at + 16, 1);
        let added = match write {
            Some(_) => self.driver.add(&[header, data], &[status], token),
            None => self.driver.add(&[header], &[data, status], token),
        };
        added.unwrap();
        if self.driver.publish() {
            self.kick();
        }
    }

    fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// The next completed request: token and status.
    fn wait(&mut self) -> (u32, u8) {
        loop {
            if let Some((token, _used)) = self.driver.pop_used().unwrap() {
                return (token, self.status(token));
            }
            if !self.driver.enable_irqs() {
                wait_readable(&self.call);
                let _ = rustix::io::read(&self.call, &mut [0; 8]);
            }
        }
    }

    fn status(&self, token: u32) -> u8 {
        self.guest.read(BUFFERS + u64::from(token) * SLOT + 16, 1)[0]
    }

    fn data(&self, token: u32) -> Vec<u8> {
        self.guest
            .read(BUFFERS + u64::from(token) * SLOT + 512, 512)
    }

    fn wait_broken(&self) -> String {
        wait_readable(self.path.event_fd());
        match self.path.events().as_slice() {
            [Event::Broken { queue: 0, message }] => message.clone(),
            other => panic!("{other:?}"),
        }
    }
}

fn wait_readable(fd: impl std::os::fd::AsFd) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = rustix::time::Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_ne!(poll(&mut fds, Some(&timeout)).unwrap(), 0, "nothing came");
}

/// A backend that ends nothing until it is told to. Sector 66 makes it panic.
struct Gate {
    kind: Kind,
    held: Mutex<Vec<(Token, Op, Completer)>>,
    changed: Condvar,
    changed_cancelled: Condvar,
    cancelled: Mutex<usize>,
}

impl Gate {
    fn new(kind: Kind) -> Arc<Gate> {
        Arc::new(Gate {
            kind,
            held: Mutex::default(),
            changed: Condvar::new(),
            changed_cancelled: Condvar::new(),
            cancelled: Mutex::default(),
        })
    }

    fn wait_held(&self, count: usize) {
        let held = self.held.lock().unwrap();
        drop(
            self.changed
                .wait_while(held, |held| held.len() < count)
                .unwrap(),
        );
    }

    fn wait_cancelled(&self, count: usize) {
        let cancelled = self.cancelled.lock().unwrap();
        let short = |cancelled: &mut usize| *cancelled < count;
        drop(self.changed_cancelled.wait_while(cancelled, short).unwrap());
    }

    /// Ends everything held; reads find bytes 0x42.
    fn release(&self) {
        for (token, op, completer) in self.held.lock().unwrap().drain(..) {
            let mut data = None;
            if let Op::Read { buffer, .. } = &op {
                let bytes = vec![0x42; buffer.len() as usize];
                match self.kind {
                    Kind::Direct => buffer.write(&bytes),
                    Kind::Detachable => data = Some(bytes),
                }
            }
            completer.complete(Completion {
                token,
                result: Ok(()),
                data,
            });
        }
    }
}

/// What a backend of [`DISK`] bytes says of itself.
fn disk(kind: Kind) -> Info {
    Info {
        size: Length(DISK),
        block_size: 512,
        read_only: false,
        can_discard: false,
        kind,
    }
}

struct GateBackend(Arc<Gate>);

impl Backend for GateBackend {
    fn info(&self) -> Info {
        disk(self.0.kind)
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(GateEngine(
            self.0.clone(),
            local.completer.clone(),
        )))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct GateEngine(Arc<Gate>, Completer);

impl Engine for GateEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        if let Op::Read { extent, .. } = &op {
            assert_ne!(extent.offset().0, 66 * 512, "the panic that a test wants");
        }
        let gate = &self.0;
        gate.held.lock().unwrap().push((token, op, self.1.clone()));
        gate.changed.notify_all();
        Submitted::Pending
    }

    fn cancel(&mut self, _token: Token) {
        *self.0.cancelled.lock().unwrap() += 1;
        self.0.changed_cancelled.notify_all();
    }
}

fn pool() -> TestPool {
    TestPool::new(2)
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(Memory::new(DISK).unwrap())
}

fn gate(pool: &Pool, kind: Kind, packed: bool) -> (Arc<Gate>, Rig) {
    let gate = Gate::new(kind);
    let rig = Rig::new(pool, Arc::new(GateBackend(gate.clone())), packed);
    (gate, rig)
}

#[test]
fn what_is_written_is_read_split_and_packed() {
    let pool = pool();
    for packed in [false, true] {
        let mut rig = Rig::new(&pool, memory(), packed);
        for round in 0..100_u8 {
            rig.send(1, Some(round), u64::from(round));
            assert_eq!(rig.wait(), (1, 0));
            rig.send(2, None, u64::from(round));
            assert_eq!(rig.wait(), (2, 0));
            assert_eq!(rig.data(2), [round; 512]);
        }
        rig.path.stop_queue(0, LONG).unwrap();
        let (all, queues) = rig.path.stats();
        let stats = all.counts;
        assert_eq!((stats.requests, stats.errors, stats.in_flight), (200, 0, 0));
        assert_eq!(stats.bytes_read, 100 * 512);
        assert_eq!(stats.bytes_written, 100 * 512);
        assert_eq!(stats.irqs + stats.irqs_suppressed, stats.batches);
        assert_eq!(queues[&0].counts.requests, 200);
    }
}

#[test]
fn kicks_lost_before_the_start_are_made_up_for() {
    let pool = pool();
    let mut rig = Rig::idle(&pool, memory(), false);
    rig.send(1, Some(1), 1);
    let mut nothing = [0; 8];
    let _ = rustix::io::read(&rig.kick, &mut nothing);
    rig.start().unwrap();
    assert_eq!(rig.wait(), (1, 0));
}

#[test]
fn stop_drains_before_it_says_where_the_queue_stands() {
    let pool = pool();
    for packed in [false, true] {
        let (gate, mut rig) = gate(&pool, Kind::Direct, packed);
        rig.send(1, None, 1);
        rig.send(2, None, 2);
        gate.wait_held(2);
        assert!(rig.path.queue_running(0));
        assert_eq!(rig.path.stop_queue(0, Duration::ZERO), Ok(None));
        assert!(!rig.path.queue_running(0));
        assert_eq!(rig.start(), Err(StartError::Running(0)));
        // The worker has been told to stop before this is acknowledged.
        assert!(rig.path.invalidate(Iova(0), Iova(0), LONG));
        rig.send(3, None, 3);
        rig.kick();
        gate.release();
        let state = rig.path.stop_queue(0, LONG).unwrap().unwrap();
        let expected = match packed {
            false => QueueState::Split { avail_index: 2 },
            true => QueueState::Packed {
                avail_index: 6,
                avail_wrap: true,
                used_index: 6,
                used_wrap: true,
            },
        };
        assert_eq!(state, expected);
        assert_eq!(rig.path.stop_queue(0, LONG), Err(NotRunning(0)));
        assert_eq!([rig.wait(), rig.wait()], [(1, 0), (2, 0)]);
        assert_eq!(rig.data(1), [0x42; 512]);
        // A successor goes on from there.
        let setup = QueueSetup {
            state,
            ..rig.setup()
        };
        rig.path.start_queue(0, setup).unwrap();
        gate.wait_held(1);
        gate.release();
        assert_eq!(rig.wait(), (3, 0));
    }
}

#[test]
fn reset_waits_for_a_direct_backend_and_finishes_nothing() {
    let pool = pool();
    let (gate, mut rig) = gate(&pool, Kind::Direct, false);
    rig.send(1, None, 1);
    gate.wait_held(1);
    assert!(!rig.path.reset(Duration::ZERO), "a request is in flight");
    gate.wait_cancelled(1);
    assert!(!rig.path.queue_running(0));
    gate.release();
    assert!(rig.path.reset(LONG));
    assert_eq!(rig.driver.pop_used(), Ok(None));
    assert_eq!(rig.status(1), 0xff);
    assert_eq!(rig.path.stats().0.counts.in_flight, 0);
}

#[test]
fn reset_abandons_a_detachable_backend() {
    let pool = pool();
    let (gate, mut rig) = gate(&pool, Kind::Detachable, false);
    rig.send(1, None, 1);
    gate.wait_held(1);
    assert!(rig.path.reset(LONG), "without waiting for the backend");
    // The guest starts anew; the old request's end must not show in its memory.
    rig.driver = fresh_driver(&rig.guest, false);
    rig.start().unwrap();
    rig.send(1, None, 2);
    gate.wait_held(2);
    gate.release();
    assert_eq!(rig.wait(), (1, 0));
    assert_eq!(rig.data(1), [0x42; 512]);
    assert_eq!(rig.driver.pop_used(), Ok(None));
}

#[test]
fn invalidate_does_not_wait_for_requests_in_flight() {
    let pool = pool();
    for kind in [Kind::Direct, Kind::Detachable] {
        let (gate, mut rig) = gate(&pool, kind, false);
        rig.send(1, None, 1);
        gate.wait_held(1);
        assert!(rig.path.invalidate(Iova(0), Iova(u64::MAX), LONG));
        gate.release();
        assert_eq!(rig.wait(), (1, 0));
        assert_eq!(rig.data(1), [0x42; 512]);
        // The ring was mapped again.
        rig.send(2, None, 2);
        gate.wait_held(1);
        gate.release();
        assert_eq!(rig.wait(), (2, 0));
        assert_eq!(rig.path.stats().0.counts.iotlb_misses, 2);
    }
}

#[test]
fn invalidate_of_everything_breaks_the_device_only_when_it_is_used() {
    let pool = pool();
    let mut rig = Rig::new(&pool, memory(), false);
    rig.send(1, Some(1), 1);
    rig.wait();
    rig.guest.map_only(0);
    assert!(rig.path.invalidate(Iova(0), Iova(u64::MAX), LONG));
    assert!(rig.path.queue_running(0));
    rig.kick();
    assert!(rig.wait_broken().contains("no mapping at IOVA"));
    assert!(!rig.path.queue_running(0));
}

#[test]
fn a_broken_device_leaves_its_neighbour_alone_and_a_reset_mends_it() {
    let pool = TestPool::new(1);
    let mut good = Rig::new(&pool, memory(), false);
    let mut bad = Rig::new(&pool, memory(), false);
    // avail.idx far ahead
    bad.guest.write(AREAS[1] + 2, &9999_u16.to_le_bytes());
    bad.kick();
    let message = bad.wait_broken();
    assert!(message.contains("malformed virtqueue"), "{message}");
    assert!(!bad.path.queue_running(0));
    let stopped = bad.start().err();
    assert!(
        matches!(stopped, Some(StartError::Stopped(_))),
        "{stopped:?}"
    );
    good.send(1, Some(7), 7);
    assert_eq!(good.wait(), (1, 0));
    assert!(bad.path.reset(LONG));
    bad.driver = fresh_driver(&bad.guest, false);
    bad.start().unwrap();
    bad.send(1, Some(7), 7);
    assert_eq!(bad.wait(), (1, 0));
}

#[test]
fn a_panic_ends_its_device_alone() {
    let pool = TestPool::new(1);
    let mut good = Rig::new(&pool, memory(), true);
    let (_gate, mut bad) = gate(&pool, Kind::Direct, true);
    bad.send(1, None, 66);
    assert!(bad.wait_broken().contains("internal error"));
    good.send(1, Some(7), 7);
    assert_eq!(good.wait(), (1, 0));
    assert!(bad.path.reset(LONG));
}

#[test]
fn memory_taken_away_ends_its_device_alone() {
    let pool = TestPool::new(1);
    let mut good = Rig::new(&pool, memory(), false);
    let mut bad = Rig::new(&pool, memory(), false);
    bad.send(1, None, 1);
    bad.wait();
    // The ring stays; the buffers of slot 4 and beyond are gone.
    bad.guest.truncate(BUFFERS + 4 * SLOT);
    let header = Guest::segment(BUFFERS, 16);
    let data = Guest::segment(BUFFERS + 5 * SLOT, 512);
    let status = Guest::segment(BUFFERS + 16, 1);
    bad.driver.add(&[header], &[data, status], 1).unwrap();
    bad.driver.publish();
    bad.kick();
    let message = bad.wait_broken();
    assert!(message.contains("taken away"), "{message}");
    good.send(1, Some(7), 7);
    assert_eq!(good.wait(), (1, 0));
}

#[test]
fn what_a_dead_device_had_in_flight_is_done_by_its_successor() {
    let pool = pool();
    for packed in [false, true] {
        let gate = Gate::new(Kind::Detachable);
        let mut rig = Rig::idle(&pool, Arc::new(GateBackend(gate.clone())), packed);
        let record = rustix::fs::memfd_create("record", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&record, 0x4000).unwrap();
        let with_record = |rig: &Rig| QueueSetup {
            inflight: Some((dup(&record), 64)),
            ..rig.setup()
        };
        rig.path.start_queue(0, with_record(&rig)).unwrap();
        rig.send(1, None, 1);
        rig.send(2, None, 2);
        gate.wait_held(2);
        // As if it had died: nothing is finished.
        assert!(rig.path.reset(LONG));
        gate.held.lock().unwrap().clear();
        rig.path.start_queue(0, with_record(&rig)).unwrap();
        gate.wait_held(2);
        gate.release();
        assert_eq!([rig.wait(), rig.wait()], [(1, 0), (2, 0)]);
        assert_eq!(rig.path.stats().0.counts.resubmitted, 2);
    }
}

#[test]
fn a_ring_that_is_not_mapped_does_not_start() {
    let pool = pool();
    let rig = Rig::idle(&pool, memory(), false);
    let mut setup = rig.setup();
    setup.areas[2] = Iova(BASE + GUEST);
    let refused = rig.path.start_queue(0, setup).err();
    assert!(matches!(
        refused,
        Some(StartError::Ring(RingError::Fault(_)))
    ));
    let mut setup = rig.setup();
    setup.kick = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let refused = rig.path.start_queue(0, setup).err();
    assert!(matches!(refused, Some(StartError::System("kick fd", _))));
    rig.start().unwrap();
    assert_eq!(rig.start(), Err(StartError::Running(0)));
}

#[test]
fn close_comes_back_and_a_closed_pool_answers() {
    let pool = pool();
    let rig = Rig::new(&pool, memory(), false);
    rig.path.close();
    rig.path.close();
    assert_eq!(rig.start(), Err(StartError::Stopped("it is closed")));
    let other = Rig::new(&pool, memory(), false);
    pool.close();
    pool.close();
    assert!(other.path.reset(LONG));
    assert_eq!(
        other.start(),
        Err(StartError::Stopped("its workers have ended"))
    );
}
