//! librados' functions.

use crate::world::{
    Client, EACCES, EINVAL, ENAMETOOLONG, ENOENT, Handle, Pool, die, text, wait, world,
};
use std::ffi::{c_char, c_int};

#[unsafe(no_mangle)]
unsafe extern "C" fn rados_create2(
    cluster: *mut Handle,
    name: *const c_char,
    user: *const c_char,
    flags: u64,
) -> c_int {
    // SAFETY: the caller's strings.
    let (name, user) = unsafe { (text(name), text(user).unwrap_or_default()) };
    if name.as_deref() != Some("ceph") || flags != 0 {
        return EINVAL;
    }
    let Some(user) = user.strip_prefix("client.").filter(|user| !user.is_empty()) else {
        return EINVAL;
    };
    let mut world = world();
    let number = world.number();
    let client = Client {
        user: user.to_owned(),
        conf: Default::default(),
        has_read_conf: false,
        is_connected: false,
        pools: 0,
    };
    world.clients.insert(number, client);
    // SAFETY: the caller's place for a handle.
    unsafe { *cluster = number as Handle };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rados_conf_read_file(cluster: Handle, path: *const c_char) -> c_int {
    // SAFETY: the caller's string.
    let path = unsafe { text(path) };
    // Without a path it looks at CEPH_CONF alone, not at the machine's files.
    let path = path.or_else(|| std::env::var("CEPH_CONF").ok());
    world().client(cluster).has_read_conf = true;
    let Some(text) = path.and_then(|path| std::fs::read_to_string(path).ok()) else {
        return ENOENT;
    };
    let mut world = world();
    let client = world.client(cluster);
    if client.is_connected {
        die("configuration after rados_connect");
    }
    for line in text.lines() {
        if let Some((key, value)) = line.split_once('=') {
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            client.conf.insert(key, value);
        }
    }
    0
}

/// Options that are preferred, as Ceph has them by itself.
const DEFAULTS: [(&str, &str); 6] = [
    ("rbd_non_blocking_aio", "true"),
    ("objecter_inflight_ops", "1024"),
    ("objecter_inflight_op_bytes", "104857600"),
    ("librados_thread_count", "2"),
    ("rbd_io_scheduler", "simple"),
    ("ms_tcp_prefetch_max_size", "4096"),
];

#[unsafe(no_mangle)]
unsafe extern "C" fn rados_conf_get(
    cluster: Handle,
    option: *const c_char,
    value: *mut c_char,
    len: usize,
) -> c_int {
    // SAFETY: the caller's string.
    let option = unsafe { text(option) }.unwrap_or_default();
    let default = DEFAULTS.iter().find(|(name, _)| *name == option);
    let default = default.map(|(_, default)| default.to_string());
    let found = world()
        .client(cluster)
        .conf
        .get(&option)
        .cloned()
        .or(default);
    let Some(found) = found else {
        return ENOENT;
    };
    if found.len() >= len {
        return ENAMETOOLONG;
    }
    for (place, byte) in found.bytes().chain([0]).enumerate() {
        // SAFETY: the caller's place of `len` bytes, which has room for these.
        unsafe { *value.add(place) = byte as c_char };
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rados_conf_set(
    cluster: Handle,
    option: *const c_char,
    value: *const c_char,
) -> c_int {
    // SAFETY: the caller's strings.
    let (option, value) = unsafe { (text(option), text(value)) };
    let (Some(option), Some(value)) = (option, value) else {
        die("rados_conf_set with null");
    };
    let known = [
        "keyring",
        "key",
        "rbd_cache",
        "client_mount_timeout",
        "mon_host",
        "auth_client_required",
    ];
    let is_default = DEFAULTS.iter().any(|(name, _)| *name == option);
    if !is_default && !known.contains(&option.as_str()) {
        return ENOENT;
    }
    let mut world = world();
    let client = world.client(cluster);
    if client.is_connected || !client.has_read_conf {
        die("rados_conf_set before the configuration file, or after rados_connect");
    }
    client.conf.insert(option, value);
    0
}

#[unsafe(no_mangle)]
extern "C" fn rados_connect(cluster: Handle) -> c_int {
    let mut world = wait(|_| true);
    let client = world.client(cluster);
    if client.is_connected {
        die("rados_connect twice");
    }
    let (user, conf) = (client.user.clone(), client.conf.clone());
    // A user that no test has made needs no key.
    if let Some(wanted) = world.keys.get(&user) {
        let keyring = conf.get("keyring").map(std::fs::read_to_string);
        let given = match (conf.get("key"), keyring) {
            (Some(key), _) => key.clone(),
            (None, Some(Ok(keyring))) => keyring,
            _ => return ENOENT,
        };
        if !given.contains(wanted) {
            return EACCES;
        }
    }
    world.client(cluster).is_connected = true;
    0
}

#[unsafe(no_mangle)]
extern "C" fn rados_shutdown(cluster: Handle) {
    let mut world = wait(|_| true);
    if world.client(cluster).pools > 0 {
        die("rados_shutdown with an I/O context open");
    }
    world.clients.remove(&(cluster as usize));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rados_ioctx_create(
    cluster: Handle,
    name: *const c_char,
    pool: *mut Handle,
) -> c_int {
    // SAFETY: the caller's string.
    let name = unsafe { text(name) }.unwrap_or_default();
    let mut world = wait(|_| true);
    if !world.client(cluster).is_connected {
        die("rados_ioctx_create before rados_connect");
    }
    let prefix = format!("{name}/");
    if !world.disks.keys().any(|path| path.starts_with(&prefix)) {
        return ENOENT;
    }
    let number = world.number();
    let made = Pool {
        client: cluster as usize,
        name,
        namespace: String::new(),
        images: 0,
    };
    world.pools.insert(number, made);
    world.client(cluster).pools += 1;
    // SAFETY: the caller's place for a handle.
    unsafe { *pool = number as Handle };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rados_ioctx_set_namespace(pool: Handle, namespace: *const c_char) {
    // SAFETY: the caller's string.
    let namespace = unsafe { text(namespace) }.unwrap_or_default();
    let mut world = world();
    let pool = world.pool(pool);
    if pool.images > 0 {
        die("rados_ioctx_set_namespace with an image open");
    }
    pool.namespace = namespace;
}

#[unsafe(no_mangle)]
extern "C" fn rados_ioctx_destroy(pool: Handle) {
    let mut world = wait(|_| true);
    if world.pool(pool).images > 0 {
        die("rados_ioctx_destroy with an image open");
    }
    let client = world.pool(pool).client;
    world.pools.remove(&(pool as usize));
    world.client(client as Handle).pools -= 1;
}
