//! The listener fd of a filter: notifications, and their answers. linux/seccomp.h.

use libc::{
    SECCOMP_ADDFD_FLAG_SEND, SECCOMP_ADDFD_FLAG_SETFD, SECCOMP_IOCTL_NOTIF_ADDFD,
    SECCOMP_IOCTL_NOTIF_ID_VALID, SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FLAG_CONTINUE, seccomp_data, seccomp_notif,
    seccomp_notif_addfd, seccomp_notif_resp,
};
use rustix::io::{Errno, retry_on_intr};
use std::ffi::c_ulong;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): whoever is answered runs next on this CPU.
const SYNC_WAKE_UP: c_ulong = 1;

/// A call that waits for its answer.
pub(crate) struct Notification {
    /// Names it for as long as it waits; never used again.
    pub(crate) id: u64,
    /// The calling thread, in this process's PID namespace.
    pub(crate) tid: u32,
    /// Its registers.
    pub(crate) data: seccomp_data,
}

/// Where an fd goes in the caller.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// A free number, which the call returns: its answer.
    Answer,
    /// This number, whatever it was; the call goes on waiting.
    Number(u32),
}

/// The listener of one filter. Answers may be given on any thread.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    pub(crate) fn new(fd: OwnedFd) -> Listener {
        let listener = Listener(fd);
        // SAFETY: this request takes a number, no pointer. A kernel that does not know it is slower.
        unsafe { libc::ioctl(listener.raw(), SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
        listener
    }

    /// The next call; waits for one. `None`: its caller has been killed meanwhile.
    pub(crate) fn receive(&self) -> Result<Option<Notification>, Errno> {
        let received = retry_on_intr(|| {
            // The kernel wants it zeroed.
            let mut notification = MaybeUninit::<seccomp_notif>::zeroed();
            // SAFETY: RECV writes one seccomp_notif, which is plain integers.
            unsafe {
                self.ioctl(SECCOMP_IOCTL_NOTIF_RECV, notification.as_mut_ptr())?;
                Ok(notification.assume_init())
            }
        });
        match received {
            Ok(seccomp_notif { id, pid, data, .. }) => {
                Ok(Some(Notification { id, tid: pid, data }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The call returns `result`. A caller that is gone needs none.
    pub(crate) fn answer(&self, id: u64, result: Result<i64, Errno>) {
        let (val, error) = match result {
            Ok(val) => (val, 0),
            Err(errno) => (0, -errno.raw_os_error()),
        };
        self.send(seccomp_notif_resp {
            id,
            val,
            error,
            flags: 0,
        });
    }

    /// The call goes on in the kernel.
    pub(crate) fn pass(&self, id: u64) {
        let flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        self.send(seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags,
        });
    }

    fn send(&self, mut response: seccomp_notif_resp) {
        // SAFETY: SEND reads one seccomp_notif_resp. Its one error that can be met, ENOENT, says that
        // the caller is gone.
        let _ =
            retry_on_intr(|| unsafe { self.ioctl(SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) });
    }

    /// Whether the call still waits: what was read of its thread was its own, not another's who has
    /// the thread id now.
    pub(crate) fn waits(&self, mut id: u64) -> bool {
        // SAFETY: ID_VALID reads one u64.
        unsafe { self.ioctl(SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id) }.is_ok()
    }

    /// Puts a dup of `fd` into the caller. `MFILE` and the like: it has no room; `NOENT`: it is
    /// gone. Waits until the caller has run.
    pub(crate) fn add_fd(
        &self,
        id: u64,
        fd: BorrowedFd<'_>,
        target: Target,
        cloexec: bool,
    ) -> Result<(), Errno> {
        let (flags, newfd) = match target {
            Target::Answer => (SECCOMP_ADDFD_FLAG_SEND, 0),
            Target::Number(number) => (SECCOMP_ADDFD_FLAG_SETFD, number),
        };
        let mut request = seccomp_notif_addfd {
            id,
            flags: flags as u32,
            srcfd: fd.as_raw_fd() as u32,
            newfd,
            newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // An interrupted one is taken back, and its call would return 0 with no fd behind it.
        let _quiet = Quiet::begin();
        // SAFETY: ADDFD reads one seccomp_notif_addfd.
        unsafe { self.ioctl(SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut request) }
    }

    /// # Safety
    /// `argument` points to what the request reads and writes.
    unsafe fn ioctl<T>(&self, request: libc::Ioctl, argument: *mut T) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        match unsafe { libc::ioctl(self.raw(), request, argument) } {
            -1 => Err(last_errno()),
            _ => Ok(()),
        }
    }

    fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The errno of the libc call that has just failed on this thread.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// No signal comes to this thread.
pub(crate) struct Quiet(libc::sigset_t);

impl Quiet {
    pub(crate) fn begin() -> Quiet {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: sigfillset fills `all`; pthread_sigmask, which fails for a bad first argument only,
        // fills `before`.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Quiet(before.assume_init())
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: a mask that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}
