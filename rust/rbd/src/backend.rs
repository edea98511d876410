//! The backend: an open image, its size and connection, and how it is closed.

use crate::Options;
use crate::allocation::Questions;
use crate::connecting::connect;
use crate::engine::RbdEngine;
use crate::library::Library;
use crate::locking;
use crate::patience::{apart, late, within};
use crate::session::{Command, Image, Memory};
use crate::status::Status;
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;
use vduse_device::Length;
use vduse_device::backend::{
    Backend, Connection, Engine, Error, Info, Kind, Local, Observer, StatusRequest, disk_size,
};

/// How long calls outside of a virtqueue wait for the cluster.
const CONTROL_WAIT: Duration = Duration::from_secs(30);

/// An image, for those that use it. The last one leaves it to a thread of its own, which closes it.
pub(crate) struct Held {
    /// `None` only while dropping.
    image: Option<Image>,
    /// Hangs up when the image is closed.
    closed: Option<mpsc::Sender<()>>,
}

impl Held {
    pub(crate) fn image(&self) -> &Image {
        match &self.image {
            Some(image) => image,
            None => unreachable!("only drop takes it"),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (image, closed) = (self.image.take(), self.closed.take());
        // Without a thread it is closed here, rather than never.
        let _ = apart(move || {
            drop(image);
            drop(closed);
        });
    }
}

/// A disk that is an RBD image.
pub struct Rbd {
    spec: String,
    status: Arc<Status>,
    /// `None` once closed.
    image: Mutex<Option<Arc<Held>>>,
    questions: Arc<Questions>,
    closed: Mutex<mpsc::Receiver<()>>,
    is_read_only: bool,
    reconnect_delay: Option<Duration>,
}

impl Rbd {
    /// Connects, opens the image and takes its lock; all within `options.open_timeout`: ETIMEDOUT.
    pub fn open(library: &'static Library, options: Options) -> Result<Rbd, Error> {
        let spec = options.spec();
        let is_read_only = options.is_read_only();
        let reconnect_delay = options.reconnect_delay;
        let opened = within(options.open_timeout, &spec, move || open(library, &options))?;
        let (image, status, closed) = opened?;
        Ok(Rbd {
            spec,
            status,
            questions: Questions::new(&image),
            image: Mutex::new(Some(image)),
            closed: Mutex::new(closed),
            is_read_only,
            reconnect_delay,
        })
    }

    /// The image; EBADF once closed.
    fn held(&self) -> Result<Arc<Held>, Error> {
        self.lock()
            .clone()
            .ok_or_else(|| Error::new(Errno::BADF, format!("{}: closed", self.spec)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Held>>> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Rbd {
    fn info(&self) -> Info {
        Info {
            size: self.status.size(),
            block_size: 512,
            read_only: self.is_read_only,
            can_discard: true,
            kind: Kind::Detachable,
        }
    }

    fn engine_name(&self) -> &'static str {
        "librbd"
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(RbdEngine::new(
            self.held()?,
            self.status.clone(),
            local.completer.clone(),
            self.reconnect_delay,
            self.is_read_only,
        )))
    }

    fn refresh_size(&self) -> Result<u64, Error> {
        let (held, status) = (self.held()?, self.status.clone());
        let what = format!("{}: its size", self.spec);
        within(CONTROL_WAIT, &what, move || refresh(&held, &status))?
            .map(|size| size.0)
            .map_err(|error| Error::new(error.errno, format!("{what}: {error}")))
    }

    fn resize(&self, size: Length) -> Result<(), Error> {
        let (held, status) = (self.held()?, self.status.clone());
        let what = format!("{}: resize", self.spec);
        let resized = within(CONTROL_WAIT, &what, move || {
            held.image().resize(disk_size(size.0)?.0)?;
            refresh(&held, &status)
        });
        resized?
            .map(|_| ())
            .map_err(|error| Error::new(error.errno, format!("{what}: {error}")))
    }

    fn flush(&self) -> Result<(), Error> {
        if self.is_read_only {
            return Ok(());
        }
        let held = self.held()?;
        let what = format!("{}: flush", self.spec);
        let (answer, answered) = mpsc::channel();
        held.image()
            .submit(Command::Flush, Memory::None, move |outcome, _| {
                let _ = answer.send(outcome);
            })
            .map_err(|errno| Error::failed(&what, errno))?;
        match answered.recv_timeout(CONTROL_WAIT) {
            Ok(outcome) => outcome
                .map(|_| ())
                .map_err(|errno| Error::failed(&what, errno)),
            Err(_) => Err(late(&what, CONTROL_WAIT)),
        }
    }

    /// Waits for the image to be closed unless an engine still has it.
    fn close(&self) -> Result<(), Error> {
        if self.lock().is_none() {
            return Ok(());
        }
        let flushed = self.flush();
        let held = self.lock().take();
        if !is_late(&flushed) {
            self.questions.end(CONTROL_WAIT);
        }
        let Some(last) = held.and_then(Arc::into_inner) else {
            return flushed;
        };
        drop(last);
        // Who has waited once need not wait again.
        if is_late(&flushed) {
            return flushed;
        }
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        match closed.recv_timeout(CONTROL_WAIT) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                flushed.and(Err(late(&format!("{}: close", self.spec), CONTROL_WAIT)))
            }
            _ => flushed,
        }
    }

