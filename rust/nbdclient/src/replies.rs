//! Reads a server's replies. Without I/O; the server is not trusted.
//!
//! Whatever it sends is held against the request that it names. What does not fit ends the
//! connection ([`Fault`]); no byte outside a request's own buffer is written.

use crate::outstanding::{Open, Outstanding, Slot};
use crate::question::Question;
use std::fmt;
use vduse_nbdwire::{BadMagic, Chunk, Error, ReplyHeader, Simple, chunk};

/// Bytes of the longest message in an error (NBD protocol document: strings have 4096), with what
/// precedes it and the offset that may follow.
const MOST_ERROR: u32 = 6 + 4096 + 8;

/// Bytes of one descriptor in a block status: length and flags.
const DESCRIPTOR: usize = 8;
/// Bytes of a context's id, ahead of those.
const CONTEXT: usize = 4;

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No reply begins so.
    Magic(u32),
    /// A reply to nothing that was asked.
    Stray,
    /// A chunk that its request has no use for, or of an odd length.
    Chunk(u16),
    /// Data that was not asked for.
    Range,
    /// A read ended before all of its data had come.
    Missing,
    /// A block status that is no answer, and why.
    Status(&'static str),
    /// A read was answered by a simple reply where structured ones were agreed on.
    Simple,
    /// The server is shutting down.
    Shutdown,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Magic(magic) => write!(
                f,
                "the server broke the protocol: a reply begins with {magic:#x}"
            ),
            Fault::Stray => write!(f, "the server broke the protocol: a reply to no request"),
            Fault::Chunk(kind) => {
                write!(
                    f,
                    "the server broke the protocol: a chunk of type {kind} out of place"
                )
            }
            Fault::Range => write!(
                f,
                "the server broke the protocol: data that was not asked for"
            ),
            Fault::Missing => write!(
                f,
                "the server broke the protocol: a read without all its data"
            ),
            Fault::Status(what) => {
                write!(f, "the server broke the protocol: a block status {what}")
            }
            Fault::Simple => write!(f, "the server broke the protocol: a simple reply to a read"),
            Fault::Shutdown => write!(f, "the server is shutting down"),
        }
    }
}

impl From<BadMagic> for Fault {
    fn from(bad: BadMagic) -> Fault {
        Fault::Magic(bad.0)
    }
}

/// What comes next.
enum State {
    Header,
    /// So many bytes of a read's data, for this place.
    Data {
        slot: Slot,
        at: usize,
        left: usize,
        then: Then,
    },
    /// The start of a chunk's payload.
    Start {
        slot: Slot,
        chunk: Chunk,
    },
    /// So many bytes of descriptors of what lies where.
    Status {
        slot: Slot,
        left: usize,
        then: Then,
    },
    /// So many bytes that nobody reads.
    Skip {
        slot: Slot,
        left: usize,
        then: Then,
    },
}

/// What follows the bytes of a reply.
#[derive(Clone, Copy)]
enum Then {
    /// Another chunk.
    More,
    /// It has ended.
    End,
}

/// The replies of one connection.
pub(crate) struct Replies {
    state: State,
    is_structured: bool,
}

impl Replies {
    pub(crate) fn new(is_structured: bool) -> Replies {
        Replies {
            state: State::Header,
            is_structured,
        }
    }

