//! librbd's functions on images: opening, size, watch, lock.

use crate::world::{
    EBADF, EINVAL, ENOENT, ERANGE, EROFS, Handle, Image, UpdateCallback, Watch, World, die, text,
    wait, world,
};
use std::ffi::{CString, c_char, c_int, c_void};

#[repr(C)]
struct Watcher {
    address: *mut c_char,
    id: i64,
    cookie: u64,
}

fn open(
    pool: Handle,
    name: *const c_char,
    image: *mut Handle,
    snapshot: *const c_char,
    is_read_only: bool,
) -> c_int {
    // SAFETY: the caller's strings.
    let (name, snapshot) = unsafe { (text(name).unwrap_or_default(), text(snapshot)) };
    let path = {
        let mut world = world();
        let pool = world.pool(pool);
        match pool.namespace.as_str() {
            "" => format!("{}/{name}", pool.name),
            namespace => format!("{}/{namespace}/{name}", pool.name),
        }
    };
    let mut world = wait(|world| !world.disks.get(&path).is_some_and(|disk| disk.holds_open));
    let Some(disk) = world.disks.get(&path) else {
        return ENOENT;
    };
    if snapshot
        .as_ref()
        .is_some_and(|name| !disk.snapshots.contains_key(name))
    {
        return ENOENT;
    }
    let number = world.number();
    let made = Image {
        pool: pool as usize,
        path,
        address: format!("127.0.0.1:0/{number}"),
        snapshot,
        is_read_only,
        watch: None,
        is_asked: false,
    };
    world.images.insert(number, made);
    world.pool(pool).images += 1;
    // SAFETY: the caller's place for a handle.
    unsafe { *image = number as Handle };
    0
}

#[unsafe(no_mangle)]
extern "C" fn rbd_open(
    pool: Handle,
    name: *const c_char,
    image: *mut Handle,
    snapshot: *const c_char,
) -> c_int {
    if !snapshot.is_null() {
        die("a snapshot opened for writing");
    }
    open(pool, name, image, snapshot, false)
}

#[unsafe(no_mangle)]
extern "C" fn rbd_open_read_only(
    pool: Handle,
    name: *const c_char,
    image: *mut Handle,
    snapshot: *const c_char,
) -> c_int {
    open(pool, name, image, snapshot, true)
}

