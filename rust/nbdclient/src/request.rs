//! A request on its way from an engine to a connection.

use crate::question::Question;
use rustix::io::Errno;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vduse_device::Completer;
use vduse_device::backend::{Completion, Token};
use vduse_nbdwire::{command, flag};

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes {
        may_unmap: bool,
    },
    /// `is_one`: one descriptor is enough.
    BlockStatus {
        is_one: bool,
    },
}

impl Kind {
    /// Whether it changes the disk.
    pub(crate) fn modifies(self) -> bool {
        !matches!(self, Kind::Read | Kind::Flush | Kind::BlockStatus { .. })
    }

    /// Command and flags on the wire.
    pub(crate) fn command(self) -> (u16, u16) {
        match self {
            Kind::Read => (command::READ, 0),
            Kind::Write => (command::WRITE, 0),
            Kind::Flush => (command::FLUSH, 0),
            Kind::Trim => (command::TRIM, 0),
            Kind::WriteZeroes { may_unmap: true } => (command::WRITE_ZEROES, 0),
            Kind::WriteZeroes { may_unmap: false } => (command::WRITE_ZEROES, flag::NO_HOLE),
            Kind::BlockStatus { is_one: true } => (command::BLOCK_STATUS, flag::REQ_ONE),
            Kind::BlockStatus { is_one: false } => (command::BLOCK_STATUS, 0),
        }
    }
}

/// One operation of a disk; all its memory is its own.
pub(crate) struct Request {
    pub(crate) whose: Whose,
    pub(crate) kind: Kind,
    /// Bytes.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// What a write stores.
    pub(crate) payload: Vec<u8>,
    /// When a lost connection first stopped it.
    pub(crate) interrupted: Option<Instant>,
}

/// Who is told of the end.
pub(crate) enum Whose {
    /// A virtqueue.
    Engine(Token, Completer),
    /// A thread that waits.
    Waiter(Arc<Waiter>),
    /// Who asks what lies where.
    Question(Question),
    /// A test.
    #[cfg(test)]
    Test(u64, crate::tests::Seen),
}

/// Where a thread waits for the end of a request.
#[derive(Default)]
pub(crate) struct Waiter {
    end: Mutex<Option<Result<(), Errno>>>,
    ended: Condvar,
}

impl Waiter {
    /// ETIMEDOUT if nothing has come by then.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<(), Errno> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let (end, _) = self
            .ended
            .wait_timeout_while(end, timeout, |end| end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        end.unwrap_or(Err(Errno::TIMEDOUT))
    }

    fn end(&self, result: Result<(), Errno>) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.get_or_insert(result);
        self.ended.notify_all();
    }
}

/// Requests that have ended, until those who wait are told: together.
#[derive(Default)]
pub(crate) struct Ended(Vec<(Completer, Vec<Completion>)>);

impl Ended {
    pub(crate) fn add(&mut self, whose: Whose, result: Result<(), Errno>, data: Option<Vec<u8>>) {
        let (token, completer) = match whose {
            Whose::Engine(token, completer) => (token, completer),
            Whose::Waiter(waiter) => return waiter.end(result),
            Whose::Question(question) => return question.end(result),
            #[cfg(test)]
            Whose::Test(name, seen) => return seen.lock().unwrap().push((name, result, data)),
        };
        let completion = Completion {
            token,
            result,
            data,
        };
        let known = self.0.iter_mut().find(|(it, _)| it.is_same(&completer));
        match known {
            Some((_, list)) => list.push(completion),
            None => self.0.push((completer, vec![completion])),
        }
    }

    /// Tells those who wait; whether there was anybody.
    pub(crate) fn tell(&mut self) -> bool {
        let mut any = false;
        for (completer, list) in &mut self.0 {
            any |= !list.is_empty();
            completer.complete_all(std::mem::take(list));
        }
        any
    }
}
