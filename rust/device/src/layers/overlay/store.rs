//! What an overlay holds: sectors by their place, in pages that exist once something was written
//! there, until they are discarded or zeroed whole.
//!
//! Lock: a part of the disk at a time, so a sector is read as it was or as it is, never half.

use crate::backend::Piece;
use crate::{Buffer, Extent, Length, SECTOR_SIZE};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;
const SECTOR: usize = SECTOR_SIZE as usize;
/// Pages of a chunk.
const PAGES: usize = 64;
const CHUNK: u64 = (PAGE * PAGES) as u64;
/// Locks; neighbouring chunks have different ones.
const STRIPES: usize = 64;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// How much of a range an overlay holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Nothing,
    Some,
    All,
}

#[derive(Clone, Default)]
struct Page {
    /// One bit a sector: whether the overlay holds it.
    held: u8,
    /// `None`: what is held is zero.
    data: Option<Box<[u8; PAGE]>>,
}

impl Page {
    /// As [`Store::pieces`], of these bytes of it.
    fn pieces(&self, inner: &Range<usize>) -> SmallVec<[(u64, Option<Piece>); 2]> {
        let len = |bytes: usize| Length(bytes as u64);
        let piece = |bytes| match self.data {
            Some(_) => Piece::data(len(bytes)),
            None => Piece::hole(len(bytes)),
        };
        let mask = sectors(inner);
        let mut pieces = SmallVec::new();
        let mut at = inner.start;
        for run in runs(self.held & mask) {
            if run.start > at {
                pieces.push((len(run.start - at).0, None));
            }
            pieces.push((len(run.len()).0, Some(piece(run.len()))));
            at = run.end;
        }
        if at < inner.end {
            pieces.push((len(inner.end - at).0, None));
        }
        pieces
    }
}

enum Chunk {
    /// All of it is held, and zero.
    Zero,
    Pages(Box<[Page; PAGES]>),
}

/// The sectors of one overlay.
pub(super) struct Store {
    stripes: [Mutex<HashMap<u64, Chunk>>; STRIPES],
    pages: AtomicU64,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            stripes: std::array::from_fn(|_| Mutex::default()),
            pages: AtomicU64::new(0),
        }
    }
}

impl Store {
    /// Bytes of the pages that exist.
    pub(super) fn allocated(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) * PAGE as u64
    }

    /// How much of `extent` is held. That never becomes less.
    pub(super) fn holds(&self, extent: Extent) -> Held {
        let (mut some, mut all) = (false, true);
        for part in parts(extent, CHUNK) {
            match self.stripe(part.number).get(&part.number) {
                None => all = false,
                Some(Chunk::Zero) => some = true,
                Some(Chunk::Pages(pages)) => {
                    for (page, inner, _) in part.pages() {
                        let mask = sectors(&inner);
                        some |= pages[page].held & mask != 0;
                        all &= pages[page].held & mask == mask;
                    }
                }
            }
        }
        match (some, all) {
            (_, true) => Held::All,
            (true, false) => Held::Some,
            (false, false) => Held::Nothing,
        }
    }

    /// Gives what is held of `extent` to `sink`: bytes, and where they are in the range.
    pub(super) fn read(&self, extent: Extent, mut sink: impl FnMut(u64, &[u8])) {
        for part in parts(extent, CHUNK) {
            let stripe = self.stripe(part.number);
            let Some(chunk) = stripe.get(&part.number) else {
                continue;
            };
            for (page, inner, at) in part.pages() {
                let (held, data) = match chunk {
                    Chunk::Zero => (u8::MAX, &ZEROES),
                    Chunk::Pages(pages) => {
                        let page = &pages[page];
                        (page.held, page.data.as_deref().unwrap_or(&ZEROES))
                    }
                };
                for run in runs(held & sectors(&inner)) {
                    sink(at + (run.start - inner.start) as u64, &data[run]);
                }
            }
        }
    }

    /// What lies in a range, from its beginning on: bytes, and what they are where they are held.
    pub(super) fn pieces(&self, extent: Extent) -> impl Iterator<Item = (u64, Option<Piece>)> {
        parts(extent, CHUNK).flat_map(|part| {
            let stripe = self.stripe(part.number);
            match stripe.get(&part.number) {
                None => vec![(part.len, None)],
                Some(Chunk::Zero) => vec![(part.len, Some(Piece::hole(Length(part.len))))],
                Some(Chunk::Pages(pages)) => {
                    let pieces =
                        |(page, inner, _): (usize, Range<usize>, u64)| pages[page].pieces(&inner);
                    part.pages().flat_map(pieces).collect()
                }
            }
        })
    }

    /// Holds what `buffer`, as long as `extent`, has.
    pub(super) fn write(&self, extent: Extent, buffer: &Buffer) {
        for part in parts(extent, CHUNK) {
            let mut stripe = self.stripe(part.number);
            let pages = pages_of(&mut stripe, part.number);
            for (page, inner, at) in part.pages() {
                let page = &mut pages[page];
                page.held |= sectors(&inner);
                let data = page.data.get_or_insert_with(|| {
                    self.pages.fetch_add(1, Ordering::Relaxed);
                    Box::new(ZEROES)
                });
                buffer.read_at(at, &mut data[inner]);
            }
        }
    }

    /// Holds zeroes.
    pub(super) fn zero(&self, extent: Extent) {
        for part in parts(extent, CHUNK) {
            let mut stripe = self.stripe(part.number);
            if part.len == CHUNK {
                if let Some(Chunk::Pages(pages)) = stripe.insert(part.number, Chunk::Zero) {
                    self.freed(pages.iter().filter(|page| page.data.is_some()).count());
                }
                continue;
            }
            let pages = pages_of(&mut stripe, part.number);
            for (page, inner, _) in part.pages() {
                let page = &mut pages[page];
                page.held |= sectors(&inner);
                if inner.len() == PAGE {
                    self.freed(usize::from(page.data.take().is_some()));
                } else if let Some(data) = &mut page.data {
                    data[inner].fill(0);
                }
            }
        }
    }

    fn freed(&self, pages: usize) {
        self.pages.fetch_sub(pages as u64, Ordering::Relaxed);
    }

    fn stripe(&self, chunk: u64) -> MutexGuard<'_, HashMap<u64, Chunk>> {
        let stripe = &self.stripes[chunk as usize % STRIPES];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pages of a chunk, which exists from now on.
