//! What layers share that hold operations back.

use crate::backend::{Completion, Engine, Op, Submitted, Token};
use rustix::io::Errno;
use std::collections::HashSet;
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

/// Requests that were cancelled while operations wait, until [`Engine::expire`] ends those: all
/// in one pass, as a reset cancels a whole virtqueue's.
#[derive(Default)]
pub(super) struct Cancelled {
    tokens: HashSet<Token>,
    since: Option<Instant>,
}

impl Cancelled {
    /// Operations under `token` will not run.
    pub(super) fn add(&mut self, token: Token) {
        self.since.get_or_insert_with(Instant::now);
        self.tokens.insert(token);
    }

    /// Now, if there is any.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since
    }

    /// Ends what was cancelled, into `ended`: where there is any, `retain` goes through the held
    /// operations once, and asks of each whether it stays.
    pub(super) fn sweep(
        &mut self,
        ended: &mut Vec<Completion>,
        retain: impl FnOnce(&mut dyn FnMut(&Held) -> bool),
    ) {
        if self.tokens.is_empty() {
            return;
        }
        let Cancelled { tokens, .. } = std::mem::take(self);
        retain(&mut |held| {
            let stays = !tokens.contains(&held.token);
            if !stays {
                ended.push(end(held.token, Err(Errno::CANCELED)));
            }
            stays
        });
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
