//! What reaches an image's file before what, so that a program that is killed leaves clusters that
//! are counted too often at most, and never one that is in use and counted as free.
//!
//! The format driver writes refcounts before the L2 tables that need them, but not before the
//! entries of the L1 table and of the refcount table, which it writes at once; nor L2 tables before
//! it makes a table of a cluster that they have just lost. So operations that may allocate are
//! done one at a time, what one frees is written before the next begins, and each write to a
//! table that is written at once waits until the driver has written what it has in memory.

use crate::header::Tables;
use imago::FormatAccess;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::Mutex as Turns;
use vduse_device::Extent;

type Access = FormatAccess<crate::storage::FileStorage>;

#[derive(Default)]
struct State {
    /// `None`: they share the file's blocks with something else, and cannot be told apart.
    tables: Option<Tables>,
    /// An operation is under way, and nothing is being written for it to go on.
    is_shut: bool,
    /// Times that what waited was let through.
    openings: u64,
    /// Writes that wait to be let through.
    waiting: Vec<Waker>,
    /// Who lets them.
    runner: Option<Waker>,
    /// The driver has freed clusters, or may have, and not written all of that.
    has_freed: bool,
    /// Something is to be freed that only the holder of the driver's allocator can free, and that
    /// may be who waits: all but L1 tables are written without.
    is_blocked: bool,
}

/// The order of one image's writes.
pub(crate) struct Order {
    state: Mutex<State>,
    turns: Turns<()>,
}

impl Order {
    /// Of an image whose tables lie there.
    pub(crate) fn new(tables: Option<Tables>) -> Order {
        Order {
            state: Mutex::new(State {
                tables,
                ..State::default()
            }),
            turns: Turns::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out what may allocate or free clusters of `access`, while nothing else does.
    pub(crate) async fn run<T>(
        &self,
        access: &Access,
        operation: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let _turn = self.turns.lock().await;
        if self.lock().has_freed {
            self.write_all(access).await?;
        }
        self.lock().is_blocked = false;
        let mut operation = pin!(operation);
        loop {
            let shut = Shut::new(self);
            let ended = poll_fn(|context| match operation.as_mut().poll(context) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending => self.is_asked(context).map(|()| None),
            });
            let Some(result) = ended.await else {
                // What it writes itself must not wait. What fails is told by the next flush.
                self.lock().is_shut = false;
                let _ = access.flush().await;
                continue;
            };
            drop(shut);
            // What had been allocated may be in the driver's list.
            self.lock().has_freed |= result.is_err();
            return result;
        }
    }

    /// Whether a write waits.
    fn is_asked(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if !state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.runner = Some(context.waker().clone());
        Poll::Pending
    }

    /// Writes what the driver has in memory, while nothing else changes it.
    pub(crate) async fn flush(&self, access: &Access) -> io::Result<()> {
        let _turn = self.turns.lock().await;
        self.write_all(access).await
    }

    async fn write_all(&self, access: &Access) -> io::Result<()> {
        self.lock().has_freed = true;
        access.flush().await?;
        self.lock().has_freed = false;
        Ok(())
    }

    /// The driver is about to free clusters.
    pub(crate) fn frees(&self) {
        self.lock().has_freed = true;
    }

    /// Ends when `extent` may be written.
    pub(crate) async fn may_write(&self, extent: Extent) {
        let mut asked = None;
        poll_fn(|context| {
            let mut state = self.lock();
            let has_to_wait = match asked {
                None => state.is_ordered(extent),
                Some(openings) => openings == state.openings,
            };
            if !state.is_shut || !has_to_wait {
                return Poll::Ready(());
            }
            asked = Some(state.openings);
            state.waiting.push(context.waker().clone());
            let runner = state.runner.take();
            drop(state);
            runner.into_iter().for_each(Waker::wake);
            Poll::Pending
        })
        .await;
    }

    /// A write has ended; if it was the header's, that says where the tables are.
    pub(crate) fn wrote(&self, header: Option<Tables>, has_succeeded: bool) {
        if header.is_none() && has_succeeded {
            return;
        }
        let mut state = self.lock();
        // A table has moved, and where it was is free, or what was allocated is not used.
        state.has_freed = true;
        state.is_blocked = true;
        if has_succeeded && state.tables.is_some() {
            state.tables = header;
        }
    }
}

impl State {
    fn is_ordered(&self, extent: Extent) -> bool {
        let Some(tables) = &self.tables else {
            return false;
        };
        let (offset, end) = (extent.offset().0, extent.end().0);
        let is_in = |table: &Range<u64>| offset < table.end && table.start < end;
        is_in(&tables.l1) || !self.is_blocked && (offset == 0 || is_in(&tables.refcounts))
    }
}

/// Writes wait while this lives, but for what lets them through; then all are.
struct Shut<'a>(&'a Order);

impl Shut<'_> {
    fn new(order: &Order) -> Shut<'_> {
        order.lock().is_shut = true;
        Shut(order)
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_shut = false;
        state.openings += 1;
        state.runner = None;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}
