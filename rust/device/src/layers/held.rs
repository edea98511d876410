//! What layers share that hold operations back.

use crate::backend::{Completion, Engine, Op, Submitted, Token};
use rustix::io::Errno;
use std::time::Instant;

/// An operation that waits.
pub(super) struct Held {
    pub(super) token: Token,
    pub(super) op: Op,
}

impl Held {
    /// Hands it on; its end, if that is now, goes into `ended`.
    pub(super) fn go_on(self, below: &mut dyn Engine, ended: &mut Vec<Completion>) {
        if let Submitted::Done(result) = below.submit(self.token, self.op) {
            ended.push(end(self.token, result));
        }
    }
}

/// Operations that were cancelled while they waited, until [`Engine::expire`] takes them.
#[derive(Default)]
pub(super) struct Cancelled {
    ended: Vec<Completion>,
    since: Option<Instant>,
}

impl Cancelled {
    /// Whether a held operation stays when `token` is cancelled; if not, it has ended.
    pub(super) fn keeps(&mut self, held: &Held, token: Token) -> bool {
        if held.token != token {
            return true;
        }
        self.since.get_or_insert_with(Instant::now);
        self.ended.push(end(token, Err(Errno::CANCELED)));
        false
    }

    /// Now, if there is any.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since
    }

    pub(super) fn take(&mut self, ended: &mut Vec<Completion>) {
        self.since = None;
        ended.append(&mut self.ended);
    }
}

fn end(token: Token, result: Result<(), Errno>) -> Completion {
    Completion {
        token,
        result,
        data: None,
    }
}

/// The first of some deadlines.
pub(super) fn earliest<const N: usize>(deadlines: [Option<Instant>; N]) -> Option<Instant> {
    deadlines.into_iter().flatten().min()
}
