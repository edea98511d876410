//! What is counted of one queue: written by its worker a batch at a time, read by anybody. The
//! clock is read twice a batch: when its requests are taken, and when they are published.

use crate::blk::Traffic;
use crate::failures::Failure;
use rustix::io::Errno;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use vduse_histogram::{Counts, Histogram};

/// Latencies are known to 12 %.
const BITS: u32 = 3;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the device was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Names and values, in order.
            pub fn items(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }

            /// Adds `other`'s counts.
            pub fn add(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
            }
        }

        #[derive(Debug, Default)]
        struct Atomics {
            $($name: AtomicU64,)*
        }

        impl Atomics {
            fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)* }
            }

            fn add(&self, batch: &Stats) {
                $(if batch.$name != 0 {
                    let count = self.$name.load(Relaxed);
                    self.$name.store(count + batch.$name, Relaxed);
                })*
            }
        }
    };
}

counters! {
    /// Requests completed.
    requests,
    /// Bytes read from the backend.
    bytes_read,
    /// Bytes written to the backend.
    bytes_written,
    /// Requests completed with an error status or without room for a status.
    errors,
    /// Wake-ups by kicks; kicks that come together count once.
    kicks,
    /// Irqs sent.
    irqs,
    /// Publications for which the driver wanted no irq.
    irqs_suppressed,
    /// Publications.
    batches,
    /// IOTLB misses (of the device).
    iotlb_misses,
    /// Requests taken and not yet completed, now.
    in_flight,
}

/// How long requests took, from the moment that their batch was taken to the one that it was
/// published, in nanoseconds; and how many were published together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distributions {
    /// Latency of reads.
    pub read: Counts,
    /// Latency of writes.
    pub write: Counts,
    /// Latency of flushes, discards, what else there is, and of all that failed.
    pub other: Counts,
    /// Requests of each publication that had any.
    pub batch_requests: Counts,
}

impl Distributions {
    /// Adds `other`'s.
    pub fn add(&mut self, other: &Distributions) {
        self.read.add(&other.read);
        self.write.add(&other.write);
        self.other.add(&other.other);
        self.batch_requests.add(&other.batch_requests);
    }
}

/// All of one queue, or of a device's queues together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// The counters.
    pub counts: Stats,
    /// The histograms.
    pub distributions: Distributions,
}

impl QueueStats {
    /// Adds `other`'s.
    pub fn add(&mut self, other: &QueueStats) {
        self.counts.add(&other.counts);
        self.distributions.add(&other.distributions);
    }
}

#[derive(Debug, Default)]
struct Histograms {
    latency: [Histogram<BITS>; Class::ALL],
    batch_requests: Histogram<BITS>,
}

/// What is counted of one queue number; it lives as long as the device. One queue writes at a
/// time: a run of it begins when the last one has let go.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    atomics: Atomics,
    /// Made with the first request: idle queues are many.
    histograms: OnceLock<Box<Histograms>>,
}

impl Counters {
    pub(crate) fn read(&self) -> QueueStats {
        let distributions = match self.histograms.get() {
            None => Distributions::default(),
            Some(histograms) => Distributions {
                read: histograms.latency[Class::Read as usize].counts(),
                write: histograms.latency[Class::Write as usize].counts(),
                other: histograms.latency[Class::Other as usize].counts(),
                batch_requests: histograms.batch_requests.counts(),
            },
        };
        QueueStats {
            counts: self.atomics.read(),
            distributions,
        }
    }

    /// Takes over what the batch has counted.
    pub(crate) fn add(&self, batch: &mut Batch) {
        self.atomics.add(&std::mem::take(&mut batch.stats));
    }

    /// The batch's requests are about to be published.
    pub(crate) fn end(&self, batch: &mut Batch) {
        if batch.ended.is_empty() {
            return;
        }
        let histograms = self.histograms.get_or_init(Box::default);
        let now = Instant::now();
        let mut all = 0;
        for group in batch.ended.drain(..) {
            let latency = now.saturating_duration_since(group.taken).as_nanos();
            let latency = u64::try_from(latency).unwrap_or(u64::MAX);
            for (histogram, requests) in histograms.latency.iter().zip(group.requests) {
                histogram.record(latency, requests);
                all += requests;
            }
        }
        histograms.batch_requests.record(all, 1);
    }

    pub(crate) fn set_in_flight(&self, requests: usize) {
        self.atomics.in_flight.store(requests as u64, Relaxed);
    }
}

/// Kinds of requests with a latency histogram of their own.
#[derive(Clone, Copy)]
enum Class {
    Read,
    Write,
    Other,
}

impl Class {
    const ALL: usize = 3;
}

/// Requests that were taken together and are published together.
struct Ended {
    taken: Instant,
    /// By class.
    requests: [u64; Class::ALL],
}

/// What a queue has counted since it last published.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) stats: Stats,
    /// When this turn's requests were taken; unknown until there is one.
    taken: Option<Instant>,
    ended: Vec<Ended>,
    /// By the backend; the first of each errno.
    pub(crate) failures: Vec<Failure>,
}

impl Batch {
    /// A turn begins.
    pub(crate) fn begin(&mut self) {
        self.taken = None;
    }

    /// When the requests of this turn were taken: now, if this is the first one.
    pub(crate) fn taken(&mut self) -> Instant {
        *self.taken.get_or_insert_with(Instant::now)
    }

    /// Counts a request that has ended; it was taken at `taken`.
    pub(crate) fn end(&mut self, taken: Instant, end: Result<Traffic, Errno>) {
        self.stats.requests += 1;
        let class = match end {
            Ok(Traffic::Read(bytes)) => {
                self.stats.bytes_read += bytes;
                Class::Read
            }
            Ok(Traffic::Write(bytes)) => {
                self.stats.bytes_written += bytes;
                Class::Write
            }
            Ok(Traffic::Other) => Class::Other,
            Err(_) => {
                self.stats.errors += 1;
                Class::Other
            }
        };
        // Neighbours were taken together as a rule.
        match self.ended.last_mut() {
            Some(last) if last.taken == taken => last.requests[class as usize] += 1,
            _ => {
                let mut requests = [0; Class::ALL];
                requests[class as usize] = 1;
                self.ended.push(Ended { taken, requests });
            }
        }
    }

    /// Notes a request that the backend has failed.
    pub(crate) fn note(&mut self, failure: Failure) {
        if self.failures.iter().all(|it| it.errno != failure.errno) {
            self.failures.push(failure);
        }
    }

    /// A request of this turn has ended.
    pub(crate) fn end_now(&mut self, end: Result<Traffic, Errno>) {
        let taken = self.taken();
        self.end(taken, end);
    }
}
