//! Which pages of a disk in memory were written.

use crate::backend::Piece;
use crate::{Extent, Length};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes that a bit stands for; a system's page is one of these or several.
const PAGE: u64 = 4096;
const BITS: u64 = u64::BITS as u64;
/// Words that come into being together: for 128 MiB.
const WORDS: u64 = 512;

type Leaf = Box<[AtomicU64; WORDS as usize]>;

/// A bit a page: it was written, and not given back since. A page without is zero.
pub(super) struct Written(Box<[OnceLock<Leaf>]>);

impl Written {
    /// Nothing, of a disk of `size` bytes.
    pub(super) fn new(size: u64) -> Written {
        let leaves = size.div_ceil(PAGE * BITS * WORDS);
        Written((0..leaves).map(|_| OnceLock::new()).collect())
    }

    /// The range was written. Either this finds what [`Written::clear`] did to a bit, or what was
    /// written goes with the page.
    pub(super) fn set(&self, extent: Extent) {
        // After the bytes, before the look.
        fence(Ordering::SeqCst);
        for part in parts(extent.offset().0 / PAGE, extent.end().0.div_ceil(PAGE)) {
            let leaf = self.0[part.leaf()].get_or_init(empty);
            let word = &leaf[part.word()];
            if word.load(Ordering::Relaxed) & part.mask() != part.mask() {
                word.fetch_or(part.mask(), Ordering::Release);
            }
        }
    }

    /// The pages wholly within the range are given back next.
    pub(super) fn clear(&self, extent: Extent) {
        for part in parts(extent.offset().0.div_ceil(PAGE), extent.end().0 / PAGE) {
            if let Some(leaf) = self.0[part.leaf()].get() {
                leaf[part.word()].fetch_and(!part.mask(), Ordering::SeqCst);
            }
        }
        fence(Ordering::SeqCst);
    }

    /// What lies in a range, from its beginning on.
    pub(super) fn pieces(&self, extent: Extent) -> impl Iterator<Item = Piece> {
        let (start, end) = (extent.offset().0, extent.end().0);
        let runs = parts(start / PAGE, end.div_ceil(PAGE)).flat_map(|part| {
            let leaf = self.0[part.leaf()].get();
            let bits = leaf.map_or(0, |leaf| leaf[part.word()].load(Ordering::Acquire));
            part.runs(bits)
        });
        runs.map(move |(first, past, is_written)| {
            let len = Length((past * PAGE).min(end) - (first * PAGE).max(start));
            match is_written {
                true => Piece::data(len),
                false => Piece::hole(len),
            }
        })
    }
}

fn empty() -> Leaf {
    Box::new([const { AtomicU64::new(0) }; WORDS as usize])
}

/// Pages of one word.
#[derive(Clone, Copy)]
struct Part {
    first: u64,
    past: u64,
}

/// A range of pages, word by word.
fn parts(mut at: u64, end: u64) -> impl Iterator<Item = Part> {
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let first = at;
            at = (first / BITS * BITS + BITS).min(end);
            Part { first, past: at }
        })
    })
}

impl Part {
    fn leaf(self) -> usize {
        (self.first / BITS / WORDS) as usize
    }

    fn word(self) -> usize {
        (self.first / BITS % WORDS) as usize
    }

    fn mask(self) -> u64 {
        let count = self.past - self.first;
        u64::MAX >> (BITS - count) << (self.first % BITS)
    }

    /// Its pages by what the word says: the first, the one past the last, whether they are set.
    fn runs(self, bits: u64) -> impl Iterator<Item = (u64, u64, bool)> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            (at < self.past).then(|| {
                let first = at;
                let rest = bits >> (first % BITS);
                let is_set = rest & 1 != 0;
                let count = match is_set {
                    true => rest.trailing_ones(),
                    false => rest.trailing_zeros(),
                };
                at = (first + u64::from(count)).min(self.past);
                (first, at, is_set)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::testing::extent;

    /// Lengths, negative for holes; neighbours that are alike become one.
    fn told(written: &Written, extent: Extent) -> Vec<i64> {
        let mut told: Vec<i64> = Vec::new();
        for piece in written.pieces(extent) {
            let len = piece.len.0 as i64 * if piece.is_zero { -1 } else { 1 };
            match told.last_mut() {
                Some(last) if (*last < 0) == (len < 0) => *last += len,
                _ => told.push(len),
            }
        }
        told
    }

    #[test]
    fn a_write_takes_the_pages_that_it_touches_and_a_discard_gives_whole_ones_back() {
        let written = Written::new(1 << 30);
        let all = extent(0, 1 << 30);
        assert_eq!(told(&written, all), [-(1 << 30)]);
        written.set(extent(4608, 4096));
        let rest = -((1 << 30) - 12288);
        assert_eq!(told(&written, all), [-4096, 8192, rest]);
        written.clear(extent(4608, 1 << 20));
        assert_eq!(told(&written, all), [-4096, 4096, rest - 4096]);
        assert_eq!(told(&written, extent(3584, 1024)), [-512, 512]);
    }

    #[test]
    fn words_and_leaves_make_no_difference() {
        let written = Written::new((128 << 20) + 512);
        let end = (128 << 20) + 512;
        written.set(extent(end - (64 << 20), 64 << 20));
        assert_eq!(
            told(&written, extent(0, end)),
            [-((64 << 20) as i64), (64 << 20) + 512]
        );
        written.clear(extent(96 << 20, (32 << 20) + 512));
        assert_eq!(
            told(&written, extent(80 << 20, end - (80 << 20))),
            [16 << 20, -(32 << 20), 512]
        );
    }
}
