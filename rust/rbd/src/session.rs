//! A safe face on the libraries: handles that close themselves, in order, and operations that own
//! their memory until they end.

mod objects;

use crate::Options;
use crate::library::{Handle, LOCK_MODE_EXCLUSIVE, Library, THICK_PROVISION, Watcher};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use vduse_device::backend::Error;
use vduse_device::{Buffer, Extent};

/// Watchers of an image that are asked for at first.
const WATCHERS: usize = 16;
/// Bytes of an option's value that is looked at.
const VALUE: usize = 64;
/// An exclusive lock has one owner.
const OWNERS: usize = 4;

/// What a call of the libraries returned: 0 or more, or an errno, negative.
fn outcome(value: isize) -> Result<u64, Errno> {
    u64::try_from(value).map_err(|_| {
        let number = i32::try_from(value.unsigned_abs()).unwrap_or(libc::EIO);
        Errno::from_raw_os_error(number)
    })
}

fn check(value: c_int) -> Result<(), Errno> {
    outcome(value as isize).map(|_| ())
}

fn text(value: &str) -> Result<CString, Error> {
    CString::new(value)
        .map_err(|_| Error::new(Errno::INVAL, format!("{value:?}: a 0 byte in a name")))
}

/// A client of a cluster.
pub(crate) struct Cluster {
    library: &'static Library,
    handle: Handle,
}

// SAFETY: librados' handles may be used from any thread, and from several at once.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// A client that is not connected yet: `user` with `client.`.
    pub(crate) fn new(library: &'static Library, user: &str) -> Result<Cluster, Error> {
        let user = text(user)?;
        let mut handle = null_mut();
        // SAFETY: strings that end in 0, and a place for the handle.
        let made = unsafe {
            (library.rados.rados_create2)(&mut handle, c"ceph".as_ptr(), user.as_ptr(), 0)
        };
        check(made)?;
        Ok(Cluster { library, handle })
    }

    /// Reads the configuration at `path`, or where librados looks by itself.
    pub(crate) fn read_conf(&self, path: Option<&str>) -> Result<(), Error> {
        let path = path.map(text).transpose()?;
        let path = path.as_ref().map_or(null(), |path| path.as_ptr());
        // SAFETY: our handle; null or a string that ends in 0.
        let read = unsafe { (self.library.rados.rados_conf_read_file)(self.handle, path) };
        Ok(check(read)?)
    }

    /// Sets an option of the configuration.
    pub(crate) fn set(&self, option: &CStr, value: &str) -> Result<(), Error> {
        let value = text(value)?;
        // SAFETY: our handle, strings that end in 0.
        let set = unsafe {
            (self.library.rados.rados_conf_set)(self.handle, option.as_ptr(), value.as_ptr())
        };
        Ok(check(set)?)
    }

    /// Whether an option is as Ceph has it where nobody has set it; false for one that this
    /// version does not have.
    fn is_default(&self, option: &CStr, default: &CStr) -> bool {
        let mut value: [c_char; VALUE] = [0; VALUE];
        let rados = &self.library.rados;
        // SAFETY: our handle, a string that ends in 0, a place of the size that is said.
        let got = check(unsafe {
            (rados.rados_conf_get)(self.handle, option.as_ptr(), value.as_mut_ptr(), VALUE)
        });
        // SAFETY: as large as the string is; one that fits is ended by a 0, and zeroes were there.
        got.is_ok() && unsafe { CStr::from_ptr(value.as_ptr()) } == default
    }

    /// Sets an option that is as Ceph's `default` has it; the configuration's own value stays.
    pub(crate) fn prefer(&self, option: &CStr, default: &CStr, value: &str) -> Result<(), Error> {
        match self.is_default(option, default) {
            true => self.set(option, value),
            false => Ok(()),
        }
    }

    /// Waits for the monitors, as long as `client_mount_timeout` says.
    pub(crate) fn connect(&self) -> Result<(), Errno> {
        // SAFETY: our handle, which is connected once.
        check(unsafe { (self.library.rados.rados_connect)(self.handle) })
    }

    /// Images of a pool, in a namespace of it.
    pub(crate) fn pool(self, name: &str, namespace: Option<&str>) -> Result<Pool, Error> {
        let (name, namespace) = (text(name)?, namespace.map(text).transpose()?);
        let mut handle = null_mut();
        // SAFETY: our handle, connected; a string that ends in 0; a place for the handle.
        let made = unsafe {
            (self.library.rados.rados_ioctx_create)(self.handle, name.as_ptr(), &mut handle)
        };
        check(made)?;
        let pool = Pool {
            handle,
            cluster: self,
        };
        if let Some(namespace) = namespace {
            let rados = &pool.cluster.library.rados;
            // SAFETY: our new handle, which nobody else uses yet; a string that ends in 0.
            unsafe { (rados.rados_ioctx_set_namespace)(pool.handle, namespace.as_ptr()) };
        }
        Ok(pool)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: our handle, connected or not; pools hold the cluster, so none is left.
        unsafe { (self.library.rados.rados_shutdown)(self.handle) };
    }
}

