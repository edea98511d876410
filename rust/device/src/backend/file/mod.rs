//! A regular file or a block device. Reads and writes go by io_uring, or by threads where
//! io_uring is forbidden or not wanted; what io_uring would hand to a thread anyway (holes,
//! zeroes, a write of part of an O_DIRECT block, long copies for O_DIRECT) goes to our threads at once.

mod aligned;
mod image;
mod lock;
mod operations;
mod probe;
mod status;
#[cfg(test)]
mod tests;
mod threads;
mod transfer;

use image::Contents;
pub(super) use image::Image;
pub use lock::Locking;
pub(super) use transfer::{Direction, Transfer};

use super::fixed::Fixed;
use super::uring::{Uring, io_uring_allowed};
use super::{
    Backend, Engine, Error, Info, Kind, Local, Notice, Observer, Observers, Op, StatusRequest,
    Submitted, Token,
};
use crate::{Completer, Length, SECTOR_SIZE};
use rustix::io::Errno;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use threads::Threads;
use vduse_mem::Region;

/// Which engine is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where it is allowed, else threads.
    Auto,
    /// io_uring or an error.
    IoUring,
    /// Threads.
    Threads,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Writes are refused; other readers are welcome.
    pub read_only: bool,
    /// O_DIRECT: past the page cache.
    pub direct: bool,
    /// Which engine is wanted.
    pub engine: EngineChoice,
    /// When QEMU's image locks are held.
    pub locking: Locking,
}

/// A disk in a file or block device.
pub struct File {
    image: Arc<Image>,
    threads: Threads,
    use_uring: bool,
    observers: Observers,
}

impl File {
    /// Opens and locks it. EAGAIN: locked by another program; EPERM or ENOSYS: io_uring was
    /// asked for and is forbidden.
    pub fn open(path: &Path, options: OpenOptions) -> Result<File, Error> {
        File::open_as(path, options, Contents::Disk)
    }

    /// Opens and locks a file that holds a format: its size need not be whole sectors, and
    /// engines may write past its end. Errors as of [`File::open`].
    pub fn open_container(path: &Path, options: OpenOptions) -> Result<File, Error> {
        File::open_as(path, options, Contents::Container)
    }

    /// Its first `most` bytes, or all of a shorter file, waiting for them.
    pub fn start(&self, most: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.image.size().0.min(most) as usize];
        self.image
            .read_start(&mut bytes)
            .map_err(|errno| Error::failed("cannot read", errno))?;
        Ok(bytes)
    }

    fn open_as(path: &Path, options: OpenOptions, contents: Contents) -> Result<File, Error> {
        let use_uring = match options.engine {
            EngineChoice::Threads => false,
            EngineChoice::Auto => io_uring_allowed().is_ok(),
            EngineChoice::IoUring => io_uring_allowed().map(|()| true).map_err(|errno| {
                Error::new(
                    errno,
                    format!("io_uring is not allowed here ({errno}); use engine threads"),
                )
            })?,
        };
        let OpenOptions {
            read_only, direct, ..
        } = options;
        let image = Image::open(path, read_only, direct, options.locking, contents)?;
        Ok(File::of(image, use_uring))
    }

    fn of(image: Image, use_uring: bool) -> File {
        let image = Arc::new(image);
        File {
            threads: Threads::new(image.clone()),
            image,
            use_uring,
            observers: Observers::default(),
        }
    }

    /// Opened with O_DIRECT, as if it had blocks of `block` bytes.
    #[cfg(test)]
    pub(super) fn open_with_blocks(path: &Path, block: u32) -> Result<File, Error> {
        let mut image = Image::open(path, false, true, Locking::Never, Contents::Disk)?;
        image.block_size = block;
        image.alignment = Some(transfer::Alignment {
            memory: block as usize,
            file: u64::from(block),
        });
        Ok(File::of(image, io_uring_allowed().is_ok()))
    }
}

impl Backend for File {
    fn info(&self) -> Info {
        Info {
            size: self.image.sectors(),
            block_size: self.image.block_size,
            read_only: self.image.read_only,
            can_discard: self.image.can_discard,
            kind: Kind::Direct,
        }
    }

