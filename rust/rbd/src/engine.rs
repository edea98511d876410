//! One virtqueue's requests at librbd.

use crate::backend::Held;
use crate::gather::{self, Gather, LONGEST};
use crate::session::{Command, Memory};
use crate::status::Status;
use rustix::io::Errno;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vduse_device::backend::{Completion, Engine, Op, Submitted, Token};
use vduse_device::{Buffer, Completer};

/// So long nothing is answered before the connection counts as lost.
const STALLED: Duration = Duration::from_secs(5);
/// Bytes of requests that a driver may leave behind by resets while the cluster does not answer.
const MOST_ABANDONED: u64 = 256 << 20;
/// What a request costs besides its data, librbd's part included; bytes, about.
const COST: u64 = 4096;

/// A request at librbd. It ends once: by its answer, or before by who waits no longer.
struct Flight {
    has_ended: AtomicBool,
    /// Bytes that it takes until its answer.
    cost: u64,
    /// Its memory is the driver's: it does not end before its answer.
    is_shared: bool,
}

impl Flight {
    /// Whether it had not ended.
    fn end(&self) -> bool {
        !self.has_ended.swap(true, Ordering::SeqCst)
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }
}

pub(crate) struct RbdEngine {
    image: Arc<Held>,
    status: Arc<Status>,
    completer: Completer,
    answers: Arc<Gather>,
    /// When what is gathered is taken, enough or not.
    gathered: Option<Instant>,
    /// How long requests wait for an answer.
    delay: Option<Duration>,
    is_read_only: bool,
    /// By token, what the worker waits for.
    flights: HashMap<Token, SmallVec<[Arc<Flight>; 1]>>,
    /// Since when it has waited for any answer; `None` while nothing is under way.
    waiting_since: Option<Instant>,
    has_reported: bool,
}

impl RbdEngine {
    pub(crate) fn new(
        image: Arc<Held>,
        status: Arc<Status>,
        completer: Completer,
        delay: Option<Duration>,
        is_read_only: bool,
    ) -> RbdEngine {
        RbdEngine {
            image,
            status,
            answers: Arc::new(Gather::new(completer.clone())),
            completer,
            gathered: None,
            delay,
            is_read_only,
            flights: HashMap::new(),
            waiting_since: None,
            has_reported: false,
        }
    }

    /// Memory for an operation on `buffer`. What a request may fail before must be its own.
    fn memory(&self, buffer: Buffer, is_write: bool) -> Memory {
        if self.delay.is_none() && buffer.own_region().is_some() {
            return Memory::Shared(buffer);
        }
        let mut bytes = vec![0; buffer.len() as usize];
        if is_write {
            buffer.read(&mut bytes);
        }
        Memory::Own(bytes)
    }

    fn start(&mut self, token: Token, command: Command, memory: Memory, bytes: u64) -> Submitted {
        if self.status.is_given_up() || self.status.abandoned() > MOST_ABANDONED {
            return Submitted::Done(Err(Errno::IO));
        }
        let flight = Arc::new(Flight {
            has_ended: AtomicBool::new(false),
            cost: COST + bytes,
            is_shared: matches!(memory, Memory::Shared(_)),
        });
        let (status, answers) = (self.status.clone(), self.answers.clone());
        let answered = flight.clone();
        let started = self
            .image
            .image()
            .submit(command, memory, move |outcome, memory| {
                // First: who fails it meanwhile counts on `answered` to come after that.
                let is_awaited = answered.end();
                status.answered(&outcome);
                if !is_awaited {
                    status.recovered(answered.cost);
                    return;
                }
                let (result, data) = answer(command, outcome, memory, bytes);
                answers.put(Completion {
                    token,
                    result,
                    data,
                });
            });
        if let Err(errno) = started {
            return Submitted::Done(Err(errno));
        }
        self.flights.entry(token).or_default().push(flight);
        self.waiting_since.get_or_insert_with(Instant::now);
        Submitted::Pending
    }

    /// Answers come at `now`, the last before at `before`: how those that follow are gathered.
    fn pace(&mut self, before: Option<Instant>, now: Instant) {
        let gap = before.map(|at| now.saturating_duration_since(at));
        let enough = gather::enough(self.flights.len(), gap);
        if enough > 1 || self.gathered.is_some() {
            self.answers.ask(enough);
        }
        self.gathered = (enough > 1).then(|| now + LONGEST);
    }

