//! Looking again for a moment before sleeping: to be woken takes tens of microseconds on a
//! virtual machine, longer than most requests take.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The first window after a short wait, in microseconds.
const FIRST: u32 = 10;
/// The longest window, and the longest wait that counts as short, in microseconds.
const LONGEST: u32 = 100;

/// One waiter's window: it doubles while waits are short and closes after a long one, so who
/// idles never spins.
#[derive(Debug)]
pub struct Spin {
    is_on: bool,
    /// Microseconds.
    window: AtomicU32,
    found_ns: AtomicU64,
    vain_ns: AtomicU64,
    sleeps: AtomicU64,
}

/// What a waiter's looking again has cost so far, and how often it slept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpinStats {
    /// Nanoseconds of windows in which something was found.
    pub found_ns: u64,
    /// Nanoseconds of windows that were over before anything was found.
    pub vain_ns: u64,
    /// Waits that were left to the system: it slept, unless something had just come.
    pub sleeps: u64,
}

impl Default for Spin {
    fn default() -> Spin {
        Spin::new(true)
    }
}

impl Spin {
    /// `is_on` false: always sleeps at once.
    pub fn new(is_on: bool) -> Spin {
        Spin {
            is_on,
            window: AtomicU32::new(0),
            found_ns: AtomicU64::new(0),
            vain_ns: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
        }
    }

    /// Calls `look(false)`, which must not wait, until it finds something or the window is over;
    /// then `look(true)`, which may sleep.
    pub fn wait(&self, mut look: impl FnMut(bool) -> bool) {
        if !self.is_on {
            self.sleeps.fetch_add(1, Relaxed);
            look(true);
            return;
        }
        let start = Instant::now();
        let window = self.window.load(Relaxed);
        if window > 0 {
            let end = Duration::from_micros(window.into());
            // The clock is not read again to count: the look that finds something is its work.
            let mut spent = Duration::ZERO;
            while spent < end {
                if look(false) {
                    self.found_ns.fetch_add(nanos(spent), Relaxed);
                    return;
                }
                spent = start.elapsed();
            }
            self.vain_ns.fetch_add(nanos(spent), Relaxed);
        }
        self.sleeps.fetch_add(1, Relaxed);
        look(true);
        let next = match start.elapsed() <= Duration::from_micros(LONGEST.into()) {
            true => (window * 2).clamp(FIRST, LONGEST),
            false => 0,
        };
        self.window.store(next, Relaxed);
    }

    /// Counts since it was made; from any thread.
    pub fn stats(&self) -> SpinStats {
        SpinStats {
            found_ns: self.found_ns.load(Relaxed),
            vain_ns: self.vain_ns.load(Relaxed),
            sleeps: self.sleeps.load(Relaxed),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often one long wait looked before it slept.
    fn looks(spin: &Spin) -> u32 {
        let mut looks = 0;
        spin.wait(|may_sleep| {
            if may_sleep {
                std::thread::sleep(Duration::from_micros(u64::from(LONGEST) + 1));
            } else {
                looks += 1;
            }
            false
        });
        looks
    }

    #[test]
    fn who_has_waited_long_sleeps_at_once() {
        let spin = Spin::default();
        assert_eq!(looks(&spin), 0);
        assert_eq!(spin.stats().vain_ns, 0);
        spin.window.store(LONGEST, Relaxed);
        assert!(looks(&spin) > 0);
        assert!(spin.stats().vain_ns >= u64::from(LONGEST) * 1000);
        assert_eq!(looks(&spin), 0);
        assert_eq!(spin.stats().sleeps, 3);
    }

    #[test]
    fn what_is_found_while_looking_needs_no_sleep() {
        let spin = Spin::default();
        spin.window.store(LONGEST, Relaxed);
        spin.wait(|may_sleep| {
            assert!(!may_sleep);
            true
        });
        assert_eq!(spin.stats(), SpinStats::default());
    }

    #[test]
    fn who_may_not_poll_always_sleeps_at_once() {
        let spin = Spin::new(false);
        spin.window.store(LONGEST, Relaxed);
        assert_eq!(looks(&spin), 0);
        let slept = SpinStats {
            sleeps: 1,
            ..SpinStats::default()
        };
        assert_eq!(spin.stats(), slept);
    }
}
