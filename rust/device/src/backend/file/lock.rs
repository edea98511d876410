//! QEMU's image locks (its block/file-posix.c), so that QEMU's tools and other daemons keep
//! off an image in use, and we off theirs.
//!
//! Open-file-description read locks on single bytes: byte 100+n says "I use permission n",
//! byte 200+n says "I do not share permission n". Having set its own, each looks whether
//! anybody else's contradict.

use super::super::Error;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

const PERMISSION_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// QEMU's permissions by bit number, with their names in messages.
const PERMISSIONS: [(u8, &str); 4] = [
    (CONSISTENT_READ, "consistent read"),
    (WRITE, "write"),
    (2, "write unchanged"),
    (3, "resize"),
];
const CONSISTENT_READ: u8 = 0;
const WRITE: u8 = 1;

/// How long a lock may still be held by a process that is gone: its io_uring is taken apart,
/// and its files closed, only after its death was told.
const LAST_HOLDER: Duration = Duration::from_secs(1);
/// Nothing tells that a lock was given up.
const RETRY: Duration = Duration::from_millis(5);

/// When the image's locks are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// Somebody else keeps others off.
    Never,
    /// From open to close.
    Open,
    /// While a virtqueue is served: two programs may have the image open, and a live migration
    /// hands it from one to the other.
    Serving,
}

/// Takes the locks that QEMU takes for a disk of a guest: reads (and writes), shares with
/// readers, not with writers. EAGAIN: somebody else's lock forbids it, and not only that of a
/// process that was killed just now.
pub(super) fn acquire(file: impl AsFd, path: &Path, read_only: bool) -> Result<(), Error> {
    let file = file.as_fd().as_raw_fd();
    let deadline = Instant::now() + LAST_HOLDER;
    loop {
        match attempt(file, path, read_only) {
            Err(error) if error.errno == Errno::AGAIN && Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}

/// The same without patience.
pub(super) fn attempt(file: i32, path: &Path, read_only: bool) -> Result<(), Error> {
    let used: &[u8] = if read_only {
        &[CONSISTENT_READ]
    } else {
        &[CONSISTENT_READ, WRITE]
    };
    let unshared: &[u8] = &[WRITE];
    let place = |byte| {
        control(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map_err(|errno| match errno {
            Errno::AGAIN | Errno::ACCESS => in_use(path, "every"),
            _ => Error::new(
                errno,
                format!(
                    "{}: cannot lock the image ({errno}); where its file system has no locks, open it with lock=False",
                    path.display()
                ),
            ),
        })
    };
    for &bit in used {
        place(PERMISSION_BASE + i64::from(bit))?;
    }
    for &bit in unshared {
        place(UNSHARED_BASE + i64::from(bit))?;
    }
    for (bit, name) in PERMISSIONS {
        let bit_used = used.contains(&bit) && is_locked(file, UNSHARED_BASE + i64::from(bit))?;
        let bit_refused =
            unshared.contains(&bit) && is_locked(file, PERMISSION_BASE + i64::from(bit))?;
        if bit_used || bit_refused {
            release(file);
            return Err(in_use(path, name));
        }
    }
    Ok(())
}

/// Gives all locks of this open file back.
pub(super) fn release(file: impl AsRawFd) {
    for (bit, _) in PERMISSIONS {
        for base in [PERMISSION_BASE, UNSHARED_BASE] {
            let _ = control(
                file.as_raw_fd(),
                libc::F_OFD_SETLK,
                libc::F_UNLCK,
                base + i64::from(bit),
            );
        }
    }
}

fn in_use(path: &Path, permission: &str) -> Error {
    Error::new(
        Errno::AGAIN,
        format!(
            "{} is in use by another program, which holds its \"{permission}\" lock; stop that program first",
            path.display()
        ),
    )
}

/// Whether somebody else holds a lock on this byte.
fn is_locked(file: i32, byte: i64) -> Result<bool, Errno> {
    Ok(control(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK)
}

/// One fcntl lock command on one byte; the lock type that the kernel wrote back.
fn control(file: i32, command: i32, kind: i32, byte: i64) -> Result<i32, Errno> {
    // SAFETY: flock is plain integers; all zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: the lock commands take a pointer to a flock, which outlives the call.
    if unsafe { libc::fcntl(file, command, &mut lock) } < 0 {
        return Err(super::last_errno());
    }
    Ok(i32::from(lock.l_type))
}
