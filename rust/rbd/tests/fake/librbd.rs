//! A librados and librbd of its own, in one object, for tests without a cluster. Stricter than
//! the real ones: whatever they leave undefined (a handle used after it was closed, memory that
//! changes under an operation, a call that waits on librbd's own thread) ends the process.
//! Operations end in the wrong order.

mod control;
mod image;
mod objects;
mod rados;
mod world;

use std::ffi::{c_int, c_void};
use world::{
    Callback, Completion, EROFS, Handle, Iov, Kind, Op, copy_in, copy_out, die, sum, world,
};

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_aio_create_completion(
    arg: *mut c_void,
    callback: Callback,
    completion: *mut Handle,
) -> c_int {
    let mut world = world();
    let number = world.number();
    let made = Completion {
        arg: arg as usize,
        callback,
        is_started: false,
        value: None,
    };
    world.completions.insert(number, made);
    // SAFETY: the caller's place for a handle.
    unsafe { *completion = number as Handle };
    0
}

#[unsafe(no_mangle)]
extern "C" fn rbd_aio_get_return_value(completion: Handle) -> isize {
    match world().completion(completion as usize).value {
        Some(value) => value,
        None => die("the return value of what has not ended"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn rbd_aio_release(completion: Handle) {
    let mut world = world();
    let released = world.completion(completion as usize);
    if released.is_started && released.value.is_none() {
        die("a completion released before its operation has ended");
    }
    world.completions.remove(&(completion as usize));
}

/// Starts an operation, or refuses it.
fn start(image: Handle, completion: Handle, mut op: Op) -> c_int {
    let mut world = world();
    let completion = completion as usize;
    if world.completion(completion).is_started {
        die("a completion given to two operations");
    }
    let is_read_only = world.image(image).is_read_only;
    let disk = world.disk_of(image);
    if let Some(refusal) = disk.refusals.pop_front() {
        return refusal;
    }
    op.fails = disk.failures.pop_front().unwrap_or(0);
    match op.kind {
        Kind::Read => {
            op.is_short = disk.short_reads > 0;
            disk.short_reads -= usize::from(op.is_short);
            for piece in &op.pieces {
                copy_out(&[*piece], &vec![0xA5; piece.len]);
            }
        }
        Kind::Flush => (),
        _ if is_read_only => op.fails = EROFS,
        _ => (),
    }
    op.sum = sum(&copy_in(&op.pieces));
    disk.pending.push(op);
    world.completion(completion).is_started = true;
    world::CHANGED.notify_all();
    0
}

fn op(kind: Kind, image: Handle, offset: u64, len: u64, completion: Handle) -> Op {
    Op {
        kind,
        handle: image as usize,
        offset,
        len,
        iov: std::ptr::null(),
        pieces: Vec::new(),
        sum: 0,
        completion: completion as usize,
        fails: 0,
        is_short: false,
    }
}

/// An operation with data.
///
/// # Safety
/// The array has `count` pieces.
unsafe fn op_with(
    kind: Kind,
    image: Handle,
    offset: u64,
    (iov, count): (*const Iov, c_int),
    completion: Handle,
) -> Op {
    if iov.is_null() || count <= 0 {
        die("no pieces");
    }
    // SAFETY: the caller's promise.
    let pieces = unsafe { std::slice::from_raw_parts(iov, count as usize) }.to_vec();
    let len = pieces.iter().map(|piece| piece.len as u64).sum();
    Op {
        iov,
        pieces,
        ..op(kind, image, offset, len, completion)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_aio_readv(
    image: Handle,
    iov: *const Iov,
    count: c_int,
    offset: u64,
    completion: Handle,
) -> c_int {
    // SAFETY: the caller's array.
    let op = unsafe { op_with(Kind::Read, image, offset, (iov, count), completion) };
    start(image, completion, op)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_aio_writev(
    image: Handle,
    iov: *const Iov,
    count: c_int,
    offset: u64,
    completion: Handle,
) -> c_int {
    // SAFETY: the caller's array.
    let op = unsafe { op_with(Kind::Write, image, offset, (iov, count), completion) };
    start(image, completion, op)
}

#[unsafe(no_mangle)]
extern "C" fn rbd_aio_discard(image: Handle, offset: u64, len: u64, completion: Handle) -> c_int {
    start(
        image,
        completion,
        op(Kind::Discard, image, offset, len, completion),
    )
}

#[unsafe(no_mangle)]
extern "C" fn rbd_aio_write_zeroes(
    image: Handle,
    offset: u64,
    len: usize,
    completion: Handle,
    zero_flags: c_int,
    op_flags: c_int,
) -> c_int {
    if !matches!(zero_flags, 0 | 1) || op_flags != 0 {
        die("flags of rbd_aio_write_zeroes");
    }
    start(
        image,
        completion,
        op(Kind::WriteZeroes, image, offset, len as u64, completion),
    )
}

#[unsafe(no_mangle)]
extern "C" fn rbd_aio_flush(image: Handle, completion: Handle) -> c_int {
    start(image, completion, op(Kind::Flush, image, 0, 0, completion))
}