/// A pool of a cluster: librados' I/O context.
pub(crate) struct Pool {
    handle: Handle,
    cluster: Cluster,
}

// SAFETY: as for the cluster; nothing changes the context after it is made.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// Opens the image that `options` name; waits for the cluster.
    pub(crate) fn open(self, options: &Options) -> Result<Image, Error> {
        let name = text(&options.image)?;
        let snapshot = options.snapshot.as_deref().map(text).transpose()?;
        let snapshot = snapshot.as_ref().map_or(null(), |name| name.as_ptr());
        let rbd = &self.cluster.library.rbd;
        let open = match options.is_read_only() {
            true => rbd.rbd_open_read_only,
            false => rbd.rbd_open,
        };
        let mut handle = null_mut();
        // SAFETY: our context; a string that ends in 0; null or another; a place for the handle.
        check(unsafe { open(self.handle, name.as_ptr(), &mut handle, snapshot) })?;
        Ok(Image {
            handle,
            watch: Mutex::new(None),
            pool: self,
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let rados = &self.cluster.library.rados;
        // SAFETY: our context; images hold the pool, so none is left.
        unsafe { (rados.rados_ioctx_destroy)(self.handle) };
    }
}

/// What is told of an image's changes.
type Heard = Box<dyn Fn() + Send + Sync>;

struct Watch {
    handle: u64,
    /// What librbd calls it with; made by `Box::into_raw`.
    heard: *mut Heard,
}

/// An open image.
///
/// Dropping it waits for the cluster, and for what is under way: not on a worker, nor on a thread of
/// librbd's, which would wait for itself.
pub(crate) struct Image {
    handle: Handle,
    watch: Mutex<Option<Watch>>,
    pool: Pool,
}

// SAFETY: librbd's handles may be used from any thread, and from several at once. What a watch
// calls is Send and Sync.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    fn library(&self) -> &'static Library {
        self.pool.cluster.library
    }

    /// Bytes, as the cluster says; may wait for it.
    pub(crate) fn size(&self) -> Result<u64, Errno> {
        self.number(self.library().rbd.rbd_get_size)
    }

    /// Makes it `size` bytes; waits for the cluster, a shrunk one for every object that goes.
    pub(crate) fn resize(&self, size: u64) -> Result<(), Errno> {
        // SAFETY: our handle.
        check(unsafe { (self.library().rbd.rbd_resize)(self.handle, size) })
    }

    /// Its features, as `RBD_FEATURE_` bits.
    pub(crate) fn features(&self) -> Result<u64, Errno> {
        self.number(self.library().rbd.rbd_get_features)
    }

    /// Takes the exclusive lock and keeps it: librbd does not hand it to who asks. An owner that is
    /// dead loses it.
    pub(crate) fn lock(&self) -> Result<(), Errno> {
        // SAFETY: our handle.
        check(unsafe { (self.library().rbd.rbd_lock_acquire)(self.handle, LOCK_MODE_EXCLUSIVE) })
    }

    /// Takes the exclusive lock from `owner`, whom the cluster does not let write any more.
    pub(crate) fn break_lock(&self, owner: &CStr) -> Result<(), Errno> {
        let rbd = &self.library().rbd;
        // SAFETY: our handle, a string that ends in 0.
        check(unsafe { (rbd.rbd_lock_break)(self.handle, LOCK_MODE_EXCLUSIVE, owner.as_ptr()) })
    }

    /// The addresses of those who have the exclusive lock.
    pub(crate) fn lock_owners(&self) -> Result<Vec<CString>, Errno> {
        let rbd = &self.library().rbd;
        let mut owners: [*mut c_char; OWNERS] = [null_mut(); OWNERS];
        let (mut mode, mut count) = (0, OWNERS);
        // SAFETY: our handle; places for the mode, for as many strings as `count` says, and for
        // their number.
        let listed = check(unsafe {
            (rbd.rbd_lock_get_owners)(self.handle, &mut mode, owners.as_mut_ptr(), &mut count)
        });
        match listed {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            other => other?,
        }
        let count = count.min(OWNERS);
        let given = owners[..count].iter();
        // SAFETY: librbd has put that many strings there, ours until the clean-up; copied before.
        let names = given.map(|&name| unsafe { CStr::from_ptr(name) }.to_owned());
        let names = names.collect();
        // SAFETY: the array that the call above has filled.
        unsafe { (rbd.rbd_lock_get_owners_cleanup)(owners.as_mut_ptr(), count) };
        Ok(names)
    }

    /// The addresses of the clients that watch the image: all that have it open for writing.
    pub(crate) fn watchers(&self) -> Result<Vec<CString>, Errno> {
        let rbd = &self.library().rbd;
        let mut count = WATCHERS;
        loop {
            let mut watchers = Vec::with_capacity(count);
            let room = count;
            // SAFETY: our handle; a place for as many watchers as `count` says, and for their number.
            let listed = check(unsafe {
                (rbd.rbd_watchers_list)(self.handle, watchers.as_mut_ptr(), &mut count)
            });
            match listed {
                Err(Errno::RANGE) if count > room => continue,
                other => other?,
            }
            if count > room {
                return Err(Errno::IO);
            }
            // SAFETY: librbd has filled that many of the vector's places.
            unsafe { watchers.set_len(count) };
            let addresses = watchers.iter().map(|watcher: &Watcher| {
                // SAFETY: a string that is ours until the clean-up; copied before.
                unsafe { CStr::from_ptr(watcher.address) }.to_owned()
            });
            let addresses = addresses.collect();
            // SAFETY: what the call above has filled.
            unsafe { (rbd.rbd_watchers_list_cleanup)(watchers.as_mut_ptr(), count) };
            return Ok(addresses);
        }
    }

    /// Calls `heard` on a thread of librbd's when the image has changed, its size for one, from now
    /// on until the image is dropped. It must not call librbd, nor block. Only the first one counts.
    pub(crate) fn watch(&self, heard: Heard) -> Result<(), Errno> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.is_some() {
            return Ok(());
        }
        let heard = Box::into_raw(Box::new(heard));
        let mut handle = 0;
        let rbd = &self.library().rbd;
        // SAFETY: our handle, a place for the watch's; `heard` lives until `drop` has ended the watch.
        let watching = check(unsafe {
            (rbd.rbd_update_watch)(self.handle, &mut handle, on_update, heard.cast())
        });
        if let Err(errno) = watching {
            // SAFETY: made above, and librbd has not taken it.
            drop(unsafe { Box::from_raw(heard) });
            return Err(errno);
        }
        *watch = Some(Watch { handle, heard });
        Ok(())
    }

    /// Starts an operation. When it ends, `then` is called with its outcome (of a read the bytes read)
    /// and its memory, on a thread of librbd's, and must not call librbd nor drop what does.
    /// An error: it was not started, and `then` is not called.
    pub(crate) fn submit<F>(&self, command: Command, memory: Memory, then: F) -> Result<(), Errno>
    where
        F: FnOnce(Result<u64, Errno>, Memory) + Send + 'static,
    {
        let library = self.library();
        let rbd = &library.rbd;
        let operation = Box::into_raw(Box::new(Operation::new(library, memory, then)));
        let mut completion = null_mut();
        // SAFETY: the operation lives until its callback takes it; a place for the completion.
        let made = check(unsafe {
            (rbd.rbd_aio_create_completion)(operation.cast(), ended::<F>, &mut completion)
        });
        if let Err(errno) = made {
            // SAFETY: made above; there is no completion that would call back.
            drop(unsafe { Box::from_raw(operation) });
            return Err(errno);
        }
        // SAFETY: made above; librbd does not have it yet.
        let iov = unsafe { &(*operation).iov };
        let (iov, pieces) = (iov.as_ptr(), iov.len() as c_int);
        // SAFETY: our handle, a new completion. The array and the memory it names are in the
        // operation, which stays where it is until the callback, and so long nobody else frees them.
        let started = check(unsafe {
            match command {
                Command::Read(extent) => {
                    (rbd.rbd_aio_readv)(self.handle, iov, pieces, extent.offset().0, completion)
                }
                Command::Write(extent) => {
                    (rbd.rbd_aio_writev)(self.handle, iov, pieces, extent.offset().0, completion)
                }
                Command::Discard(extent) => {
                    let (offset, len) = (extent.offset().0, extent.len().0);
                    (rbd.rbd_aio_discard)(self.handle, offset, len, completion)
                }
                Command::WriteZeroes { extent, may_unmap } => {
                    let (offset, len) = (extent.offset().0, extent.len().0 as usize);
                    let flags = if may_unmap { 0 } else { THICK_PROVISION };
                    (rbd.rbd_aio_write_zeroes)(self.handle, offset, len, completion, flags, 0)
                }
                Command::Flush => (rbd.rbd_aio_flush)(self.handle, completion),
            }
        });
        if started.is_err() {
            // SAFETY: not started: the completion and the operation are still ours, and nothing
            // calls back.
            unsafe {
                (rbd.rbd_aio_release)(completion);
                drop(Box::from_raw(operation));
            }
        }
        started
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let rbd = &self.library().rbd;
        let watch = self.watch.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = watch.take() {
            // SAFETY: our handles.
            let unwatched = check(unsafe { (rbd.rbd_update_unwatch)(self.handle, watch.handle) });
            // Otherwise it may still be called, and stays.
            if unwatched.is_ok() {
                // SAFETY: made by `watch`; ending the watch has waited for its calls.
                drop(unsafe { Box::from_raw(watch.heard) });
            }
        }
        // SAFETY: our handle, not used any more. What is under way ends before this returns, and
        // has its memory in itself in any case.
        let _ = unsafe { (rbd.rbd_close)(self.handle) };
    }
}

