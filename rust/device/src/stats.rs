//! What is counted of one queue: written by its worker a batch at a time, read by anybody. The
//! clock is read when a turn's first requests are taken, and at each publication.

use crate::blk::Traffic;
use crate::failures::Failure;
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};
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
    /// Requests that a predecessor had taken and not completed, carried out again.
    resubmitted,
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
    /// Latency of flushes.
    pub flush: Counts,
    /// Latency of discards and write zeroes.
    pub discard: Counts,
    /// Latency of what else there is, and of all that failed.
    pub other: Counts,
    /// Requests of each publication that had any.
    pub batch_requests: Counts,
}

impl Distributions {
    /// Adds `other`'s.
    pub fn add(&mut self, other: &Distributions) {
        self.read.add(&other.read);
        self.write.add(&other.write);
        self.flush.add(&other.flush);
        self.discard.add(&other.discard);
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
    /// For how long the oldest request has been in flight, to a second; none: nothing is.
    pub oldest: Duration,
}

impl QueueStats {
    /// Adds `other`'s.
    pub fn add(&mut self, other: &QueueStats) {
        self.counts.add(&other.counts);
        self.distributions.add(&other.distributions);
        self.oldest = self.oldest.max(other.oldest);
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
    /// When the oldest request in flight was taken, in nanoseconds after [`begin`]; 0: nothing is
    /// in flight.
    oldest: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> QueueStats {
        let distributions = match self.histograms.get() {
            None => Distributions::default(),
            Some(histograms) => Distributions {
                read: histograms.latency[Class::Read as usize].counts(),
                write: histograms.latency[Class::Write as usize].counts(),
                flush: histograms.latency[Class::Flush as usize].counts(),
                discard: histograms.latency[Class::Discard as usize].counts(),
                other: histograms.latency[Class::Other as usize].counts(),
                batch_requests: histograms.batch_requests.counts(),
            },
        };
        QueueStats {
            counts: self.atomics.read(),
            distributions,
            oldest: match self.oldest.load(Relaxed) {
                0 => Duration::ZERO,
                taken => begin()
                    .elapsed()
                    .saturating_sub(Duration::from_nanos(taken)),
            },
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
        let now = batch.read_clock();
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

    /// How many requests are in flight now; where there are some, `oldest` looks for the one that
    /// was taken first: once a second at most, since it has to look at all.
    pub(crate) fn set_in_flight(
        &self,
        requests: usize,
        age: &mut Age,
        clock: Option<Instant>,
        oldest: impl FnOnce() -> Option<Instant>,
    ) {
        self.atomics.in_flight.store(requests as u64, Relaxed);
        let taken = match (requests, clock) {
            (0, _) => age.end(),
            (_, Some(now)) => age.look(now, oldest),
            (_, None) => None,
        };
        if let Some(taken) = taken {
            self.oldest.store(taken, Relaxed);
        }
    }

    /// Nothing is in flight any more.
    pub(crate) fn end_in_flight(&self) {
        self.atomics.in_flight.store(0, Relaxed);
        self.oldest.store(0, Relaxed);
    }
}

/// What times in counters are relative to.
fn begin() -> Instant {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    *BEGIN
}

/// Between two looks for the oldest request in flight.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When a queue last looked for its oldest request in flight.
#[derive(Debug, Default)]
pub(crate) struct Age {
    looked: Option<Instant>,
}

impl Age {
    /// Nothing is in flight; what to store, if that is new.
    fn end(&mut self) -> Option<u64> {
        self.looked.take().map(|_| 0)
    }

    /// Something is; what to store, if it was time to look.
    fn look(&mut self, now: Instant, oldest: impl FnOnce() -> Option<Instant>) -> Option<u64> {
        let taken = match self.looked {
            // All that is in flight was taken since it was empty: just now.
            None => now,
            Some(looked) if now.saturating_duration_since(looked) < LOOK_EVERY => return None,
            Some(_) => oldest()?,
        };
        self.looked = Some(now);
        let taken = taken.saturating_duration_since(begin()).as_nanos();
        Some(u64::try_from(taken).unwrap_or(u64::MAX).max(1))
    }
}

/// Kinds of requests with a latency histogram of their own.
#[derive(Clone, Copy)]
enum Class {
    Read,
    Write,
    Flush,
    Discard,
    Other,
}

impl Class {
    const ALL: usize = 5;
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
    /// The clock's last reading, whatever it was read for.
    clock: Option<Instant>,
    ended: Vec<Ended>,
    /// By the backend; the first of each errno.
    pub(crate) failures: Vec<Failure>,
}

impl Batch {
    /// A turn begins.
    pub(crate) fn begin(&mut self) {
        self.taken = None;
    }

    /// The turn goes on after a publication: what is taken next is taken at its moment, for which
    /// the clock was read.
    pub(crate) fn go_on(&mut self) {
        self.taken = self.clock;
    }

    /// When the requests of this turn were taken: now, if this is the first one.
    pub(crate) fn taken(&mut self) -> Instant {
        match self.taken {
            Some(taken) => taken,
            None => {
                let now = self.read_clock();
                *self.taken.insert(now)
            }
        }
    }

    /// The clock's last reading.
    pub(crate) fn clock(&self) -> Option<Instant> {
        self.clock
    }

    fn read_clock(&mut self) -> Instant {
        *self.clock.insert(Instant::now())
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
            Ok(Traffic::Flush) => Class::Flush,
            Ok(Traffic::Discard) => Class::Discard,
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
