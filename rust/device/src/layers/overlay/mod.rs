//! Layer `overlay`: copy on write. Changes are kept in memory; the backend beneath is read and
//! never written.

mod store;
#[cfg(test)]
mod tests;

use super::Layer;
use crate::backend::{
    Backend, Completion, Engine, Info, Local, Op, Piece, StatusRequest, Submitted, Token,
};
use crate::{Buffer, Extent, Length};
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use store::{Held, Store};

/// Keeps what changes; it is gone with the layer. At first nothing has changed.
#[derive(Default)]
pub struct Overlay {
    store: Arc<Store>,
}

impl Layer for Overlay {
    fn info(&self, below: Info) -> Info {
        Info {
            block_size: 512,
            read_only: false,
            can_discard: true,
            ..below
        }
    }

    fn wrap(&self, below: Box<dyn Engine>, _local: &Local) -> Box<dyn Engine> {
        Box::new(OverlayEngine {
            below,
            store: self.store.clone(),
            mixed: HashMap::new(),
        })
    }

    fn overlay_allocated(&self) -> u64 {
        self.store.allocated()
    }

    fn block_status(&self, below: &dyn Backend, request: StatusRequest) {
        let store = self.store.clone();
        let (extent, most) = (request.extent(), request.most());
        below.block_status(StatusRequest::new(extent, most, move |beneath| {
            request.answer(beneath.map(|beneath| over(store.pieces(extent), beneath)));
        }));
    }
}

/// What is held here over what is beneath, as far as that is told.
fn over(
    mut held: impl Iterator<Item = (u64, Option<Piece>)>,
    beneath: Vec<Piece>,
) -> impl Iterator<Item = Piece> {
    let mut beneath = beneath.into_iter();
    let (mut upper, mut lower) = ((0, None), Piece::data(Length(0)));
    std::iter::from_fn(move || {
        if upper.0 == 0 {
            upper = held.next()?;
        }
        if lower.len.0 == 0 {
            lower = beneath.next()?;
        }
        let len = lower.len.0.min(upper.0);
        upper.0 -= len;
        lower.len.0 -= len;
        Some(Piece {
            len: Length(len),
            ..upper.1.unwrap_or(lower)
        })
    })
}

struct OverlayEngine {
    below: Box<dyn Engine>,
    store: Arc<Store>,
    /// Reads at the engine beneath of which a part is held here.
    mixed: HashMap<Token, (Extent, Buffer)>,
}

impl OverlayEngine {
    /// A read of memory that belongs to the driver: during `submit`, or where a direct engine
    /// has read into it.
    fn fill(&self, extent: Extent, buffer: &Buffer) {
        self.store
            .read(extent, |at, bytes| buffer.write_at(at, bytes));
    }

    fn read(&mut self, token: Token, extent: Extent, buffer: Buffer) -> Submitted {
        let shared = match self.store.holds(extent) {
            Held::All => {
                self.fill(extent, &buffer);
                return Submitted::Done(Ok(()));
            }
            // What is written from now on may be seen or not: the read is under way.
            Held::Nothing => None,
            Held::Some => Some(buffer.share()),
        };
        let submitted = self.below.submit(token, Op::Read { extent, buffer });
        if let Some(shared) = shared {
            match submitted {
                Submitted::Done(Ok(())) => self.fill(extent, &shared),
                Submitted::Done(Err(_)) => {}
                Submitted::Pending => drop(self.mixed.insert(token, (extent, shared))),
            }
        }
        submitted
    }

    /// Puts what is held here over what was read beneath.
    fn merge(&mut self, completion: &mut Completion) {
        let Some((extent, buffer)) = self.mixed.remove(&completion.token) else {
            return;
        };
        match (completion.result, &mut completion.data) {
            (Err(_), _) => {}
            (Ok(()), None) => self.fill(extent, &buffer),
            (Ok(()), Some(data)) => self.store.read(extent, |at, bytes| {
                let at = at as usize;
                match data.get_mut(at..at + bytes.len()) {
                    Some(part) => part.copy_from_slice(bytes),
                    // Less than was asked for is no data.
                    None => completion.result = Err(Errno::IO),
                }
            }),
        }
    }
}

impl Engine for OverlayEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        match op {
            Op::Read { extent, buffer } => return self.read(token, extent, buffer),
            Op::Write { extent, buffer } => self.store.write(extent, &buffer),
            Op::Discard { extent } | Op::WriteZeroes { extent, .. } => self.store.zero(extent),
            Op::Flush => {}
        }
        Submitted::Done(Ok(()))
    }

    fn flush(&mut self) {
        self.below.flush();
    }

    fn cancel(&mut self, token: Token) {
        self.mixed.remove(&token);
        self.below.cancel(token);
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.below.completed(completion);
        self.merge(completion);
    }

    fn deadline(&self) -> Option<Instant> {
        self.below.deadline()
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        let before = ended.len();
        self.below.expire(now, ended);
        ended[before..]
            .iter_mut()
            .for_each(|completion| self.merge(completion));
    }
}
