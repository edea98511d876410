//! The load itself: keep so many requests in flight, time them, check what they read.

use crate::Pattern;
use crate::engine::{Direction, Done, Engine, EngineError};
use crate::random::Random;
use crate::report::{Clocks, Report};
use crate::spec::{Op, Spec, SpecError, Stop};
use std::time::{Duration, Instant};

/// How long a wait lasts before the caller is asked whether to go on.
const WAIT: Duration = Duration::from_millis(100);

/// What a load is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Writing the span, to have something to verify.
    Filling,
    /// The load proper.
    Load,
    /// Verifying what was written.
    ReadingBack,
}

/// How far a load is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Requests completed in this phase.
    pub requests: u64,
    /// Blocks in use: the requests there will be, but of the load proper.
    pub blocks: u64,
}

/// Asked about ten times a second; true ends the load.
pub type Interrupted<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The load cannot be made.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The driver cannot go on.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The driver takes no request although none is in flight.
    #[error("the driver takes no request of {0} bytes")]
    NeverFits(u32),
    /// Nothing completes any more.
    #[error("no request completed for {} s, {in_flight} in flight", .waited.as_secs())]
    Stalled {
        /// Since the last one.
        waited: Duration,
        /// Requests that wait.
        in_flight: usize,
    },
    /// The caller wished to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Runs `spec` on `engine`, whose buffers must be `spec.depth` blocks of `spec.block_size`
