//! Serves a virtqueue by giving its chains to a handler.

use super::returns::{Return, Returns};
use super::{Handler, HeldChain, Memory};
use crate::Buffer;
use crate::backend::{self, Completion, Local};
use crate::blk::Traffic;
use crate::handle::QueueId;
use crate::live::{Live, Stop};
use crate::service::{Intake, Provider, Service};
use crate::slab::Slab;
use crate::stats::Batch;
use rustix::io::Errno;
use std::sync::{Arc, Weak};
use std::time::Instant;
use vduse_mem::{Access, Fault, Pieces, View};
use vduse_ring::{Segment, Segments};

/// A handler as a provider of services.
pub(crate) struct ChainProvider(pub(crate) Arc<dyn Handler>);

impl Provider for ChainProvider {
    fn attach(
        &self,
        id: QueueId,
        index: u32,
        _features: u64,
        local: &Local,
    ) -> Result<Box<dyn Service>, backend::Error> {
        // All chains come back under one token: which they are is in the box.
        let returns = Returns::new(local.completer.clone(), id.token(0));
        Ok(Box::new(ChainService {
            index,
            handler: self.0.clone(),
            returns: Arc::new(returns),
            in_flight: Slab::new(),
            taken: Vec::new(),
            is_draining: false,
        }))
    }
}

/// What a chain in flight needs to end.
struct Entry {
    id: u16,
    slots: u16,
    writable: Segments,
    taken: Instant,
    chain: Weak<HeldChain>,
    access: [Weak<Memory>; 2],
}

/// The chains of one virtqueue that the handler has.
struct ChainService {
    index: u32,
    handler: Arc<dyn Handler>,
    returns: Arc<Returns>,
    in_flight: Slab<Entry>,
    /// Memory lent to [`Returns::take`].
    taken: Vec<Return>,
    is_draining: bool,
}

impl ChainService {
    /// Translates the chain that was just taken. A driver whose buffers are out of reach hears
    /// nothing of it in a used element: the device stops.
    fn hold(&mut self, intake: &mut Intake<'_>) -> Result<Arc<HeldChain>, Stop> {
        let (chain, view) = (&*intake.chain, &mut intake.live.view);
        let readable = buffer(&chain.readable, view, Access::Read).map_err(Stop::Buffer)?;
        let writable = buffer(&chain.writable, view, Access::Write).map_err(Stop::Buffer)?;
        let slot = self.in_flight.next_key();
        let (held, access) = HeldChain::new(slot, readable, writable, self.returns.clone());
        let held = Arc::new(held);
        self.in_flight.insert(Entry {
            id: chain.id,
            slots: chain.slots,
            writable: Segments::from_slice(&chain.writable),
            taken: intake.out.batch.taken(),
            chain: Arc::downgrade(&held),
            access,
        });
        Ok(held)
    }

    /// Calls the handler; chains that end meanwhile wake nobody.
    fn call(&mut self, live: &mut Live, batch: &mut Batch, what: impl FnOnce(&dyn Handler, u32)) {
        self.returns.watch();
        what(&*self.handler, self.index);
        self.collect(live, batch);
    }

    /// Completes what has come back.
    fn collect(&mut self, live: &mut Live, batch: &mut Batch) {
        let mut taken = std::mem::take(&mut self.taken);
        self.returns.take(&mut taken);
        let mut forgotten = 0;
        for returned in taken.drain(..) {
            let Some(entry) = self.in_flight.remove(returned.slot) else {
                continue;
            };
            live.complete(entry.id, entry.slots, returned.written, &entry.writable);
            if returned.is_forgotten {
                forgotten += 1;
                batch.end(entry.taken, Err(Errno::IO));
            } else {
                batch.end(entry.taken, Ok(traffic(returned.written)));
            }
        }
        self.taken = taken;
        if forgotten > 0 {
            self.handler.forgotten(self.index, forgotten);
        }
    }
}

impl Service for ChainService {
    fn take(&mut self, intake: &mut Intake<'_>) -> Result<(), Stop> {
        let mut chains = Vec::new();
        while intake.pop()? {
            chains.push(self.hold(intake)?);
        }
        let starts_to_drain = intake.is_draining && !std::mem::replace(&mut self.is_draining, true);
        let (live, batch) = (&mut *intake.live, &mut intake.out.batch);
        // What was read where memory was taken away means nothing.
        live.check_memory()?;
        if !chains.is_empty() {
            self.call(live, batch, |handler, queue| handler.handle(queue, chains));
        }
        if starts_to_drain && !self.in_flight.is_empty() {
            self.call(live, batch, |handler, queue| handler.drain(queue));
        }
        Ok(())
    }

    fn deliver(&mut self, _slot: u32, _: Completion, live: &mut Live, batch: &mut Batch) {
        self.collect(live, batch);
    }

    fn flush(&mut self) {}

    /// The handler is told to let go; chains whose memory somebody still has access to stay in
    /// flight until that has ended.
    fn discard(&mut self) {
        self.returns.discard();
        for (_, entry) in self.in_flight.iter() {
            if let Some(chain) = entry.chain.upgrade() {
                chain.revoke();
            }
        }
        self.abandon(0);
    }

    fn abandon(&mut self, _slot: u32) {
        self.returns.take(&mut self.taken);
        self.taken.clear();
        let is_free = |entry: &Entry| entry.access.iter().all(|it| it.strong_count() == 0);
        let free = self.in_flight.iter().filter(|(_, entry)| is_free(entry));
        let free: Vec<u32> = free.map(|(slot, _)| slot).collect();
        for slot in free {
            self.in_flight.remove(slot);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn oldest(&self) -> Option<Instant> {
        self.in_flight.iter().map(|(_, it)| it.taken).min()
    }
}

/// What the driver is given counts as read.
fn traffic(written: u32) -> Traffic {
    match written {
        0 => Traffic::Other,
        bytes => Traffic::Read(bytes.into()),
    }
}

/// The segments' memory, translated and pinned.
fn buffer(segments: &[Segment], view: &mut View, access: Access) -> Result<Buffer, Fault> {
    let mut pieces = Pieces::new();
    for segment in segments {
        view.translate(segment.iova, segment.len, access, &mut pieces)?;
    }
    // SAFETY: translated for `access` by `view`, which the pin is taken of now.
    Ok(unsafe { Buffer::pinned(pieces, view.pin()) })
}
