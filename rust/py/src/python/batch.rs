//! A batch of operations in Python's hands: who holds which, and how each ends.
//!
//! An operation is *open* until it is completed, once. Its memory stays mapped as long as a view
//! on it is exported (a [`Lease`]), and where the batch's records were handed out, as long as the batch lives.

use super::exporter::Records;
use super::handler::Shared;
use crate::exporter::Scratch;
use pyo3::prelude::*;
use pyo3::types::PyWeakrefReference;
use rustix::io::Errno;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use vduse_device::backend::{Completion, Op, Token};
use vduse_device::{Buffer, Completer};
use vduse_mem::Piece;

/// What is to be done, under the number of the virtio-blk request (virtio 1.3, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
    Discard = 11,
    WriteZeroes = 13,
}

/// What an operation is; never changes.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// Bytes from the disk's start.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
    pub(super) may_unmap: bool,
}

/// Where an operation stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    /// Python has it.
    Open,
    /// The driver was reset: it ends once no view is exported.
    Cancelling,
    /// It ended because the driver was reset: its later completion means nothing.
    Cancelled,
    /// It has ended.
    Done,
}

/// An operation's state and memory.
pub(super) struct Slot {
    token: Token,
    status: Status,
    buffer: Option<Buffer>,
    /// One piece in place of many.
    copy: Option<Arc<Scratch>>,
    /// Views.
    exports: u32,
    /// Request objects.
    holders: u32,
    /// The view that Python was given, as long as it lives.
    view: Option<Py<PyWeakrefReference>>,
}