    fn block_status(&self, request: StatusRequest) {
        self.questions.ask(request);
    }

    fn connection(&self) -> Connection {
        self.status.connection()
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.status.observers.add(observer);
    }
}

/// Whether the cluster has not answered in time.
fn is_late(outcome: &Result<(), Error>) -> bool {
    let failed = outcome.as_ref();
    failed.is_err_and(|error| error.errno == Errno::TIMEDOUT)
}

/// An open image, how it stands, and what hangs up when it is closed.
type Opened = (Arc<Held>, Arc<Status>, mpsc::Receiver<()>);

/// Opens what `options` name, waiting for the cluster.
fn open(library: &'static Library, options: &Options) -> Result<Opened, Error> {
    let spec = options.spec();
    let image = connect(library, options)?;
    locking::lock(&image, options)?;
    let size = image.size().map_err(|errno| Error::failed(&spec, errno))?;
    let size =
        disk_size(size).map_err(|error| Error::new(error.errno, format!("{spec}: {error}")))?;
    let (hangs_up, closed) = mpsc::channel();
    let image = Arc::new(Held {
        image: Some(image),
        closed: Some(hangs_up),
    });
    let status = Arc::new(Status::new(size));
    watch(&spec, &image, &status)?;
    // What came before the watch.
    refresh(&image, &status)?;
    Ok((image, status, closed))
}

/// Looks at the size; observers hear of a change. May wait for the cluster.
fn refresh(held: &Held, status: &Status) -> Result<Length, Error> {
    let size = disk_size(held.image().size()?)?;
    status.resize(size);
    Ok(size)
}

/// From now on the size is looked at whenever the image has changed. librbd's thread must not wait:
/// a thread looks, one at a time.
fn watch(spec: &str, held: &Arc<Held>, status: &Arc<Status>) -> Result<(), Error> {
    let (image, status) = (Arc::downgrade(held), status.clone());
    let changes = Arc::new(AtomicU64::new(0));
    let heard = move || {
        if changes.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let (image, status, seen) = (image.clone(), status.clone(), changes.clone());
        let looking = apart(move || look(&image, &status, &seen));
        if looking.is_err() {
            // The next change tries again.
            changes.store(0, Ordering::Release);
        }
    };
    held.image()
        .watch(Box::new(heard))
        .map_err(|errno| Error::failed(format!("{spec}: watch"), errno))
}

/// Looks at the size until no change has come meanwhile.
fn look(image: &Weak<Held>, status: &Status, changes: &AtomicU64) {
    loop {
        let seen = changes.load(Ordering::Acquire);
        if let Some(held) = image.upgrade() {
            // One that no disk has is left alone, and so is the size when the image cannot be asked.
            let _ = refresh(&held, status);
        }
        let order = Ordering::AcqRel;
        if changes
            .compare_exchange(seen, 0, order, Ordering::Acquire)
            .is_ok()
        {
            return;
        }
    }
}
