//! A table that one side publishes in generations and others fetch into: the protocol of the
//! IOTLB, apart from what the table holds so that loom can run it.

use crate::sync::{AtomicU64, Mutex, lock};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Fetches that a new generation overtakes are repeated this often. Each publisher waits for
/// the fetcher's acknowledgement, so one repetition is the usual case.
const ATTEMPTS: usize = 8;

/// The shared table and its generation.
pub(crate) struct Published<T> {
    generation: AtomicU64,
    /// Held for moments only, never while anything is waited for.
    table: Mutex<T>,
    /// Held while something is fetched: others that miss the same thing find it afterwards.
    fetching: Mutex<()>,
}

impl<T> Published<T> {
    pub(crate) fn new(table: T) -> Published<T> {
        Published {
            generation: AtomicU64::new(0),
            table: Mutex::new(table),
            fetching: Mutex::new(()),
        }
    }

    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Changes the table and starts a new generation: what was fetched before and is not in
    /// the table now is not used after this by anybody who has seen the new generation.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut T)) -> u64 {
        let mut table = lock(&self.table);
        change(&mut table);
        let generation = self.generation.load(Relaxed) + 1;
        self.generation.store(generation, Release);
        generation
    }

    /// Looks at the table.
    pub(crate) fn read<V>(&self, look: impl FnOnce(&T) -> V) -> V {
        look(&lock(&self.table))
    }

    /// Finds something in the table; failing that fetches it (with no lock of the table held)
    /// and inserts it, unless a new generation came meanwhile: then it starts again. `None`
    /// when generations came too fast.
    pub(crate) fn find_or_fetch<F, V, E>(
        &self,
        find: impl Fn(&T) -> Option<V>,
        mut fetch: impl FnMut() -> Result<F, E>,
        mut insert: impl FnMut(&mut T, F) -> Result<V, E>,
    ) -> Option<Result<V, E>> {
        if let Some(found) = find(&lock(&self.table)) {
            return Some(Ok(found));
        }
        let _fetching = lock(&self.fetching);
        for _ in 0..ATTEMPTS {
            let before = {
                let table = lock(&self.table);
                if let Some(found) = find(&table) {
                    return Some(Ok(found));
                }
                self.generation.load(Relaxed)
            };
            let fetched = fetch();
            let mut table = lock(&self.table);
            if self.generation.load(Relaxed) == before {
                return Some(fetched.and_then(|fetched| insert(&mut table, fetched)));
            }
        }
        None
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::Published;
    use loom::sync::Arc;
    use loom::sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    };
    use loom::thread;

    /// A framework that replaces mapping 1 by mapping 2 and takes mapping 1's memory back
    /// once the worker has acknowledged.
    struct World {
        published: Published<Option<u64>>,
        /// What the framework's resolver answers.
        mapped: AtomicU64,
        acknowledged: AtomicU64,
        taken_back: AtomicBool,
    }

    impl World {
        fn new() -> Arc<World> {
            Arc::new(World {
                published: Published::new(None),
                mapped: AtomicU64::new(1),
                acknowledged: AtomicU64::new(0),
                taken_back: AtomicBool::new(false),
            })
        }

        /// A look-up: what `View::find` does on a miss.
        fn mapping(&self) -> u64 {
            let fetch = || Ok::<_, ()>(self.mapped.load(Acquire));
            let insert = |table: &mut Option<u64>, mapping| {
                assert_eq!(table.replace(mapping), None, "fetched twice");
                Ok(mapping)
            };
            let found = self.published.find_or_fetch(|table| *table, fetch, insert);
            found.unwrap().unwrap()
        }

        /// Batches of one worker, with a private table as `View` has it.
        fn work(&self, batches: usize, acknowledge: bool) {
            let (mut generation, mut own) = (self.published.generation(), None);
            for _ in 0..batches {
                let now = self.published.generation();
                if now != generation {
                    (generation, own) = (now, None);
                }
                if acknowledge {
                    self.acknowledged.store(generation, Release);
                }
                let mapping = *own.get_or_insert_with(|| self.mapping());
                if generation > 0 {
                    assert_eq!(mapping, 2, "old mapping at the new generation");
                }
                if acknowledge && self.taken_back.load(Acquire) {
                    assert_eq!(mapping, 2, "memory used after its acknowledgement");
                }
            }
        }

        fn replace_mapping(&self) {
            self.mapped.store(2, Release);
            let generation = self.published.publish(|table| *table = None);
            assert_eq!(generation, 1);
            if self.acknowledged.load(Acquire) >= generation {
                self.taken_back.store(true, Release);
            }
        }
    }

    #[test]
    fn loom_acknowledged_generation_uses_no_old_mapping() {
        loom::model(|| {
            let world = World::new();
            let worker = world.clone();
            let worker = thread::spawn(move || worker.work(3, true));
            world.replace_mapping();
            worker.join().unwrap();
            assert_eq!(world.mapped.load(Relaxed), 2);
        });
    }

    #[test]
    fn loom_two_workers_fetch_once_a_generation() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3); // keeps three threads to seconds
        model.check(|| {
            let world = World::new();
            let workers = [(); 2].map(|()| {
                let world = world.clone();
                thread::spawn(move || world.work(2, false))
            });
            world.replace_mapping();
            for worker in workers {
                worker.join().unwrap();
            }
        });
    }
}
