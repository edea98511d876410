//! What overtakes a queue: mappings that move, and the end of its device during its start.

use super::*;
use rustix::io::Errno;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use vduse_mem::{Backing, Entry, Resolver};

#[test]
fn what_is_used_goes_where_the_ring_is_now() {
    let pool = pool();
    for packed in [false, true] {
        let (gate, mut rig) = gate(&pool, Kind::Direct, packed);
        rig.send(1, None, 1);
        gate.wait_held(1);
        // The worker's batch is over once this is acknowledged.
        assert!(rig.path.invalidate(Iova(0), Iova(0), LONG));
        let half = GUEST / 2;
        let before = rig.guest.read(0, half);
        rig.guest.write(half, &before);
        rig.guest.map_moved(half, half);
        assert!(rig.path.invalidate(Iova(0), Iova(u64::MAX), LONG));
        gate.release();
        wait_readable(&rig.call);
        let ring = |at| rig.guest.read(at, RECORD);
        assert!(ring(0) == before[..RECORD as usize], "packed: {packed}");
        let moved = ring(half);
        let length = match packed {
            // used.idx, then the first element's id and length (section 2.7.8)
            false => {
                let used = &moved[AREAS[2] as usize..];
                assert_eq!(used[2..4], [1, 0]);
                used[8..12].to_vec()
            }
            // the first descriptor's length (section 2.8.13)
            true => moved[8..12].to_vec(),
        };
        assert_eq!(length, 513_u32.to_le_bytes(), "packed: {packed}");
    }
}

/// A resolver that lets its first caller wait.
struct Waiting {
    guest: Arc<Guest>,
    first: AtomicBool,
    entered: Barrier,
    go_on: Barrier,
}

impl Resolver for Waiting {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        if self.first.swap(false, Relaxed) {
            self.entered.wait();
            self.go_on.wait();
        }
        self.guest.resolve(start, last)
    }
}

#[test]
fn a_start_that_a_reset_or_close_overtakes_does_not_run() {
    let pool = pool();
    type Overtake = fn(&DataPath);
    let overtaking: [(Overtake, StartError); 2] = [
        (
            |path| assert!(path.reset(LONG)),
            StartError::Stopped("it was reset meanwhile"),
        ),
        (DataPath::close, StartError::Stopped("it is closed")),
    ];
    for (overtake, refusal) in overtaking {
        let rig = Rig::idle(&pool, memory(), false);
        let resolver = Arc::new(Waiting {
            guest: rig.guest.clone(),
            first: AtomicBool::new(true),
            entered: Barrier::new(2),
            go_on: Barrier::new(2),
        });
        let hookup = Hookup {
            resolver: resolver.clone(),
            irq_sink: rig.guest.clone(),
            umem: None,
        };
        let disk = Disk::new(memory(), DISK / 512, Limits::default(), b"");
        let path = DataPath::blk(&pool, hookup, Arc::new(disk)).unwrap();
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| path.start_queue(0, rig.setup()));
            resolver.entered.wait();
            let again = path.start_queue(0, rig.setup());
            assert_eq!(again, Err(StartError::Running(0)));
            assert!(!path.queue_running(0));
            assert_eq!(path.stop_queue(0, LONG), Err(NotRunning(0)));
            overtake(&path);
            resolver.go_on.wait();
            assert_eq!(starting.join().unwrap(), Err(refusal));
        });
        assert!(!path.queue_running(0));
    }
}

#[test]
fn no_kick_is_lost_while_mappings_come_and_go() {
    let pool = TestPool::new(1);
    for packed in [false, true] {
        let mut rig = Rig::new(&pool, memory(), packed);
        let (path, is_over) = (rig.path.clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    assert!(path.invalidate(Iova(0), Iova(u64::MAX), LONG));
                }
            });
            for round in 0..5000 {
                rig.send(round % 4, Some(1), 1);
                assert_eq!(rig.wait(), (round % 4, 0));
            }
            is_over.store(true, Relaxed);
        });
    }
}
