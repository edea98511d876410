//! Looking again for a moment before sleeping: to be woken takes tens of microseconds on a
//! virtual machine, longer than most requests take.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The first window after a short wait, in microseconds.
const FIRST: u32 = 10;
/// The longest window, and the longest wait that counts as short, in microseconds.
const LONGEST: u32 = 100;

/// One waiter's window: it doubles while waits are short and closes after a long one, so who
/// idles never spins.
#[derive(Debug, Default)]
pub struct Spin {
    /// Microseconds.
    window: AtomicU32,
}

impl Spin {
    /// Calls `look(false)`, which must not wait, until it finds something or the window is over;
    /// then `look(true)`, which may sleep.
    pub fn wait(&self, mut look: impl FnMut(bool) -> bool) {
        let start = Instant::now();
        let window = self.window.load(Ordering::Relaxed);
        let end = Duration::from_micros(window.into());
        while window > 0 && start.elapsed() < end {
            if look(false) {
                return;
            }
        }
        look(true);
        let next = match start.elapsed() <= Duration::from_micros(LONGEST.into()) {
            true => (window * 2).clamp(FIRST, LONGEST),
            false => 0,
        };
        self.window.store(next, Ordering::Relaxed);
    }
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
        spin.window.store(LONGEST, Ordering::Relaxed);
        assert!(looks(&spin) > 0);
        assert_eq!(looks(&spin), 0);
    }

    #[test]
    fn what_is_found_while_looking_needs_no_sleep() {
        let spin = Spin::default();
        spin.window.store(LONGEST, Ordering::Relaxed);
        spin.wait(|may_sleep| {
            assert!(!may_sleep);
            true
        });
    }
}
