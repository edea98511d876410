//! A worker's Python thread state, kept between calls: to make one and throw it away for every
//! batch costs several system calls (its stack of frames is mapped and unmapped).

use crate::gate;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;

thread_local! {
    static KEPT: RefCell<Option<Attachment>> = const { RefCell::new(None) };
}

/// From now on the calling thread's thread state lives as long as the thread. For threads of our
/// own alone: Python ends those of its own threads itself.
pub fn keep(py: Python<'_>) {
    KEPT.with_borrow_mut(|kept| {
        kept.get_or_insert_with(|| Attachment::keep(py));
    });
}

/// Keeps the calling thread's thread state alive. Not to leave the thread.
struct Attachment(PhantomData<*const ()>);

impl Attachment {
    /// For a thread that is attached now.
    fn keep(_: Python<'_>) -> Attachment {
        // SAFETY: the thread is attached, so this counts one more user of its thread state and
        // changes nothing else; `drop` takes it back.
        unsafe { ffi::PyGILState_Ensure() };
        Attachment(PhantomData)
    }
}

impl Drop for Attachment {
    /// At the thread's end; past the interpreter's there is nothing to give back.
    fn drop(&mut self) {
        gate::attach(|_| {
            // SAFETY: the counterpart of `keep`, on the same thread, attached both times: the
            // state it returned was "locked", and the count is at least two. The state itself
            // goes with the attachment that is at hand.
            unsafe { ffi::PyGILState_Release(ffi::PyGILState_STATE::PyGILState_LOCKED) };
        });
    }
}
