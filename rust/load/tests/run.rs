//! The load itself, on a disk in memory that can be made to fail.

use rustix::io::Errno;
use std::time::Duration;
use vduse_load::{
    Buffers, Direction, Done, Engine, EngineError, LoadError, Op, Pattern, Phase, Spec, SpecError,
    Stop, run,
};

const BLOCK: u32 = 1024;
const BLOCKS: u64 = 64;

/// Completes requests last in, first out, `at_once` to a reap.
struct FakeDisk {
    buffers: Buffers,
    disk: Vec<Option<Pattern>>,
    queue: Vec<(u32, Direction, u64)>,
    at_once: usize,
    room: usize,
    /// Every so manieth write is acknowledged and lost.
    lose: Option<usize>,
    /// Requests at this offset fail.
    bad: Option<u64>,
    writes: usize,
    waits: usize,
    most_in_flight: usize,
}

impl FakeDisk {
    fn new(depth: u32) -> FakeDisk {
        FakeDisk {
            buffers: Buffers::new(depth, BLOCK).unwrap(),
            disk: vec![None; BLOCKS as usize],
            queue: Vec::new(),
            at_once: 3,
            room: usize::MAX,
            lose: None,
            bad: None,
            writes: 0,
            waits: 0,
            most_in_flight: 0,
        }
    }

    /// What pattern a buffer holds.
    fn pattern(&self, buffer: u32, offset: u64) -> Option<Pattern> {
        (1..=1000)
            .map(|sequence| Pattern { offset, sequence })
            .find(|pattern| self.buffers.mismatch(buffer, *pattern).is_none())
    }
}

impl Engine for FakeDisk {
    fn capacity(&self) -> u64 {
        BLOCKS * u64::from(BLOCK)
    }

    fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    fn submit(&mut self, block: u32, to: Direction, offset: u64) -> Result<bool, EngineError> {
        if self.queue.len() >= self.room {
            return Ok(false);
        }
        self.queue.push((block, to, offset));
        self.most_in_flight = self.most_in_flight.max(self.queue.len());
        Ok(true)
    }

    fn kick(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), EngineError> {
        for _ in 0..self.at_once {
            let Some((buffer, direction, offset)) = self.queue.pop() else {
                break;
            };
            if self.bad == Some(offset) {
                done.push((buffer, Err(Errno::IO)));
                continue;
            }
            let block = (offset / u64::from(BLOCK)) as usize;
            match direction {
                Direction::Write => {
                    self.writes += 1;
                    if self
                        .lose
                        .is_none_or(|every| !self.writes.is_multiple_of(every))
                    {
                        self.disk[block] = self.pattern(buffer, offset);
                    }
                }
                Direction::Read => {
                    let nothing = Pattern {
                        offset: u64::MAX / 2,
                        sequence: 0,
                    };
                    let content = self.disk[block].unwrap_or(nothing);
                    self.buffers.fill(buffer, content);
                }
            }
            done.push((buffer, Ok(())));
        }
        Ok(())
    }

    fn wait(&mut self, _timeout: Duration) -> Result<(), EngineError> {
        self.waits += 1;
        Ok(())
    }
}

fn spec(op: Op, requests: u64) -> Spec {
    Spec {
        op,
        block_size: BLOCK,
        depth: 8,
        stop: Stop::Requests(requests),
        seed: 1,
        verify: true,
        span: None,
        reads: 50,
        poll: false,
        patience: None,
    }
}

const ALL: [Op; 5] = [Op::Read, Op::Write, Op::RandRead, Op::RandWrite, Op::Mixed];

#[test]
fn an_honest_disk_verifies_whatever_the_load() {
    for op in ALL {
        let mut disk = FakeDisk::new(8);
        let report = run(&mut disk, &spec(op, 500), &mut |_| false).unwrap();
        assert_eq!((report.requests, report.errors), (500, 0), "{op:?}");
        assert_eq!(report.bytes, 500 * u64::from(BLOCK));
        assert_eq!(disk.most_in_flight, 8, "{op:?}");
    }
}

#[test]
fn a_lost_write_is_found_and_its_offset_told() {
    for op in [Op::Write, Op::RandWrite, Op::Mixed] {
        let mut disk = FakeDisk::new(8);
        disk.lose = Some(7);
        let report = run(&mut disk, &spec(op, 60), &mut |_| false).unwrap();
        assert!(report.errors > 0, "{op:?}");
        assert!(
            report.messages[0].contains("not what was written there"),
            "{:?}",
            report.messages
        );
    }
}

#[test]
fn failed_requests_are_counted_and_named() {
    let mut disk = FakeDisk::new(8);
    disk.bad = Some(3 * u64::from(BLOCK));
    let mut spec = spec(Op::Read, BLOCKS);
    spec.verify = false;
    let report = run(&mut disk, &spec, &mut |_| false).unwrap();
    assert_eq!((report.requests, report.errors), (BLOCKS, 1));
    assert!(report.messages[0].starts_with("read at offset 3072: "));
    assert_eq!(report.bytes, (BLOCKS - 1) * u64::from(BLOCK));
}

