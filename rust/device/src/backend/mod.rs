//! What stores a disk's bytes.
//!
//! A [`Backend`] is shared by all workers; an [`Engine`] is what one virtqueue submits to, on
//! its worker's thread. An engine answers at once ([`Submitted::Done`]) or later, through the
//! [`Completer`] of its worker, from any thread, in any order, exactly once per operation.
//! A backend of its own threads or sockets needs nothing else; the worker's io_uring
//! is there for those that read and write files.

mod check;
mod error;
mod file;
mod fixed;
mod history;
#[cfg(feature = "testing")]
mod inbox;
mod lane;
mod memory;
mod null;
mod observe;
mod status;
#[cfg(test)]
mod tests;
mod uring;

pub use check::check;
pub use error::Error;
pub use file::{EngineChoice, File, Locking, OpenOptions};
pub use history::{ConnectionState, History};
#[cfg(feature = "testing")]
pub use inbox::Inbox;
pub use lane::Lane;
pub use memory::Memory;
pub use null::Null;
pub use observe::{Connection, Notice, Observer, Observers};
pub use status::{Piece, StatusRequest};
pub(crate) use uring::Uring;
pub use uring::io_uring_allowed;

use crate::{Buffer, Completer, Extent, Length};
use rustix::io::Errno;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Weak;
use std::time::Instant;
use vduse_worker::Spawner;

/// Who writes into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The engine reads and writes guest memory until an operation completes: a reset waits
    /// for it and cancels what can be cancelled.
    Direct,
    /// The engine copies out of guest memory only during `submit` and never writes there: what
    /// was read arrives in [`Completion::data`] and is copied when the request finishes. A
    /// reset abandons what is in flight. Memory of our own ([`Buffer::own_region`]) needs no copy:
    /// it may be used, either way, for as long as the operation takes.
    Detachable,
}

/// What a backend is, now; `size` may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes, a multiple of 512.
    pub size: Length,
    /// Smallest unit, in bytes, that is written without reading first; a power of two >= 512.
    pub block_size: u32,
    /// Writes are refused with EROFS.
    pub read_only: bool,
    /// Discarding gives space back.
    pub can_discard: bool,
    /// Who writes into guest memory.
    pub kind: Kind,
}

/// One operation on the disk. The range was checked against the disk's size by [`check`].
pub enum Op {
    /// Fill the buffer from the disk.
    Read {
        /// Where; as long as the buffer.
        extent: Extent,
        /// Device-writable memory.
        buffer: Buffer,
    },
    /// Write the buffer to the disk.
    Write {
        /// Where; as long as the buffer.
        extent: Extent,
        /// Device-readable memory.
        buffer: Buffer,
    },
    /// Everything completed before is stable when this completes.
    Flush,
    /// The range's content is not needed any more; what it reads as afterwards is not said.
    Discard {
        /// Where.
        extent: Extent,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Where.
        extent: Extent,
        /// Space may be given back.
        may_unmap: bool,
    },
}

/// Names one operation to the worker that submitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// How an operation ended.
pub struct Completion {
    /// As given to `submit`.
    pub token: Token,
    /// The operation was carried out whole, or not.
    pub result: Result<(), Errno>,
    /// What a detachable engine read, as long as the buffer; `None` from direct engines.
    pub data: Option<Vec<u8>>,
}

/// What became of a submitted operation.
#[derive(Debug, PartialEq, Eq)]
pub enum Submitted {
    /// It has ended; no completion follows.
    Done(Result<(), Errno>),
    /// A completion follows.
    Pending,
}

/// What a worker offers the engines on it.
pub struct Local {
    /// Takes completions from any thread.
    pub completer: Completer,
    /// Puts tasks on the worker: what a backend has there beside its engines.
    pub spawner: Spawner,
    /// The worker's io_uring, made by the first engine that wants it.
    pub(crate) uring: RefCell<Option<Rc<RefCell<Uring>>>>,
}

impl Local {
    /// The worker's io_uring.
    fn uring(&self) -> Result<Rc<RefCell<Uring>>, Errno> {
        let mut uring = self.uring.borrow_mut();
        if let Some(uring) = &*uring {
            return Ok(uring.clone());
        }
        let made = Rc::new(RefCell::new(Uring::new()?));
        *uring = Some(made.clone());
        Ok(made)
    }
}

