//! Polls the futures of one image, on the thread of its task. What panics ends that future alone;
//! its owner hears of it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// What is ready to be polled.
struct Ready {
    state: Mutex<ReadyState>,
    /// Makes the task run.
    bell: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct ReadyState {
    keys: Vec<usize>,
    /// The task looks by itself.
    is_awake: bool,
}

struct Key {
    key: usize,
    ready: Arc<Ready>,
}

impl Wake for Key {
    fn wake(self: Arc<Key>) {
        self.ready.push(self.key);
    }

    fn wake_by_ref(self: &Arc<Key>) {
        self.ready.push(self.key);
    }
}

impl Ready {
    fn push(&self, key: usize) {
        let is_awake = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.keys.push(key);
            state.is_awake
        };
        if !is_awake {
            (self.bell)();
        }
    }

    /// What is ready; the task looks by itself from now on.
    fn take(&self) -> Vec<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_awake = true;
        std::mem::take(&mut state.keys)
    }

    /// Whether nothing is ready; then the bell is rung for what is.
    fn sleep(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_awake = !state.keys.is_empty();
        !state.is_awake
    }
}

/// A panic has ended a future.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Panicked;

struct Entry<T, O> {
    future: Pin<Box<dyn Future<Output = T>>>,
    waker: Waker,
    owner: O,
}

/// Futures that end in `T`, each with its owner.
pub(crate) struct Executor<T, O> {
    ready: Arc<Ready>,
    entries: Vec<Option<Entry<T, O>>>,
    free: Vec<usize>,
}

impl<T, O> Executor<T, O> {
    /// `bell` makes [`Executor::turn`] be called.
    pub(crate) fn new(bell: impl Fn() + Send + Sync + 'static) -> Executor<T, O> {
        Executor {
            ready: Arc::new(Ready {
                state: Mutex::default(),
                bell: Box::new(bell),
            }),
            entries: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Futures that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Takes a future; it is polled at the next turn.
    pub(crate) fn spawn(&mut self, owner: O, future: impl Future<Output = T> + 'static) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        let ready = self.ready.clone();
        let entry = Entry {
            future: Box::pin(future),
            waker: Arc::new(Key { key, ready }).into(),
            owner,
        };
        entry.waker.wake_by_ref();
        self.entries[key] = Some(entry);
    }

    /// Polls what is ready, once each; what has ended goes into `ended`. Whether anything was.
    pub(crate) fn turn(&mut self, ended: &mut Vec<(O, Result<T, Panicked>)>) -> bool {
        let keys = self.ready.take();
        for &key in &keys {
            // Woken twice, or by a waker that has outlived its future: one poll too many.
            let Some(Some(entry)) = self.entries.get_mut(key) else {
                continue;
            };
            let mut context = Context::from_waker(&entry.waker);
            let poll = || entry.future.as_mut().poll(&mut context);
            let result = match catch_unwind(AssertUnwindSafe(poll)) {
                Ok(Poll::Pending) => continue,
                Ok(Poll::Ready(value)) => Ok(value),
                Err(_) => Err(Panicked),
            };
            ended.extend(self.remove(key).map(|owner| (owner, result)));
        }
        !keys.is_empty()
    }

    /// Drops all futures; their owners.
    pub(crate) fn clear(&mut self) -> Vec<O> {
        let keys = 0..self.entries.len();
        keys.filter_map(|key| self.remove(key)).collect()
    }

    /// Whether there is nothing to poll; if so, the bell tells of what is.
    pub(crate) fn sleep(&mut self) -> bool {
        self.ready.sleep()
    }

    fn remove(&mut self, key: usize) -> Option<O> {
        let Entry { future, owner, .. } = self.entries.get_mut(key)?.take()?;
        self.free.push(key);
        // What panicked once may do so again.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
        Some(owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    type Numbers = Executor<u32, &'static str>;
    type Ended = Vec<(&'static str, Result<u32, Panicked>)>;

    fn executor() -> (Numbers, Arc<AtomicUsize>) {
        let rung = Arc::new(AtomicUsize::new(0));
        let bell = rung.clone();
        let ring = move || {
            bell.fetch_add(1, Ordering::Relaxed);
        };
        (Executor::new(ring), rung)
    }

    #[test]
    fn a_future_is_polled_when_it_was_woken_and_its_owner_hears_of_the_end() {
        let (mut executor, _) = executor();
        let (send, receive) = oneshot::channel();
        executor.spawn("one", async { receive.await.unwrap_or(0) });
        let mut ended: Ended = Vec::new();
        assert!(executor.turn(&mut ended));
        assert!(!executor.turn(&mut ended), "nothing has woken it");
        send.send(5).unwrap();
        assert!(executor.turn(&mut ended));
        assert_eq!((ended, executor.len()), (vec![("one", Ok(5))], 0));
    }

    #[test]
    fn the_bell_is_rung_only_for_who_sleeps() {
        let (mut executor, rung) = executor();
        let (send, receive) = oneshot::channel();
        executor.spawn("one", async { receive.await.unwrap_or(0) });
        assert!(!executor.sleep(), "something is ready");
        let mut ended: Ended = Vec::new();
        executor.turn(&mut ended);
        assert!(executor.sleep());
        let before = rung.load(Ordering::Relaxed);
        send.send(5).unwrap();
        assert_eq!(rung.load(Ordering::Relaxed), before + 1);
        assert!(executor.turn(&mut ended));
    }

    #[test]
    fn a_panic_ends_one_future() {
        let (mut executor, _) = executor();
        executor.spawn("bad", async { panic!("as intended") });
        executor.spawn("good", async { 7 });
        let mut ended: Ended = Vec::new();
        executor.turn(&mut ended);
        assert_eq!(ended, [("bad", Err(Panicked)), ("good", Ok(7))]);
    }

    #[test]
    fn a_waker_that_outlives_its_future_wakes_at_most_another_one() {
        let (mut executor, _) = executor();
        let (send, receive) = oneshot::channel::<u32>();
        executor.spawn("gone", async { receive.await.unwrap_or(0) });
        let mut ended: Ended = Vec::new();
        executor.turn(&mut ended);
        assert_eq!(executor.clear(), ["gone"]);
        let _ = send.send(1);
        executor.spawn("next", async { 2 });
        executor.turn(&mut ended);
        assert_eq!(ended, [("next", Ok(2))]);
    }
}
