//! An open file or block device and what can be done with it, waiting for each call.

use super::aligned::Aligned;
use super::lock;
use super::transfer::{Alignment, Direction, Transfer};
use super::{last_errno, probe};
use crate::backend::{Error, Op};
use crate::{Buffer, Extent, Length, Offset};
use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, fallocate, fcntl_getfl, fcntl_setfl, fdatasync, fstat,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Zeroes written at once where the file system has no quicker way.
const ZEROES_AT_ONCE: u64 = 1 << 20;

/// Who keeps the image's lock.
#[derive(Default)]
struct Users {
    engines: usize,
    is_closed: bool,
}

/// The open file.
pub(in crate::backend) struct Image {
    file: OwnedFd,
    path: PathBuf,
    size: AtomicU64,
    is_block_device: bool,
    pub(super) read_only: bool,
    pub(super) can_discard: bool,
    pub(super) block_size: u32,
    /// What O_DIRECT asks for; `None` without it.
    pub(super) alignment: Option<Alignment>,
    locked: bool,
    users: Mutex<Users>,
    /// Held from the read to the write of a read-modify-write, and while part of a block is
    /// zeroed.
    modify: Mutex<()>,
}

impl Image {
    pub(super) fn open(
        path: &Path,
        read_only: bool,
        direct: bool,
        locked: bool,
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
        if locked {
            lock::acquire(&file, path, read_only)?;
        }
        let size = probe::size(&file, path)?;
        let block_size = probe::block_size(&file, is_block_device);
        let alignment = direct.then(|| probe::alignment(&file, block_size));
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
            locked,
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
            locked: false,
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

    /// Looks again; the new size if it changed.
    pub(super) fn refresh_size(&self) -> Result<Option<Length>, Error> {
        let size = probe::size(&self.file, &self.path)?;
        check_blocks(&self.path, size, self.alignment)?;
        let before = self.size.swap(size.0, Ordering::Relaxed);
        Ok((before != size.0).then_some(size))
    }

    pub(super) fn flush(&self) -> Result<(), Errno> {
        if self.read_only {
            return Ok(());
        }
        fdatasync(&self.file)
    }

    /// One more engine works on it. EBADF once it is closed.
    pub(super) fn attach(&self) -> Result<(), Error> {
        let mut users = self.lock_users();
        if users.is_closed {
            return Err(Error::new(
                Errno::BADF,
                format!("{} is closed", self.path.display()),
            ));
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
        if self.locked && users.is_closed && users.engines == 0 {
            lock::release(self.file.as_raw_fd());
        }
    }

    fn lock_users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries one operation out.
    pub(super) fn run(&self, op: Op) -> Result<(), Errno> {
        match op {
            Op::Read { extent, buffer } => self.transfer(Direction::Read, extent, buffer),
            Op::Write { extent, buffer } => self.transfer(Direction::Write, extent, buffer),
            Op::Flush => self.flush(),
            Op::Discard { extent } => self.discard(extent),
            Op::WriteZeroes { extent, may_unmap } => self.write_zeroes(extent, may_unmap),
        }
    }

    fn transfer(&self, way: Direction, extent: Extent, buffer: Buffer) -> Result<(), Errno> {
        match Transfer::plan(way, extent, buffer, self.alignment) {
            Ok(transfer) => self.complete(transfer),
            Err(buffer) => self.transfer_by_copies(way, extent, &buffer),
        }
    }

    /// What needs a longer copy than one transfer makes, or other bytes of its blocks.
    fn transfer_by_copies(
        &self,
        way: Direction,
        extent: Extent,
        buffer: &Buffer,
    ) -> Result<(), Errno> {
        let alignment = self.alignment.ok_or(Errno::INVAL)?;
        for part in steps(extent, alignment.most_copied()) {
            let done = part.offset().0 - extent.offset().0;
            let buffer = buffer.part(done, part.len().0);
            match Transfer::plan(way, part, buffer, Some(alignment)) {
                Ok(transfer) => self.complete(transfer)?,
                Err(buffer) => self.modify(part, |bytes| buffer.read(bytes))?,
            }
        }
        Ok(())
    }

    fn complete(&self, mut transfer: Transfer) -> Result<(), Errno> {
        if transfer.is_done() {
            return Ok(());
        }
        loop {
            let iovecs = transfer.iovecs();
            let count = iovecs.len() as i32;
            let at = i64::try_from(transfer.offset()).map_err(|_| Errno::FBIG)?;
            let fd = self.file.as_raw_fd();
            // SAFETY: the iovecs describe memory that the transfer keeps for the call: private
            // memory or shared memory that the kernel may read and write.
            let result = unsafe {
                match transfer.direction() {
                    Direction::Read => libc::preadv(fd, iovecs.as_ptr(), count, at),
                    Direction::Write => libc::pwritev(fd, iovecs.as_ptr(), count, at),
                }
            };
            // One call moves less than 2^31 bytes.
            let result = u32::try_from(result).map_err(|_| last_errno());
            if let Some(end) = transfer.advance(result) {
                return end;
            }
        }
    }

    /// Read-modify-write of the blocks around `extent`, one at a time for the whole file, so
    /// that two writers of one block do not undo each other.
    fn modify(&self, extent: Extent, change: impl FnOnce(&mut [u8])) -> Result<(), Errno> {
        let alignment = self.alignment.ok_or(Errno::INVAL)?;
        let whole = extent.aligned_out(alignment.file).ok_or(Errno::FBIG)?;
        let skip = (extent.offset().0 - whole.offset().0) as usize;
        let mut copy = Aligned::zeroed(whole.len().0 as usize, alignment.memory);
        let _one = self.lock_modify();
        self.complete(own(Direction::Read, whole, copy.bytes()))?;
        change(&mut copy.bytes()[skip..skip + extent.len().0 as usize]);
        self.complete(own(Direction::Write, whole, copy.bytes()))
    }

    fn lock_modify(&self) -> MutexGuard<'_, ()> {
        self.modify.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discard(&self, extent: Extent) -> Result<(), Errno> {
        let result = if extent.is_empty() {
            Ok(())
        } else if self.is_block_device {
            probe::block_discard(&self.file, extent)
        } else {
            self.punch_hole(extent)
        };
        match result {
            // A hint: a disk that cannot, keeps its bytes.
            Err(Errno::OPNOTSUPP | Errno::NODEV) => Ok(()),
            other => other,
        }
    }

    fn punch_hole(&self, extent: Extent) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        allocate(&self.file, flags, extent)
    }

    fn write_zeroes(&self, extent: Extent, may_unmap: bool) -> Result<(), Errno> {
        if extent.is_empty() {
            return Ok(());
        }
        match self.zero_range(extent, may_unmap) {
            Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS | Errno::INVAL) => {
                self.write_zeroes_slowly(extent)
            }
            other => other,
        }
    }

