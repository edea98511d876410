//! Devices whose backend is exchanged while a driver uses them.

use super::*;
use crate::backend::{Notice, Observer, Observers, Piece, StatusRequest};
use crate::{Extent, Offset};
use rustix::io::Errno;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// What several backends store in, and how they are used.
struct Store {
    memory: Memory,
    engines: AtomicUsize,
    in_flight: AtomicUsize,
}

/// One of them. A request ends a round later than it came.
struct Opened {
    store: Arc<Store>,
    is_closed: Arc<AtomicBool>,
}

struct OpenedEngine {
    opened: Opened,
    below: Box<dyn Engine>,
    completer: Completer,
}

impl Opened {
    fn new(store: &Arc<Store>) -> Opened {
        Opened {
            store: store.clone(),
            is_closed: Arc::default(),
        }
    }

    fn share(&self) -> Opened {
        Opened {
            store: self.store.clone(),
            is_closed: self.is_closed.clone(),
        }
    }

    /// What a file cannot do while it is in use.
    fn end(&self) {
        assert_eq!(self.store.engines.load(SeqCst), 0, "an engine is attached");
        assert_eq!(
            self.store.in_flight.load(SeqCst),
            0,
            "a request is in flight"
        );
        self.is_closed.store(true, SeqCst);
    }
}

impl Backend for Opened {
    fn info(&self) -> Info {
        self.store.memory.info()
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        let below = self.store.memory.attach(local)?;
        self.store.engines.fetch_add(1, SeqCst);
        Ok(Box::new(OpenedEngine {
            opened: self.share(),
            below,
            completer: local.completer.clone(),
        }))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl Engine for OpenedEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        assert!(!self.opened.is_closed.load(SeqCst), "it is closed");
        self.opened.store.in_flight.fetch_add(1, SeqCst);
        let Submitted::Done(result) = self.below.submit(token, op) else {
            panic!("memory answers at once");
        };
        self.completer.complete(Completion {
            token,
            result,
            data: None,
        });
        Submitted::Pending
    }

    fn completed(&mut self, _completion: &mut Completion) {
        self.opened.store.in_flight.fetch_sub(1, SeqCst);
    }
}

impl Drop for OpenedEngine {
    fn drop(&mut self) {
        self.opened.store.engines.fetch_sub(1, SeqCst);
    }
}

fn disk_on(backend: Arc<dyn Backend>) -> Arc<Disk> {
    let disk = Disk::new(backend, DISK / 512, Limits::default(), b"test");
    Arc::new(disk)
}

#[test]
fn nothing_is_lost_when_the_backend_is_exchanged_under_load() {
    const DEPTH: u32 = 4;
    const EXCHANGES: usize = 300;
    let pool = pool();
    for packed in [false, true] {
        let store = Arc::new(Store {
            memory: Memory::new(DISK).unwrap(),
            engines: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
        });
        let first = Opened::new(&store);
        let disk = disk_on(Arc::new(first.share()));
        let mut rig = Rig::of(&pool, &disk, packed);
        rig.start().unwrap();
        let (path, is_over) = (rig.path.clone(), AtomicBool::new(false));
        let mut sent = 0_u64;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut opened = first;
                for _ in 0..EXCHANGES {
                    assert!(path.pause(LONG));
                    disk.set_backend(None);
                    opened.end();
                    opened = Opened::new(&store);
                    disk.set_backend(Some(Arc::new(opened.share())));
                    path.resume().unwrap();
                }
                is_over.store(true, SeqCst);
            });
            // Each slot writes a sector of its own and reads it again, by turns.
            let mut turns = [0_u8; DEPTH as usize];
            for token in 0..DEPTH {
                rig.send(token, Some(0), token.into());
                sent += 1;
            }
            let mut open = DEPTH;
            while open > 0 {
                let (token, status) = rig.wait();
                assert_eq!(status, 0);
                let turn = &mut turns[token as usize];
                if *turn % 2 == 1 {
                    assert_eq!(rig.data(token), [*turn / 2; 512]);
                }
                if is_over.load(SeqCst) {
                    open -= 1;
                    continue;
                }
                *turn = turn.wrapping_add(1);
                let write = (*turn % 2 == 0).then_some(*turn / 2);
                rig.send(token, write, token.into());
                sent += 1;
            }
        });
        rig.path.stop_queue(0, LONG).unwrap();
        let counts = rig.path.stats().0.counts;
        assert_eq!(
            (counts.requests, counts.errors, counts.in_flight),
            (sent, 0, 0)
        );
    }
}