#[test]
fn a_failed_write_leaves_the_block_unknown() {
    let mut disk = FakeDisk::new(8);
    disk.bad = Some(0);
    let report = run(&mut disk, &spec(Op::Write, BLOCKS), &mut |_| false).unwrap();
    // The write and the reading back failed; nothing was compared.
    assert_eq!(report.errors, 2);
    assert!(report.messages.iter().all(|m| m.contains("at offset 0: ")));
}

#[test]
fn a_queue_shorter_than_the_depth_still_serves() {
    let mut disk = FakeDisk::new(8);
    disk.room = 2;
    let report = run(&mut disk, &spec(Op::Mixed, 200), &mut |_| false).unwrap();
    assert_eq!((report.requests, report.errors), (200, 0));
    assert_eq!(disk.most_in_flight, 2);
}

#[test]
fn a_queue_that_takes_nothing_is_an_error() {
    let mut disk = FakeDisk::new(8);
    disk.room = 0;
    let error = run(&mut disk, &spec(Op::Read, 1), &mut |_| false).unwrap_err();
    assert!(matches!(error, LoadError::NeverFits(BLOCK)), "{error}");
}

#[test]
fn the_same_seed_makes_the_same_load() {
    let order = |seed| {
        let mut disk = FakeDisk::new(1);
        let mut spec = spec(Op::RandWrite, 20);
        spec.depth = 1;
        spec.seed = seed;
        run(&mut disk, &spec, &mut |_| false).unwrap();
        disk.disk
    };
    assert_eq!(order(5), order(5));
    assert_ne!(order(5), order(6));
}

#[test]
fn a_load_of_some_time_ends() {
    let mut disk = FakeDisk::new(8);
    let mut spec = spec(Op::RandRead, 0);
    spec.stop = Stop::After(Duration::from_millis(20));
    let report = run(&mut disk, &spec, &mut |_| false).unwrap();
    assert!(report.requests > 0 && report.elapsed >= Duration::from_millis(20));
}

#[test]
fn the_caller_can_interrupt_a_device_that_hangs() {
    let mut disk = FakeDisk::new(8);
    disk.at_once = 0;
    let error = run(&mut disk, &spec(Op::Read, 10), &mut |_| true).unwrap_err();
    assert!(matches!(error, LoadError::Interrupted));
}

#[test]
fn a_device_that_hangs_is_given_up_after_a_while() {
    for poll in [false, true] {
        let mut disk = FakeDisk::new(8);
        disk.at_once = 0;
        let mut spec = spec(Op::Read, 10);
        spec.poll = poll;
        spec.patience = Some(Duration::ZERO);
        let error = run(&mut disk, &spec, &mut |_| false).unwrap_err();
        assert!(
            matches!(error, LoadError::Stalled { in_flight: 8, .. }),
            "{error}"
        );
        assert_eq!(disk.waits == 0, poll);
    }
}

#[test]
fn a_mix_has_the_share_of_reads_asked_for() {
    let writes = |reads| {
        let mut disk = FakeDisk::new(8);
        let mut spec = spec(Op::Mixed, 1000);
        spec.verify = false;
        spec.reads = reads;
        run(&mut disk, &spec, &mut |_| false).unwrap();
        disk.writes
    };
    assert_eq!((writes(100), writes(0)), (0, 1000));
    assert!((200..400).contains(&writes(70)), "{}", writes(70));
}

#[test]
fn the_caller_hears_what_is_being_done() {
    let mut disk = FakeDisk::new(8);
    let mut spec = spec(Op::RandRead, 0);
    spec.stop = Stop::After(Duration::from_millis(300));
    let mut heard = Vec::new();
    let report = run(&mut disk, &spec, &mut |progress| {
        heard.push(progress);
        false
    });
    assert!(heard.iter().all(|at| at.blocks == BLOCKS));
    let last = heard.last().unwrap();
    assert_eq!(last.phase, Phase::Load);
    assert!(last.requests <= report.unwrap().requests);
}

#[test]
fn loads_that_cannot_be_made() {
    let capacity = BLOCKS * u64::from(BLOCK);
    let with = |change: fn(&mut Spec)| {
        let mut spec = spec(Op::Read, 1);
        change(&mut spec);
        spec.blocks(capacity)
    };
    assert_eq!(with(|_| ()), Ok(BLOCKS));
    assert_eq!(with(|s| s.block_size = 0), Err(SpecError::BlockSize(0)));
    assert_eq!(
        with(|s| s.block_size = 1000),
        Err(SpecError::BlockSize(1000))
    );
    assert_eq!(with(|s| s.depth = 0), Err(SpecError::Depth(0)));
    assert_eq!(with(|s| s.reads = 101), Err(SpecError::Reads(101)));
    assert_eq!(
        with(|s| s.span = Some(512)),
        Err(SpecError::Span {
            span: 512,
            block_size: BLOCK
        })
    );
    assert_eq!(
        with(|s| s.span = Some(1 << 30)),
        Err(SpecError::Capacity {
            span: 1 << 30,
            capacity
        })
    );
}
