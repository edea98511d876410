//! The files of an image as its task sees them: what futures ask of them, what is under way at
//! their engines, and how it ended.
//!
//! Memory that the system reads or writes belongs to the table, not to the future that waits: a
//! future may be dropped at any time, the system goes on until it is done.

use imago::io_buffers::IoBuffer;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use vduse_device::backend::{Completion, Engine, Op, Submitted, Token};
use vduse_device::{Buffer, Extent};
use vduse_mem::Piece;

/// Names one of the image's files: its place among the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId(pub(crate) usize);

/// What is asked of a file. Memory is exactly as long as the extent.
pub(crate) enum Ask {
    Read(Extent, IoBuffer),
    Write(Extent, IoBuffer),
    WriteZeroes(Extent, bool),
    Discard(Extent),
    Flush,
}

impl Ask {
    fn modifies(&self) -> bool {
        !matches!(self, Ask::Read(..) | Ask::Flush)
    }

    /// As an operation of an engine's.
    ///
    /// # Safety
    /// The memory of `self` stays where it is until the operation has completed.
    unsafe fn op(&mut self) -> Op {
        // SAFETY: the caller's promise.
        let buffer = |memory: &mut IoBuffer| unsafe { Buffer::borrowed(pieces(memory)) };
        match self {
            Ask::Read(extent, memory) => Op::Read {
                extent: *extent,
                buffer: buffer(memory),
            },
            Ask::Write(extent, memory) => Op::Write {
                extent: *extent,
                buffer: buffer(memory),
            },
            Ask::WriteZeroes(extent, may_unmap) => Op::WriteZeroes {
                extent: *extent,
                may_unmap: *may_unmap,
            },
            Ask::Discard(extent) => Op::Discard { extent: *extent },
            Ask::Flush => Op::Flush,
        }
    }
}

fn pieces(memory: &mut IoBuffer) -> vduse_mem::Pieces {
    let bytes = memory.as_mut().into_slice();
    let len = bytes.len();
    smallvec::smallvec![Piece {
        ptr: std::ptr::NonNull::from(bytes).cast(),
        len,
    }]
}

struct Slot {
    file: FileId,
    ask: Ask,
    waker: Option<Waker>,
    result: Option<Result<(), Errno>>,
    is_submitted: bool,
    /// Nobody waits for it any more.
    is_abandoned: bool,
}

#[derive(Default)]
struct State {
    /// By token, which only grows.
    slots: HashMap<u64, Slot>,
    last: u64,
    /// Not yet at their engines.
    asked: Vec<u64>,
    /// Those of `slots` that change a file and have not ended.
    modifying: BTreeSet<u64>,
    /// Who waits for those to end.
    settling: Vec<Waker>,
    /// The task is gone.
    is_closed: bool,
}

/// What the futures of an image and its task share.
#[derive(Default)]
pub(crate) struct Files(Mutex<State>);

impl Files {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks `file` for something; memory that was read into comes back with the result.
    pub(crate) fn ask(self: &Arc<Files>, file: FileId, ask: Ask) -> Asked {
        let mut state = self.lock();
        state.last += 1;
        let token = state.last;
        if ask.modifies() {
            state.modifying.insert(token);
        }
        let is_closed = state.is_closed;
        state.slots.insert(
            token,
            Slot {
                file,
                ask,
                waker: None,
                result: is_closed.then_some(Err(Errno::CANCELED)),
                is_submitted: false,
                is_abandoned: false,
            },
        );
        if !is_closed {
            state.asked.push(token);
        }
        Asked {
            files: self.clone(),
            token,
        }
    }

    /// Ends once everything that changes a file and was asked for before has ended, waited for or
    /// not.
    pub(crate) fn settle(self: &Arc<Files>) -> Settled {
        Settled {
            files: self.clone(),
            last: self.lock().last,
        }
    }

    /// Hands what was asked for to `engines`; whether there was anything.
    pub(crate) fn submit(&self, engines: &mut [Box<dyn Engine>]) -> bool {
        let asked = std::mem::take(&mut self.lock().asked);
        for &token in &asked {
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(&token) else {
                continue;
            };
            slot.is_submitted = true;
            // SAFETY: a slot that was submitted is only removed once it has ended, or leaked by
            // `close`; moving it does not move what an IoBuffer points to.
            let (op, file) = (unsafe { slot.ask.op() }, slot.file.0);
            drop(state);
            let submitted = match engines.get_mut(file) {
                Some(engine) => engine.submit(Token(token), op),
                None => Submitted::Done(Err(Errno::BADF)),
            };
            if let Submitted::Done(result) = submitted {
                self.end(token, result);
            }
        }
        if !asked.is_empty() {
            engines.iter_mut().for_each(|engine| engine.flush());
        }
        !asked.is_empty()
    }

