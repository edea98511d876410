//! What serves a virtqueue's chains, and what it sees of the virtqueue. The queue moves chains
//! and publishes; a service gives them a meaning: virtio-blk requests are one.

use crate::backend::{self, Completion, Local, Observer};
use crate::handle::QueueId;
use crate::live::{Live, Stop};
use crate::publisher::Publisher;
use crate::stats::Batch;
use std::sync::Weak;
use std::time::Instant;
use vduse_ring::Chain;

/// Chains taken before other queues have their turn.
const BATCH_CHAINS: usize = 128;
/// Chains whose completions the driver sees together, where a service completes them as it takes
/// them: driver and device then work side by side. With fewer the ring's cache lines go to and fro
/// too often, with more the driver is done before it sees any, and sleeps (docs/performance.md).
const PUBLISH_EVERY: usize = 4;
/// Bytes of chains taken, and charged, before other queues have their turn.
const BATCH_BYTES: u64 = 1 << 20;

/// Serves the chains of one virtqueue, on its worker's thread. Called once a batch, not once a
/// chain, but for completions.
pub(crate) trait Service {
    /// Takes the chains of one batch: all that `intake` has. What ends at once is completed
    /// there; what does not is in flight, under slots of the service's choice.
    fn take(&mut self, intake: &mut Intake<'_>) -> Result<(), Stop>;

    /// Takes a completion for what is in flight under `slot`, if anything is.
    fn deliver(&mut self, slot: u32, completion: Completion, live: &mut Live, batch: &mut Batch);

    /// End of a batch: what was collected goes on its way.
    fn flush(&mut self);

    /// The queue was given up: what is in flight must not reach guest memory any more. What
    /// cannot let go of it at once stays in flight until [`Service::abandon`] has seen its end.
    fn discard(&mut self);

    /// A completion for `slot` of a queue that was given up.
    fn abandon(&mut self, slot: u32);

    /// Sees every completion that an engine has sent before it is delivered or abandoned.
    fn completed(&mut self, _completion: &mut Completion) {}

    /// When [`Service::expire`] is to be called, if at all. Asked for after every other method.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed: what ends by that goes into `ended`, to be delivered or
    /// abandoned.
    fn expire(&mut self, _now: Instant, _ended: &mut Vec<Completion>) {}

    /// Chains taken and not completed.
    fn in_flight(&self) -> usize;

    /// When the first of those was taken.
    fn oldest(&self) -> Option<Instant>;
}

/// Serves a queue that is paused: nothing reaches it.
pub(crate) struct Idle;

impl Service for Idle {
    fn take(&mut self, _intake: &mut Intake<'_>) -> Result<(), Stop> {
        Ok(())
    }

    fn deliver(
        &mut self,
        _slot: u32,
        _completion: Completion,
        _live: &mut Live,
        _batch: &mut Batch,
    ) {
    }

    fn flush(&mut self) {}

    fn discard(&mut self) {}

    fn abandon(&mut self, _slot: u32) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn oldest(&self) -> Option<Instant> {
        None
    }
}

/// Makes the services of a device's queues: what the device is.
pub(crate) trait Provider: Send + Sync {
    /// For one run of the queue `index`, on the calling worker's thread.
    fn attach(
        &self,
        id: QueueId,
        index: u32,
        features: u64,
        local: &Local,
    ) -> Result<Box<dyn Service>, backend::Error>;

    /// Tells `observer` what the device's owner should know, while it lives.
    fn observe(&self, _observer: Weak<dyn Observer>) {}
}

/// The chains that a queue offers its service in one turn.
pub(crate) struct Intake<'a> {
    pub(crate) live: &'a mut Live,
    pub(crate) out: &'a mut Publisher,
    /// What [`Intake::pop`] found.
    pub(crate) chain: &'a mut Chain,
    /// Nothing new is taken, only what a predecessor had in flight.
    pub(crate) is_draining: bool,
    chains: usize,
    bytes: u64,
}

impl<'a> Intake<'a> {
    pub(crate) fn new(
        live: &'a mut Live,
        out: &'a mut Publisher,
        chain: &'a mut Chain,
        is_draining: bool,
    ) -> Intake<'a> {
        Intake {
            live,
            out,
            chain,
            is_draining,
            chains: 0,
            bytes: 0,
        }
    }

    /// Takes the next chain; false at the end of the batch.
    pub(crate) fn pop(&mut self) -> Result<bool, Stop> {
        let live = &mut *self.live;
        if self.chains.is_multiple_of(PUBLISH_EVERY) && live.is_staged {
            self.out.publish(live)?;
            self.out.batch.go_on();
        }
        // A drain takes what a predecessor had in flight, and nothing else.
        if self.is_draining && live.ring.recovered() == 0 {
            return Ok(false);
        }
        if self.chains == BATCH_CHAINS || self.bytes >= BATCH_BYTES {
            return Ok(false);
        }
        if !live.ring.pop(&mut live.view, self.chain)? {
            return Ok(false);
        }
        // Read before the first request runs: it may run to its end while it is served.
        self.out.batch.taken();
        self.chains += 1;
        self.bytes += chain_bytes(self.chain);
        Ok(true)
    }

    /// Counts `bytes` more than the chain that was taken holds, for what takes as long to serve.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether there was a chain.
    pub(crate) fn has_taken(&self) -> bool {
        self.chains > 0
    }
}

fn chain_bytes(chain: &Chain) -> u64 {
    let segments = chain.readable.iter().chain(&chain.writable);
    segments.map(|segment| u64::from(segment.len)).sum()
}
