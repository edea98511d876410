//! A disk: what the queues of a virtio-blk device share.

use super::service::BlkService;
use super::{ID_BYTES, Limits};
use crate::backend::{self, Backend, Local, Observer};
use crate::handle::QueueId;
use crate::service::{Provider, Service};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// A backend offered as a virtio-blk device.
pub struct Disk {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) limits: Limits,
    pub(super) serial: [u8; ID_BYTES],
    /// Sectors of 512 bytes.
    pub(super) capacity: AtomicU64,
}

impl Disk {
    /// `capacity`: sectors of 512 bytes. `limits`: the config space's. `serial`: what GET_ID
    /// answers, up to 20 bytes, cut there, padded with NUL.
    pub fn new(backend: Arc<dyn Backend>, capacity: u64, limits: Limits, serial: &[u8]) -> Disk {
        let mut id = [0; ID_BYTES];
        let given = serial.len().min(ID_BYTES);
        id[..given].copy_from_slice(&serial[..given]);
        Disk {
            backend,
            limits,
            serial: id,
            capacity: AtomicU64::new(capacity),
        }
    }

    /// The disk has this many sectors of 512 bytes from now on.
    pub fn set_capacity(&self, sectors: u64) {
        self.capacity.store(sectors, Ordering::Relaxed);
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
        let engine = self.0.backend.attach(local)?;
        let disk = self.0.clone();
        Ok(Box::new(BlkService::new(id, disk, features, engine)))
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.0.backend.observe(observer);
    }
}
