//! Private memory aligned for O_DIRECT.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes at an address that is a multiple of the alignment.
pub(super) struct Aligned {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: owned memory, like a Vec.
unsafe impl Send for Aligned {}

impl Aligned {
    /// `len` zero bytes; `align` is a power of two.
    pub(super) fn zeroed(len: usize, align: usize) -> Aligned {
        let layout = Layout::from_size_align(len.max(1), align).expect("a power of two");
        // SAFETY: the layout has a size.
        let Some(ptr) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        Aligned { ptr, layout }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: initialised (zeroed) memory of this size, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
    }
}