    /// Takes a completion of an engine's.
    pub(crate) fn complete(&self, engines: &mut [Box<dyn Engine>], mut completion: Completion) {
        let token = completion.token.0;
        let file = self.lock().slots.get(&token).map(|slot| slot.file.0);
        if let Some(engine) = file.and_then(|file| engines.get_mut(file)) {
            engine.completed(&mut completion);
        }
        self.take(completion);
    }

    /// Takes one that its engine has seen.
    fn take(&self, mut completion: Completion) {
        let token = completion.token.0;
        if let (Some(data), Some(slot)) = (completion.data, self.lock().slots.get_mut(&token))
            && let Ask::Read(_, memory) = &mut slot.ask
        {
            match memory.len() == data.len() {
                true => memory.as_mut().into_slice().copy_from_slice(&data),
                // Less than was asked for is no data.
                false => completion.result = Err(Errno::IO),
            }
        }
        self.end(token, completion.result);
    }

    /// When [`Files::expire`] is to be called, if at all.
    pub(crate) fn deadline(engines: &[Box<dyn Engine>]) -> Option<Instant> {
        engines.iter().filter_map(|engine| engine.deadline()).min()
    }

    /// What waits for a time at `engines` goes on; whether anything ended by it.
    pub(crate) fn expire(&self, engines: &mut [Box<dyn Engine>]) -> bool {
        let Some(_) = Files::deadline(engines) else {
            return false;
        };
        let (now, mut ended) = (Instant::now(), Vec::new());
        engines
            .iter_mut()
            .for_each(|engine| engine.expire(now, &mut ended));
        engines.iter_mut().for_each(|engine| engine.flush());
        let has_ended = !ended.is_empty();
        ended.into_iter().for_each(|end| self.take(end));
        has_ended
    }

    fn end(&self, token: u64, result: Result<(), Errno>) {
        let mut state = self.lock();
        let mut wakers = Vec::new();
        if state.modifying.remove(&token) {
            wakers.append(&mut state.settling);
        }
        if let Some(slot) = state.slots.get_mut(&token) {
            slot.result = Some(result);
            wakers.extend(slot.waker.take());
            if slot.is_abandoned {
                state.slots.remove(&token);
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether anything is at the engines.
    pub(crate) fn is_idle(&self) -> bool {
        let mut slots = self.lock();
        slots.slots.values_mut().all(|slot| slot.result.is_some())
    }

    /// The task ends: what the system has in hand keeps its memory for ever, the rest is
    /// cancelled.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.asked.clear();
        for (_, slot) in state.slots.drain() {
            if slot.is_submitted && slot.result.is_none() {
                std::mem::forget(slot);
            }
        }
        state.modifying.clear();
    }
}

/// Something asked of a file. Dropped before its end: nobody waits, and it is carried out all the
/// same.
pub(crate) struct Asked {
    files: Arc<Files>,
    token: u64,
}

impl Future for Asked {
    /// What was read.
    type Output = Result<Option<IoBuffer>, Errno>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.files.lock();
        let Some(slot) = state.slots.get_mut(&self.token) else {
            return Poll::Ready(Err(Errno::CANCELED));
        };
        let Some(result) = slot.result else {
            slot.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        let slot = state.slots.remove(&self.token);
        let memory = slot.and_then(|slot| match slot.ask {
            Ask::Read(_, memory) => Some(memory),
            _ => None,
        });
        Poll::Ready(result.map(|()| memory))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut state = self.files.lock();
        if let Some(slot) = state.slots.get_mut(&self.token) {
            slot.is_abandoned = true;
            slot.waker = None;
            if slot.result.is_some() {
                state.slots.remove(&self.token);
            }
        }
    }
}

/// See [`Files::settle`].
pub(crate) struct Settled {
    files: Arc<Files>,
    last: u64,
}

impl Future for Settled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.files.lock();
        match state.modifying.first() {
            Some(&oldest) if oldest <= self.last => {
                state.settling.push(context.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}
