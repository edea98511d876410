//! The rates that come out, over ten simulated seconds.

use super::*;
use crate::backend::Kind;
use crate::layers::testing::{Bench, extent};
use crate::testing::buffer;
use rustix::io::Errno;
use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The simulated time.
fn now() -> Instant {
    NOW.get().unwrap_or_else(|| {
        let start = Instant::now();
        NOW.set(Some(start));
        start
    })
}

fn rate(per_second: f64) -> Option<Rate> {
    Some(Rate {
        per_second,
        burst: None,
    })
}

fn iops(total: f64) -> Limits {
    Limits {
        iops: Split {
            total: rate(total),
            ..Split::default()
        },
        ..Limits::default()
    }
}

fn bps(total: f64) -> Limits {
    Limits {
        bps: Split {
            total: rate(total),
            ..Split::default()
        },
        ..Limits::default()
    }
}

fn discard() -> Op {
    Op::Discard {
        extent: extent(0, 512),
    }
}

/// A virtqueue of its own layer on a shared throttle, kept full with `depth` operations.
struct Load {
    bench: Bench,
    memory: Vec<u8>,
    depth: usize,
    is_read: bool,
    waiting: usize,
    passed: usize,
}

impl Load {
    fn new(throttle: &Arc<Throttle>, block: usize, depth: usize, is_read: bool) -> Load {
        let layer = ThrottleLayer {
            throttle: throttle.clone(),
            clock: now,
        };
        Load {
            bench: Bench::new(layer, Kind::Direct),
            memory: vec![0; block],
            depth,
            is_read,
            waiting: 0,
            passed: 0,
        }
    }

    fn op(&mut self) -> Op {
        let extent = extent(0, self.memory.len() as u64);
        // SAFETY: the bench, which keeps the buffer, does nothing with it.
        let buffer = unsafe { buffer(&mut self.memory, &[]) };
        match self.is_read {
            true => Op::Read { extent, buffer },
            false => Op::Write { extent, buffer },
        }
    }

    /// Lets go what may, and submits as many as went. Backends answer at once.
    fn turn(&mut self) {
        if self.bench.engine.deadline().is_some_and(|due| due <= now()) {
            assert_eq!(self.bench.expire(now()), []);
            self.count();
        }
        while self.waiting < self.depth {
            let op = self.op();
            self.bench.engine.submit(Token(1), op);
            self.waiting += 1;
            self.count();
        }
    }

    fn count(&mut self) {
        let went = self.bench.reached().len();
        self.waiting -= went;
        self.passed += went;
    }
}

/// Runs loads for ten seconds of simulated time; the worker wakes up as late as `slack`.
fn ten_seconds(loads: &mut [Load], slack: Duration) {
    let end = now() + Duration::from_secs(10);
    loop {
        loads.iter_mut().for_each(Load::turn);
        let due = loads.iter().filter_map(|load| load.bench.engine.deadline());
        let next = due.min().expect("somebody waits");
        if next > end {
            return NOW.set(Some(end));
        }
        if next > now() {
            NOW.set(Some((next + slack).min(end)));
        }
    }
}

fn assert_near(got: f64, expected: f64) {
    let error = (got / expected - 1.0).abs();
    assert!(error < 0.05, "{got} instead of {expected}: {error:.3} off");
}

const SLACK: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_micros(60),
    Duration::from_millis(20),
];

#[test]
fn operations_a_second_come_out() {
    for slack in SLACK {
        for (per_second, depth) in [
            (10.0, 1),
            (100.0, 1),
            (100.0, 32),
            (50_000.0, 32),
            (333.0, 5),
        ] {
            // A queue emptier than what falls due while its worker sleeps cannot keep its rate.
            if depth as f64 <= per_second * slack.as_secs_f64() {
                continue;
            }
            let throttle = Throttle::starting(iops(per_second), now());
            let mut loads = [Load::new(&throttle, 512, depth, true)];
            ten_seconds(&mut loads, slack);
            assert_near(loads[0].passed as f64, per_second * 10.0);
        }
    }
}

#[test]
fn bytes_a_second_come_out_also_where_a_request_is_larger_than_the_bucket() {
    for slack in SLACK {
        for (per_second, block) in [
            (100e6, 1 << 20),
            (5e6, 1 << 20),
            (f64::from(1 << 20), 1 << 20),
            (100e6, 65_536),
            (1e6, 4096),
        ] {
            let throttle = Throttle::starting(bps(per_second), now());
            let mut loads = [Load::new(&throttle, block, 32, false)];
            ten_seconds(&mut loads, slack);
            let bytes = loads[0].passed * block;
            assert_near(bytes as f64, per_second * 10.0);
        }
    }
}

