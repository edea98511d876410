//! The requests of one connection that have not ended, and what becomes of them when it is lost.
//! Without I/O.
//!
//! A request is sent in parts no longer than the server takes, one after another. What has begun is
//! kept whole until its end, so that it can be sent again.

use crate::facts::{Facts, MOST_RANGE};
use crate::question::Question;
use crate::request::{Ended, Kind, Request, Whose};
use crate::stale::{CancelledSet, Left};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};
use vduse_nbdwire::Header;

/// Where a request is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u32);

/// A request that has not ended.
pub(crate) struct Open {
    request: Request,
    /// Tells the order in which requests came.
    arrival: u64,
    /// Of the part under way.
    cookie: u64,
    header: [u8; Header::BYTES],
    /// Bytes of parts that have ended.
    done: u64,
    /// Bytes of the part under way.
    part: u64,
    /// The part has left as a whole.
    is_sent: bool,
    /// What was read.
    data: Vec<u8>,
    /// Bytes of the part that have come.
    filled: u64,
    /// The server's first error for the part.
    error: Option<Errno>,
    /// Nobody waits for it.
    is_cancelled: bool,
    /// It is a change that others wait for.
    left: Option<Left>,
}

impl Open {
    pub(crate) fn is_read(&self) -> bool {
        self.request.kind == Kind::Read
    }

    /// Who asks what lies where, if this is that.
    pub(crate) fn question(&mut self) -> Option<&mut Question> {
        match &mut self.request.whose {
            Whose::Question(question) => Some(question),
            _ => None,
        }
    }

    /// Bytes of the part that have not come.
    pub(crate) fn missing(&self) -> u64 {
        self.part - self.filled
    }

    /// The place of `length` bytes at the disk's `offset` in what is read; `None`: they are not of
    /// the part under way.
    pub(crate) fn place(&self, offset: u64, length: u64) -> Option<usize> {
        let at = offset.checked_sub(self.request.offset)?;
        let is_within = at >= self.done && at.checked_add(length)? <= self.done + self.part;
        is_within.then_some(at as usize) // within `data`
    }

    /// The disk's offset of the part.
    pub(crate) fn part_offset(&self) -> u64 {
        self.request.offset + self.done
    }

    /// What is read, from `at` on.
    pub(crate) fn data(&mut self, at: usize, length: usize) -> &mut [u8] {
        &mut self.data[at..at + length]
    }

    /// So many bytes of the part have come.
    pub(crate) fn fill(&mut self, length: u64) {
        self.filled += length;
    }

    /// The first error stays.
    pub(crate) fn fail(&mut self, errno: Errno) {
        self.error.get_or_insert(errno);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    /// What is to be sent: header and payload.
    fn wire(&self) -> [&[u8]; 2] {
        let payload = match self.request.kind {
            Kind::Write => &self.request.payload[self.done as usize..][..self.part as usize],
            _ => &[],
        };
        [&self.header, payload]
    }

    fn wire_len(&self) -> usize {
        self.wire().iter().map(|part| part.len()).sum()
    }
}

/// All of one connection.
pub(crate) struct Outstanding {
    open: Vec<Option<Open>>,
    free: Vec<u32>,
    /// To be sent, in this order.
    waiting: VecDeque<u32>,
    /// Bytes of the first that have left.
    sent: usize,
    arrivals: u64,
    parts: u32,
    facts: Facts,
    pub(crate) ended: Ended,
}

impl Outstanding {
    pub(crate) fn new(facts: Facts) -> Outstanding {
        Outstanding {
            open: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            sent: 0,
            arrivals: 0,
            parts: 0,
            facts,
            ended: Ended::default(),
        }
    }

    /// How many have not ended.
    pub(crate) fn len(&self) -> usize {
        self.open.len() - self.free.len()
    }

