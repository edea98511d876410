//! librbd's functions on the objects of an image. One is there if a byte in it is not 0.

use crate::world::{CHANGED, EINVAL, Handle, die, wait};
use std::ffi::{c_char, c_int, c_void};

/// Bytes.
const OBJECT: u64 = 64 << 10;
const FAST_DIFF: u64 = 1 << 4;

/// The beginning of `rbd_image_info_t`.
#[repr(C)]
struct Info {
    size: u64,
    object_size: u64,
    objects: u64,
}
/// The whole of it, in bytes.
const INFO: usize = 160;

type Found = extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_get_flags(image: Handle, flags: *mut u64) -> c_int {
    // SAFETY: the caller's place.
    unsafe { *flags = wait(|_| true).disk_of(image).flags };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_get_stripe_count(image: Handle, count: *mut u64) -> c_int {
    // SAFETY: the caller's place.
    unsafe { *count = wait(|_| true).disk_of(image).stripes };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_get_overlap(image: Handle, overlap: *mut u64) -> c_int {
    // SAFETY: the caller's place.
    unsafe { *overlap = wait(|_| true).disk_of(image).overlap };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_stat(image: Handle, info: *mut Info, room: usize) -> c_int {
    if room != INFO {
        die("the size of rbd_image_info_t");
    }
    let size = wait(|_| true).disk_of(image).data.len() as u64;
    let told = Info {
        size,
        object_size: OBJECT,
        objects: size.div_ceil(OBJECT),
    };
    // SAFETY: the caller's place.
    unsafe { info.write(told) };
    0
}

/// Stricter than librbd: one caller at a time, whole objects, a map that is valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_diff_iterate2(
    image: Handle,
    from: *const c_char,
    offset: u64,
    len: u64,
    include_parent: u8,
    whole_object: u8,
    found: Found,
    arg: *mut c_void,
) -> c_int {
    let mut world = wait(|_| true);
    let disk = world.disk_of(image);
    if disk.features & FAST_DIFF == 0 || disk.flags != 0 || disk.stripes != 1 || disk.overlap != 0 {
        die("a question about objects that nobody has counted");
    }
    if !from.is_null() || include_parent != 1 || whole_object != 1 || offset % OBJECT != 0 {
        die("arguments of rbd_diff_iterate2");
    }
    let opened = world.image(image);
    if std::mem::replace(&mut opened.is_asked, true) {
        die("two questions at once");
    }
    drop(world);
    CHANGED.notify_all();
    let mut world = wait(|world| !world.disk_of(image).holds);
    let snapshot = world.image(image).snapshot.clone();
    let disk = world.disk_of(image);
    let data = match snapshot.and_then(|name| disk.snapshots.get(&name)) {
        Some(data) => data,
        None => &disk.data,
    };
    let size = data.len() as u64;
    let there: Vec<(u64, u64)> = (offset..offset.saturating_add(len).min(size))
        .step_by(OBJECT as usize)
        .map(|object| (object, OBJECT.min(size - object)))
        .filter(|&(at, len)| {
            data[at as usize..][..len as usize]
                .iter()
                .any(|&byte| byte != 0)
        })
        .collect();
    drop(world);
    let mut outcome = if offset < size { 0 } else { EINVAL };
    for (object, len) in there {
        outcome = found(object, len as usize, 1, arg);
        if outcome < 0 {
            break;
        }
    }
    wait(|_| true).image(image).is_asked = false;
    CHANGED.notify_all();
    outcome
}
