//! librados and librbd, loaded at run time: the functions that this crate calls, as C declares
//! them (rados/librados.h, rbd/librbd.h, of Ceph 16 and later).

use rustix::io::Errno;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;
use vduse_device::backend::Error;

/// `rbd_image_t`, `rados_t`, `rados_ioctx_t`, `rbd_completion_t`.
pub(crate) type Handle = *mut c_void;
/// `rbd_callback_t`: the completion, and what it was made with.
pub(crate) type Callback = extern "C" fn(Handle, *mut c_void);
/// `rbd_update_callback_t`.
pub(crate) type UpdateCallback = extern "C" fn(*mut c_void);
/// Of `rbd_diff_iterate2`: offset, length, whether something is there, and what was given along.
pub(crate) type DiffCallback = extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// `RBD_LOCK_MODE_EXCLUSIVE`, of a C enum.
pub(crate) const LOCK_MODE_EXCLUSIVE: c_int = 0;
/// `RBD_FEATURE_EXCLUSIVE_LOCK`.
pub(crate) const FEATURE_EXCLUSIVE_LOCK: u64 = 1 << 2;
/// `RBD_FEATURE_FAST_DIFF`: the cluster has a map of the image's objects.
pub(crate) const FEATURE_FAST_DIFF: u64 = 1 << 4;
/// `RBD_FLAG_OBJECT_MAP_INVALID`, `RBD_FLAG_FAST_DIFF_INVALID`: the map may be wrong.
pub(crate) const FLAGS_INVALID: u64 = 1 << 0 | 1 << 1;
/// `RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`: the range stays allocated.
pub(crate) const THICK_PROVISION: c_int = 1;

/// `rbd_image_watcher_t`.
#[repr(C)]
pub(crate) struct Watcher {
    pub(crate) address: *mut c_char,
    pub(crate) id: i64,
    pub(crate) cookie: u64,
}

/// `rbd_image_info_t`.
#[repr(C)]
pub(crate) struct ImageInfo {
    pub(crate) size: u64,
    pub(crate) object_size: u64,
    pub(crate) objects: u64,
    pub(crate) order: c_int,
    pub(crate) block_name_prefix: [c_char; 24],
    pub(crate) parent_pool: i64,
    pub(crate) parent_name: [c_char; 96],
}

macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($function:ident($($arg:ty),*) $(-> $ret:ty)?;)* }) => {
        $(#[$doc])*
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl $name {
            fn of(object: &Object) -> Result<$name, Error> {
                Ok($name {
                    $($function: {
                        let name = concat!(stringify!($function), "\0");
                        let symbol = object.symbol(name)?;
                        // SAFETY: the function of this name has this signature, by its header;
                        // the object is never unloaded.
                        unsafe {
                            std::mem::transmute::<
                                NonNull<c_void>,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(symbol)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    /// Of librados.
    Rados {
        rados_create2(*mut Handle, *const c_char, *const c_char, u64) -> c_int;
        rados_conf_read_file(Handle, *const c_char) -> c_int;
        rados_conf_get(Handle, *const c_char, *mut c_char, usize) -> c_int;
        rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
        rados_connect(Handle) -> c_int;
        rados_shutdown(Handle);
        rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
        rados_ioctx_set_namespace(Handle, *const c_char);
        rados_ioctx_destroy(Handle);
    }
}

functions! {
    /// Of librbd.
    Rbd {
        rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        rbd_close(Handle) -> c_int;
        rbd_get_size(Handle, *mut u64) -> c_int;
        rbd_resize(Handle, u64) -> c_int;
        rbd_get_features(Handle, *mut u64) -> c_int;
        rbd_get_flags(Handle, *mut u64) -> c_int;
        rbd_get_stripe_count(Handle, *mut u64) -> c_int;
        rbd_get_overlap(Handle, *mut u64) -> c_int;
        rbd_stat(Handle, *mut ImageInfo, usize) -> c_int;
        rbd_diff_iterate2(
            Handle,
            *const c_char,
            u64,
            u64,
            u8,
            u8,
            DiffCallback,
            *mut c_void
        ) -> c_int;
        rbd_update_watch(Handle, *mut u64, UpdateCallback, *mut c_void) -> c_int;
        rbd_update_unwatch(Handle, u64) -> c_int;
        rbd_lock_acquire(Handle, c_int) -> c_int;
        rbd_lock_break(Handle, c_int, *const c_char) -> c_int;
        rbd_lock_get_owners(Handle, *mut c_int, *mut *mut c_char, *mut usize) -> c_int;
        rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
        rbd_watchers_list(Handle, *mut Watcher, *mut usize) -> c_int;
        rbd_watchers_list_cleanup(*mut Watcher, usize);
        rbd_aio_create_completion(*mut c_void, Callback, *mut Handle) -> c_int;
        rbd_aio_get_return_value(Handle) -> isize;
        rbd_aio_release(Handle);
        rbd_aio_readv(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
        rbd_aio_writev(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
        rbd_aio_discard(Handle, u64, u64, Handle) -> c_int;
        rbd_aio_write_zeroes(Handle, u64, usize, Handle, c_int, c_int) -> c_int;
        rbd_aio_flush(Handle, Handle) -> c_int;
    }
}

/// Both libraries, for as long as the process lives: they have threads of their own.
pub struct Library {
    pub(crate) rados: Rados,
    pub(crate) rbd: Rbd,
}

impl Library {
    /// The system's, loaded once.
    pub fn system() -> Result<&'static Library, Error> {
        static LOADED: OnceLock<Result<Library, Error>> = OnceLock::new();
        LOADED
            .get_or_init(|| Library::load("librados.so.2", "librbd.so.1"))
            .as_ref()
            .map_err(Clone::clone)
    }

    /// By names that the system's loader knows, or paths; see dlopen(3).
    pub fn load(rados: &str, rbd: &str) -> Result<Library, Error> {
        let librados = Object::open(rados, "librados2")?;
        let librbd = Object::open(rbd, "librbd1")?;
        Ok(Library {
            rados: Rados::of(&librados)?,
            rbd: Rbd::of(&librbd)?,
        })
    }
}

/// A shared object, never unloaded.
struct Object {
    handle: NonNull<c_void>,
    name: String,
    /// Debian's name of what it comes in.
    package: &'static str,
}

impl Object {
    fn open(name: &str, package: &'static str) -> Result<Object, Error> {
        let path = CString::new(name).map_err(|_| Errno::INVAL)?;
        // SAFETY: a string that ends in 0. What is loaded runs its initializers, as any library
        // that a program is linked with.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        match NonNull::new(handle) {
            Some(handle) => Ok(Object {
                handle,
                name: name.to_owned(),
                package,
            }),
            None => Err(Error::new(
                Errno::NOENT,
                format!(
                    "{name}: {}; Debian's package {package} has it: apt install {package}",
                    last_error()
                ),
            )),
        }
    }

    /// The function `name`, which ends in 0.
    fn symbol(&self, name: &str) -> Result<NonNull<c_void>, Error> {
        let symbol = CStr::from_bytes_with_nul(name.as_bytes()).map_err(|_| Errno::INVAL)?;
        // SAFETY: a handle that dlopen gave, and a string that ends in 0.
        let found = unsafe { libc::dlsym(self.handle.as_ptr(), symbol.as_ptr()) };
        NonNull::new(found).ok_or_else(|| {
            Error::new(
                Errno::NOSYS,
                format!(
                    "{} has no {}: Debian's package {} of Ceph 16 or later is needed",
                    self.name,
                    symbol.to_string_lossy(),
                    self.package
                ),
            )
        })
    }
}

/// Why this thread's last dlopen failed.
fn last_error() -> String {
    // SAFETY: dlerror gives null or a string that is valid until this thread's next call of its
    // family; it is copied before.
    unsafe {
        let words = libc::dlerror();
        match words.is_null() {
            true => "cannot be loaded".to_owned(),
            false => CStr::from_ptr(words).to_string_lossy().into_owned(),
        }
    }
}
