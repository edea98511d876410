//! A worker's Python thread state, kept between calls: to make one and throw it away for every
//! batch costs several system calls (its stack of frames is mapped and unmapped).

use pyo3::ffi;
use pyo3::prelude::*;
use std::marker::PhantomData;

/// Keeps the calling thread's thread state alive. Not to leave the thread.
pub(super) struct Attachment(PhantomData<*const ()>);

impl Attachment {
    /// For a thread that is attached now.
    pub(super) fn keep(_: Python<'_>) -> Attachment {
        // SAFETY: the thread is attached, so this counts one more user of its thread state and
        // changes nothing else; `release` takes it back.
        unsafe { ffi::PyGILState_Ensure() };
        Attachment(PhantomData)
    }

    /// The thread state goes with the attachment that is at hand.
    pub(super) fn release(self, _: Python<'_>) {
        // SAFETY: the counterpart of `keep`, on the same thread, attached both times: the
        // state it returned was "locked", and the count is at least two.
        unsafe { ffi::PyGILState_Release(ffi::PyGILState_STATE::PyGILState_LOCKED) };
    }
}
