//! Engine: crate `virtio-drivers` (rcore-os), the driver of several hobby kernels, on a vDPA
//! device. Its virtio-blk has one split queue of 16 descriptors.

use crate::engine::{Direction, Done, Engine, EngineError};
use crate::hal::{DmaHal, DmaScope};
use crate::transport::{FirstError, VdpaPort, VdpaTransport};
use crate::{Buffers, SECTOR};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;
use vduse_framework::{Dma, VqLine};
use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

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
        let transport = VdpaTransport::new(DeviceType::Block, port, line.clone(), error.clone());
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
