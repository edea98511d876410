//! What lies where in an image: the cluster is asked on a thread of its own, which lives while there
//! are questions.

use crate::backend::Held;
use crate::patience::apart;
use crate::session::Image;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use vduse_device::backend::{Piece, StatusRequest};
use vduse_device::{Extent, Length, Offset, SECTOR_SIZE};

/// Objects that one question is about, at most; the answer covers no more. Where a map of an older
/// snapshot is missing, librbd asks the cluster about each.
const OBJECTS: u64 = 1024;

/// Questions about one image, answered one after the other.
pub(crate) struct Questions {
    image: Weak<Held>,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<StatusRequest>,
    has_thread: bool,
}

impl Questions {
    pub(crate) fn new(image: &Arc<Held>) -> Arc<Questions> {
        Arc::new(Questions {
            image: Arc::downgrade(image),
            state: Mutex::default(),
            idle: Condvar::new(),
        })
    }

    /// Does not wait.
    pub(crate) fn ask(self: &Arc<Questions>, request: StatusRequest) {
        {
            let mut state = self.lock();
            state.waiting.push_back(request);
            if std::mem::replace(&mut state.has_thread, true) {
                return;
            }
        }
        let questions = self.clone();
        if apart(move || questions.serve()).is_err() {
            let waiting = {
                let mut state = self.lock();
                state.has_thread = false;
                std::mem::take(&mut state.waiting)
            };
            waiting.into_iter().for_each(StatusRequest::answer_data);
        }
    }

    /// Questions that wait are answered with EIO; waits for the one that is with the cluster, so
    /// long at most.
    pub(crate) fn end(&self, limit: Duration) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        // Not under the lock: who has asked may ask again.
        drop(waiting);
        let _ended = self
            .idle
            .wait_timeout_while(self.lock(), limit, |state| state.has_thread)
            .unwrap_or_else(PoisonError::into_inner);
    }

    fn serve(&self) {
        while let Some(request) = self.next() {
            // Of an image that is closed it is dropped, which is an answer.
            if let Some(held) = self.image.upgrade() {
                answer(held.image(), request);
            }
        }
    }

    fn next(&self) -> Option<StatusRequest> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.has_thread = false;
            self.idle.notify_all();
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the cluster; what it does not know, or not now, is data.
fn answer(image: &Image, request: StatusRequest) {
    match known(image, request.extent()) {
        Ok(Some(pieces)) => request.answer(Ok(pieces)),
        Ok(None) | Err(_) => request.answer_data(),
    }
}

/// What the map of the image's objects says about the beginning of `asked`; none: there is none.
fn known(image: &Image, asked: Extent) -> Result<Option<Vec<Piece>>, Errno> {
    if !image.has_object_map()? {
        return Ok(None);
    }
    let Some(whole) = whole_objects(asked, image.object_size()?) else {
        return Ok(None);
    };
    Ok(Some(pieces(asked, &whole, image.objects(whole)?)))
}

/// The objects of this size that `asked` touches, not too many; none: there are no such objects.
fn whole_objects(asked: Extent, object_size: u64) -> Option<Extent> {
    if !object_size.is_power_of_two() || object_size < SECTOR_SIZE {
        return None;
    }
    let first = asked.offset().0 / object_size;
    let end = asked.end().0.div_ceil(object_size);
    let offset = first * object_size;
    let len = (end - first).min(OBJECTS).checked_mul(object_size)?;
    Extent::new(Offset(offset), Length(len))
}

/// Data where objects are and holes elsewhere, from the beginning of `asked` to its end or that of
/// what was looked at.
fn pieces(asked: Extent, looked_at: &Extent, mut objects: Vec<Range<u64>>) -> Vec<Piece> {
    objects.sort_unstable_by_key(|object| object.start);
    let end = asked.end().0.min(looked_at.end().0);
    let (mut at, mut pieces) = (asked.offset().0, Vec::new());
    let mut go_on = |to: u64, piece: fn(Length) -> Piece| {
        let to = to.min(end);
        if to > at {
            pieces.push(piece(Length(to - at)));
            at = to;
        }
    };
    for object in objects {
        go_on(object.start / SECTOR_SIZE * SECTOR_SIZE, Piece::hole);
        let to = object.end.checked_next_multiple_of(SECTOR_SIZE);
        go_on(to.unwrap_or(end), Piece::data);
    }
    go_on(end, Piece::hole);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(Offset(offset), Length(len)).unwrap()
    }

    fn data(len: u64) -> Piece {
        Piece::data(Length(len))
    }

    fn hole(len: u64) -> Piece {
        Piece::hole(Length(len))
    }

    #[test]
    fn what_is_looked_at_are_whole_objects_and_not_too_many() {
        let size = 64 * KIB;
        assert_eq!(
            whole_objects(extent(65 * KIB, KIB), size),
            Some(extent(size, size))
        );
        assert_eq!(
            whole_objects(extent(63 * KIB, 2 * KIB), size),
            Some(extent(0, 2 * size))
        );
        assert_eq!(
            whole_objects(extent(KIB, 1 << 40), size),
            Some(extent(0, OBJECTS * size))
        );
        for strange in [0, 1, 256, 3000] {
            assert_eq!(whole_objects(extent(0, KIB), strange), None);
        }
    }

    #[test]
    fn objects_are_data_and_the_rest_is_holes() {
        let asked = extent(KIB, 10 * KIB);
        let looked_at = extent(0, 12 * KIB);
        let objects = vec![8 * KIB..12 * KIB, 0..4 * KIB];
        let expected = [data(3 * KIB), hole(4 * KIB), data(3 * KIB)];
        assert_eq!(pieces(asked, &looked_at, objects), expected);
        assert_eq!(pieces(asked, &looked_at, vec![]), [hole(10 * KIB)]);
        // Beyond what was looked at nothing is known.
        assert_eq!(pieces(asked, &extent(0, 4 * KIB), vec![]), [hole(3 * KIB)]);
    }

    #[test]
    fn parts_of_sectors_are_data() {
        let asked = extent(0, 4 * KIB);
        let expected = [hole(512), data(1024), hole(2560)];
        assert_eq!(pieces(asked, &asked, vec![700..1025, 5000..6000]), expected);
        assert_eq!(
            pieces(asked, &asked, vec![0..1, 1..u64::MAX]),
            [data(512), data(4 * KIB - 512)]
        );
    }
}
