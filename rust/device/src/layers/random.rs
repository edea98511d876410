//! Random numbers that come again with their seed: SplitMix64 (Steele, Lea and Flood 2014).

/// A sequence; cheap, not for secrets.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// From 0 to less than 1.
    pub(super) fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // An f64 has 53 bits of precision.
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_brings_its_sequence_again_and_it_is_even() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..10_000).map(|_| random.fraction()).collect::<Vec<_>>()
        };
        let these = draw(7);
        assert_eq!(these, draw(7));
        assert_ne!(these, draw(8));
        assert!(these.iter().all(|x| (0.0..1.0).contains(x)));
        let below = these.iter().filter(|&&x| x < 0.25).count();
        assert!((2_300..2_700).contains(&below), "{below}");
    }
}
