//! What became of the data path's calls: counts by call and result, for who compares channels.

use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Counts by ioctl number and errno, 0 for success.
pub type Counts = BTreeMap<(u32, i32), u64>;

/// Counts nothing until it is asked to: until then a call costs one load more.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(OnceLock<Mutex<Counts>>);

impl Outcomes {
    /// Counts from now on.
    pub(crate) fn start(&self) {
        self.0.get_or_init(Mutex::default);
    }

    /// What was counted; nothing where it was never asked to.
    pub(crate) fn counts(&self) -> Counts {
        self.0.get().map_or_else(Counts::new, |counts| {
            counts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        })
    }

    /// Passes a call's result on.
    pub(crate) fn note<T>(&self, nr: u32, result: Result<T, Errno>) -> Result<T, Errno> {
        if let Some(counts) = self.0.get() {
            let errno = result
                .as_ref()
                .err()
                .map_or(0, |error| error.raw_os_error());
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry((nr, errno)).or_default() += 1;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_call_and_errno_from_the_start_on() {
        let outcomes = Outcomes::default();
        assert_eq!(outcomes.note(1, Ok(7)), Ok(7));
        assert_eq!(outcomes.counts(), Counts::new());
        outcomes.start();
        outcomes.start();
        for _ in 0..2 {
            assert_eq!(outcomes.note(1, Ok(7)), Ok(7));
        }
        let failed: Result<(), Errno> = Err(Errno::INVAL);
        assert_eq!(outcomes.note(2, failed), failed);
        let expected = [((1, 0), 2), ((2, Errno::INVAL.raw_os_error()), 1)];
        assert_eq!(outcomes.counts(), Counts::from(expected));
    }
}