    fn engine_name(&self) -> &'static str {
        if self.use_uring {
            "io_uring"
        } else {
            "threads"
        }
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        let uring = if self.use_uring {
            Some(local.uring().map_err(|errno| {
                Error::failed(
                    "cannot set up io_uring (engine threads does without)",
                    errno,
                )
            })?)
        } else {
            None
        };
        self.image.attach()?;
        Ok(Box::new(FileEngine {
            image: self.image.clone(),
            threads: self.threads.clone(),
            completer: local.completer.clone(),
            uring,
            registered: Registered::default(),
        }))
    }

    fn refresh_size(&self) -> Result<u64, Error> {
        if let Some(size) = self.image.refresh_size()? {
            let whole = Length(size.0.next_multiple_of(SECTOR_SIZE));
            self.observers.tell(&Notice::Resized(whole));
        }
        Ok(self.image.size().0)
    }

    /// EINVAL for a block device, or where O_DIRECT could not reach the end.
    fn resize(&self, size: Length) -> Result<(), Error> {
        self.image.resize(size)?;
        self.observers.tell(&Notice::Resized(size));
        Ok(())
    }

    fn length(&self) -> Length {
        self.image.size()
    }

    fn grows(&self) -> bool {
        !self.image.read_only && !self.image.is_block_device
    }

    fn flush(&self) -> Result<(), Error> {
        self.image
            .flush()
            .map_err(|errno| Error::failed("cannot flush", errno))
    }

    fn close(&self) -> Result<(), Error> {
        let flushed = self.flush();
        self.image.close();
        flushed
    }

    /// A thread looks: the file system may have to read for it.
    fn block_status(&self, request: StatusRequest) {
        self.threads.block_status(request);
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.observers.add(observer);
    }
}

struct FileEngine {
    image: Arc<Image>,
    threads: Threads,
    completer: Completer,
    uring: Option<Rc<RefCell<Uring>>>,
    registered: Registered,
}

/// The region that was used last, and whether it could be registered.
#[derive(Default)]
struct Registered(Option<(Weak<Region>, Option<Rc<Fixed>>)>);

impl Registered {
    /// Its place in the ring; the kernel is asked once for each region.
    fn get(&mut self, region: &Arc<Region>, uring: &mut Uring) -> Option<Rc<Fixed>> {
        if let Some((last, fixed)) = &self.0
            && std::ptr::eq(last.as_ptr(), Arc::as_ptr(region))
        {
            return fixed.clone();
        }
        self.0 = None;
        let fixed = uring.register(region);
        self.0 = Some((Arc::downgrade(region), fixed.clone()));
        fixed
    }
}

impl Drop for FileEngine {
    fn drop(&mut self) {
        self.image.detach();
        self.registered = Registered::default();
        if let Some(uring) = &self.uring {
            uring.borrow_mut().unregister_unused();
        }
    }
}

impl Engine for FileEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let Some(uring) = &self.uring else {
            self.threads.submit(token, op, &self.completer);
            return Submitted::Pending;
        };
        let (direction, extent, buffer) = match op {
            Op::Read { extent, buffer } => (Direction::Read, extent, buffer),
            Op::Write { extent, buffer } => (Direction::Write, extent, buffer),
            Op::Flush if self.image.read_only => return Submitted::Done(Ok(())),
            Op::Flush => {
                uring
                    .borrow_mut()
                    .submit(token, self.image.clone(), None, None);
                return Submitted::Pending;
            }
            op => {
                self.threads.submit(token, op, &self.completer);
                return Submitted::Pending;
            }
        };
        match self.image.plan(direction, extent, buffer) {
            Ok(transfer) if transfer.is_done() => Submitted::Done(Ok(())),
            Ok(transfer) => {
                let uring = &mut *uring.borrow_mut();
                let fixed = match transfer.own_region() {
                    // The page cache is copied to and from: nothing is pinned.
                    Some(region) if self.image.alignment.is_some() => {
                        self.registered.get(region, uring)
                    }
                    _ => None,
                };
                uring.submit(token, self.image.clone(), Some(transfer), fixed);
                Submitted::Pending
            }
            Err(buffer) => {
                let op = match direction {
                    Direction::Read => Op::Read { extent, buffer },
                    Direction::Write => Op::Write { extent, buffer },
                };
                self.threads.submit(token, op, &self.completer);
                Submitted::Pending
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        if let Some(uring) = &self.uring {
            uring.borrow_mut().cancel(token);
        }
        self.threads.cancel(token);
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
