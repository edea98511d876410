//! The objects that an image consists of, of which the cluster keeps a map. All of this may wait for
//! the cluster.

use super::{Image, check};
use crate::library::{FEATURE_FAST_DIFF, FLAGS_INVALID, Handle, ImageInfo};
use rustix::io::Errno;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null;
use vduse_device::Extent;

impl Image {
    /// Whether the cluster knows which objects there are, and an object that is not there is a hole
    /// of the image: the map is valid, objects follow each other, and there is no parent whose data
    /// shows through.
    pub(crate) fn has_object_map(&self) -> Result<bool, Errno> {
        let rbd = &self.library().rbd;
        Ok(self.features()? & FEATURE_FAST_DIFF != 0
            && self.number(rbd.rbd_get_flags)? & FLAGS_INVALID == 0
            && self.number(rbd.rbd_get_stripe_count)? == 1
            && self.number(rbd.rbd_get_overlap)? == 0)
    }

    /// Bytes of an object, a power of two.
    pub(crate) fn object_size(&self) -> Result<u64, Errno> {
        let rbd = &self.library().rbd;
        let mut info = MaybeUninit::<ImageInfo>::zeroed();
        let room = size_of::<ImageInfo>();
        // SAFETY: our handle, a place of the size that is said.
        check(unsafe { (rbd.rbd_stat)(self.handle, info.as_mut_ptr(), room) })?;
        // SAFETY: integers alone, zeroes before librbd wrote there.
        Ok(unsafe { info.assume_init() }.object_size)
    }

    /// Where objects are, in `extent`: bytes of the image. It begins with an object and ends with
    /// one, or beyond the image: librbd before 17 answers wrongly about parts of objects.
    pub(crate) fn objects(&self, extent: Extent) -> Result<Vec<Range<u64>>, Errno> {
        let rbd = &self.library().rbd;
        let mut found: Vec<Range<u64>> = Vec::new();
        let (offset, len) = (extent.offset().0, extent.len().0);
        let into: *mut Vec<Range<u64>> = &mut found;
        // SAFETY: our handle; null is the image's beginning; parents are included, and objects are
        // whole. The callback is called until this returns, and so long the vector is its own.
        check(unsafe {
            (rbd.rbd_diff_iterate2)(
                self.handle,
                null(),
                offset,
                len,
                1,
                1,
                on_object,
                into.cast(),
            )
        })?;
        Ok(found)
    }

    /// What one of librbd's calls says of the image.
    pub(super) fn number(
        &self,
        get: unsafe extern "C" fn(Handle, *mut u64) -> c_int,
    ) -> Result<u64, Errno> {
        let mut number = 0;
        // SAFETY: our handle, and a place for the number; `get` is one of librbd's that take these.
        check(unsafe { get(self.handle, &mut number) })?;
        Ok(number)
    }
}

extern "C" fn on_object(offset: u64, len: usize, exists: c_int, found: *mut c_void) -> c_int {
    if exists != 0 {
        // SAFETY: what `objects` gave; it is not used elsewhere meanwhile.
        let found = unsafe { &mut *found.cast::<Vec<Range<u64>>>() };
        found.push(offset..offset.saturating_add(len as u64));
    }
    0
}