    /// All that have not ended, as they were asked for, in the order in which they came.
    pub(crate) fn take_all(&mut self) -> Vec<Request> {
        let mut all: Vec<Open> = self.open.iter_mut().filter_map(Option::take).collect();
        all.sort_unstable_by_key(|open| open.arrival);
        self.open.clear();
        self.free.clear();
        self.waiting.clear();
        self.sent = 0;
        all.into_iter().map(|open| open.request).collect()
    }

    pub(crate) fn has_to_send(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a request. `down_since`: there is no connection.
    pub(crate) fn add(&mut self, mut request: Request, down_since: Option<Instant>) {
        request.interrupted = request.interrupted.or(down_since);
        let data = match request.kind {
            Kind::Read => vec![0; request.length as usize],
            _ => Vec::new(),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() as u32 - 1 // as many as virtqueues have descriptors
        });
        self.arrivals += 1;
        self.open[slot as usize] = Some(Open {
            request,
            arrival: self.arrivals,
            cookie: 0,
            header: [0; Header::BYTES],
            done: 0,
            part: 0,
            is_sent: false,
            data,
            filled: 0,
            error: None,
            is_cancelled: false,
            left: None,
        });
        self.begin_part(slot);
    }

    /// What is to be sent next, at most `most` pieces, the first from where it stands; and its
    /// length in bytes.
    pub(crate) fn to_send(&self, most: usize) -> (Vec<IoSlice<'_>>, usize) {
        let mut pieces = Vec::new();
        let (mut bytes, mut skip) = (0, self.sent);
        for open in self.waiting.iter().filter_map(|&slot| self.at(slot)) {
            if pieces.len() + 2 > most {
                break;
            }
            for piece in open.wire() {
                let skipped = skip.min(piece.len());
                skip -= skipped;
                if skipped < piece.len() {
                    bytes += piece.len() - skipped;
                    pieces.push(IoSlice::new(&piece[skipped..]));
                }
            }
        }
        (pieces, bytes)
    }

    /// So many bytes have left.
    pub(crate) fn has_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        while let Some(&slot) = self.waiting.front() {
            let Some(open) = self.open[slot as usize].as_mut() else {
                return;
            };
            let len = open.wire_len();
            if self.sent < len {
                return;
            }
            open.is_sent = true;
            self.sent -= len;
            self.waiting.pop_front();
        }
    }

    /// Whose reply this is; `None`: nothing was sent under this cookie, or not as a whole.
    pub(crate) fn find(&mut self, cookie: u64) -> Option<(Slot, &mut Open)> {
        let slot = cookie as u32; // its lower half
        let open = self.open.get_mut(slot as usize)?.as_mut()?;
        (open.cookie == cookie && open.is_sent).then_some((Slot(slot), open))
    }

    pub(crate) fn get(&mut self, slot: Slot) -> Option<&mut Open> {
        self.open.get_mut(slot.0 as usize)?.as_mut()
    }

    /// The server has ended the part under way: well, unless it has said otherwise.
    pub(crate) fn part_ended(&mut self, slot: Slot) {
        let Some(open) = self.get(slot) else {
            return;
        };
        open.done += open.part;
        let is_over = open.error.is_some() || open.is_cancelled;
        if is_over || open.done == open.request.length {
            let result = open.error.map_or(Ok(()), Err);
            self.end(slot.0, result);
        } else {
            self.begin_part(slot.0);
        }
    }

    /// The connection is lost: everything that has not ended is sent again on the next one, in the
    /// order in which it came.
    pub(crate) fn interrupt(&mut self, now: Instant) {
        self.sent = 0;
        self.waiting.clear();
        let mut slots: Vec<(u64, u32)> = Vec::new();
        for slot in 0..self.open.len() as u32 {
            let Some(open) = self.open[slot as usize].as_mut() else {
                continue;
            };
            open.request.interrupted.get_or_insert(now);
            if open.is_cancelled {
                self.end(slot, Err(Errno::CANCELED));
            } else {
                slots.push((open.arrival, slot));
            }
        }
        slots.sort_unstable();
        for (_, slot) in slots {
            self.begin_part(slot);
        }
    }

