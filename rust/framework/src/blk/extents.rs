//! What the driver knows of the disk's contents, from its own discards and write-zeroes.
//!
//! A range is known once its request has ended well, unless something else was written to it, or
//! discarded, while that request was under way: then nobody can say what came last. Whatever is
//! not known is data. While nothing is known, a write costs one look at a number.
//!
//! No write is overlooked. It looks at the number under its queue's lock; who begins a discard
//! first makes the number not zero, then looks through each queue, under its lock, for writes
//! under way. So either the write sees the number, or it is seen.

use super::Sectors;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ranges remembered, at most: past this all are forgotten, since data is always true.
const MOST: usize = 1 << 16;

/// Discards and write-zeroes under way that are followed: the outcome of others is not known.
const MOST_PENDING: usize = 1024;

/// What a range of the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Anything.
    Data,
    /// It was discarded: it takes no room, and what it reads is not said.
    Hole,
    /// Zeroes.
    Zero,
    /// Zeroes that may take no room.
    ZeroHole,
}

/// A range of the disk, `end` is the first sector behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: Sectors,
    pub(super) end: Sectors,
}

impl Range {
    pub(super) fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// A discard or write-zeroes under way.
#[derive(Debug)]
struct Pending {
    ticket: u64,
    range: Range,
    content: Content,
    /// Something else touches the range meanwhile.
    spoiled: bool,
}

/// Names a discard or write-zeroes under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Debug, Default)]
struct Known {
    /// By first sector; never `Data`, disjoint.
    ranges: BTreeMap<Sectors, (Sectors, Content)>,
    pending: Vec<Pending>,
    tickets: u64,
}

/// The ranges that are known.
#[derive(Debug, Default)]
pub(super) struct Extents {
    /// How many ranges are known or pending; written under the lock.
    entries: AtomicUsize,
    known: Mutex<Known>,
}

impl Extents {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.lock();
        let result = change(&mut known);
        let entries = known.ranges.len() + known.pending.len();
        self.entries.store(entries, Ordering::Relaxed);
        result
    }

    /// A write is about to be submitted, under its queue's lock.
    #[inline]
    pub(super) fn writing(&self, range: Range) {
        if self.entries.load(Ordering::Relaxed) > 0 {
            self.touched(&range);
        }
    }

    /// Something else than zeroing is under way in `range`, or was.
    pub(super) fn touched(&self, range: &Range) {
        self.change(|known| known.touch(range));
    }

    /// A discard or write-zeroes is about to be submitted. The caller looks for writes under way
    /// afterwards ([`Extents::touched`]). `None`: its outcome is not followed.
    pub(super) fn begin(&self, range: Range, content: Content) -> Option<Ticket> {
        self.change(|known| {
            let alone = !known
                .pending
                .iter()
                .any(|other| other.range.overlaps(&range));
            known.touch(&range);
            if known.pending.len() == MOST_PENDING {
                return None;
            }
            known.tickets += 1;
            known.pending.push(Pending {
                ticket: known.tickets,
                range,
                content,
                spoiled: !alone,
            });
            Some(Ticket(known.tickets))
        })
    }

    /// It has ended; `done`: well.
    pub(super) fn end(&self, ticket: Ticket, done: bool) {
        self.change(|known| {
            let pending = &mut known.pending;
            let Some(at) = pending.iter().position(|other| other.ticket == ticket.0) else {
                return;
            };
            let ended = pending.swap_remove(at);
            if done && !ended.spoiled {
                known.learn(ended.range, ended.content);
            }
        });
    }

    /// Nothing is known any more, and nothing will be of what is under way.
    pub(super) fn forget(&self) {
        self.change(|known| {
            known.ranges.clear();
            known
                .pending
                .iter_mut()
                .for_each(|pending| pending.spoiled = true);
        });
    }

    /// What is known of `range`, from its start: at most `most` extents without a gap, each with
    /// its end. They may end before the range does, never after.
    pub(super) fn describe(&self, range: Range, most: usize) -> Vec<(Sectors, Content)> {
        let known = self.lock();
        let before = known.ranges.range(..range.start).next_back();
        let first = before
            .filter(|(_, (end, _))| *end > range.start)
            .map(|(_, known)| (range.start, *known));
        let inside = known.ranges.range(range.start..range.end);
        let inside = inside.map(|(start, known)| (*start, *known));
        let mut extents = Vec::new();
        let mut at = range.start;
        for (start, (end, content)) in first.into_iter().chain(inside) {
            if extents.len() >= most {
                break;
            }
            if start > at {
                extents.push((start, Content::Data));
            }
            at = end.min(range.end);
            extents.push((at, content));
        }
        if at < range.end {
            extents.push((range.end, Content::Data));
        }
        extents.truncate(most);
        extents
    }
}

impl Known {
    /// The range is data, whatever is under way in it.
    fn touch(&mut self, range: &Range) {
        self.remove(range);
        for pending in &mut self.pending {
            pending.spoiled |= pending.range.overlaps(range);
        }
    }

    /// Nothing is known of the range.
    fn remove(&mut self, range: &Range) {
        let before = self.ranges.range(..range.start).next_back();
        if let Some((&start, &(end, content))) = before
            && end > range.start
        {
            self.ranges.insert(start, (range.start, content));
            if end > range.end {
                self.ranges.insert(range.end, (end, content));
            }
        }
        while let Some((&start, &(end, content))) = self.ranges.range(range.start..range.end).next()
        {
            self.ranges.remove(&start);
            if end > range.end {
                self.ranges.insert(range.end, (end, content));
            }
        }
    }