extern "C" fn on_update(heard: *mut c_void) {
    // SAFETY: what `watch` gave, alive until the watch has ended.
    unsafe { (*heard.cast::<Heard>())() };
}

/// What an operation does, where.
#[derive(Clone, Copy)]
pub(crate) enum Command {
    /// Into the memory.
    Read(Extent),
    /// From the memory.
    Write(Extent),
    /// What is there is not needed any more.
    Discard(Extent),
    /// It reads as zeroes afterwards.
    WriteZeroes {
        /// Where.
        extent: Extent,
        /// Space may be given back.
        may_unmap: bool,
    },
    /// What has ended is stable.
    Flush,
}

/// What an operation reads from or writes to.
pub(crate) enum Memory {
    /// Nothing: it has no data.
    None,
    /// Its own.
    Own(Vec<u8>),
    /// That of a driver, which may be used until the operation ends.
    Shared(Buffer),
}

/// What librbd holds until it calls back.
struct Operation<F> {
    library: &'static Library,
    memory: Memory,
    /// The memory's pieces.
    iov: SmallVec<[libc::iovec; 4]>,
    then: F,
}

impl<F> Operation<F> {
    fn new(library: &'static Library, mut memory: Memory, then: F) -> Operation<F> {
        let iov = match &mut memory {
            Memory::None => SmallVec::new(),
            Memory::Own(bytes) => [piece(bytes.as_mut_ptr(), bytes.len())]
                .into_iter()
                .collect(),
            Memory::Shared(buffer) => {
                let pieces = buffer.pieces().iter();
                pieces.map(|it| piece(it.ptr.as_ptr(), it.len)).collect()
            }
        };
        Operation {
            library,
            memory,
            iov,
            then,
        }
    }
}

fn piece(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}

/// librbd's callback: the operation has ended.
extern "C" fn ended<F: FnOnce(Result<u64, Errno>, Memory)>(
    completion: Handle,
    operation: *mut c_void,
) {
    // SAFETY: what `submit` gave to this completion, which calls back once. `F` is Send.
    let operation = unsafe { Box::from_raw(operation.cast::<Operation<F>>()) };
    let rbd = &operation.library.rbd;
    // SAFETY: the completion has ended, and is not used after its release.
    let value = unsafe {
        let value = (rbd.rbd_aio_get_return_value)(completion);
        (rbd.rbd_aio_release)(completion);
        value
    };
    let Operation { memory, then, .. } = *operation;
    then(outcome(value), memory);
}

/// Seconds, as configuration options take them; at least 1.
pub(crate) fn seconds(time: Duration) -> String {
    time.as_secs().max(1).to_string()
}