    /// Where the next bytes belong, if that is a read's data: they may be put there at once, and be
    /// told of by [`Replies::filled`].
    pub(crate) fn direct<'a>(&self, outstanding: &'a mut Outstanding) -> Option<&'a mut [u8]> {
        let State::Data { slot, at, left, .. } = self.state else {
            return None;
        };
        Some(outstanding.get(slot)?.data(at, left))
    }

    /// So many bytes were put where [`Replies::direct`] said.
    pub(crate) fn filled(
        &mut self,
        bytes: usize,
        outstanding: &mut Outstanding,
    ) -> Result<(), Fault> {
        if let State::Data {
            slot,
            at,
            left,
            then,
        } = self.state
        {
            let left = left - bytes;
            self.state = State::Data {
                slot,
                at: at + bytes,
                left,
                then,
            };
            if left == 0 {
                return self.follow(slot, then, outstanding);
            }
        }
        Ok(())
    }

    /// Takes what it can use of `bytes`: how many. What is left is the part of a header.
    pub(crate) fn take(
        &mut self,
        bytes: &[u8],
        outstanding: &mut Outstanding,
    ) -> Result<usize, Fault> {
        let mut rest = bytes;
        loop {
            match self.state {
                State::Header => {
                    let Some((header, len)) = ReplyHeader::parse(rest)? else {
                        break;
                    };
                    rest = &rest[len..];
                    match header {
                        ReplyHeader::Simple(simple) => self.simple(simple, outstanding)?,
                        ReplyHeader::Chunk(chunk) => self.chunk(chunk, outstanding)?,
                    }
                }
                State::Start { slot, chunk } => {
                    let len = start_len(chunk.kind);
                    let Some((start, after)) = rest.split_at_checked(len) else {
                        break;
                    };
                    rest = after;
                    let open = outstanding.get(slot).ok_or(Fault::Stray)?;
                    self.state = begun(slot, chunk, start, open)?;
                    self.follow_if_empty(outstanding)?;
                }
                State::Status { slot, left, then } => {
                    let Some((descriptor, after)) = rest.split_first_chunk::<DESCRIPTOR>() else {
                        break;
                    };
                    rest = after;
                    let question = outstanding.get(slot).and_then(Open::question);
                    tell(question.ok_or(Fault::Stray)?, descriptor)?;
                    self.state = State::Status {
                        slot,
                        left: left - DESCRIPTOR,
                        then,
                    };
                    self.follow_if_empty(outstanding)?;
                }
                State::Data { left, .. } => {
                    let here = left.min(rest.len());
                    if here == 0 {
                        break;
                    }
                    if let Some(to) = self.direct(outstanding) {
                        to[..here].copy_from_slice(&rest[..here]);
                    }
                    rest = &rest[here..];
                    self.filled(here, outstanding)?;
                }
                State::Skip { slot, left, then } => {
                    let here = left.min(rest.len());
                    if here == 0 {
                        break;
                    }
                    rest = &rest[here..];
                    self.state = State::Skip {
                        slot,
                        left: left - here,
                        then,
                    };
                    self.follow_if_empty(outstanding)?;
                }
            }
        }
        Ok(bytes.len() - rest.len())
    }

    fn simple(&mut self, simple: Simple, outstanding: &mut Outstanding) -> Result<(), Fault> {
        let (slot, open) = outstanding.find(simple.cookie).ok_or(Fault::Stray)?;
        if simple.error == Some(Error::Shutdown) {
            return Err(Fault::Shutdown);
        }
        if open.is_read() && self.is_structured {
            return Err(Fault::Simple);
        }
        if let Some(error) = simple.error {
            open.fail(error.errno());
        } else if open.is_read() {
            self.state = data(slot, open, open.part_offset(), open.missing(), Then::End)?;
            return Ok(());
        }
        self.follow(slot, Then::End, outstanding)
    }

    fn chunk(&mut self, chunk: Chunk, outstanding: &mut Outstanding) -> Result<(), Fault> {
        let odd = Fault::Chunk(chunk.kind);
        if !self.is_structured {
            return Err(odd);
        }
        let (slot, open) = outstanding.find(chunk.cookie).ok_or(Fault::Stray)?;
        let fits = match chunk.kind {
            chunk::NONE => chunk.length == 0 && chunk.is_last,
            chunk::OFFSET_DATA => open.is_read() && chunk.length > 8,
            chunk::OFFSET_HOLE => open.is_read() && chunk.length == 12,
            chunk::BLOCK_STATUS => {
                let descriptors = (chunk.length as usize).checked_sub(CONTEXT);
                let is_whole = descriptors.is_some_and(|len| len > 0 && len % DESCRIPTOR == 0);
                open.question().is_some() && is_whole
            }
            kind if kind & chunk::ERROR_BIT != 0 => (6..=MOST_ERROR).contains(&chunk.length),
            _ => false,
        };
        if !fits {
            return Err(odd);
        }
        if chunk.kind == chunk::NONE {
            return self.follow(slot, Then::End, outstanding);
        }
        self.state = State::Start { slot, chunk };
        Ok(())
    }

    fn follow_if_empty(&mut self, outstanding: &mut Outstanding) -> Result<(), Fault> {
        match self.state {
            State::Status {
                slot,
                left: 0,
                then,
            }
            | State::Skip {
                slot,
                left: 0,
                then,
            } => self.follow(slot, then, outstanding),
            _ => Ok(()),
        }
    }

    /// All bytes of a reply or a chunk have come.
    fn follow(
        &mut self,
        slot: Slot,
        then: Then,
        outstanding: &mut Outstanding,
    ) -> Result<(), Fault> {
        self.state = State::Header;
        if let Then::End = then {
            let open = outstanding.get(slot).ok_or(Fault::Stray)?;
            if open.is_read() && !open.has_failed() && open.missing() > 0 {
                return Err(Fault::Missing);
            }
            if !open.has_failed() && open.question().is_some_and(|it| !it.has_begun()) {
                return Err(Fault::Status("is missing"));
            }
            outstanding.part_ended(slot);
        }
        Ok(())
    }
}

