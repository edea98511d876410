//! Latencies in a log-linear histogram: 64 buckets to each power of two, so a value is known
//! to better than 2 %, in a fixed 30 KiB.

const LINEAR_BITS: u32 = 6;
const LINEAR: u64 = 1 << LINEAR_BITS;
/// Everything up to 2^63 ns has its bucket.
const BUCKETS: usize = ((64 - LINEAR_BITS) as usize + 1) << LINEAR_BITS;

/// Counts of latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: vec![0; BUCKETS].into(),
            total: 0,
            max: 0,
        }
    }
}

fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < LINEAR {
        return nanoseconds as usize;
    }
    let power = 63 - nanoseconds.leading_zeros();
    let within = (nanoseconds >> (power - LINEAR_BITS)) & (LINEAR - 1);
    (((power - LINEAR_BITS + 1) << LINEAR_BITS) + within as u32) as usize
}

/// The largest value that falls into a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < LINEAR {
        return bucket;
    }
    let shift = (bucket >> LINEAR_BITS) - 1;
    let lowest = (LINEAR + (bucket & (LINEAR - 1))) << shift;
    lowest + ((1 << shift) - 1)
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// The latency, in nanoseconds, that `per_million` of a million requests do not exceed;
    /// 0 where nothing was recorded.
    pub fn percentile(&self, per_million: u64) -> u64 {
        let rank = (u128::from(self.total) * u128::from(per_million)).div_ceil(1_000_000) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= rank {
                return upper_bound(bucket).min(self.max);
            }
        }
        0
    }

    /// The longest, in nanoseconds, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for power in 0..63 {
            for near in [-1i64, 0, 1, 7] {
                let value = (1u64 << power).saturating_add_signed(near);
                let found = bucket(value);
                assert!(value <= upper_bound(found), "{value}");
                assert!(found == 0 || value > upper_bound(found - 1), "{value}");
            }
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut histogram = Histogram::default();
        for value in 1..=1000 {
            histogram.record(value * 1000);
        }
        for (per_million, exact) in [(500_000, 500_000), (990_000, 990_000), (999_000, 999_000)] {
            let found = histogram.percentile(per_million);
            assert!(found >= exact && found <= exact + exact / 50, "{found}");
        }
        assert_eq!(histogram.percentile(1_000_000), 1_000_000);
        assert_eq!(histogram.max(), 1_000_000);
    }

    #[test]
    fn nothing_recorded() {
        assert_eq!(Histogram::default().percentile(500_000), 0);
    }
}
