//! How a cluster is reached and an image of it opened, and what is wrong when it is not.

use crate::library::Library;
use crate::session::{Cluster, Image, seconds};
use crate::{Key, Options};
use rustix::io::Errno;
use std::ffi::CStr;
use vduse_device::backend::Error;

/// What is set where the configuration leaves it as Ceph has it: a request passes fewer threads on
/// its way, each of which would have to be woken, and shares a system call. Options, their defaults
/// in Ceph, values.
const PREFERRED: [(&CStr, &CStr, &str); 6] = [
    // The worker itself starts a request, where a thread of librbd's would. Nothing on that way
    // waits for the cluster once the two limits are gone: beyond them it would wait for answers. A
    // virtqueue has its own limit.
    (c"rbd_non_blocking_aio", c"true", "false"),
    (c"objecter_inflight_ops", c"1024", "0"),
    (c"objecter_inflight_op_bytes", c"104857600", "0"),
    // Of the threads that end requests; they take turns at what little there is to do.
    (c"librados_thread_count", c"2", "1"),
    // It holds writes back that others of the same object may be put together with.
    (c"rbd_io_scheduler", c"simple", "none"),
    // Bytes read from a TCP connection at once: several small answers, where one would be cut in
    // two. What is larger is read into its place, but for what came with its head.
    (c"ms_tcp_prefetch_max_size", c"4096", "16384"),
];

/// Connects to the cluster and opens the image.
pub(crate) fn connect(library: &'static Library, options: &Options) -> Result<Image, Error> {
    let spec = options.spec();
    let user = options.id.as_deref().unwrap_or("admin");
    let failed =
        |what: String| move |error: Error| Error::new(error.errno, format!("{what}: {error}"));
    let cluster = Cluster::new(library, &format!("client.{user}"))?;
    let conf = options.conf.as_deref();
    match (cluster.read_conf(conf), conf) {
        (Ok(()), _) => (),
        (Err(error), Some(path)) => return Err(failed(path.to_owned())(error)),
        // Enough is known without one.
        (Err(_), None) if options.mon_host.is_some() => (),
        (Err(error), None) => {
            let what =
                format!("{spec}: no ceph.conf that can be read ({error}); name it: conf=PATH");
            return Err(Error::new(error.errno, what));
        }
    }
    let set = |option: &std::ffi::CStr, value: &str| {
        let name = option.to_string_lossy().into_owned();
        cluster.set(option, value).map_err(failed(name))
    };
    if let Some(monitors) = &options.mon_host {
        set(c"mon_host", monitors)?;
    }
    if let Some(auth) = &options.auth {
        set(c"auth_client_required", auth)?;
    }
    if let Some(keyring) = &options.keyring {
        set(c"keyring", keyring)?;
    }
    if let Some(Key(key)) = &options.key {
        set(c"key", key)?;
    }
    if options.direct {
        set(c"rbd_cache", "false")?;
    }
    set(c"client_mount_timeout", &seconds(options.open_timeout))?;
    for (option, default, value) in PREFERRED {
        cluster
            .prefer(option, default, value)
            .map_err(failed(option.to_string_lossy().into_owned()))?;
    }
    cluster
        .connect()
        .map_err(|errno| not_connected(&spec, user, errno))?;
    let namespace = options.namespace.as_deref();
    let pool = cluster
        .pool(&options.pool, namespace)
        .map_err(|error| match error.errno {
            Errno::NOENT => Error::new(
                Errno::NOENT,
                format!(
                    "{spec}: no pool {}; ceph osd pool ls has them",
                    options.pool
                ),
            ),
            _ => failed(format!("{spec}: pool {}", options.pool))(error),
        })?;
    pool.open(options).map_err(|error| match error.errno {
        Errno::NOENT => Error::new(Errno::NOENT, not_there(options)),
        Errno::PERM | Errno::ACCESS => Error::new(
            error.errno,
            format!(
                "{spec}: client.{user} may not open it: it needs mon 'profile rbd', \
                 osd 'profile rbd pool={}'",
                options.pool
            ),
        ),
        _ => failed(spec.clone())(error),
    })
}

fn not_connected(spec: &str, user: &str, errno: Errno) -> Error {
    let advice = match errno {
        Errno::NOENT => "no monitor, or no keyring with this user: see conf= and keyring=",
        Errno::ACCESS | Errno::PERM => "its key is not the cluster's: see keyring= and key-secret=",
        Errno::INVAL => "a key that is none, or a mistake in the configuration",
        Errno::TIMEDOUT => "no monitor answers: see ceph status",
        _ => "see ceph status",
    };
    Error::new(
        errno,
        format!("{spec}: client.{user} cannot connect: {errno}; {advice}"),
    )
}

fn not_there(options: &Options) -> String {
    let spec = options.spec();
    let pool = match &options.namespace {
        Some(namespace) => format!("{}/{namespace}", options.pool),
        None => options.pool.clone(),
    };
    match &options.snapshot {
        Some(_) => format!(
            "{spec}: no such snapshot; rbd snap ls {pool}/{}",
            options.image
        ),
        None => format!("{spec}: no such image; create it: rbd create {spec} --size 1G"),
    }
}