impl Slot {
    /// The operation that the worker calls `token`.
    pub(super) fn new(token: Token, op: Op) -> (Facts, Slot) {
        let (kind, extent, may_unmap, buffer) = match op {
            Op::Read { extent, buffer } => (Kind::Read, Some(extent), false, Some(buffer)),
            Op::Write { extent, buffer } => (Kind::Write, Some(extent), false, Some(buffer)),
            Op::Flush => (Kind::Flush, None, false, None),
            Op::Discard { extent } => (Kind::Discard, Some(extent), true, None),
            Op::WriteZeroes { extent, may_unmap } => {
                (Kind::WriteZeroes, Some(extent), may_unmap, None)
            }
        };
        let facts = Facts {
            kind,
            offset: extent.map_or(0, |extent| extent.offset().0),
            length: extent.map_or(0, |extent| extent.len().0),
            may_unmap,
        };
        let slot = Slot {
            token,
            status: Status::Open,
            buffer,
            copy: None,
            exports: 0,
            holders: 0,
            view: None,
        };
        (facts, slot)
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// All of its memory as one piece, through a copy where it is not; `None` for operations
    /// without data.
    fn whole(&mut self, kind: Kind) -> Option<Whole> {
        let buffer = self.buffer.as_ref()?;
        if self.copy.is_none() {
            if let Some(whole) = buffer.whole() {
                return Some(Whole::Drivers(whole));
            }
            self.copy = Some(Arc::new(Scratch::new(match kind {
                Kind::Write => buffer.to_vec(),
                _ => vec![0; buffer.len() as usize],
            })));
        }
        self.copy.clone().map(Whole::Copy)
    }

    /// Open, and no object is left that could complete it.
    fn is_unheld(&self) -> bool {
        self.status == Status::Open && self.holders == 0 && self.exports == 0
    }
}

/// An operation's memory, in one piece.
enum Whole {
    /// The driver's own.
    Drivers(Buffer),
    /// Copied to the driver's at the end of a read.
    Copy(Arc<Scratch>),
}

impl Whole {
    fn piece(&self) -> Option<Piece> {
        match self {
            Whole::Drivers(buffer) => buffer.pieces().first().copied(),
            Whole::Copy(copy) => Some(copy.piece()),
        }
    }
}

/// An operation's memory in Python's hands, and its claim on the operation: as long as it lives,
/// the memory is mapped, the open operation stays open, and a reset waits.
pub struct Lease {
    batch: Arc<Batch>,
    index: usize,
    /// `None` only while dropping.
    whole: Option<Whole>,
}

impl Lease {
    /// The memory, valid while this lives; empty where the driver gave none.
    pub fn piece(&self) -> Piece {
        let piece = self.whole.as_ref().and_then(Whole::piece);
        piece.unwrap_or(Piece {
            ptr: NonNull::dangling(),
            len: 0,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // First the mapping: a reset may be waiting for what comes then.
        drop(self.whole.take());
        self.batch.unexport(self.index);
    }
}

/// Where completions go.
pub(super) enum Way {
    /// To the worker that submitted.
    Worker(Completer),
    /// To a thread that waits for the batch's one operation.
    Waiter(mpsc::Sender<Result<(), Errno>>),
}

/// Why a completion is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotOpen;

struct State {
    slots: Vec<Slot>,
    open: usize,
    /// The handler is being called: the worker takes completions itself when that returns.
    in_call: bool,
    ended: Vec<Completion>,
    /// Batch objects and iterators.
    holders: usize,
    /// Stays open without objects, to be completed by token.
    is_deferred: bool,
    /// Views that were exported when their request was completed, not reported yet.
    stale: u64,
    /// Python was given a view.
    has_views: bool,
}

/// A batch.
pub(super) struct Batch {
    pub(super) shared: Arc<Shared>,
    /// Tells the batches of a backend apart.
    pub(super) number: u64,
    pub(super) facts: Vec<Facts>,
    way: Way,
    state: Mutex<State>,
    records: OnceLock<Records>,
    /// In the registry of those whose tokens are known.
    is_registered: AtomicBool,
}

impl Batch {
    pub(super) fn new(
        shared: Arc<Shared>,
        facts: Vec<Facts>,
        slots: Vec<Slot>,
        way: Way,
    ) -> Arc<Batch> {
        Arc::new(Batch {
            number: shared.next_number(),
            shared,
            facts,
            way,
            state: Mutex::new(State {
                open: slots.len(),
                ended: Vec::with_capacity(slots.len()),
                slots,
                in_call: true,
                holders: 0,
                is_deferred: false,
                stale: 0,
                has_views: false,
            }),
            records: OnceLock::new(),
            is_registered: AtomicBool::new(false),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.facts.len()
    }

    /// Operations that are open.
    pub(super) fn open(&self) -> usize {
        self.lock().open
    }

    /// The token of an operation; it can be completed by it from now on.
    pub(super) fn token(self: &Arc<Self>, index: usize) -> u64 {
        self.register(false);
        self.shared.registry.token(self.number, index)
    }

    fn register(self: &Arc<Self>, keep: bool) {
        if !self.is_registered.swap(true, Relaxed) || keep {
            self.shared.registry.add(self, keep);
        }
    }

    // --- how operations end -----------------------------------------------------------------

    /// Completes one operation.
    pub(super) fn complete(&self, index: usize, result: Result<(), Errno>) -> Result<(), NotOpen> {
        self.change(|state| self.complete_in(state, index, result))
    }

    /// Completes operations, in this order; those that are not open stay as they are.
    pub(super) fn complete_many(&self, ended: impl Iterator<Item = (usize, Result<(), Errno>)>) {
        self.change(|state| {
            for (index, result) in ended {
                let _ = self.complete_in(state, index, result);
            }
        });
    }

    fn complete_in(
        &self,
        state: &mut State,
        index: usize,
        result: Result<(), Errno>,
    ) -> Result<(), NotOpen> {
        match state.slots[index].status {
            Status::Open => {
                self.end(state, index, result);
                Ok(())
            }
            Status::Cancelling => {
                self.end(state, index, Err(Errno::CANCELED));
                Ok(())
            }
            Status::Cancelled => Ok(()),
            Status::Done => Err(NotOpen),
        }
    }

    /// Completes all that are open; how many.
    pub(super) fn complete_all(&self, result: Result<(), Errno>) -> usize {
        self.complete_those(|_| Some(result))
    }

    /// Completes those of the open ones that `outcome` has a result for; how many.
    pub(super) fn complete_those(
        &self,
        outcome: impl Fn(usize) -> Option<Result<(), Errno>>,
    ) -> usize {
        self.change(|state| {
            let before = state.open;
            for index in 0..state.slots.len() {
                let status = state.slots[index].status;
                if matches!(status, Status::Open | Status::Cancelling)
                    && let Some(result) = outcome(index)
                {
                    let cancelled = status == Status::Cancelling;
                    let result = if cancelled {
                        Err(Errno::CANCELED)
                    } else {
                        result
                    };
                    self.end(state, index, result);
                }
            }
            before - state.open
        })
    }

    /// The driver was reset: operations under `token` end at once, or with their last view.
    pub(super) fn cancel(&self, token: Token) {
        self.change(|state| {
            for index in 0..state.slots.len() {
                let slot = &mut state.slots[index];
                if slot.token != token || slot.status != Status::Open {
                    continue;
                }
                slot.status = Status::Cancelling;
                // A copy and memory of our own can be written to as long as anybody likes.
                let is_drivers = |buffer: &Buffer| buffer.own_region().is_none();
                let in_use = slot.exports > 0 || self.records.get().is_some();
                if slot.copy.is_some() || !slot.buffer.as_ref().is_some_and(is_drivers) || !in_use {
                    self.end(state, index, Err(Errno::CANCELED));
                }
            }
        });
    }

    /// The call of the handler has returned: later completions wake the worker.
    pub(super) fn returned(&self) {
        self.change(|state| state.in_call = false);
    }

    /// Whether the operation is over for Python.
    pub(super) fn is_completed(&self, index: usize) -> bool {
        self.lock().slots[index].status != Status::Open
    }

    fn end(&self, state: &mut State, index: usize, result: Result<(), Errno>) {
        let slot = &mut state.slots[index];
        let cancelled = slot.status == Status::Cancelling;
        if result.is_ok()
            && self.facts[index].kind == Kind::Read
            && let (Some(copy), Some(buffer)) = (&slot.copy, &slot.buffer)
        {
            copy.copy_to(buffer);
        }
        slot.status = if cancelled {
            Status::Cancelled
        } else {
            Status::Done
        };
        if slot.exports > 0 {
            state.stale += 1;
        }
        if self.records.get().is_none() {
            slot.buffer = None;
        }
        state.open -= 1;
        state.ended.push(Completion {
            token: slot.token,
            result,
            data: None,
        });
    }

    /// Changes the state, then lets the worker and the log know.
    fn change<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let outcome = what(&mut state);
        let stale = std::mem::take(&mut state.stale);
        let ended = match state.in_call {
            true => Vec::new(),
            false => std::mem::take(&mut state.ended),
        };
        let is_over = state.open == 0;
        drop(state);
        if is_over && self.is_registered.swap(false, Relaxed) {
            self.shared.registry.remove(self.number);
        }
        if !ended.is_empty() {
            match &self.way {
                Way::Worker(completer) => completer.complete_all(ended),
                Way::Waiter(waiter) => {
                    for completion in ended {
                        // Nobody waits any more: its time was over.
                        let _ = waiter.send(completion.result);
                    }
                }
            }
        }
        if stale > 0 {
            self.shared.note_stale(stale);
        }
        outcome
    }

    // --- who holds them ---------------------------------------------------------------------

    /// A batch object is made.
    pub(super) fn hold(&self) {
        self.lock().holders += 1;
    }

    /// A batch object is gone: what nobody else holds is dropped.
    pub(super) fn let_go(&self) {
        let is_unheld = {
            let mut state = self.lock();
            state.holders -= 1;
            state.holders == 0 && state.open > 0
        };
        if is_unheld {
            self.drop_unheld(0..self.len());
        }
    }

    /// A request object is made.
    pub(super) fn hold_one(&self, index: usize) {
        self.lock().slots[index].holders += 1;
    }

    /// A request object is gone.
    pub(super) fn let_go_of_one(&self, index: usize) {
        let unheld = {
            let slot = &mut self.lock().slots[index];
            slot.holders -= 1;
            slot.is_unheld()
        };
        if unheld {
            self.drop_unheld(index..index + 1);
        }
    }

    /// Open operations stay so without objects, until they are completed by token.
    pub(super) fn defer(self: &Arc<Self>) {
        let is_open = {
            let mut state = self.lock();
            state.is_deferred = state.open > 0;
            state.is_deferred
        };
        if is_open {
            self.register(true);
            // A reset may have ended the last one in between.
            self.change(|_| ());
        }
    }

    /// Fails the open operations that nobody can complete any more.
    fn drop_unheld(&self, indices: std::ops::Range<usize>) {
        let dropped = self.change(|state| {
            let before = state.open;
            if state.holders == 0 && !state.is_deferred {
                for index in indices {
                    if state.slots[index].is_unheld() {
                        self.end(state, index, Err(Errno::IO));
                    }
                }
            }
            before - state.open
        });
        if dropped > 0 {
            self.shared.note_dropped(dropped);
        }
    }

    // --- their memory -----------------------------------------------------------------------

    /// The memory of each operation, where that is the driver's own in one piece; valid as long as
    /// the operation is open.
    pub(super) fn pieces(&self) -> Vec<Option<Piece>> {
        let state = self.lock();
        let pieces = state
            .slots
            .iter()
            .map(|slot| match slot.buffer.as_ref()?.pieces() {
                [piece] => Some(*piece),
                _ => None,
            });
        pieces.collect()
    }

    /// Exports the memory of an open read or write.
    pub(super) fn export(self: &Arc<Self>, index: usize) -> Result<Lease, &'static str> {
        let kind = self.facts[index].kind;
        let mut state = self.lock();
        let slot = &mut state.slots[index];
        if slot.status != Status::Open {
            return Err("the request is over");
        }
        let whole = slot.whole(kind).ok_or("the request has no data")?;
        slot.exports += 1;
        Ok(Lease {
            batch: self.clone(),
            index,
            whole: Some(whole),
        })
    }

    /// A lease is gone.
    fn unexport(&self, index: usize) {
        let unheld = self.change(|state| {
            let slot = &mut state.slots[index];
            slot.exports -= 1;
            let is_cancelling = slot.exports == 0 && slot.status == Status::Cancelling;
            if is_cancelling && self.records.get().is_none() {
                self.end(state, index, Err(Errno::CANCELED));
            }
            state.slots[index].is_unheld()
        });
        if unheld {
            self.drop_unheld(index..index + 1);
        }
    }

    /// Whether any view was ever given.
    pub(super) fn has_views(&self) -> bool {
        self.lock().has_views
    }

    /// The view given last.
    pub(super) fn known_view(
        &self,
        py: Python<'_>,
        index: usize,
    ) -> Option<Py<PyWeakrefReference>> {
        let state = self.lock();
        state.slots[index]
            .view
            .as_ref()
            .map(|view| view.clone_ref(py))
    }

    /// Python was given this view.
    pub(super) fn know_view(&self, index: usize, view: Py<PyWeakrefReference>) {
        let mut state = self.lock();
        state.has_views = true;
        let old = state.slots[index].view.replace(view);
        drop(state);
        drop(old);
    }

    /// The view given last, to be released by the caller.
    pub(super) fn forget_view(&self, index: usize) -> Option<Py<PyWeakrefReference>> {
        self.lock().slots[index].view.take()
    }

    /// The batch as records, made at the first call.
    pub(super) fn records(self: &Arc<Self>) -> &Records {
        self.register(false);
        let mut state = self.lock();
        self.records.get_or_init(|| {
            let registry = &self.shared.registry;
            Records::new(self.facts.iter().enumerate().map(|(index, facts)| {
                let slot = &mut state.slots[index];
                let is_open = slot.status == Status::Open;
                let whole = slot.whole(facts.kind).filter(|_| is_open);
                let piece = whole.and_then(|whole| whole.piece());
                (registry.token(self.number, index), *facts, piece)
            }))
        })
    }

    /// The records, if they were ever asked for.
    pub(super) fn made_records(&self) -> Option<&Records> {
        self.records.get()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Whoever waits for it is answered in any case.
        self.state
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .in_call = false;
        self.complete_all(Err(Errno::IO));
        if *self.is_registered.get_mut() {
            self.shared.registry.remove(self.number);
        }
    }
}