#[test]
fn a_pause_waits_for_what_is_in_flight_and_what_comes_waits_for_its_end() {
    let pool = pool();
    for kind in [Kind::Direct, Kind::Detachable] {
        let gate = Gate::new(kind);
        let disk = disk_on(Arc::new(GateBackend(gate.clone())));
        let mut rig = Rig::of(&pool, &disk, false);
        rig.start().unwrap();
        rig.send(1, None, 1);
        gate.wait_held(1);
        let path = rig.path.clone();
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| path.pause(LONG));
            rig.send(2, None, 2);
            gate.release();
            assert_eq!(rig.wait(), (1, 0));
            // The second may have come before the pause did.
            while !pausing.is_finished() {
                gate.release();
                std::thread::yield_now();
            }
            assert!(pausing.join().unwrap());
        });
        rig.send(3, None, 3);
        disk.set_backend(Some(memory()));
        rig.path.resume().unwrap();
        let mut ended = [rig.wait(), rig.wait()];
        ended.sort_unstable();
        assert_eq!(ended, [(2, 0), (3, 0)]);
    }
}

#[test]
fn a_pause_that_takes_too_long_is_given_up_and_all_goes_on() {
    let pool = pool();
    let (gate, mut rig) = gate(&pool, Kind::Direct, true);
    rig.send(1, None, 1);
    gate.wait_held(1);
    assert!(!rig.path.pause(Duration::ZERO));
    rig.send(2, None, 2);
    gate.wait_held(2);
    gate.release();
    let mut ended = [rig.wait(), rig.wait()];
    ended.sort_unstable();
    assert_eq!(ended, [(1, 0), (2, 0)]);
    assert!(rig.path.pause(LONG));
}

fn what_lies(disk: &Disk) -> Result<Vec<Piece>, Errno> {
    let (tell, told) = std::sync::mpsc::channel();
    let all = Extent::new(Offset(0), Length(DISK)).unwrap();
    disk.block_status(StatusRequest::new(all, 1, move |found| {
        tell.send(found).unwrap();
    }));
    told.recv().unwrap()
}

#[test]
fn a_queue_that_is_stopped_or_reset_and_started_in_a_pause_waits_for_its_end() {
    let pool = pool();
    type End = fn(&DataPath);
    let ends: [End; 2] = [
        |path| {
            let stopped = path.stop_queue(0, LONG);
            assert_eq!(stopped, Ok(Some(QueueState::initial(false))));
        },
        |path| assert!(path.reset(LONG)),
    ];
    for end in ends {
        let disk = disk_on(memory());
        let mut rig = Rig::of(&pool, &disk, false);
        rig.start().unwrap();
        assert!(rig.path.pause(LONG));
        disk.set_backend(None);
        rig.send(1, Some(7), 1);
        assert_eq!(what_lies(&disk), Ok(vec![Piece::data(Length(DISK))]));
        end(&rig.path);
        rig.start().unwrap();
        assert!(rig.path.queue_running(0));
        // A pause of what is paused: it returns when the worker has started the queue.
        assert!(rig.path.pause(LONG));
        assert_eq!(rig.status(1), 0xff);
        disk.set_backend(Some(memory()));
        rig.path.resume().unwrap();
        assert_eq!(rig.wait(), (1, 0));
    }
}