/// bytes.
pub fn run<E: Engine>(
    engine: &mut E,
    spec: &Spec,
    interrupted: Interrupted<'_>,
) -> Result<Report, LoadError> {
    let blocks = spec.blocks(engine.capacity())?;
    let mut load = Load::new(engine, spec, blocks, interrupted);
    let everything = Stop::Requests(blocks);
    if spec.verify && !spec.op.writes() {
        load.phase(Phase::Filling, Order::Ascending, everything)?;
    }
    load.report = Report {
        errors: load.report.errors,
        messages: std::mem::take(&mut load.report.messages),
        ..Report::default()
    };
    let clocks = Clocks::start();
    let order = match spec.op.is_random() {
        true => Order::Random,
        false => Order::Ascending,
    };
    load.phase(Phase::Load, order, spec.stop)?;
    clocks.stop(&mut load.report);
    if !(spec.verify && spec.op.writes()) {
        return Ok(load.report);
    }
    let found = std::mem::take(&mut load.report);
    load.report.errors = found.errors;
    load.report.messages.clone_from(&found.messages);
    load.phase(Phase::ReadingBack, Order::Ascending, everything)?;
    Ok(Report {
        errors: load.report.errors,
        messages: load.report.messages,
        ..found
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Ascending,
    Random,
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Flight {
    direction: Direction,
    block: u64,
    submitted: Instant,
}

/// What is known of a block of the disk.
#[derive(Clone, Copy, Default)]
struct Shadow {
    /// How often it was written.
    sequence: u32,
    /// Whether the last write succeeded: only then must a read find it.
    known: bool,
    /// Whether a request on it is in flight: with two, the outcome would be anybody's guess.
    busy: bool,
}

struct Load<'a, E> {
    engine: &'a mut E,
    spec: &'a Spec,
    interrupted: Interrupted<'a>,
    /// Blocks of the disk in use.
    blocks: u64,
    /// With `verify`: what is known of each block.
    shadows: Vec<Shadow>,
    random: Random,
    /// Buffers without a request.
    free: Vec<u32>,
    flights: Vec<Option<Flight>>,
    done: Vec<Done>,
    /// When something completed, or the phase began.
    last_done: Instant,
    report: Report,
}

impl<'a, E: Engine> Load<'a, E> {
    fn new(
        engine: &'a mut E,
        spec: &'a Spec,
        blocks: u64,
        interrupted: Interrupted<'a>,
    ) -> Load<'a, E> {
        Load {
            engine,
            spec,
            interrupted,
            blocks,
            shadows: match spec.verify {
                true => vec![Shadow::default(); blocks as usize],
                false => Vec::new(),
            },
            random: Random(spec.seed),
            free: (0..spec.depth).rev().collect(),
            flights: vec![None; spec.depth as usize],
            done: Vec::new(),
            last_done: Instant::now(),
            report: Report::default(),
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Requests until `stop`, then until none is in flight.
    fn phase(&mut self, phase: Phase, order: Order, stop: Stop) -> Result<(), LoadError> {
        let (mut left, end) = match stop {
            Stop::Requests(requests) => (requests, None),
            Stop::After(time) => (u64::MAX, Some(Instant::now() + time)),
        };
        let mut next = 0;
        self.last_done = Instant::now();
        let mut ask = self.last_done + WAIT;
        loop {
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                left = 0;
            }
            while left > 0 {
                let Some(&buffer) = self.free.last() else {
                    break;
                };
                let wanted = match order {
                    Order::Ascending => next % self.blocks,
                    Order::Random => self.random.below(self.blocks),
                };
                let Some(block) = self.idle_block(wanted) else {
                    break;
                };
                let direction = self.direction(phase);
                if !self.submit(buffer, block, direction, now)? {
                    break;
                }
                next += 1;
                left -= 1;
            }
            if self.in_flight() == 0 {
                match left {
                    0 => return Ok(()),
                    _ => return Err(LoadError::NeverFits(self.spec.block_size)),
                }
            }
            self.engine.kick()?;
            if !self.reap()? {
                if self.spec.poll {
                    std::hint::spin_loop();
                } else {
                    self.engine.wait(WAIT)?;
                    self.reap()?;
                }
            }
            if now >= ask {
                ask = now + WAIT;
                self.look_up(phase, now)?;
            }
        }
    }

    fn direction(&mut self, phase: Phase) -> Direction {
        let is_write = match phase {
            Phase::Filling => true,
            Phase::ReadingBack => false,
            Phase::Load if self.spec.op == Op::Mixed => {
                self.random.below(100) >= u64::from(self.spec.reads)
            }
            Phase::Load => self.spec.op.writes(),
        };
        match is_write {
            true => Direction::Write,
            false => Direction::Read,
        }
    }

    /// Whether there is a reason not to go on.
    fn look_up(&mut self, phase: Phase, now: Instant) -> Result<(), LoadError> {
        let progress = Progress {
            phase,
            requests: self.report.requests,
            blocks: self.blocks,
        };
        if (self.interrupted)(progress) {
            return Err(LoadError::Interrupted);
        }
        let waited = now.saturating_duration_since(self.last_done);
        let in_flight = self.in_flight();
        match self.spec.patience {
            Some(patience) if waited > patience && in_flight > 0 => {
                Err(LoadError::Stalled { waited, in_flight })
            }
            _ => Ok(()),
        }
    }

    /// `wanted`, or the next block on which nothing is in flight.
    fn idle_block(&self, wanted: u64) -> Option<u64> {
        if !self.spec.verify {
            return Some(wanted);
        }
        (wanted..self.blocks)
            .chain(0..wanted)
            .find(|&block| !self.shadows[block as usize].busy)
    }

    fn submit(
        &mut self,
        buffer: u32,
        block: u64,
        direction: Direction,
        now: Instant,
    ) -> Result<bool, LoadError> {
        let offset = block * u64::from(self.spec.block_size);
        if self.spec.verify && direction == Direction::Write {
            let sequence = self.shadows[block as usize].sequence.wrapping_add(1);
            let pattern = Pattern { offset, sequence };
            self.engine.buffers().fill(buffer, pattern);
        }
        if !self.engine.submit(buffer, direction, offset)? {
            return Ok(false);
        }
        if self.spec.verify {
            self.shadows[block as usize].busy = true;
        }
        self.free.pop();
        self.flights[buffer as usize] = Some(Flight {
            direction,
            block,
            submitted: now,
        });
        Ok(true)
    }

    /// Whether anything had completed.
    fn reap(&mut self) -> Result<bool, LoadError> {
        let mut done = std::mem::take(&mut self.done);
        self.engine.reap(&mut done)?;
        let some = !done.is_empty();
        let now = Instant::now();
        if some {
            self.last_done = now;
        }
        for (buffer, result) in done.drain(..) {
            let Some(flight) = self.flights.get_mut(buffer as usize).and_then(Option::take) else {
                return Err(EngineError::Driver(
                    "completion",
                    format!("buffer {buffer} was not in flight"),
                )
                .into());
            };
            self.free.push(buffer);
            self.finish(buffer, flight, result, now);
        }
        self.done = done;
        Ok(some)
    }

    fn finish(
        &mut self,
        buffer: u32,
        flight: Flight,
        result: Result<(), rustix::io::Errno>,
        now: Instant,
    ) {
        let Flight {
            direction,
            block,
            submitted,
        } = flight;
        let offset = block * u64::from(self.spec.block_size);
        self.report.requests += 1;
        let latency = now.saturating_duration_since(submitted).as_nanos();
        self.report
            .latency
            .record(u64::try_from(latency).unwrap_or(u64::MAX), 1);
        match result {
            Ok(()) => self.report.bytes += u64::from(self.spec.block_size),
            Err(errno) => self.report.error(|| {
                let what = match direction {
                    Direction::Read => "read",
                    Direction::Write => "write",
                };
                format!("{what} at offset {offset}: {errno}")
            }),
        }
        if !self.spec.verify {
            return;
        }
        let shadow = &mut self.shadows[block as usize];
        shadow.busy = false;
        match direction {
            Direction::Write => {
                shadow.sequence = shadow.sequence.wrapping_add(1);
                shadow.known = result.is_ok();
            }
            Direction::Read if result.is_ok() && shadow.known => {
                let pattern = Pattern {
                    offset,
                    sequence: shadow.sequence,
                };
                if let Some(at) = self.engine.buffers().mismatch(buffer, pattern) {
                    let at = offset + at as u64;
                    self.report
                        .error(|| format!("offset {at}: not what was written there"));
                }
            }
            Direction::Read => {}
        }
    }
}