/// Bytes at the start of a chunk's payload that have a meaning of their own.
fn start_len(kind: u16) -> usize {
    match kind {
        chunk::OFFSET_DATA => 8,
        chunk::OFFSET_HOLE => 12,
        chunk::BLOCK_STATUS => CONTEXT,
        _ => 6, // an error
    }
}

/// What follows such a start.
fn begun(slot: Slot, chunk: Chunk, start: &[u8], open: &mut Open) -> Result<State, Fault> {
    let then = match chunk.is_last {
        true => Then::End,
        false => Then::More,
    };
    let number = |range: std::ops::Range<usize>| {
        let bytes = start[range].iter();
        bytes.fold(0u64, |number, &byte| number << 8 | u64::from(byte))
    };
    match chunk.kind {
        chunk::OFFSET_DATA => data(slot, open, number(0..8), u64::from(chunk.length) - 8, then),
        chunk::OFFSET_HOLE => {
            let (offset, length) = (number(0..8), number(8..12));
            let at = place(open, offset, length)?;
            open.data(at, length as usize).fill(0); // within the buffer: placed
            Ok(State::Skip {
                slot,
                left: 0,
                then,
            })
        }
        chunk::BLOCK_STATUS => {
            let question = open.question().ok_or(Fault::Chunk(chunk.kind))?;
            let context = number(0..CONTEXT) as u32;
            question.begin(context).map_err(Fault::Status)?;
            let left = chunk.length as usize - CONTEXT;
            Ok(State::Status { slot, left, then })
        }
        _ => {
            let (error, message) = (number(0..4) as u32, number(4..6));
            if message + 6 > chunk.length.into() {
                return Err(Fault::Chunk(chunk.kind));
            }
            // An error chunk that names none is one all the same.
            let error = Error::parse(error).unwrap_or(Error::Io);
            if error == Error::Shutdown {
                return Err(Fault::Shutdown);
            }
            open.fail(error.errno());
            let left = chunk.length as usize - 6; // at most MOST_ERROR
            Ok(State::Skip { slot, left, then })
        }
    }
}

/// A descriptor of a block status.
fn tell(question: &mut Question, descriptor: &[u8; DESCRIPTOR]) -> Result<(), Fault> {
    let [a, b, c, d, flags @ ..] = *descriptor;
    let length = u32::from_be_bytes([a, b, c, d]);
    let flags = u32::from_be_bytes(flags);
    question.tell(length, flags).map_err(Fault::Status)
}

/// So much data follows, at this offset of the disk.
fn data(slot: Slot, open: &mut Open, offset: u64, length: u64, then: Then) -> Result<State, Fault> {
    let at = place(open, offset, length)?;
    let left = length as usize; // within the buffer: placed
    Ok(State::Data {
        slot,
        at,
        left,
        then,
    })
}

fn place(open: &mut Open, offset: u64, length: u64) -> Result<usize, Fault> {
    if length > open.missing() {
        return Err(Fault::Range);
    }
    let at = open.place(offset, length).ok_or(Fault::Range)?;
    open.fill(length);
    Ok(at)
}