    /// A connection is there: what it can do, parts are cut to.
    pub(crate) fn connect(&mut self, facts: Facts) {
        self.facts = facts;
        for slot in std::mem::take(&mut self.waiting) {
            self.begin_part(slot);
        }
    }

    /// When the first has waited for `delay`, without a connection.
    pub(crate) fn deadline(&self, delay: Duration) -> Option<Instant> {
        let since = self
            .open
            .iter()
            .flatten()
            .filter_map(|it| it.request.interrupted);
        since.min().and_then(|since| since.checked_add(delay))
    }

    /// Ends with EIO what has waited for `delay`, without a connection.
    pub(crate) fn expire(&mut self, now: Instant, delay: Duration) {
        for slot in 0..self.open.len() as u32 {
            let since = self.at(slot).and_then(|open| open.request.interrupted);
            if since.is_some_and(|since| now.saturating_duration_since(since) >= delay) {
                self.end(slot, Err(Errno::IO));
            }
        }
        self.forget_ended();
    }

    /// These are given up: what has not begun to leave ends now.
    pub(crate) fn cancel(&mut self, cancelled: &CancelledSet) {
        let begun = self.waiting.front().copied().filter(|_| self.sent > 0);
        for slot in 0..self.open.len() as u32 {
            let Some(open) = self.open[slot as usize].as_mut() else {
                continue;
            };
            let Whose::Engine(token, completer) = &open.request.whose else {
                continue;
            };
            let Some(left) = cancelled.find(*token, completer) else {
                continue;
            };
            open.is_cancelled = true;
            if !open.is_sent && begun != Some(slot) {
                self.end(slot, Err(Errno::CANCELED));
            } else if open.request.kind.modifies() {
                open.left = Some(left.clone());
            }
        }
        self.forget_ended();
    }

    /// Ends everything.
    pub(crate) fn end_all(&mut self, errno: Errno) {
        for slot in 0..self.open.len() as u32 {
            self.end(slot, Err(errno));
        }
        self.waiting.clear();
        self.sent = 0;
    }

    fn at(&self, slot: u32) -> Option<&Open> {
        self.open.get(slot as usize)?.as_ref()
    }

    /// The next part is to be sent, after all that wait. A server is not asked what it does not
    /// know.
    fn begin_part(&mut self, slot: u32) {
        let Some(open) = self.open[slot as usize].as_mut() else {
            return;
        };
        if let Some(question) = open.question() {
            let Some(context) = self.facts.allocation else {
                question.all_is_data();
                return self.end(slot, Ok(()));
            };
            question.ask(context);
        }
        let most = match open.request.kind {
            Kind::Read | Kind::Write => self.facts.maximum_payload.into(),
            _ => MOST_RANGE,
        };
        self.parts = self.parts.wrapping_add(1);
        open.cookie = u64::from(self.parts) << 32 | u64::from(slot);
        open.part = most.min(open.request.length - open.done);
        open.filled = 0;
        open.error = None;
        open.is_sent = false;
        let (command, flags) = open.request.kind.command();
        open.header = Header {
            flags,
            command,
            cookie: open.cookie,
            offset: open.part_offset(),
            length: open.part as u32, // at most MOST_RANGE
        }
        .encode();
        self.waiting.push_back(slot);
    }

    fn end(&mut self, slot: u32, result: Result<(), Errno>) {
        if let Some(open) = self.open[slot as usize].take() {
            self.free.push(slot);
            let data = (open.request.kind == Kind::Read).then_some(open.data);
            self.ended.add(open.request.whose, result, data);
        }
    }

    /// Those that have ended are not sent.
    fn forget_ended(&mut self) {
        let open = &self.open;
        self.waiting.retain(|&slot| open[slot as usize].is_some());
    }
}