    /// The range holds this, together with its neighbours that hold the same.
    fn learn(&mut self, mut range: Range, content: Content) {
        self.remove(&range);
        let before = self.ranges.range(..range.start).next_back();
        if let Some((&start, &(end, other))) = before
            && end == range.start
            && other == content
        {
            range.start = start;
        }
        if let Some(&(end, other)) = self.ranges.get(&range.end)
            && other == content
        {
            self.ranges.remove(&range.end);
            range.end = end;
        }
        self.ranges.insert(range.start, (range.end, content));
        if self.ranges.len() > MOST {
            self.ranges.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range {
        Range {
            start: Sectors(start),
            end: Sectors(end),
        }
    }

    fn zeroed(extents: &Extents, start: u64, end: u64, content: Content) {
        let ticket = extents.begin(range(start, end), content).unwrap();
        extents.end(ticket, true);
    }

    fn described(extents: &Extents, start: u64, end: u64) -> Vec<(u64, Content)> {
        let extents = extents.describe(range(start, end), usize::MAX);
        extents
            .iter()
            .map(|(end, content)| (end.0, *content))
            .collect()
    }

    #[test]
    fn what_is_not_known_is_data() {
        let extents = Extents::default();
        assert_eq!(described(&extents, 3, 9), [(9, Content::Data)]);
        zeroed(&extents, 10, 20, Content::Hole);
        assert_eq!(
            described(&extents, 5, 30),
            [
                (10, Content::Data),
                (20, Content::Hole),
                (30, Content::Data)
            ]
        );
        assert_eq!(described(&extents, 12, 14), [(14, Content::Hole)]);
    }

    #[test]
    fn neighbours_that_hold_the_same_are_one_extent() {
        let extents = Extents::default();
        zeroed(&extents, 0, 10, Content::Zero);
        zeroed(&extents, 20, 30, Content::Zero);
        zeroed(&extents, 10, 20, Content::Zero);
        zeroed(&extents, 30, 40, Content::ZeroHole);
        assert_eq!(
            described(&extents, 0, 40),
            [(30, Content::Zero), (40, Content::ZeroHole)]
        );
        assert_eq!(extents.entries.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_write_makes_data_of_its_range_alone() {
        let extents = Extents::default();
        zeroed(&extents, 0, 100, Content::Zero);
        extents.writing(range(40, 60));
        extents.writing(range(90, 200));
        assert_eq!(
            described(&extents, 0, 100),
            [
                (40, Content::Zero),
                (60, Content::Data),
                (90, Content::Zero),
                (100, Content::Data)
            ]
        );
    }

    #[test]
    fn a_write_meanwhile_leaves_nothing_known() {
        let extents = Extents::default();
        let ticket = extents.begin(range(0, 10), Content::Zero).unwrap();
        extents.writing(range(9, 12));
        extents.end(ticket, true);
        assert_eq!(described(&extents, 0, 10), [(10, Content::Data)]);
        assert_eq!(extents.entries.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn two_at_once_in_one_place_leave_nothing_known() {
        let extents = Extents::default();
        let zero = extents.begin(range(0, 10), Content::Zero).unwrap();
        let discard = extents.begin(range(5, 15), Content::Hole).unwrap();
        extents.end(discard, true);
        extents.end(zero, true);
        assert_eq!(described(&extents, 0, 15), [(15, Content::Data)]);
    }

    #[test]
    fn what_failed_may_have_done_anything() {
        let extents = Extents::default();
        zeroed(&extents, 0, 10, Content::Zero);
        let ticket = extents.begin(range(2, 4), Content::Hole).unwrap();
        extents.end(ticket, false);
        assert_eq!(
            described(&extents, 0, 10),
            [(2, Content::Zero), (4, Content::Data), (10, Content::Zero)]
        );
    }

    #[test]
    fn what_is_forgotten_meanwhile_is_not_learnt() {
        let extents = Extents::default();
        let ticket = extents.begin(range(0, 10), Content::Zero).unwrap();
        extents.forget();
        extents.end(ticket, true);
        assert_eq!(described(&extents, 0, 10), [(10, Content::Data)]);
    }

    #[test]
    fn more_than_can_be_kept_is_forgotten() {
        let extents = Extents::default();
        for at in 0..=MOST as u64 {
            zeroed(&extents, at * 2, at * 2 + 1, Content::Zero);
        }
        assert_eq!(extents.lock().ranges.len(), 0);
    }

    #[test]
    fn a_description_has_as_many_extents_as_asked_for() {
        let extents = Extents::default();
        zeroed(&extents, 1, 2, Content::Zero);
        let all = extents.describe(range(0, 9), 2);
        assert_eq!(
            all,
            [(Sectors(1), Content::Data), (Sectors(2), Content::Zero)]
        );
    }

    /// Against a plain array of sectors.
    #[test]
    fn any_order_of_changes_describes_what_an_array_does() {
        const SECTORS: u64 = 64;
        let extents = Extents::default();
        let mut disk = [Content::Data; SECTORS as usize];
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..5000 {
            let start = random(SECTORS);
            let end = start + 1 + random(SECTORS - start);
            let content = match random(4) {
                0 => Content::Hole,
                1 => Content::Zero,
                2 => Content::ZeroHole,
                _ => Content::Data,
            };
            match content {
                Content::Data => extents.writing(range(start, end)),
                _ => zeroed(&extents, start, end, content),
            }
            disk[start as usize..end as usize].fill(content);
            let mut at = 0;
            for (end, content) in described(&extents, 0, SECTORS) {
                assert!(disk[at..end as usize].iter().all(|is| *is == content));
                at = end as usize;
            }
            assert_eq!(at, SECTORS as usize);
        }
    }
}