    /// Nothing more is waited for under `token` but what has not ended.
    fn forget_ended(&mut self, token: Token) {
        if let Some(flights) = self.flights.get_mut(&token) {
            flights.retain(|flight| !flight.has_ended());
            if flights.is_empty() {
                self.flights.remove(&token);
            }
        }
    }
}

/// What the worker is told of an answer: a read is whole, or an error.
fn answer(
    command: Command,
    outcome: Result<u64, Errno>,
    memory: Memory,
    bytes: u64,
) -> (Result<(), Errno>, Option<Vec<u8>>) {
    match (command, outcome) {
        (_, Err(errno)) => (Err(errno), None),
        // The image has shrunk meanwhile.
        (Command::Read(_), Ok(read)) if read != bytes => (Err(Errno::IO), None),
        (Command::Read(_), Ok(_)) => match memory {
            Memory::Own(data) => (Ok(()), Some(data)),
            _ => (Ok(()), None),
        },
        (_, Ok(_)) => (Ok(()), None),
    }
}

impl Engine for RbdEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let (command, memory, bytes) = match op {
            Op::Read { extent, .. }
            | Op::Write { extent, .. }
            | Op::Discard { extent }
            | Op::WriteZeroes { extent, .. }
                if extent.is_empty() =>
            {
                return Submitted::Done(Ok(()));
            }
            Op::Read { extent, buffer } => {
                let memory = self.memory(buffer, false);
                (Command::Read(extent), memory, extent.len().0)
            }
            Op::Write { extent, buffer } => {
                let memory = self.memory(buffer, true);
                (Command::Write(extent), memory, extent.len().0)
            }
            Op::Discard { extent } => (Command::Discard(extent), Memory::None, 0),
            Op::WriteZeroes { extent, may_unmap } => {
                let command = Command::WriteZeroes { extent, may_unmap };
                (command, Memory::None, 0)
            }
            Op::Flush if self.is_read_only => return Submitted::Done(Ok(())),
            Op::Flush => (Command::Flush, Memory::None, 0),
        };
        self.start(token, command, memory, bytes)
    }

    /// librbd ends nothing early: its answer is not waited for, unless it goes into a driver's memory.
    fn cancel(&mut self, token: Token) {
        for flight in self.flights.get(&token).into_iter().flatten() {
            if flight.is_shared {
                continue;
            }
            // Before it ends: the answer may come at once.
            self.status.abandon(flight.cost);
            if flight.end() {
                self.completer.complete(Completion {
                    token,
                    result: Err(Errno::CANCELED),
                    data: None,
                });
            } else {
                self.status.recovered(flight.cost);
            }
        }
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.forget_ended(completion.token);
        self.has_reported = false;
        let now = Instant::now();
        let waiting = (!self.flights.is_empty()).then_some(now);
        let before = std::mem::replace(&mut self.waiting_since, waiting);
        self.pace(before, now);
    }

    fn deadline(&self) -> Option<Instant> {
        let report = (!self.has_reported).then_some(STALLED);
        let after = |wait: Option<Duration>| Some(self.waiting_since? + wait?);
        let deadlines = [self.gathered, after(report), after(self.delay)];
        deadlines.into_iter().flatten().min()
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        if self.gathered.take_if(|at| *at <= now).is_some() {
            for mut answer in self.answers.take() {
                self.completed(&mut answer);
                ended.push(answer);
            }
        }
        let Some(since) = self.waiting_since else {
            return;
        };
        let waited = now.saturating_duration_since(since);
        let is_over = self.delay.is_some_and(|delay| waited >= delay);
        if (waited >= STALLED && !self.has_reported) || is_over {
            self.has_reported = true;
            let seconds = waited.as_secs();
            self.status
                .lost(|| format!("the cluster has not answered for {seconds} s"));
        }
        if !is_over {
            return;
        }
        // Before they end: the answer of each ends this.
        self.status.give_up();
        let before = ended.len();
        for (token, flights) in self.flights.drain() {
            for flight in flights {
                self.status.abandon(flight.cost);
                if flight.end() {
                    ended.push(Completion {
                        token,
                        result: Err(Errno::IO),
                        data: None,
                    });
                } else {
                    self.status.recovered(flight.cost);
                }
            }
        }
        if ended.len() == before {
            self.status.resume();
        }
        self.waiting_since = None;
    }
}
