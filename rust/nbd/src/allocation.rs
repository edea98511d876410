//! What lies where on the disk (`base:allocation`): whoever knows it is asked, and answers when it
//! can.

use crate::requests::Slot;
use crate::wire::allocation::{HOLE, ZERO};
use rustix::io::Errno;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Extents of one reply, at most.
pub(crate) const MOST_EXTENTS: usize = 512;
/// Bytes of one of them.
const EXTENT: usize = 8;
/// Bytes of all of them.
pub(crate) const MOST_BYTES: usize = MOST_EXTENTS * EXTENT;

/// Who knows what lies where on a disk.
pub trait Allocation: Send + Sync {
    /// Has the question answered, now or later, on this thread or another; never waits. A write
    /// that had ended before the question came is seen; one under way may be seen or not.
    fn ask(&self, question: Question);
}

/// A part of a disk that is alike from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes, a multiple of 512 and not 0.
    pub len: u64,
    /// It takes no room.
    pub is_hole: bool,
    /// It reads as zeroes.
    pub is_zero: bool,
}

type Answer = Result<Vec<Part>, Errno>;

/// What is in a range of the disk. Dropped, it is answered EIO.
pub struct Question {
    offset: u64,
    length: u32,
    most: usize,
    slot: Slot,
    desk: Option<Arc<Desk>>,
}

impl Question {
    /// Where the range begins, in bytes; a multiple of 512.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its bytes, a multiple of 512 and not 0.
    pub fn length(&self) -> u64 {
        self.length.into()
    }

    /// Parts that are wanted, at most; at least 1.
    pub fn most(&self) -> usize {
        self.most
    }

    /// The parts follow each other from the beginning of the range on, and need not cover it. What is
    /// too much is left out; none is EIO.
    pub fn answer(mut self, answer: Answer) {
        let answer = answer.and_then(|parts| self.within(parts));
        self.tell(answer);
    }

    fn within(&self, mut parts: Vec<Part>) -> Answer {
        let mut left = self.length();
        parts.truncate(self.most);
        parts.retain_mut(|part| {
            part.len = part.len.min(left);
            left -= part.len;
            part.len > 0
        });
        match parts.is_empty() {
            true => Err(Errno::IO),
            false => Ok(parts),
        }
    }

    fn tell(&mut self, answer: Answer) {
        if let Some(desk) = self.desk.take() {
            desk.lock().push((self.slot, answer));
            (desk.wake)();
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.tell(Err(Errno::IO));
    }
}

/// Where a connection's answers arrive, from any thread.
struct Desk {
    arrived: Mutex<Vec<(Slot, Answer)>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Vec<(Slot, Answer)>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's questions.
pub(crate) struct Questions {
    source: Option<Arc<dyn Allocation>>,
    desk: Arc<Desk>,
    /// Not answered yet.
    open: usize,
}

impl Questions {
    /// Without a source all is data. `wake`: an answer is there.
    pub(crate) fn new(
        source: Option<Arc<dyn Allocation>>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Questions {
        let arrived = Mutex::default();
        Questions {
            source,
            desk: Arc::new(Desk { arrived, wake }),
            open: 0,
        }
    }

    /// The request in `slot` asks about `length` bytes from `offset` on, for one part or many.
    pub(crate) fn ask(&mut self, slot: Slot, offset: u64, length: u32, one: bool) {
        self.open += 1;
        let question = Question {
            offset,
            length,
            most: if one { 1 } else { MOST_EXTENTS },
            slot,
            desk: Some(self.desk.clone()),
        };
        match &self.source {
            Some(source) => source.ask(question),
            None => question.answer(Ok(vec![Part {
                len: length.into(),
                is_hole: false,
                is_zero: false,
            }])),
        }
    }

    /// The answers that have come. Costs nothing where nothing is asked.
    pub(crate) fn take(&mut self) -> Vec<(Slot, Answer)> {
        if self.open == 0 {
            return Vec::new();
        }
        let arrived = std::mem::take(&mut *self.desk.lock());
        self.open -= arrived.len();
        arrived
    }
}

/// Puts the parts of an answer into a reply's payload; bytes.
pub(crate) fn encode(parts: &[Part], payload: &mut [u8]) -> usize {
    for (place, part) in payload.chunks_exact_mut(EXTENT).zip(parts) {
        let hole = if part.is_hole { HOLE } else { 0 };
        let zero = if part.is_zero { ZERO } else { 0 };
        // No longer than the request, whose length is a u32.
        place[..4].copy_from_slice(&(part.len as u32).to_be_bytes());
        place[4..].copy_from_slice(&(hole | zero).to_be_bytes());
    }
    parts.len() * EXTENT
}

/// The extents in a payload of so many bytes.
pub(crate) fn extents(bytes: usize) -> u32 {
    (bytes / EXTENT) as u32
}
