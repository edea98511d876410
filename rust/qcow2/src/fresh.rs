//! Which parts of a file nobody has written: past the end that it had when it was opened, bytes
//! read as zeroes until then, and need not be written as such.

use std::sync::{Mutex, MutexGuard, PoisonError};
use vduse_device::Extent;

/// Bytes that are told apart.
const GRAIN: u64 = 64 << 10;
/// Grains that are kept account of: 1 TiB of new bytes, 2 MiB of memory. The rest counts as written.
const MOST_GRAINS: u64 = (1 << 40) / GRAIN;

/// The account of one file.
pub(crate) struct Fresh {
    /// The first grain that lies behind the file's first end.
    first: u64,
    /// A bit for each grain from there on that was written; those left out were not.
    written: Mutex<Vec<u64>>,
}

impl Fresh {
    /// Of a file of `size` bytes.
    pub(crate) fn past(size: u64) -> Fresh {
        Fresh {
            first: size.div_ceil(GRAIN),
            written: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grains of a range, counted from the first.
    fn grains(&self, extent: Extent) -> Option<std::ops::Range<u64>> {
        let end = extent.end().0.div_ceil(GRAIN).checked_sub(self.first)?;
        let start = (extent.offset().0 / GRAIN).saturating_sub(self.first);
        (start < end).then_some(start..end)
    }

    /// It is about to be written.
    pub(crate) fn write(&self, extent: Extent) {
        let Some(grains) = self.grains(extent) else {
            return;
        };
        let mut written = self.lock();
        for grain in grains.start..grains.end.min(MOST_GRAINS) {
            let (word, bit) = ((grain / 64) as usize, 1 << (grain % 64));
            if word >= written.len() {
                written.resize(word + 1, 0);
            }
            written[word] |= bit;
        }
    }

    /// Whether nothing of it was ever written.
    pub(crate) fn is_fresh(&self, extent: Extent) -> bool {
        let Some(grains) = self.grains(extent) else {
            return false;
        };
        if extent.offset().0 / GRAIN < self.first || grains.end > MOST_GRAINS {
            return false;
        }
        let written = self.lock();
        grains.into_iter().all(|grain| {
            let word = written.get((grain / 64) as usize).copied().unwrap_or(0);
            word & 1 << (grain % 64) == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vduse_device::{Length, Offset};

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(Offset(offset), Length(len)).unwrap()
    }

    #[test]
    fn what_lay_before_the_end_is_never_fresh() {
        let fresh = Fresh::past(GRAIN + 1);
        assert!(!fresh.is_fresh(extent(0, 512)));
        assert!(!fresh.is_fresh(extent(GRAIN + 512, 512)));
        assert!(!fresh.is_fresh(extent(2 * GRAIN - 512, 1024)));
        assert!(fresh.is_fresh(extent(2 * GRAIN, 5 * GRAIN)));
    }

    #[test]
    fn a_write_ends_it_for_all_grains_that_it_touches() {
        let fresh = Fresh::past(0);
        fresh.write(extent(70 * GRAIN + 512, GRAIN));
        for (grain, expected) in [(69, true), (70, false), (71, false), (72, true)] {
            assert_eq!(fresh.is_fresh(extent(grain * GRAIN, GRAIN)), expected);
        }
        assert!(!fresh.is_fresh(extent(0, 100 * GRAIN)));
    }

    #[test]
    fn an_image_cannot_make_the_account_long() {
        let fresh = Fresh::past(0);
        let far = extent(1 << 61, 1 << 61);
        fresh.write(far);
        assert!(fresh.lock().is_empty());
        assert!(!fresh.is_fresh(far));
        let long = extent(0, 1 << 62);
        fresh.write(long);
        assert_eq!(fresh.lock().len() as u64, MOST_GRAINS / 64);
    }
}