/// Where one virtqueue's operations go. Lives and dies on its worker's thread; dropping it
/// does not end what is pending.
///
/// A token names a request. A read is the only operation under its token; other requests may
/// have several under way under theirs (the ranges of a discard), which end in any order and
/// are not told apart. A token is used again only once all of them have ended.
pub trait Engine {
    /// Takes one operation. An engine queues what it cannot start yet: a virtqueue has at most
    /// as many requests in flight as descriptors.
    fn submit(&mut self, token: Token, op: Op) -> Submitted;

    /// End of a batch: what `submit` has collected goes on its way now. Also called after
    /// [`Engine::cancel`] and [`Engine::expire`].
    fn flush(&mut self) {}

    /// Ends the operations under this token early if that is possible; they complete in any
    /// case, cancelled or not. Their request is given up: guest memory is not touched any more
    /// except by what is in a [`Kind::Direct`] engine's hands. What was held back ends by
    /// [`Engine::expire`] with ECANCELED: [`Engine::deadline`] has passed at once.
    fn cancel(&mut self, _token: Token) {}

    /// Sees every completion that comes through the [`Completer`], before the request does,
    /// also where the request was given up: where a layer puts its own into what was read, or
    /// changes how it ended.
    fn completed(&mut self, _completion: &mut Completion) {}

    /// When [`Engine::expire`] is to be called, if at all. Asked for after every other method
    /// and once the worker was woken ([`Completer::wake`]).
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// What waits for a time until `now` goes on, if anything. Operations that end by this go into
    /// `ended`; the rest complete as ever. The caller does not show those in `ended` to
    /// [`Engine::completed`]: a layer does so itself with what the engine beneath put there.
    fn expire(&mut self, _now: Instant, _ended: &mut Vec<Completion>) {}
}

/// What stores a disk's bytes; one for each disk, shared by its queues.
pub trait Backend: Send + Sync {
    /// What it is, now.
    fn info(&self) -> Info;

    /// Which engine serves it: `none`, `io_uring` or `threads`.
    fn engine_name(&self) -> &'static str {
        "none"
    }

    /// An engine for one virtqueue, on the calling worker's thread.
    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error>;

    /// Looks at the size again; observers hear of a change. Bytes.
    fn refresh_size(&self) -> Result<u64, Error> {
        Ok(self.info().size.0)
    }

    /// Makes the disk `size` bytes long, waiting for it: what is new reads as zeroes, what is beyond
    /// is gone. Observers hear of it. EOPNOTSUPP: it has a size of its own.
    fn resize(&self, _size: Length) -> Result<(), Error> {
        Err(Error::new(
            Errno::OPNOTSUPP,
            "it is not resized from here: change what it lies on",
        ))
    }

    /// All its bytes, also those that are no whole sector at its end.
    fn length(&self) -> Length {
        self.info().size
    }

    /// Whether a write past its end makes it longer, as it does with files.
    fn grows(&self) -> bool {
        false
    }

    /// Makes everything stable, waiting for it.
    fn flush(&self) -> Result<(), Error>;

    /// Flushes, and gives locks back once the last engine is gone; no engine comes any more.
    fn close(&self) -> Result<(), Error> {
        self.flush()
    }

    /// Of a layer: flushes and ends, as [`Backend::close`] does, but what lies beneath goes on. No
    /// engine is on it.
    fn release(&self) -> Result<(), Error> {
        self.flush()
    }

    /// Bytes of memory that hold what overlays among its layers keep.
    fn overlay_allocated(&self) -> u64 {
        0
    }

    /// Tells what lies where, as it is now, on this thread or another; never waits. Those who do
    /// not know call everything data.
    fn block_status(&self, request: StatusRequest) {
        request.answer_data();
    }

    /// How the link to whatever holds the bytes stands.
    fn connection(&self) -> Connection {
        Connection::Local
    }

    /// Tells `observer` about resizes and changes of the connection while it lives.
    fn observe(&self, _observer: Weak<dyn Observer>) {}
}

/// Checks the size of a disk: EINVAL unless it is a multiple of 512, not 0, and within the offsets
/// that files and NBD know, of 63 bits.
pub fn disk_size(size: u64) -> Result<Length, Error> {
    let size = Length(size);
    if size.0 == 0 || !size.is_sectors() {
        return Err(Error::new(
            Errno::INVAL,
            format!(
                "a disk of {} bytes: the size must be a multiple of 512 and not 0",
                size.0
            ),
        ));
    }
    if i64::try_from(size.0).is_err() {
        return Err(Error::new(
            Errno::INVAL,
            format!("a disk of {} bytes: 2^63 - 512 are the most", size.0),
        ));
    }
    Ok(size)
}
