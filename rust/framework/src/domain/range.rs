//! A first-fit allocator of address ranges, counted in granules (pages).

use std::collections::BTreeMap;

/// Free ranges by their start; neighbours are merged. Allocates from the bottom, so that what
/// is idle gathers at the top, where reclaim takes it from.
#[derive(Debug)]
pub(crate) struct Ranges {
    free: BTreeMap<u32, u32>,
}

impl Ranges {
    /// All of `[start, end)` is free.
    pub(crate) fn new(start: u32, end: u32) -> Ranges {
        let mut free = BTreeMap::new();
        if start < end {
            free.insert(start, end - start);
        }
        Ranges { free }
    }

    /// Takes the lowest range of `len` granules.
    pub(crate) fn take(&mut self, len: u32) -> Option<u32> {
        let (&start, &room) = self.free.iter().find(|&(_, &room)| room >= len)?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        Some(start)
    }

    /// Gives back what was taken.
    pub(crate) fn give(&mut self, start: u32, len: u32) {
        let (mut start, mut len) = (start, len);
        if let Some((&before, &room)) = self.free.range(..start).next_back()
            && before + room == start
        {
            self.free.remove(&before);
            start = before;
            len += room;
        }
        if let Some(room) = self.free.remove(&(start + len)) {
            len += room;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_lowest_range_that_fits_and_merges_what_comes_back() {
        let mut ranges = Ranges::new(1, 11);
        assert_eq!(ranges.take(4), Some(1));
        assert_eq!(ranges.take(4), Some(5));
        assert_eq!(ranges.take(4), None);
        ranges.give(1, 4);
        assert_eq!(ranges.take(2), Some(1));
        ranges.give(5, 4);
        ranges.give(1, 2);
        assert_eq!(ranges.take(10), Some(1));
    }
}
