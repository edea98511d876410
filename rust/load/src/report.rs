//! What a load found.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};
use vduse_histogram::Histogram;

/// Most error messages that a report keeps.
const MESSAGES: usize = 16;

/// What a load found. Times and counts are of the load proper; what verifying added before and
/// after it shows only in `errors`.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests completed, failed ones too.
    pub requests: u64,
    /// Bytes of the requests that succeeded.
    pub bytes: u64,
    /// Wall clock.
    pub elapsed: Duration,
    /// CPU of the thread that made the load (CLOCK_THREAD_CPUTIME_ID).
    pub thread_cpu: Duration,
    /// CPU of the whole process (CLOCK_PROCESS_CPUTIME_ID): a device in it is included.
    pub process_cpu: Duration,
    /// Requests that failed, and blocks that did not read as written.
    pub errors: u64,
    /// The first of them in words, with their offsets.
    pub messages: Vec<String>,
    /// From submission to the moment it was found completed, nanoseconds.
    pub latency: Histogram<6>,
}

impl Report {
    pub(crate) fn error(&mut self, message: impl FnOnce() -> String) {
        self.errors += 1;
        if self.messages.len() < MESSAGES {
            self.messages.push(message());
        }
    }
}

/// Reads the three clocks, then again.
pub(crate) struct Clocks {
    wall: Instant,
    thread: Duration,
    process: Duration,
}

fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Clocks {
    pub(crate) fn start() -> Clocks {
        Clocks {
            wall: Instant::now(),
            thread: cpu(ClockId::ThreadCPUTime),
            process: cpu(ClockId::ProcessCPUTime),
        }
    }

    pub(crate) fn stop(&self, report: &mut Report) {
        report.elapsed = self.wall.elapsed();
        report.thread_cpu = cpu(ClockId::ThreadCPUTime).saturating_sub(self.thread);
        report.process_cpu = cpu(ClockId::ProcessCPUTime).saturating_sub(self.process);
    }
}
