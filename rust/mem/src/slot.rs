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

    /// A slot, and a second one that had a range and is free again.
    fn slots() -> Arc<[Slot; 2]> {
        let slots = Arc::new([Slot::new(), Slot::new()]);
        slots[0].occupy(0x1000, 0x1000);
        slots[1].occupy(0x8000, 0x100);
        slots[1].vacate();
        slots
    }

    /// The handler never sees a mixture of free and new.
    #[test]
    fn loom_register_is_never_seen_torn() {
        loom::model(|| {
            let slots = slots();
            let changed = slots.clone();
            let writer = thread::spawn(move || changed[1].occupy(0x20000, 0x8000));
            // Lies in base 0, length 0x8000.
            assert_eq!(slots[1].find(0x4000), None);
            match slots[1].find(0x20000) {
                None | Some((0x20000, 0x8000)) => {}
                torn => panic!("torn range {torn:x?}"),
            }
            writer.join().unwrap();
            assert_eq!(slots[1].find(0x27fff), Some((0x20000, 0x8000)));
        });
    }

    /// The handler never sees a mixture of old and new, and always what stays.
    #[test]
    fn loom_unregister_and_register_are_never_seen_torn() {
        loom::model(|| {
            let slots = slots();
            slots[1].occupy(0x8000, 0x100);
            let changed = slots.clone();
            let writer = thread::spawn(move || {
                changed[1].vacate();
                changed[1].occupy(0x20000, 0x8000);
            });
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
