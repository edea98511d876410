//! Log-linear histograms, written by one thread, read by any: 2^`BITS` buckets to each power of
//! two, so a value is known to one part in 2^`BITS`, in memory that does not grow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of values. 3 bits: to 12 %, 4 KiB. 6 bits: to 2 %, 30 KiB.
#[derive(Debug)]
pub struct Histogram<const BITS: u32> {
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    max: AtomicU64,
}

impl<const BITS: u32> Default for Histogram<BITS> {
    fn default() -> Histogram<BITS> {
        // Everything up to 2^64 - 1 has its bucket.
        let buckets = ((64 - BITS) as usize + 1) << BITS;
        Histogram {
            counts: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl<const BITS: u32> Histogram<BITS> {
    /// Counts a value `times` times. For one thread at a time: of two that do it at once, one
    /// may be forgotten.
    pub fn record(&self, value: u64, times: u64) {
        if times == 0 {
            return;
        }
        let count = &self.counts[Self::bucket(value)];
        count.store(count.load(Relaxed).wrapping_add(times), Relaxed);
        let sum = self.sum.load(Relaxed);
        self.sum
            .store(sum.wrapping_add(value.wrapping_mul(times)), Relaxed);
        if value > self.max.load(Relaxed) {
            self.max.store(value, Relaxed);
        }
    }

    /// What was counted so far. Beside a writer, each bucket is as it was at some moment.
    pub fn counts(&self) -> Counts {
        let buckets = self.counts.iter().enumerate();
        let buckets =
            buckets.map(|(bucket, count)| (Self::upper_bound(bucket), count.load(Relaxed)));
        Counts {
            buckets: buckets.filter(|(_, count)| *count > 0).collect(),
            sum: self.sum.load(Relaxed),
            max: self.max.load(Relaxed),
        }
    }

    fn bucket(value: u64) -> usize {
        if value < 1 << BITS {
            return value as usize;
        }
        let power = 63 - value.leading_zeros();
        let within = (value >> (power - BITS)) & ((1 << BITS) - 1);
        (((power - BITS + 1) << BITS) + within as u32) as usize
    }

    /// The largest value that falls into a bucket.
    fn upper_bound(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < 1 << BITS {
            return bucket;
        }
        let shift = (bucket >> BITS) - 1;
        let lowest = ((1 << BITS) + (bucket & ((1 << BITS) - 1))) << shift;
        lowest + ((1 << shift) - 1)
    }
}

/// What a histogram, or several together, have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By the largest value that falls into the bucket; none is 0.
    pub buckets: BTreeMap<u64, u64>,
    /// All values together, exactly, modulo 2^64.
    pub sum: u64,
    /// The largest value, exactly; 0 where nothing was counted.
    pub max: u64,
}

impl Counts {
    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Counts) {
        for (bound, count) in &other.buckets {
            *self.buckets.entry(*bound).or_default() += count;
        }
        self.sum = self.sum.wrapping_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// The value that `per_million` of a million do not exceed, to the histogram's resolution;
    /// 0 where nothing was counted.
    pub fn percentile(&self, per_million: u64) -> u64 {
        let rank = (u128::from(self.total()) * u128::from(per_million)).div_ceil(1_000_000);
        let mut seen = 0;
        for (bound, count) in &self.buckets {
            seen += u128::from(*count);
            if seen >= rank {
                return (*bound).min(self.max);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lies_in_its_bucket<const BITS: u32>() {
        let histogram = Histogram::<BITS>::default();
        for power in 0..64 {
            for near in [-1i64, 0, 1, 7] {
                let value = (1u64 << power).saturating_add_signed(near);
                let found = Histogram::<BITS>::bucket(value);
                let bound = Histogram::<BITS>::upper_bound(found);
                assert!(value <= bound && bound - value <= value >> BITS, "{value}");
                let below = found.checked_sub(1).map(Histogram::<BITS>::upper_bound);
                assert!(below.is_none_or(|below| value > below), "{value}");
            }
        }
        assert_eq!(
            Histogram::<BITS>::bucket(u64::MAX),
            histogram.counts.len() - 1
        );
    }

    #[test]
    fn every_value_lies_in_its_bucket_which_is_as_narrow_as_said() {
        lies_in_its_bucket::<3>();
        lies_in_its_bucket::<6>();
    }

    #[test]
    fn percentiles_of_known_values() {
        let histogram = Histogram::<6>::default();
        for value in 1..=1000 {
            histogram.record(value * 1000, 1);
        }
        let counts = histogram.counts();
        for (per_million, exact) in [(500_000, 500_000), (990_000, 990_000), (999_000, 999_000)] {
            let found = counts.percentile(per_million);
            assert!(found >= exact && found <= exact + exact / 50, "{found}");
        }
        assert_eq!(counts.percentile(1_000_000), 1_000_000);
        assert_eq!((counts.max, counts.total()), (1_000_000, 1000));
    }

    #[test]
    fn several_together() {
        let (one, other) = (Histogram::<3>::default(), Histogram::<3>::default());
        one.record(4, 2);
        other.record(4, 1);
        other.record(100, 5);
        let mut both = one.counts();
        both.add(&other.counts());
        assert_eq!(both.buckets, BTreeMap::from([(4, 3), (103, 5)]));
        assert_eq!((both.total(), both.sum, both.max), (8, 512, 100));
        assert_eq!((both.percentile(1), both.percentile(500_000)), (4, 100));
    }

    #[test]
    fn nothing_counted() {
        let histogram = Histogram::<3>::default();
        histogram.record(7, 0);
        assert_eq!(histogram.counts(), Counts::default());
        assert_eq!(histogram.counts().percentile(500_000), 0);
    }
}
