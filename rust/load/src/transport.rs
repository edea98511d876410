//! Crate `virtio-drivers`' transport, on a vDPA device.

use crate::engine::EngineError;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use vduse_framework::VqLine;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// VIRTIO_F_ACCESS_PLATFORM, which a vDPA driver must accept and the crate does not know.
const ACCESS_PLATFORM: u64 = 1 << 33;
/// VIRTIO_F_EVENT_IDX: the crate compares ring indices with `>=`, so once they wrap it no
/// longer kicks. It is not offered.
const EVENT_IDX: u64 = 1 << 29;

/// What the engine asks of a vDPA device (the kernel's `struct vdpa_config_ops`), each once a
/// device, none once a request.
pub trait VdpaPort {
    /// What the device offers.
    fn device_features(&self) -> Result<u64, EngineError>;
    /// What the driver accepts.
    fn set_driver_features(&self, features: u64) -> Result<(), EngineError>;
    /// The status byte.
    fn status(&self) -> Result<u8, EngineError>;
    /// Sets it; 0 resets.
    fn set_status(&self, status: u8) -> Result<(), EngineError>;
    /// Most descriptors of a queue.
    fn max_queue_size(&self) -> Result<u32, EngineError>;
    /// Sets a queue up and makes it ready: descriptors, and the IOVAs of the descriptor, driver
    /// and device areas.
    fn set_queue(&self, index: u16, size: u32, areas: [u64; 3]) -> Result<(), EngineError>;
    /// A piece of the config space, to fill `out`.
    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), EngineError>;
}

/// The first error of a port: the crate's `Transport` cannot fail.
pub(crate) type FirstError = Rc<RefCell<Option<EngineError>>>;

/// The crate's way to a vDPA device with one virtqueue.
pub(crate) struct VdpaTransport {
    device_type: DeviceType,
    port: Box<dyn VdpaPort>,
    line: Arc<VqLine>,
    queue_set: bool,
    error: FirstError,
}

impl VdpaTransport {
    /// Kicks and irqs go by `line`; `error` gets the first error of `port`.
    pub(crate) fn new(
        device_type: DeviceType,
        port: Box<dyn VdpaPort>,
        line: Arc<VqLine>,
        error: FirstError,
    ) -> VdpaTransport {
        VdpaTransport {
            device_type,
            port,
            line,
            queue_set: false,
            error,
        }
    }

    fn keep<T: Default>(&self, result: Result<T, EngineError>) -> T {
        result.unwrap_or_else(|error| {
            self.error.borrow_mut().get_or_insert(error);
            T::default()
        })
    }
}

impl Transport for VdpaTransport {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        self.keep(self.port.device_features()) & !EVENT_IDX
    }

    fn write_driver_features(&mut self, features: u64) {
        self.keep(self.port.set_driver_features(features | ACCESS_PLATFORM));
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        self.keep(self.port.max_queue_size())
    }

    fn notify(&mut self, _queue: u16) {
        self.line.kick();
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.keep(self.port.status()).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.keep(self.port.set_status(status.bits() as u8));
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let areas = [descriptors, driver_area, device_area];
        self.keep(self.port.set_queue(queue, size, areas));
        self.queue_set = true;
    }

    /// A vDPA device has no reset of one queue; the crate unsets its queue last of all.
    fn queue_unset(&mut self, _queue: u16) {
        self.keep(self.port.set_status(0));
        self.queue_set = false;
    }

    fn queue_used(&mut self, _queue: u16) -> bool {
        self.queue_set
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        match self.line.take_irqs() {
            0 => InterruptStatus::empty(),
            _ => InterruptStatus::QUEUE_INTERRUPT,
        }
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        self.keep(self.port.config(offset as u32, value.as_mut_bytes()));
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> virtio_drivers::Result<()> {
        Err(Error::Unsupported)
    }
}