    /// What the file system does at once, where it can.
    fn zero_range(&self, extent: Extent, may_unmap: bool) -> Result<(), Errno> {
        // A read-modify-write of the rest of a block is not to bring the old bytes back.
        let _one = self
            .alignment
            .filter(|alignment| !extent.is_aligned(alignment.file))
            .map(|_| self.lock_modify());
        // A hole reads as zeroes in a file; what a discarded block device reads is not said.
        if may_unmap && !self.is_block_device && self.punch_hole(extent).is_ok() {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        allocate(&self.file, flags, extent)
    }

    fn write_zeroes_slowly(&self, extent: Extent) -> Result<(), Errno> {
        let alignment = self.alignment.unwrap_or(Alignment {
            memory: 1,
            file: 512,
        });
        let step = ZEROES_AT_ONCE.max(alignment.file);
        let mut zeroes = Aligned::zeroed(step.min(extent.len().0) as usize, alignment.memory);
        for part in steps(extent, step) {
            if part.is_aligned(alignment.file) {
                let bytes = &mut zeroes.bytes()[..part.len().0 as usize];
                self.complete(own(Direction::Write, part, bytes))?;
            } else {
                self.modify_or_write(part, &mut zeroes)?;
            }
        }
        Ok(())
    }

    fn modify_or_write(&self, part: Extent, zeroes: &mut Aligned) -> Result<(), Errno> {
        if self.alignment.is_some() {
            return self.modify(part, |bytes| bytes.fill(0));
        }
        let bytes = &mut zeroes.bytes()[..part.len().0 as usize];
        self.complete(own(Direction::Write, part, bytes))
    }
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

/// The extent in parts that end on multiples of `step`, a power of two: only the first and the
/// last may be shorter.
fn steps(extent: Extent, step: u64) -> impl Iterator<Item = Extent> {
    let mut at = extent.offset().0;
    std::iter::from_fn(move || {
        let left = extent.end().0 - at;
        let len = left.min(step - at % step);
        let part = Extent::new(Offset(at), Length(len)).filter(|part| !part.is_empty())?;
        at += len;
        Some(part)
    })
}

/// A transfer of private aligned memory, carried out before `bytes` is used again.
fn own(direction: Direction, extent: Extent, bytes: &mut [u8]) -> Transfer {
    let piece = vduse_mem::Piece {
        ptr: std::ptr::NonNull::from(&mut *bytes).cast(),
        len: bytes.len(),
    };
    // SAFETY: the callers complete the transfer while they hold `bytes`.
    let buffer = unsafe { Buffer::borrowed(smallvec::smallvec![piece]) };
    match Transfer::plan(direction, extent, buffer, None) {
        Ok(transfer) => transfer,
        Err(_) => unreachable!("without an alignment every transfer is planned"),
    }
}

fn allocate(file: &OwnedFd, flags: FallocateFlags, extent: Extent) -> Result<(), Errno> {
    loop {
        match fallocate(file, flags, extent.offset().0, extent.len().0) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
