//! What a future brings without waiting. While it is polled for that, nothing is asked of any file:
//! dropped afterwards, it would leave operations under way that nobody waits for, and an old copy of
//! a table could be written after a newer one.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
}

/// Whether [`at_once`] is polling on this thread.
pub(crate) fn is_on() -> bool {
    IS_ON.get()
}

struct On;

impl Drop for On {
    fn drop(&mut self) {
        IS_ON.set(false);
    }
}

/// What a future brings if it need not wait; it is dropped.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    IS_ON.set(true);
    let _on = On;
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_future_learns_that_it_is_only_looked_at() {
        assert_eq!(at_once(async { is_on() }), Some(true));
        assert_eq!(at_once(std::future::pending::<()>()), None);
        assert!(!is_on());
    }
}