#[test]
fn a_device_that_is_closed_in_a_pause_ends() {
    let pool = pool();
    let rig = Rig::new(&pool, memory(), false);
    assert!(rig.path.pause(LONG));
    rig.path.close();
    assert!(!rig.path.queue_running(0));
    rig.path.resume().unwrap();
}

/// Nothing can be attached to it.
struct Refuses {
    panics: bool,
}

impl Backend for Refuses {
    fn info(&self) -> Info {
        disk(Kind::Detachable)
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        assert!(!self.panics, "the panic that a test wants");
        Err(Error::new(Errno::AGAIN, "another program has it"))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_backend_that_cannot_be_attached_is_told_of_and_another_may_follow() {
    let pool = pool();
    for panics in [false, true] {
        let disk = disk_on(memory());
        let mut rig = Rig::of(&pool, &disk, false);
        rig.start().unwrap();
        assert!(rig.path.pause(LONG));
        disk.set_backend(Some(Arc::new(Refuses { panics })));
        let errno = rig.path.resume().unwrap_err().errno;
        assert_eq!(errno, if panics { Errno::IO } else { Errno::AGAIN });
        rig.send(1, Some(7), 1);
        assert!(rig.path.pause(LONG));
        assert_eq!(rig.status(1), 0xff);
        disk.set_backend(Some(memory()));
        rig.path.resume().unwrap();
        assert_eq!(rig.wait(), (1, 0));
        assert_eq!(rig.path.events(), []);
    }
}

/// A gate that is attached to once.
struct Once(GateBackend, AtomicBool);

impl Backend for Once {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        match self.1.swap(true, SeqCst) {
            false => self.0.attach(local),
            true => Err(Error::new(Errno::AGAIN, "another program has it")),
        }
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_queue_that_cannot_go_on_after_a_pause_that_was_given_up_breaks_its_device() {
    let pool = pool();
    let gate = Gate::new(Kind::Detachable);
    let disk = disk_on(Arc::new(GateBackend(gate.clone())));
    let mut rig = Rig::of(&pool, &disk, false);
    rig.start().unwrap();
    rig.send(1, None, 1);
    gate.wait_held(1);
    // Another queue, which has nothing in flight.
    disk.set_backend(Some(Arc::new(Once(
        GateBackend(gate.clone()),
        false.into(),
    ))));
    let mut idle = rig.setup();
    idle.areas = AREAS.map(|offset| Iova(BASE + 0x4000 + offset));
    rig.path.start_queue(1, idle).unwrap();
    // Until it was quick enough to let go before the pause was given up.
    while rig.path.queue_running(1) {
        rig.path.pause(Duration::from_millis(100));
    }
    wait_readable(rig.path.event_fd());
    let message = "cannot go on: another program has it".into();
    assert_eq!(rig.path.events(), [Event::Broken { queue: 1, message }]);
}

/// Changes its size when a test says so.
#[derive(Default)]
struct Resizes(Observers);

impl Backend for Resizes {
    fn info(&self) -> Info {
        disk(Kind::Detachable)
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Err(Error::new(Errno::NXIO, "no queue runs"))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.0.add(observer);
    }
}

#[test]
fn only_the_backend_that_is_there_tells_the_device() {
    let pool = pool();
    let (former, next) = (Arc::new(Resizes::default()), Arc::new(Resizes::default()));
    let disk = disk_on(former.clone());
    let rig = Rig::of(&pool, &disk, false);
    // To and fro, as a filter that is put in and taken out: told once all the same.
    for backend in [&next, &former, &next] {
        assert!(rig.path.pause(LONG));
        disk.set_backend(Some(backend.clone()));
        rig.path.resume().unwrap();
    }
    former.0.tell(&Notice::Resized(Length(512)));
    next.0.tell(&Notice::Resized(Length(1024)));
    assert_eq!(rig.path.events(), [Event::Resized { size: 1024 }]);
}
