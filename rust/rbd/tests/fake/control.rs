//! What tests do to the cluster. A path is `POOL/[NAMESPACE/]IMAGE`.

use crate::world::{CHANGED, Disk, World, die, text, wait, world};
use std::ffi::{c_char, c_int};

fn with(path: *const c_char, change: impl FnOnce(&mut World, &str)) {
    // SAFETY: the test's string.
    let path = unsafe { text(path) }.unwrap_or_default();
    change(&mut world(), &path);
    CHANGED.notify_all();
}

/// A disk of zeroes.
#[unsafe(no_mangle)]
extern "C" fn fake_create(path: *const c_char, size: u64, features: u64) {
    with(path, |world, path| {
        let disk = Disk {
            data: vec![0; size as usize],
            features,
            stripes: 1,
            ..Disk::default()
        };
        if world.disks.insert(path.to_owned(), disk).is_some() {
            die("two images of one name");
        }
    });
}

/// A snapshot of what is there now.
#[unsafe(no_mangle)]
extern "C" fn fake_snapshot(path: *const c_char, name: *const c_char) {
    // SAFETY: the test's string.
    let name = unsafe { text(name) }.unwrap_or_default();
    with(path, |world, path| {
        let disk = world.disk(path);
        let data = disk.data.clone();
        disk.snapshots.insert(name, data);
    });
}

/// A user who needs this key.
#[unsafe(no_mangle)]
extern "C" fn fake_user(id: *const c_char, key: *const c_char) {
    // SAFETY: the test's string.
    let key = unsafe { text(key) }.unwrap_or_default();
    with(id, |world, id| {
        world.keys.insert(id.to_owned(), key);
    });
}

/// What is said of the disk's objects.
#[unsafe(no_mangle)]
extern "C" fn fake_layout(path: *const c_char, flags: u64, stripes: u64, overlap: u64) {
    with(path, |world, path| {
        let disk = world.disk(path);
        (disk.flags, disk.stripes, disk.overlap) = (flags, stripes, overlap);
    });
}

/// Waits until somebody asks which objects there are.
#[unsafe(no_mangle)]
extern "C" fn fake_wait_asked(path: *const c_char) {
    // SAFETY: the test's string.
    let path = unsafe { text(path) }.unwrap_or_default();
    drop(wait(|world| {
        let mut images = world.images.values();
        images.any(|image| image.path == path && image.is_asked)
    }));
}

/// Operations wait until this is taken back.
#[unsafe(no_mangle)]
extern "C" fn fake_hold(path: *const c_char, holds: bool) {
    with(path, |world, path| world.disk(path).holds = holds);
}

/// One operation ends though the others wait.
#[unsafe(no_mangle)]
extern "C" fn fake_pass(path: *const c_char) {
    with(path, |world, path| world.disk(path).passes += 1);
}

/// Opening waits until this is taken back.
#[unsafe(no_mangle)]
extern "C" fn fake_hold_open(path: *const c_char, holds: bool) {
    with(path, |world, path| world.disk(path).holds_open = holds);
}

/// The next operation ends so: a negative errno.
#[unsafe(no_mangle)]
extern "C" fn fake_fail(path: *const c_char, outcome: c_int) {
    with(path, |world, path| {
        world.disk(path).failures.push_back(outcome)
    });
}

/// The next operation is not started.
#[unsafe(no_mangle)]
extern "C" fn fake_refuse(path: *const c_char, outcome: c_int) {
    with(path, |world, path| {
        world.disk(path).refusals.push_back(outcome)
    });
}

/// The next read gets half of what it wants.
#[unsafe(no_mangle)]
extern "C" fn fake_short_read(path: *const c_char) {
    with(path, |world, path| world.disk(path).short_reads += 1);
}

/// The disk has another size; its watchers are told.
#[unsafe(no_mangle)]
extern "C" fn fake_resize(path: *const c_char, size: u64) {
    with(path, |world, path| {
        world.disk(path).data.resize(size as usize, 0);
        world.updates.push(path.to_owned());
    });
}

/// A client elsewhere has the lock.
#[unsafe(no_mangle)]
extern "C" fn fake_owner(path: *const c_char, address: *const c_char, is_alive: bool) {
    // SAFETY: the test's string.
    let address = unsafe { text(address) }.unwrap_or_default();
    with(path, |world, path| {
        let disk = world.disk(path);
        if is_alive {
            disk.strangers.insert(address.clone());
        }
        disk.owner = Some(address);
    });
}

/// Whether anybody has the lock.
#[unsafe(no_mangle)]
extern "C" fn fake_is_locked(path: *const c_char) -> bool {
    let mut is_locked = false;
    with(path, |world, path| {
        is_locked = world.disk(path).owner.is_some()
    });
    is_locked
}

/// Waits until so many operations are under way.
#[unsafe(no_mangle)]
extern "C" fn fake_wait_pending(path: *const c_char, count: usize) {
    // SAFETY: the test's string.
    let path = unsafe { text(path) }.unwrap_or_default();
    drop(wait(|world| world.disk(&path).pending.len() == count));
}

/// Waits until the disk is open so many times.
#[unsafe(no_mangle)]
extern "C" fn fake_wait_open(path: *const c_char, count: usize) {
    // SAFETY: the test's string.
    let path = unsafe { text(path) }.unwrap_or_default();
    drop(wait(|world| {
        world
            .images
            .values()
            .filter(|image| image.path == path)
            .count()
            == count
    }));
}

/// How many operations have ended, of this kind: r w d z f.
#[unsafe(no_mangle)]
extern "C" fn fake_ended(path: *const c_char, kind: c_char) -> usize {
    let mut ended = 0;
    with(path, |world, path| {
        let log = world.disk(path).log.bytes();
        ended = log.filter(|&it| it == kind as u8).count();
    });
    ended
}