fn pages_of(stripe: &mut HashMap<u64, Chunk>, number: u64) -> &mut [Page; PAGES] {
    let chunk = stripe.entry(number).or_insert_with(|| all_pages(0));
    if let Chunk::Zero = chunk {
        *chunk = all_pages(u8::MAX);
    }
    match chunk {
        Chunk::Pages(pages) => pages,
        Chunk::Zero => unreachable!("it has just been given pages"),
    }
}

fn all_pages(held: u8) -> Chunk {
    let page = Page { held, data: None };
    Chunk::Pages(Box::new(std::array::from_fn(|_| page.clone())))
}

/// What of a range lies in one piece of the disk.
struct Part {
    /// Of the piece.
    number: u64,
    /// From the piece's beginning.
    from: u64,
    len: u64,
    /// From the range's beginning.
    at: u64,
}

/// A range by the pieces of `size` bytes that it touches.
fn parts(extent: Extent, size: u64) -> impl Iterator<Item = Part> {
    let (start, end) = (extent.offset().0, extent.end().0);
    let mut next = start;
    std::iter::from_fn(move || {
        (next < end).then(|| {
            let from = next % size;
            let len = (size - from).min(end - next);
            let part = Part {
                number: next / size,
                from,
                len,
                at: next - start,
            };
            next += len;
            part
        })
    })
}

impl Part {
    /// The pages it touches in its chunk: which, what of each, and where that is in the range.
    fn pages(&self) -> impl Iterator<Item = (usize, Range<usize>, u64)> {
        let (from, end, at) = (self.from as usize, (self.from + self.len) as usize, self.at);
        (from / PAGE..end.div_ceil(PAGE)).map(move |page| {
            let start = from.max(page * PAGE);
            let inner = start - page * PAGE..end.min((page + 1) * PAGE) - page * PAGE;
            (page, inner, at + (start - from) as u64)
        })
    }
}

/// The sectors of a page that a range of whole sectors covers.
fn sectors(inner: &Range<usize>) -> u8 {
    let count = inner.len() / SECTOR;
    (u16::MAX >> (16 - count) << (inner.start / SECTOR)) as u8
}

/// The bytes of a page that belong to sectors of `mask`, run by run.
fn runs(mut mask: u8) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let skip = mask.trailing_zeros() as usize;
            let count = (mask >> skip).trailing_ones() as usize;
            let run = (from + skip) * SECTOR..(from + skip + count) * SECTOR;
            from += skip + count;
            mask = (u16::from(mask) >> (skip + count)) as u8;
            run
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::testing::extent;

    #[test]
    fn runs_of_a_mask() {
        let runs = |mask| runs(mask).collect::<Vec<_>>();
        assert_eq!(runs(0), []);
        assert_eq!(runs(0b1110_0001), [0..512, 2560..4096]);
        assert_eq!(runs(0b1010_0110), [512..1536, 2560..3072, 3584..4096]);
        assert_eq!(sectors(&(512..1536)), 0b110);
        assert_eq!(sectors(&(0..4096)), u8::MAX);
    }

    #[test]
    fn zeroes_take_no_pages_and_give_them_back() {
        let store = Store::default();
        store.zero(extent(0, 4 * CHUNK));
        assert_eq!(
            (store.allocated(), store.holds(extent(0, 4 * CHUNK))),
            (0, Held::All)
        );
        let mut bytes = vec![1; 8192];
        // SAFETY: the bytes outlive the buffer.
        let buffer = unsafe { crate::testing::buffer(&mut bytes, &[]) };
        store.write(extent(CHUNK - 2048, 8192), &buffer);
        assert_eq!(store.allocated(), 3 * 4096);
        store.zero(extent(CHUNK, 4096));
        assert_eq!(store.allocated(), 2 * 4096);
        store.zero(extent(0, 2 * CHUNK));
        assert_eq!(
            (store.allocated(), store.holds(extent(0, 4 * CHUNK))),
            (0, Held::All)
        );
        assert_eq!(store.holds(extent(4 * CHUNK - 512, 1024)), Held::Some);
        assert_eq!(store.holds(extent(4 * CHUNK, 1024)), Held::Nothing);
    }
}