#[test]
fn reads_and_writes_have_limits_of_their_own_and_one_together() {
    let mut limits = iops(1000.0);
    limits.iops.read = rate(100.0);
    let throttle = Throttle::starting(limits, now());
    let mut loads = [
        Load::new(&throttle, 512, 32, true),
        Load::new(&throttle, 512, 32, false),
    ];
    ten_seconds(&mut loads, Duration::ZERO);
    assert_near(loads[0].passed as f64, 1000.0);
    assert_near(loads[1].passed as f64, 9000.0);
}

#[test]
fn a_large_request_counts_as_several_operations() {
    let limits = Limits {
        iops_size: Some(4096),
        ..iops(1000.0)
    };
    let throttle = Throttle::starting(limits, now());
    let mut loads = [Load::new(&throttle, 16_384, 8, true)];
    ten_seconds(&mut loads, Duration::ZERO);
    assert_near(loads[0].passed as f64, 2500.0);
}

#[test]
fn virtqueues_share_fairly_whatever_their_depths() {
    for slack in SLACK {
        let throttle = Throttle::starting(iops(3_000.0), now());
        let depths = [128, 64, 64];
        let mut loads = depths.map(|depth| Load::new(&throttle, 512, depth, true));
        ten_seconds(&mut loads, slack);
        let passed = loads.map(|load| load.passed);
        assert_near(passed.iter().sum::<usize>() as f64, 30_000.0);
        // The first had all of the first burst.
        assert!(
            passed.iter().all(|n| (9_000..11_000).contains(n)),
            "{passed:?}"
        );
    }
}

#[test]
fn flushes_pass_what_waits() {
    let throttle = Throttle::starting(iops(1.0), now());
    let mut load = Load::new(&throttle, 512, 4, false);
    load.turn();
    assert_eq!((load.passed, load.waiting), (0, 4));
    load.bench.engine.submit(Token(9), Op::Flush);
    assert_eq!(load.bench.reached(), ["9 flush"]);
}

#[test]
fn new_limits_hold_for_what_waits_already() {
    let throttle = Throttle::starting(iops(0.001), now());
    let mut load = Load::new(&throttle, 512, 32, false);
    load.turn();
    assert!(load.bench.engine.deadline().unwrap() > now() + Duration::from_secs(100));
    throttle.set_limits(iops(1000.0));
    assert!(load.bench.engine.deadline().unwrap() <= now());
    let mut loads = [load];
    ten_seconds(&mut loads, Duration::ZERO);
    assert_near(loads[0].passed as f64, 10_000.0);
    throttle.set_limits(Limits::default());
    let [mut load] = loads;
    let waiting = load.waiting;
    load.bench.expire(now());
    assert_eq!(load.bench.reached().len(), waiting);
}

#[test]
fn a_cancelled_operation_ends_at_once_and_costs_nothing() {
    let throttle = Throttle::starting(iops(1.0), now());
    let layer = ThrottleLayer {
        throttle: throttle.clone(),
        clock: now,
    };
    let mut bench = Bench::new(layer, Kind::Direct);
    for token in [1, 2, 1, 3] {
        assert_eq!(
            bench.engine.submit(Token(token), discard()),
            Submitted::Pending
        );
    }
    let first = bench.engine.deadline().unwrap();
    bench.engine.cancel(Token(1));
    assert_eq!(bench.reached(), ["cancel 1"]);
    let cancelled = Err(Errno::CANCELED);
    assert!(bench.engine.deadline().unwrap() <= Instant::now());
    assert_eq!(bench.expire(now()), [(1, cancelled), (1, cancelled)]);
    // What waited behind it has its place now.
    assert_eq!(bench.engine.deadline(), Some(first));
    assert_eq!(bench.expire(first), []);
    assert_eq!(bench.reached(), ["2 discard 0"]);
    // So has whoever shares the limits, once it is gone.
    let due = bench.engine.deadline();
    drop(bench);
    let layer = ThrottleLayer {
        throttle,
        clock: now,
    };
    let mut bench = Bench::new(layer, Kind::Direct);
    bench.engine.submit(Token(1), discard());
    assert_eq!(bench.engine.deadline(), due);
}