#[unsafe(no_mangle)]
extern "C" fn rbd_close(image: Handle) -> c_int {
    let mut world = wait(|world| {
        let disk = world.disk_of(image);
        !disk.pending.iter().any(|op| op.handle == image as usize)
    });
    if world.image(image).watch.is_some() {
        die("rbd_close with a watch");
    }
    if world.image(image).is_asked {
        die("rbd_close under a call");
    }
    let Some(closed) = world.images.remove(&(image as usize)) else {
        return EBADF;
    };
    let disk = world.disk(&closed.path);
    if disk.owner.as_ref() == Some(&closed.address) {
        disk.owner = None;
    }
    world.pool(closed.pool as Handle).images -= 1;
    crate::world::CHANGED.notify_all();
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_get_size(image: Handle, size: *mut u64) -> c_int {
    let mut world = wait(|_| true);
    let snapshot = world.image(image).snapshot.clone();
    let disk = world.disk_of(image);
    let data = snapshot.map_or(Some(&disk.data), |name| disk.snapshots.get(&name));
    // SAFETY: the caller's place.
    unsafe { *size = data.map_or(0, Vec::len) as u64 };
    0
}

#[unsafe(no_mangle)]
extern "C" fn rbd_resize(image: Handle, size: u64) -> c_int {
    let mut world = wait(|_| true);
    if world.image(image).is_read_only {
        return EROFS;
    }
    let path = world.image(image).path.clone();
    world.disk(&path).data.resize(size as usize, 0);
    world.updates.push(path);
    crate::world::CHANGED.notify_all();
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_get_features(image: Handle, features: *mut u64) -> c_int {
    // SAFETY: the caller's place.
    unsafe { *features = wait(|_| true).disk_of(image).features };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_update_watch(
    image: Handle,
    handle: *mut u64,
    heard: UpdateCallback,
    arg: *mut c_void,
) -> c_int {
    let mut world = wait(|_| true);
    let number = world.number() as u64;
    let image = world.image(image);
    if image.watch.is_some() {
        die("a second watch");
    }
    image.watch = Some(Watch {
        handle: number,
        heard,
        arg: arg as usize,
    });
    // SAFETY: the caller's place.
    unsafe { *handle = number };
    0
}

#[unsafe(no_mangle)]
extern "C" fn rbd_update_unwatch(image: Handle, handle: u64) -> c_int {
    let mut world = wait(|world| world.calling != Some(handle));
    match world.image(image).watch.take() {
        Some(watch) if watch.handle == handle => 0,
        _ => die("a watch that is none"),
    }
}

/// Whether the client at this address watches the disk.
fn is_alive(world: &World, path: &str, address: &str) -> bool {
    let mut images = world.images.values();
    let is_ours = images.any(|image| image.path == path && image.address == address);
    is_ours
        || world
            .disks
            .get(path)
            .is_some_and(|disk| disk.strangers.contains(address))
}

#[unsafe(no_mangle)]
extern "C" fn rbd_lock_acquire(image: Handle, mode: c_int) -> c_int {
    let mut world = wait(|_| true);
    let opened = world.image(image);
    let (path, address) = (opened.path.clone(), opened.address.clone());
    if opened.is_read_only || mode != 0 {
        return EINVAL;
    }
    match world.disk(&path).owner.clone() {
        Some(owner) if owner != address && is_alive(&world, &path, &owner) => EROFS,
        _ => {
            world.disk(&path).owner = Some(address);
            0
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_lock_break(image: Handle, mode: c_int, owner: *const c_char) -> c_int {
    // SAFETY: the caller's string.
    let owner = unsafe { text(owner) };
    let mut world = wait(|_| true);
    let disk = world.disk_of(image);
    if mode != 0 || owner.is_none() || disk.owner != owner {
        return EINVAL;
    }
    disk.owner = None;
    disk.fenced.extend(owner);
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_lock_get_owners(
    image: Handle,
    mode: *mut c_int,
    owners: *mut *mut c_char,
    count: *mut usize,
) -> c_int {
    let mut world = wait(|_| true);
    let owner = world.disk_of(image).owner.clone();
    let Some(owner) = owner.and_then(|owner| CString::new(owner).ok()) else {
        return ENOENT;
    };
    // SAFETY: the caller's places, as many as `count` says.
    unsafe {
        if *count < 1 {
            *count = 1;
            return ERANGE;
        }
        *mode = 0;
        *count = 1;
        *owners = owner.into_raw();
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_lock_get_owners_cleanup(owners: *mut *mut c_char, count: usize) {
    for index in 0..count {
        // SAFETY: what rbd_lock_get_owners gave.
        drop(unsafe { CString::from_raw(*owners.add(index)) });
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_watchers_list(
    image: Handle,
    watchers: *mut Watcher,
    count: *mut usize,
) -> c_int {
    let mut world = wait(|_| true);
    let path = world.image(image).path.clone();
    let ours = world.images.values().filter(|image| image.path == path);
    let mut addresses: Vec<String> = ours.map(|image| image.address.clone()).collect();
    addresses.extend(world.disk(&path).strangers.iter().cloned());
    // SAFETY: the caller's places, as many as `count` says.
    unsafe {
        let room = *count;
        *count = addresses.len();
        if room < addresses.len() {
            return ERANGE;
        }
        for (index, address) in addresses.into_iter().enumerate() {
            watchers.add(index).write(Watcher {
                address: CString::new(address).unwrap_or_default().into_raw(),
                id: 0,
                cookie: index as u64,
            });
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rbd_watchers_list_cleanup(watchers: *mut Watcher, count: usize) {
    for index in 0..count {
        // SAFETY: what rbd_watchers_list gave.
        drop(unsafe { CString::from_raw((*watchers.add(index)).address) });
    }
}
