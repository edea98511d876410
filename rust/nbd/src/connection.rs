//! One connection: from bytes to requests of the driver, and back.

use crate::allocation::{self, Allocation, Questions};
use crate::block::{Block, Blocks};
use crate::check::{Command, Terms, Verdict, check};
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::requests::{MOST, Open, Requests, Slot};
use crate::wire::{BadMagic, Error, Head, Header};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vduse_framework::Buffer;
use vduse_framework::blk::{Armed, BlkDriver, BlkQueue, Request, Sectors};
use vduse_nbdsocket::Socket;

/// Requests taken in one go, at most.
const BATCH: usize = 128;
/// Messages sent in one go, at most.
const MESSAGES: usize = 4;

/// What the handshake has agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Structured replies.
    pub structured: bool,
    /// The meta context `base:allocation`, under id 1. Needs structured replies.
    pub base_allocation: bool,
}

/// Why a connection ended that did not end as it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("a request began with {0:#010x}")]
    BadMagic(u32),
    #[error("the client went away in the middle of a request")]
    Truncated,
    #[error("the client went away: {0}")]
    Lost(String),
    #[error("the disk has ended: {0}")]
    DiskEnded(Errno),
    #[error("it was not taken on: {0}")]
    NotTakenOn(Errno),
    #[error("the socket cannot be watched: {0}")]
    Unwatched(Errno),
}

impl From<BadMagic> for Failure {
    fn from(BadMagic(magic): BadMagic) -> Failure {
        Failure::BadMagic(magic)
    }
}

/// What was done since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) errors: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Takes requests.
    Open,
    /// Takes no more; answers those that were taken.
    Closing,
    Over,
}

/// What the next bytes of the stream are.
#[derive(Debug)]
enum Next {
    Header,
    /// The rest of a write's payload, from this byte of it.
    Payload(Slot, usize),
    /// So many bytes of a refused write's payload; then its answer. Not earlier: clients match a
    /// reply with the requests that they have sent as a whole (libnbd does).
    Skip(u64, Slot, Error),
}

/// A client in the transmission phase.
pub(crate) struct Connection {
    // Before the blocks: it lets go of those that are lent.
    queue: BlkQueue,
    driver: Arc<BlkDriver>,
    socket: Socket,
    options: Options,
    phase: Phase,
    failure: Option<Failure>,
    next: Next,
    inbox: Inbox,
    requests: Requests,
    questions: Questions,
    blocks: Blocks,
    outbox: Outbox,
    /// For the driver, in one go.
    submits: Vec<(Request, u64)>,
    ended: Vec<(u64, Result<u64, Errno>)>,
    left: Vec<Slot>,
    done: Done,
}

impl Connection {
    /// `queue` is a handle of its own, on `driver`. `allocation`: asked what lies where; `wake` is
    /// called when an answer has come.
    pub(crate) fn new(
        socket: Socket,
        driver: Arc<BlkDriver>,
        queue: BlkQueue,
        options: Options,
        allocation: Option<Arc<dyn Allocation>>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Connection {
        Connection {
            queue,
            driver,
            socket,
            options,
            phase: Phase::Open,
            failure: None,
            next: Next::Header,
            inbox: Inbox::new(),
            requests: Requests::new(),
            questions: Questions::new(allocation, wake),
            blocks: Blocks::default(),
            outbox: Outbox::default(),
            submits: Vec::with_capacity(MOST),
            ended: Vec::with_capacity(MOST),
            left: Vec::with_capacity(MOST),
            done: Done::default(),
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// The eventfd of its queue's irqs.
    #[cfg(test)]
    pub(crate) fn irq_fd(&self) -> BorrowedFd<'_> {
        self.queue.irq_fd()
    }

    /// What it holds.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The socket has had an event.
    pub(crate) fn socket_event(&mut self) {
        self.inbox.more();
        self.outbox.unblock();
    }

    /// Whether the socket is to be watched for room too.
    pub(crate) fn is_blocked(&self) -> bool {
        self.outbox.is_blocked() && !self.is_over()
    }

    /// Takes no request any more.
    pub(crate) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
            if let Next::Payload(slot, _) | Next::Skip(_, slot, _) = self.next {
                self.release(slot);
            }
            self.next = Next::Header;
        }
    }

