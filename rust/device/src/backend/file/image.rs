//! An open file or block device: what it is, and who keeps it locked.

use super::lock::{self, Locking};
use super::probe;
use super::transfer::{Alignment, Direction, Transfer};
use crate::backend::Error;
use crate::{Buffer, Extent, Length, SECTOR_SIZE};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// A disk's bytes as they are: whole sectors.
    Disk,
    /// A format that a backend above understands: as long as it likes, and it may grow.
    Container,
}

/// Who keeps the image's lock.
#[derive(Default)]
struct Users {
    engines: usize,
    is_closed: bool,
}

/// The open file.
pub(in crate::backend) struct Image {
    pub(super) file: OwnedFd,
    path: PathBuf,
    size: AtomicU64,
    pub(super) is_block_device: bool,
    pub(super) read_only: bool,
    pub(super) can_discard: bool,
    pub(super) block_size: u32,
    /// What O_DIRECT asks for; `None` without it.
    pub(super) alignment: Option<Alignment>,
    locking: Locking,
    contents: Contents,
    users: Mutex<Users>,
    /// Held from the read to the write of a read-modify-write, and while part of a block is
    /// zeroed.
    pub(super) modify: Mutex<()>,
}

impl Image {
    pub(super) fn open(
        path: &Path,
        read_only: bool,
        direct: bool,
        locking: Locking,
        contents: Contents,
    ) -> Result<Image, Error> {
        let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
        flags |= if read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        if direct {
            flags |= OFlags::DIRECT;
        }
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
            if errno == Errno::INVAL && direct {
                Error::new(
                    errno,
                    format!(
                        "{}: its file system has no O_DIRECT; open it without direct",
                        path.display()
                    ),
                )
            } else {
                Error::failed(path.display(), errno)
            }
        })?;
        // Only the opening was not to wait. In a non-blocking file io_uring fails what cannot be
        // done at once, or waits in the worker's thread.
        fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags & !OFlags::NONBLOCK))?;
        let is_block_device = match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            _ => {
                return Err(Error::new(
                    Errno::INVAL,
                    format!(
                        "{} is neither a regular file nor a block device",
                        path.display()
                    ),
                ));
            }
        };
        if locking == Locking::Open {
            lock::acquire(&file, path, read_only)?;
        }
        let block_size = probe::block_size(&file, is_block_device);
        let alignment = direct.then(|| probe::alignment(&file, block_size));
        let size = match contents {
            Contents::Disk => probe::size(&file, path)?,
            Contents::Container => container_size(&file, read_only, is_block_device, alignment)?,
        };
        check_blocks(path, size, alignment)?;
        let can_discard = !read_only && probe::can_discard(&file, is_block_device, size);
        Ok(Image {
            path: path.to_owned(),
            size: AtomicU64::new(size.0),
            is_block_device,
            read_only,
            can_discard,
            block_size: block_size.max(alignment.map_or(512, |a| a.file as u32)),
            alignment,
            locking,
            contents,
            users: Mutex::default(),
            modify: Mutex::new(()),
            file,
        })
    }

    /// Reads from a pipe, which ends when its test wants.
    #[cfg(test)]
    pub(in crate::backend) fn of_pipe(file: OwnedFd) -> Image {
        Image {
            file,
            path: PathBuf::new(),
            size: AtomicU64::new(1 << 20),
            is_block_device: false,
            read_only: true,
            can_discard: false,
            block_size: 512,
            alignment: None,
            locking: Locking::Never,
            contents: Contents::Disk,
            users: Mutex::default(),
            modify: Mutex::new(()),
        }
    }

    pub(in crate::backend) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn size(&self) -> Length {
        Length(self.size.load(Ordering::Relaxed))
    }

    /// In whole sectors, as its users see it: the last one of a container may go on past the file's
    /// end, with zeroes until somebody writes there.
    pub(super) fn sectors(&self) -> Length {
        Length(self.size().0.next_multiple_of(SECTOR_SIZE))
    }

    /// A transfer; see [`Transfer::plan`].
    pub(super) fn plan(
        &self,
        direction: Direction,
        extent: Extent,
        buffer: Buffer,
    ) -> Result<Transfer, Buffer> {
        let transfer = Transfer::plan(direction, extent, buffer, self.alignment)?;
        Ok(match self.contents {
            Contents::Disk => transfer,
            Contents::Container => transfer.fills_last_sector(),
        })
    }

    /// Looks again; the new size if it changed.
    pub(super) fn refresh_size(&self) -> Result<Option<Length>, Error> {
        let size = match self.contents {
            Contents::Disk => probe::size(&self.file, &self.path)?,
            Contents::Container => probe::length(&self.file)?,
        };
        check_blocks(&self.path, size, self.alignment)?;
        let before = self.size.swap(size.0, Ordering::Relaxed);
        Ok((before != size.0).then_some(size))
    }

    /// Makes the file `size` bytes long. EINVAL for a block device, or where O_DIRECT could not
    /// reach the end.
    pub(super) fn resize(&self, size: Length) -> Result<(), Error> {
        let refuse = |why| Error::new(Errno::INVAL, format!("{}: {why}", self.path.display()));
        if self.is_block_device {
            return Err(refuse("a block device has a size of its own"));
        }
        check_blocks(&self.path, size, self.alignment)?;
        rustix::fs::ftruncate(&self.file, size.0)?;
        self.size.store(size.0, Ordering::Relaxed);
        Ok(())
    }

    /// One more engine works on it. EBADF once it is closed; EAGAIN: the lock is somebody else's.
    pub(super) fn attach(&self) -> Result<(), Error> {
        let mut users = self.lock_users();
        if users.is_closed {
            return Err(Error::new(
                Errno::BADF,
                format!("{} is closed", self.path.display()),
            ));
        }
        if self.locking == Locking::Serving && users.engines == 0 {
            lock::attempt(self.file.as_raw_fd(), &self.path, self.read_only)?;
        }
        users.engines += 1;
        Ok(())
    }

    /// An engine is done with it.
    pub(super) fn detach(&self) {
        let mut users = self.lock_users();
        users.engines -= 1;
        self.unlock_unused(&users);
    }

    /// No more engines; the image is unlocked once those that work on it are gone.
    pub(super) fn close(&self) {
        let mut users = self.lock_users();
        users.is_closed = true;
        self.unlock_unused(&users);
    }

    fn unlock_unused(&self, users: &Users) {
        let is_over = match self.locking {
            Locking::Never => false,
            Locking::Open => users.is_closed,
            Locking::Serving => true,
        };
        if is_over && users.engines == 0 {
            lock::release(self.file.as_raw_fd());
        }
    }

    fn lock_users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a container. Where O_DIRECT could not reach the last ones, the file is filled up.
fn container_size(
    file: &OwnedFd,
    read_only: bool,
    is_block_device: bool,
    alignment: Option<Alignment>,
) -> Result<Length, Error> {
    let size = probe::length(file)?;
    let (Some(Alignment { file: block, .. }), false, false) =
        (alignment, read_only, is_block_device)
    else {
        return Ok(size);
    };
    let whole = size.0.checked_next_multiple_of(block).ok_or(Errno::FBIG)?;
    if whole != size.0 {
        rustix::fs::ftruncate(file, whole)?;
    }
    Ok(Length(whole))
}

/// EINVAL where the last block is not whole: O_DIRECT cannot reach its bytes.
fn check_blocks(path: &Path, size: Length, alignment: Option<Alignment>) -> Result<(), Error> {
    match alignment {
        Some(Alignment { file, .. }) if !size.0.is_multiple_of(file) => Err(Error::new(
            Errno::INVAL,
            format!(
                "{}: {} bytes is not a multiple of the {file} that O_DIRECT needs here; open it without direct, or pad it",
                path.display(),
                size.0,
            ),
        )),
        _ => Ok(()),
    }
}
