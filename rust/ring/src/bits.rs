//! A private set of small integers.

/// A fixed-size bitmap.
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// An empty set of integers below `size`.
    pub(crate) fn new(size: usize) -> Bits {
        Bits(vec![0; size.div_ceil(64)])
    }

    /// Whether `bit` is in the set.
    #[inline]
    pub(crate) fn contains(&self, bit: u16) -> bool {
        self.0[usize::from(bit / 64)] >> (bit % 64) & 1 == 1
    }

    /// Adds `bit`; whether it was new.
    #[inline]
    pub(crate) fn insert(&mut self, bit: u16) -> bool {
        let word = &mut self.0[usize::from(bit / 64)];
        let new = *word >> (bit % 64) & 1 == 0;
        *word |= 1 << (bit % 64);
        new
    }

    /// Takes `bit` out.
    #[inline]
    pub(crate) fn remove(&mut self, bit: u16) {
        self.0[usize::from(bit / 64)] &= !(1 << (bit % 64));
    }
}