    /// Ends, whatever is not answered yet.
    pub(crate) fn abort(&mut self) {
        self.phase = Phase::Over;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Why it ended, if not as it should.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure.clone()
    }

    pub(crate) fn take_done(&mut self) -> Done {
        std::mem::take(&mut self.done)
    }

    /// Why it ends; what was said first counts.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// One bounded batch; whether there was anything to do.
    pub(crate) fn run(&mut self) -> bool {
        let mut worked = self.collect();
        worked |= self.take_answers();
        if let Some(errno) = self.driver.ended()
            && self.phase == Phase::Open
        {
            self.fail(Failure::DiskEnded(errno));
            self.close();
        }
        worked |= self.receive();
        if !self.submits.is_empty() {
            self.queue.submit_all(self.submits.drain(..));
        }
        worked |= self.send();
        if self.phase == Phase::Closing && self.requests.len() == 0 && !self.has_to_send() {
            self.phase = Phase::Over;
        }
        worked
    }

    /// Before its worker sleeps.
    pub(crate) fn arm(&mut self) -> Armed {
        self.inbox.look_again();
        let can_receive = self.phase == Phase::Open && self.is_hungry() && self.inbox.can_fill();
        let can_send = self.has_to_send() && !self.outbox.is_blocked();
        match can_receive || can_send || self.is_over() {
            true => Armed::Ready,
            false => self.queue.arm(),
        }
    }

    /// Takes what the driver has ended.
    fn collect(&mut self) -> bool {
        if self.queue.reap(&mut self.ended) == 0 {
            return false;
        }
        let mut ended = std::mem::take(&mut self.ended);
        for (token, outcome) in ended.drain(..) {
            let slot = token as Slot;
            let Some(open) = self.requests.get_mut(slot) else {
                continue;
            };
            match outcome {
                Ok(_) if std::mem::take(&mut open.flush) => {
                    self.submits.push((Request::Flush, token));
                }
                Ok(_) => self.answer(slot, None),
                Err(errno) => self.answer(slot, Some(errno.into())),
            }
        }
        self.ended = ended;
        true
    }

    /// Takes what is told of what lies where.
    fn take_answers(&mut self) -> bool {
        let answers = self.questions.take();
        let worked = !answers.is_empty();
        for (slot, answer) in answers {
            match answer {
                Ok(parts) => {
                    if let Some(open) = self.requests.get_mut(slot)
                        && let Some(block) = &mut open.block
                    {
                        open.body = allocation::encode(&parts, block.bytes_mut());
                    }
                    self.answer(slot, None);
                }
                Err(errno) => self.answer(slot, Some(errno.into())),
            }
        }
        worked
    }

