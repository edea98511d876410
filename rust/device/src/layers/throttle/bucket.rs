//! The arithmetic of one limit.

/// One limit: units (operations or bytes) a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Units a second; above 0 and finite.
    pub per_second: f64,
    /// Units that may pass at once after a pause. `None`: a tenth of a second's.
    pub burst: Option<f64>,
}

/// A leaky bucket: every operation pours its cost in, and it leaks at the limit's rate. An
/// operation goes when the bucket has room for it; one that is larger than the bucket, when the
/// time has come in which the rate makes up for the difference. So not more than
/// `rate * time + burst` ever passes, whatever the sizes. Times are seconds from any origin.
pub(super) struct Bucket {
    per_second: f64,
    burst: f64,
    /// When it will have leaked empty.
    empty_at: f64,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Bucket {
        Bucket {
            per_second: rate.per_second,
            burst: rate.burst.unwrap_or(rate.per_second / 10.0),
            empty_at: f64::NEG_INFINITY,
        }
    }

    /// Pours `cost` in, and says when what costs it may go.
    pub(super) fn reserve(&mut self, now: f64, cost: f64) -> f64 {
        self.empty_at = self.empty_at.max(now) + cost / self.per_second;
        (self.empty_at - self.burst / self.per_second).max(now)
    }

    /// What was reserved is not used.
    pub(super) fn give_back(&mut self, cost: f64) {
        self.empty_at -= cost / self.per_second;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_its_rate() {
        let mut bucket = Bucket::new(Rate {
            per_second: 10.0,
            burst: Some(3.0),
        });
        let times: Vec<f64> = (0..5).map(|_| bucket.reserve(100.0, 1.0)).collect();
        let expected = [100.0, 100.0, 100.0, 100.1, 100.2];
        for (time, expected) in times.iter().zip(expected) {
            assert!((time - expected).abs() < 1e-9, "{times:?}");
        }
        // After a pause the burst is there again, and not more.
        let burst = (0..5).filter(|_| bucket.reserve(200.0, 1.0) == 200.0);
        assert_eq!(burst.count(), 3);
    }

    #[test]
    fn what_was_given_back_can_be_used() {
        let mut bucket = Bucket::new(Rate {
            per_second: 10.0,
            burst: Some(1.0),
        });
        assert_eq!(bucket.reserve(0.0, 1.0), 0.0);
        assert!(bucket.reserve(0.0, 5.0) > 0.4);
        bucket.give_back(5.0);
        assert!((bucket.reserve(0.0, 1.0) - 0.1).abs() < 1e-9);
    }
}
