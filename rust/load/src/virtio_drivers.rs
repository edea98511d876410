//! Engine: crate `virtio-drivers` (rcore-os), the driver of several hobby kernels, on a vDPA
//! device. Its virtio-blk has one split queue of 16 descriptors.

use crate::engine::{Direction, Done, Engine, EngineError};
use crate::hal::{DmaHal, DmaScope};
use crate::{Buffers, SECTOR};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use vduse_framework::{Dma, VqLine};
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
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
type FirstError = Rc<RefCell<Option<EngineError>>>;

struct VdpaTransport {
    port: Box<dyn VdpaPort>,
    line: Arc<VqLine>,
    queue_set: bool,
    error: FirstError,
}

impl VdpaTransport {
    fn keep<T: Default>(&self, result: Result<T, EngineError>) -> T {
        result.unwrap_or_else(|error| {
            self.error.borrow_mut().get_or_insert(error);
            T::default()
        })
    }
}

impl Transport for VdpaTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
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

/// A request's header and status, at one address while it is in flight.
#[derive(Default)]
struct Header {
    request: BlkReq,
    response: BlkResp,
}

/// The driver on a vDPA device.
pub struct VirtioDrivers {
    // Dropped in this order: the driver resets the device and frees its rings in the scope.
    driver: VirtIOBlk<DmaHal, VdpaTransport>,
    scope: DmaScope,
    line: Arc<VqLine>,
    buffers: Buffers,
    headers: Vec<Header>,
    /// What each of the crate's tokens stands for.
    tokens: Vec<Option<(u32, Direction)>>,
    error: FirstError,
}

impl VirtioDrivers {
    /// Takes the device over: resets it, sets up queue 0, whose kicks and irqs go by `line`.
    pub fn new(
        dma: Arc<dyn Dma>,
        port: Box<dyn VdpaPort>,
        line: Arc<VqLine>,
        depth: u32,
        block_size: u32,
    ) -> Result<VirtioDrivers, EngineError> {
        let scope = DmaScope::new(dma);
        let error = FirstError::default();
        let transport = VdpaTransport {
            port,
            line: line.clone(),
            queue_set: false,
            error: error.clone(),
        };
        let driver = VirtIOBlk::<DmaHal, _>::new(transport);
        if let Some(error) = error.take() {
            return Err(error);
        }
        let driver = driver.map_err(|error| EngineError::Driver("set-up", error.to_string()))?;
        Ok(VirtioDrivers {
            tokens: vec![None; driver.virt_queue_size().into()],
            driver,
            scope,
            line,
            buffers: Buffers::new(depth, block_size)
                .map_err(|error| EngineError::Driver("buffers", error.to_string()))?,
            headers: (0..depth).map(|_| Header::default()).collect(),
            error,
        })
    }

    /// The crate's interfaces to memory and device cannot fail; this is how they did.
    fn check(&self) -> Result<(), EngineError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        match self.scope.failure() {
            Some(error) => Err(EngineError::Driver("dma", error.to_string())),
            None => Ok(()),
        }
    }
}

impl Engine for VirtioDrivers {
    fn capacity(&self) -> u64 {
        self.driver.capacity().saturating_mul(SECTOR)
    }

    fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    fn submit(
        &mut self,
        block: u32,
        direction: Direction,
        offset: u64,
    ) -> Result<bool, EngineError> {
        let sector = (offset / SECTOR) as usize;
        let Header { request, response } = &mut self.headers[block as usize];
        // SAFETY: the block is private memory of this engine (the device sees bounce pages),
        // and nothing touches it while its request is in flight.
        let data = unsafe { self.buffers.as_slice_mut(block) };
        let token = match direction {
            // SAFETY: header and data stay where they are, untouched, until `reap`.
            Direction::Read => unsafe {
                self.driver.read_blocks_nb(sector, request, data, response)
            },
            // SAFETY: as above.
            Direction::Write => unsafe {
                self.driver.write_blocks_nb(sector, request, data, response)
            },
        };
        self.check()?;
        match token {
            Ok(token) => {
                let slot = self.tokens.get_mut(usize::from(token));
                *slot.ok_or(EngineError::Os("token", Errno::PROTO))? = Some((block, direction));
                Ok(true)
            }
            Err(Error::QueueFull) => Ok(false),
            Err(error) => Err(EngineError::Driver("submit", error.to_string())),
        }
    }

    fn kick(&mut self) -> Result<(), EngineError> {
        // The crate has done so at every submission.
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), EngineError> {
        while let Some(token) = self.driver.peek_used() {
            let slot = self.tokens.get_mut(usize::from(token));
            let (block, direction) = slot
                .and_then(Option::take)
                .ok_or(EngineError::Os("used ring", Errno::PROTO))?;
            let Header { request, response } = &mut self.headers[block as usize];
            // SAFETY: as in `submit`.
            let data = unsafe { self.buffers.as_slice_mut(block) };
            let result = match direction {
                // SAFETY: header and data are those that were submitted under this token.
                Direction::Read => unsafe {
                    self.driver
                        .complete_read_blocks(token, request, data, response)
                },
                // SAFETY: as above.
                Direction::Write => unsafe {
                    self.driver
                        .complete_write_blocks(token, request, data, response)
                },
            };
            self.check()?;
            let result = result.map_err(|error| match error {
                Error::Unsupported => Errno::OPNOTSUPP,
                _ => Errno::IO,
            });
            done.push((block, result));
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), EngineError> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let irq = PollFd::from_borrowed_fd(self.line.irq_fd(), PollFlags::IN);
        match poll(&mut [irq], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(EngineError::Os("poll", errno)),
        }
        self.driver.ack_interrupt();
        Ok(())
    }
}
