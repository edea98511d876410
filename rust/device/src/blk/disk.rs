//! A disk: what the queues of a virtio-blk device share.

use super::service::BlkService;
use super::{ID_BYTES, Limits};
use crate::backend::{self, Backend, Local, Notice, Observer, StatusRequest};
use crate::handle::QueueId;
use crate::service::{Provider, Service};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A backend offered as a virtio-blk device.
pub struct Disk {
    stored: Mutex<Stored>,
    pub(super) limits: Limits,
    pub(super) serial: [u8; ID_BYTES],
    /// Sectors of 512 bytes.
    pub(super) capacity: AtomicU64,
}

/// Where the bytes are.
struct Stored {
    /// `None` while it is exchanged.
    backend: Option<Arc<dyn Backend>>,
    /// Who wants to know of the backend, once somebody does.
    observer: Option<Weak<dyn Observer>>,
    /// What the backend tells; a new one for each, which the former does not know.
    link: Option<Arc<Link>>,
}

impl Stored {
    /// Has the backend tell the observer.
    fn link(&mut self) {
        self.link = None;
        if let (Some(backend), Some(observer)) = (&self.backend, &self.observer) {
            let link = Arc::new(Link(observer.clone()));
            let told: Arc<dyn Observer> = link.clone();
            backend.observe(Arc::downgrade(&told));
            self.link = Some(link);
        }
    }
}

/// Between a backend and the device on it.
struct Link(Weak<dyn Observer>);

impl Observer for Link {
    fn notice(&self, notice: &Notice) {
        if let Some(device) = self.0.upgrade() {
            device.notice(notice);
        }
    }
}

impl Disk {
    /// `capacity`: sectors of 512 bytes. `limits`: the config space's. `serial`: what GET_ID
    /// answers, up to 20 bytes, cut there, padded with NUL.
    pub fn new(backend: Arc<dyn Backend>, capacity: u64, limits: Limits, serial: &[u8]) -> Disk {
        let mut id = [0; ID_BYTES];
        let given = serial.len().min(ID_BYTES);
        id[..given].copy_from_slice(&serial[..given]);
        Disk {
            stored: Mutex::new(Stored {
                backend: Some(backend),
                observer: None,
                link: None,
            }),
            limits,
            serial: id,
            capacity: AtomicU64::new(capacity),
        }
    }

    /// The disk has this many sectors of 512 bytes from now on.
    pub fn set_capacity(&self, sectors: u64) {
        self.capacity.store(sectors, Ordering::Relaxed);
    }

    /// Tells what lies where; see [`Backend::block_status`].
    pub fn block_status(&self, request: StatusRequest) {
        match self.backend() {
            Some(backend) => backend.block_status(request),
            // Between two: what will be there is not known.
            None => request.answer_data(),
        }
    }

    /// Lets go of the backend, or takes another. While the data path is paused
    /// ([`crate::DataPath::pause`]): queues are served by what is there when they go on.
    pub fn set_backend(&self, backend: Option<Arc<dyn Backend>>) {
        let mut stored = self.lock();
        let former = std::mem::replace(&mut stored.backend, backend);
        stored.link();
        drop(stored);
        // Not under the lock: its end may wait.
        drop(former);
    }

    /// Whether it has one.
    pub fn has_backend(&self) -> bool {
        self.lock().backend.is_some()
    }

    fn backend(&self) -> Option<Arc<dyn Backend>> {
        self.lock().backend.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk as a provider of services, which share it.
pub(crate) struct DiskProvider(pub(crate) Arc<Disk>);

impl Provider for DiskProvider {
    fn attach(
        &self,
        id: QueueId,
        _index: u32,
        features: u64,
        local: &Local,
    ) -> Result<Box<dyn Service>, backend::Error> {
        let disk = self.0.clone();
        let backend = disk.backend();
        let backend = backend
            .ok_or_else(|| backend::Error::new(Errno::NXIO, "the disk has no backend now"))?;
        let engine = backend.attach(local)?;
        let service = BlkService::new(id, disk, features, backend, engine);
        Ok(Box::new(service))
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        let mut stored = self.0.lock();
        stored.observer = Some(observer);
        stored.link();
    }
}