    /// Looks at what the client has sent, and takes what it asks for.
    fn receive(&mut self) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        let mut worked = self.parse();
        if self.phase == Phase::Open && self.is_hungry() && self.inbox.can_fill() {
            match self.fill() {
                Ok(true) => {
                    self.parse();
                    worked = true;
                }
                Ok(false) => {}
                Err(why) => {
                    self.fail(Failure::Lost(why));
                    self.abort();
                }
            }
        }
        if self.phase == Phase::Open && self.inbox.has_ended() && self.is_hungry() {
            if self.inbox.len() > 0 || !matches!(self.next, Next::Header) {
                self.fail(Failure::Truncated);
            }
            self.close();
        }
        worked
    }

    /// Whether all that can be done with what was received is done, and more is wanted.
    fn is_hungry(&self) -> bool {
        match self.next {
            Next::Header => self.inbox.header().is_none(),
            Next::Payload(..) | Next::Skip(..) => self.inbox.len() == 0,
        }
    }

    /// Looks at the socket; whether there was anything.
    fn fill(&mut self) -> Result<bool, String> {
        let Next::Payload(slot, at) = self.next else {
            let filled = self.inbox.fill(&mut self.socket, &mut [])?;
            return Ok(filled.is_some());
        };
        let open = self.requests.get_mut(slot);
        let direct = open.and_then(|open| {
            let len = open.header.length as usize;
            Some(&mut open.block.as_mut()?.bytes_mut()[at..len])
        });
        let direct = direct.unwrap_or_default();
        let Some(received) = self.inbox.fill(&mut self.socket, direct)? else {
            return Ok(false);
        };
        self.next = Next::Payload(slot, at + received);
        self.finish_payload();
        Ok(true)
    }

    /// Requests from the inbox; whether there were any.
    fn parse(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..BATCH {
            let step = match self.next {
                Next::Header => self.parse_header(),
                Next::Payload(slot, at) => self.parse_payload(slot, at),
                Next::Skip(left, slot, error) => {
                    let skipped = self.inbox.skip(usize::try_from(left).unwrap_or(usize::MAX));
                    self.next = match left - skipped as u64 {
                        0 => {
                            self.answer(slot, Some(error));
                            Next::Header
                        }
                        left => Next::Skip(left, slot, error),
                    };
                    skipped > 0
                }
            };
            if !step {
                break;
            }
            worked = true;
        }
        worked
    }

    /// Copies what is there of a write's payload.
    fn parse_payload(&mut self, slot: Slot, at: usize) -> bool {
        let Some(open) = self.requests.get_mut(slot) else {
            return false;
        };
        let len = open.header.length as usize;
        let block = open.block.as_mut();
        let rest = block.map_or(&mut [][..], |block| &mut block.bytes_mut()[at..len]);
        let copied = self.inbox.copy_to(rest);
        self.next = Next::Payload(slot, at + copied);
        self.finish_payload();
        copied > 0
    }

    /// Submits a write whose payload is complete.
    fn finish_payload(&mut self) {
        if let Next::Payload(slot, at) = self.next
            && self
                .requests
                .get(slot)
                .is_none_or(|open| at == open.header.length as usize)
        {
            self.next = Next::Header;
            self.submit(slot);
        }
    }

    /// One request; false if it is not there as a whole, or there is no room for it now.
    fn parse_header(&mut self) -> bool {
        if self.phase != Phase::Open || self.requests.is_full() {
            return false;
        }
        let Some(bytes) = self.inbox.header() else {
            return false;
        };
        let header = match Header::parse(bytes) {
            Ok(header) => header,
            Err(magic) => {
                self.fail(magic.into());
                self.abort();
                return false;
            }
        };
        let verdict = check(&header, &self.terms());
        let needed = match verdict {
            Verdict::Take(Command::Read | Command::Write) => header.length as usize,
            Verdict::Take(Command::BlockStatus { .. }) => allocation::MOST_BYTES,
            _ => 0,
        };
        if needed > 0 && !self.blocks.has_room(needed) {
            return false;
        }
        self.inbox.skip(Header::BYTES);
        self.done.requests += 1;
        let command = match verdict {
            Verdict::Take(command) => command,
            Verdict::Refuse(error) => {
                self.refuse(header, error);
                return true;
            }
            Verdict::Disconnect => {
                self.close();
                return true;
            }
        };
        let block = match needed {
            0 => None,
            needed => match self.blocks.take(needed) {
                Some(block) => Some(block),
                None => {
                    self.refuse(header, Error::NoMem);
                    return true;
                }
            },
        };
        self.take(header, command, block);
        true
    }

    fn terms(&self) -> Terms {
        Terms {
            size: self.driver.capacity().bytes().unwrap_or(u64::MAX),
            read_only: self.driver.read_only(),
            can_discard: self.driver.can_discard(),
            structured: self.options.structured,
            base_allocation: self.options.base_allocation,
        }
    }

    /// A request that is carried out.
    fn take(&mut self, header: Header, command: Command, block: Option<Block>) {
        let changes = matches!(
            command,
            Command::Write | Command::Trim | Command::WriteZeroes { .. }
        );
        let slot = self.requests.insert(Open {
            header,
            command: Some(command),
            flush: changes && header.is_fua(),
            block,
            head: None,
            body: 0,
        });
        // There was room.
        let Some(slot) = slot else { return };
        match command {
            Command::Write => {
                self.next = Next::Payload(slot, 0);
                // What has come with the header; nothing of it is no end.
                self.parse_payload(slot, 0);
            }
            Command::Cache => self.answer(slot, None),
            Command::BlockStatus { one } => {
                self.questions.ask(slot, header.offset, header.length, one);
            }
            _ => self.submit(slot),
        }
    }

    /// A request that is answered with an error once its payload, not looked at, is over.
    fn refuse(&mut self, header: Header, error: Error) {
        let payload = match header.has_payload() {
            true => u64::from(header.length),
            false => 0,
        };
        let slot = self.requests.insert(Open {
            header,
            command: None,
            flush: false,
            block: None,
            head: None,
            body: 0,
        });
        match slot {
            Some(slot) if payload > 0 => self.next = Next::Skip(payload, slot, error),
            Some(slot) => self.answer(slot, Some(error)),
            // There was room.
            None => {}
        }
    }

    /// Has the driver carry out what is complete.
    fn submit(&mut self, slot: Slot) {
        let Some(open) = self.requests.get(slot) else {
            return;
        };
        let sector = Sectors(open.header.offset / Sectors::SIZE);
        let count = Sectors(u64::from(open.header.length) / Sectors::SIZE);
        let request = match (open.command, self.buffer(open)) {
            (Some(Command::Read), Some(buffer)) => Request::Read { sector, buffer },
            (Some(Command::Write), Some(buffer)) => Request::Write { sector, buffer },
            (Some(Command::Trim), _) => Request::Discard { sector, count },
            (Some(Command::WriteZeroes { unmap }), _) => Request::WriteZeroes {
                sector,
                count,
                unmap,
            },
            _ => Request::Flush,
        };
        self.submits.push((request, slot.into()));
    }

    /// The block of a request that is being submitted.
    fn buffer(&self, open: &Open) -> Option<Buffer> {
        let block = open.block.as_ref()?;
        // SAFETY: the request is submitted next. From then on its block is looked at only once
        // it has an answer, which is when the driver has ended the request (`collect`); and a
        // connection drops its queue handle before its blocks.
        Some(unsafe { block.lend(open.header.length as usize) })
    }

    /// The request has its answer.
    fn answer(&mut self, slot: Slot, error: Option<Error>) {
        let Some(open) = self.requests.get_mut(slot) else {
            return;
        };
        let Header {
            cookie,
            offset,
            length,
            ..
        } = open.header;
        let read = open.command == Some(Command::Read);
        let status = matches!(open.command, Some(Command::BlockStatus { .. }));
        match error {
            None if read => {
                open.body = length as usize;
                self.done.bytes_read += u64::from(length);
            }
            None if open.command == Some(Command::Write) => {
                self.done.bytes_written += u64::from(length);
            }
            None => {}
            Some(_) => self.done.errors += 1,
        }
        open.head = Some(match error {
            _ if !self.options.structured => Head::simple(cookie, error),
            Some(error) => Head::error(cookie, error),
            None if read => Head::offset_data(cookie, offset, length),
            None if status => Head::block_status(cookie, allocation::extents(open.body)),
            None => Head::none(cookie),
        });
        if open.body == 0
            && let Some(block) = open.block.take()
        {
            self.blocks.give(block);
        }
        self.outbox.push(slot);
    }

    fn has_to_send(&self) -> bool {
        !self.outbox.is_empty() || self.socket.holds_back()
    }

    /// Sends what is answered.
    fn send(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..MESSAGES {
            if !self.has_to_send() || self.outbox.is_blocked() || self.is_over() {
                break;
            }
            worked = true;
            let mut left = std::mem::take(&mut self.left);
            if let Err(errno) = self
                .outbox
                .send(&mut self.socket, &self.requests, &mut left)
            {
                self.fail(Failure::Lost(errno.to_string()));
                self.abort();
            }
            left.drain(..).for_each(|slot| self.release(slot));
            self.left = left;
        }
        worked
    }

    fn release(&mut self, slot: Slot) {
        if let Some(block) = self.requests.remove(slot).and_then(|open| open.block) {
            self.blocks.give(block);
        }
    }
}
