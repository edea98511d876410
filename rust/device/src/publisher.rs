//! How a virtqueue's completions reach its driver: counted, published, announced by an irq.

use crate::datapath::Device;
use crate::irq::Irq;
use crate::live::{Live, Stop};
use crate::stats::{Batch, Counters};
use std::sync::Arc;

/// Of one virtqueue.
pub(crate) struct Publisher {
    pub(crate) device: Arc<Device>,
    pub(crate) index: u32,
    pub(crate) irq: Irq,
    pub(crate) counters: Arc<Counters>,
    pub(crate) batch: Batch,
}

impl Publisher {
    /// The driver sees what was completed; at most one irq. The ring is still where the batch
    /// found it, since what was staged lies there; a newer generation is acknowledged between
    /// batches.
    pub(crate) fn publish(&mut self, live: &mut Live) -> Result<(), Stop> {
        self.end_batch();
        if std::mem::take(&mut live.is_staged) | std::mem::take(&mut live.owes_publication) {
            live.check_memory()?;
            self.batch.stats.batches += 1;
            if live.ring.publish() {
                self.batch.stats.irqs += 1;
                self.signal();
            } else {
                self.batch.stats.irqs_suppressed += 1;
            }
        }
        Ok(())
    }

    /// Counts what has ended before the driver sees it: who has seen a request finds it counted.
    fn end_batch(&mut self) {
        for failure in self.batch.failures.drain(..) {
            self.device.failed(self.index, &failure);
        }
        self.counters.end(&mut self.batch);
        self.counters.add(&mut self.batch);
    }

    /// An irq, whether the driver asks for one or not.
    pub(crate) fn signal(&self) {
        self.irq.send(self.device.irq_sink.as_ref());
    }
}
