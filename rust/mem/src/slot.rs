//! One entry of the SIGBUS handler's table: written by threads that map and unmap, read by a
//! signal handler that may interrupt any of them. A sequence lock, because a handler cannot
//! wait: it skips an entry that is changing, which is never the one it looks for (the
//! faulting thread keeps its region registered until it is done).

use crate::sync::{AtomicBool, AtomicUsize, fence};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// An address range under guard, and whether it was hit.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Odd while the range is being changed.
    sequence: AtomicUsize,
    base: AtomicUsize,
    /// 0: the slot is free.
    len: AtomicUsize,
    poisoned: AtomicBool,
}

impl Slot {
    pub(crate) fn new() -> Slot {
        Slot {
            sequence: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Puts `len` bytes at address `base` under guard. One writer at a time: whoever took the
    /// slot from the free list.
    pub(crate) fn occupy(&self, base: usize, len: usize) {
        self.poisoned.store(false, Relaxed);
        self.write(base, len);
    }

    /// Ends the guard; must come before the range is unmapped.
    pub(crate) fn vacate(&self) {
        self.write(0, 0);
    }

    fn write(&self, base: usize, len: usize) {
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        fence(Release);
        self.base.store(base, Relaxed);
        self.len.store(len, Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Release);
    }

    /// The whole guarded range if `address` is in it. Async-signal-safe.
    pub(crate) fn find(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.sequence.load(Acquire);
        let base = self.base.load(Relaxed);
        let len = self.len.load(Relaxed);
        fence(Acquire);
        let stable = before & 1 == 0 && self.sequence.load(Relaxed) == before;
        (stable && address.wrapping_sub(base) < len).then_some((base, len))
    }

    /// Marks the range as lost. Async-signal-safe.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Release);
    }

    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Acquire)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::Slot;
    use loom::sync::Arc;
    use loom::thread;

    /// The handler finds a range that stays, and never a mixture of two that come and go.
    #[test]
    fn loom_slot_change_is_never_seen_torn() {
        loom::model(|| {
            let slots = Arc::new([Slot::new(), Slot::new()]);
            slots[0].occupy(0x1000, 0x1000);
            slots[1].occupy(0x8000, 0x100);
            let changed = slots.clone();
            let writer = thread::spawn(move || {
                changed[1].vacate();
                changed[1].occupy(0x20000, 0x8000);
            });
            // 0x2000 lies in neither range of slot 1, but in a mixture of free and new.
            assert_eq!(slots[1].find(0x2000), None);
            match slots[1].find(0x20000) {
                None | Some((0x20000, 0x8000)) => {}
                torn => panic!("torn range {torn:x?}"),
            }
            assert_eq!(slots[0].find(0x1fff), Some((0x1000, 0x1000)));
            slots[0].poison();
            writer.join().unwrap();
            assert!(slots[0].is_poisoned());
            assert!(!slots[1].is_poisoned());
        });
    }
}
