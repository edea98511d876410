//! How everybody else reaches an image's task: letters, and a bell.

use crate::files::Files;
use crate::image::Image;
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use vduse_device::backend::{Completion, Error, StatusRequest, Token};
use vduse_device::{Completer, Extent};
use vduse_worker::Waker;

/// What a virtqueue wants. Data to write was copied out of guest memory.
pub(crate) enum Work {
    Read(Extent),
    Write(Extent, Vec<u8>),
    Flush,
    Discard(Extent),
    WriteZeroes(Extent, bool),
}

/// A virtqueue's operation, and where its end is told.
pub(crate) struct Job {
    /// Which engine: tokens are only its own.
    pub(crate) engine: u64,
    pub(crate) token: Token,
    pub(crate) work: Work,
    pub(crate) completer: Completer,
}

impl Job {
    /// Ends it.
    pub(crate) fn end(self, result: Result<(), Errno>) {
        complete(&self.completer, self.token, result, None);
    }
}

pub(crate) fn complete(
    completer: &Completer,
    token: Token,
    result: Result<(), Errno>,
    data: Option<Vec<u8>>,
) {
    completer.complete(Completion {
        token,
        result,
        data,
    });
}

/// Who waits for the end of something; nobody if it is dropped.
pub(crate) type Reply = SyncSender<Result<(), Error>>;

/// What is wanted of the task.
pub(crate) enum Letter {
    Do(Job),
    /// What this engine has under this token and was not begun ends now.
    Cancel(u64, Token),
    /// Everything is made stable.
    Flush(Reply),
    /// The disk has so many bytes then.
    Resize(u64, Reply),
    /// What lies where.
    Status(StatusRequest),
    /// What was taken is carried out and made stable; nothing else comes.
    Close(Option<Reply>),
}

impl Letter {
    /// Nobody will read it.
    fn refuse(self) {
        match self {
            Letter::Do(job) => job.end(Err(Errno::BADF)),
            Letter::Cancel(..) => {}
            Letter::Flush(reply) | Letter::Resize(_, reply) | Letter::Close(Some(reply)) => {
                let _ = reply.send(Err(Error::new(Errno::BADF, "the image is closed")));
            }
            Letter::Status(request) => request.refuse(Errno::BADF),
            Letter::Close(None) => {}
        }
    }
}

/// The letter box of one image's task.
#[derive(Default)]
pub(crate) struct Door {
    /// `None` once the task is gone.
    letters: Mutex<Option<Vec<Letter>>>,
    waker: OnceLock<Waker>,
    /// For shortcuts, while it is served.
    image: Mutex<Option<Arc<Image>>>,
    is_served: AtomicBool,
    pub(crate) files: Arc<Files>,
}

impl Door {
    pub(crate) fn new() -> Arc<Door> {
        Arc::new(Door {
            letters: Mutex::new(Some(Vec::new())),
            ..Door::default()
        })
    }

    /// Whom to wake; only the first counts.
    pub(crate) fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// The image can be read and written.
    pub(crate) fn open(&self, image: Arc<Image>) {
        *self.lock_image() = Some(image);
        self.is_served.store(true, Ordering::Release);
    }

    /// It is closing, or broken.
    pub(crate) fn shut(&self) {
        self.is_served.store(false, Ordering::Release);
        *self.lock_image() = None;
    }

    /// Whether the image can be read and written.
    pub(crate) fn is_served(&self) -> bool {
        self.is_served.load(Ordering::Acquire)
    }

    /// The image, while it can be read and written.
    pub(crate) fn image(&self) -> Option<Arc<Image>> {
        self.lock_image().clone()
    }

    fn lock_image(&self) -> MutexGuard<'_, Option<Arc<Image>>> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Letter>>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves letters, all at once; `from` is empty afterwards.
    pub(crate) fn send(&self, from: &mut Vec<Letter>) {
        let was_empty = match &mut *self.lock() {
            Some(letters) => {
                let was_empty = letters.is_empty();
                letters.append(from);
                was_empty
            }
            None => false,
        };
        from.drain(..).for_each(Letter::refuse);
        if was_empty && let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    /// Takes all letters into `into`, which is empty.
    pub(crate) fn take(&self, into: &mut Vec<Letter>) {
        if let Some(letters) = &mut *self.lock() {
            std::mem::swap(letters, into);
        }
    }

    /// Nobody reads letters any more.
    pub(crate) fn close(&self) {
        self.shut();
        let rest = self.lock().take();
        rest.into_iter().flatten().for_each(Letter::refuse);
    }
}
