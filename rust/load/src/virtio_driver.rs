//! Engine: crate `virtio-driver`, libblkio's driver, with its vhost-user and vhost-vdpa
//! transports. Split and packed rings, several queues, and memory of its own that the device gets
//! by fd.
//!
//! Its `VirtioTransport` trait cannot be implemented outside the crate (the IOVA type in its
//! signatures has no public name), so a device of ours is put behind a vhost-user socket.

use crate::engine::{Direction, Done, Engine, EngineError};
use crate::{Buffers, SECTOR};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fs::metadata;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VhostVdpa, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkTransport, VirtioFeatureFlags,
};

/// How to set the driver up.
#[derive(Clone, Copy, Debug)]
pub struct VirtioDriverSetup {
    /// Accept VIRTIO_F_RING_PACKED where it is offered.
    pub packed: bool,
    /// Accept VIRTIO_F_EVENT_IDX where it is offered. On a packed ring the crate may lose a
    /// kick once more than 65,535 descriptors went by without one.
    pub event_idx: bool,
    /// Virtqueues; requests go to them in turn.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
    /// Requests in flight.
    pub depth: u32,
    /// Bytes of a request.
    pub block_size: u32,
}

struct Queue {
    requests: VirtioBlkQueue<'static, u32>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    /// Something was submitted since the last kick.
    dirty: bool,
}

/// The driver on a device behind a vhost-user socket or a vhost-vdpa node.
pub struct VirtioDriver {
    // Before the transport, which owns the memory the rings lie in.
    queues: Vec<Queue>,
    // Before the buffers, which the device may use until the connection ends.
    _transport: Box<VirtioBlkTransport>,
    buffers: Buffers,
    disk: Disk,
}

/// What a device says of its disk.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Bytes.
    pub capacity: u64,
    /// VIRTIO_BLK_F_RO: writes fail.
    pub read_only: bool,
    /// Virtqueues that the device has.
    pub queues: u16,
}

fn os(what: &'static str) -> impl Fn(std::io::Error) -> EngineError {
    move |error| match error.raw_os_error() {
        Some(errno) => EngineError::Os(what, Errno::from_raw_os_error(errno)),
        None => EngineError::Driver(what, error.to_string()),
    }
}

/// The transport for what `path` is: a /dev/vhost-vdpa-N, or a vhost-user socket.
fn connect(path: &str, features: u64) -> Result<Box<VirtioBlkTransport>, EngineError> {
    if metadata(path).is_ok_and(|file| file.file_type().is_char_device()) {
        let transport = VhostVdpa::with_path(path, features)
            // The crate's error says what it is to debuggers only.
            .map_err(|error| EngineError::Driver("vhost-vdpa", format!("{error:?}")))?;
        return Ok(Box::new(transport));
    }
    let transport = VhostUser::new(path, features).map_err(os("vhost-user"))?;
    Ok(Box::new(transport))
}

impl VirtioDriver {
    /// Connects to the device at `path`, a vhost-user socket or a /dev/vhost-vdpa-N, and sets it
    /// up.
    pub fn new(path: &str, setup: VirtioDriverSetup) -> Result<VirtioDriver, EngineError> {
        let mut features = VirtioFeatureFlags::VERSION_1;
        features.set(VirtioFeatureFlags::RING_PACKED, setup.packed);
        features.set(VirtioFeatureFlags::RING_EVENT_IDX, setup.event_idx);
        let mut of_blk = VirtioBlkFeatureFlags::MQ | VirtioBlkFeatureFlags::RO;
        // As a guest's driver: without it a device makes every write stable before it ends
        // (virtio 1.3, section 5.2.6.2).
        of_blk |= VirtioBlkFeatureFlags::FLUSH;
        let features = features.bits() | of_blk.bits();
        let mut transport = connect(path, features)?;
        let accepted = VirtioFeatureFlags::from_bits_truncate(transport.get_features());
        if setup.packed && !accepted.contains(VirtioFeatureFlags::RING_PACKED) {
            return Err(EngineError::Driver(
                "features",
                "the device offers no packed ring".into(),
            ));
        }
        let config = transport.get_config().map_err(os("config"))?;
        let of_blk = VirtioBlkFeatureFlags::from_bits_truncate(transport.get_features());
        let disk = Disk {
            capacity: u64::from(config.capacity).saturating_mul(SECTOR),
            read_only: of_blk.contains(VirtioBlkFeatureFlags::RO),
            queues: match of_blk.contains(VirtioBlkFeatureFlags::MQ) {
                true => config.num_queues.into(),
                false => 1,
            },
        };
        if setup.queues > disk.queues {
            let text = format!("{} asked for, the device has {}", setup.queues, disk.queues);
            return Err(EngineError::Driver("virtqueues", text));
        }
        let buffers = Buffers::new(setup.depth, setup.block_size).map_err(os("buffers"))?;
        if let Some(fd) = buffers.memory_file() {
            let address = buffers.block(0).as_ptr() as usize;
            transport
                .map_mem_region(address, buffers.len(), fd, 0)
                .map_err(os("memory region"))?;
        }
        let queues =
            VirtioBlkQueue::setup_queues(transport.as_mut(), setup.queues.into(), setup.queue_size)
                .map_err(os("queues"))?;
        let queues = queues
            .into_iter()
            .enumerate()
            .map(|(index, mut requests)| {
                requests.set_used_notif_enabled(false);
                Queue {
                    requests,
                    kick: transport.get_submission_notifier(index),
                    call: transport.get_completion_fd(index),
                    dirty: false,
                }
            })
            .collect();
        Ok(VirtioDriver {
            queues,
            _transport: transport,
            buffers,
            disk,
        })
    }

    /// What the device says of its disk.
    pub fn disk(&self) -> Disk {
        self.disk
    }

    /// Asks for irqs; true if something had completed before the device could know.
    fn enable_irqs(&mut self) -> bool {
        self.queues.iter_mut().fold(false, |some, queue| {
            queue.requests.set_used_notif_enabled(true);
            // The crate orders this store before the load only with an event index.
            fence(Ordering::SeqCst);
            queue.requests.completions().has_next() || some
        })
    }
}

impl Engine for VirtioDriver {
    fn capacity(&self) -> u64 {
        self.disk.capacity
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
        let memory = self.buffers.block(block).as_ptr();
        let len = self.buffers.block_size();
        let index = block as usize % self.queues.len();
        let queue = &mut self.queues[index];
        let result = match direction {
            // SAFETY: the block is mapped until `self` is dropped, and the load leaves it alone
            // until the request is reaped.
            Direction::Read => unsafe { queue.requests.read_raw(offset, memory, len, block) },
            // SAFETY: as above.
            Direction::Write => unsafe { queue.requests.write_raw(offset, memory, len, block) },
        };
        // The one error that a request in order can meet is a full queue, and it has no errno.
        match result {
            Ok(()) => queue.dirty = true,
            Err(error) if error.kind() == std::io::ErrorKind::Other => return Ok(false),
            Err(error) => return Err(os("submit")(error)),
        }
        Ok(true)
    }

    fn kick(&mut self) -> Result<(), EngineError> {
        for queue in &mut self.queues {
            if std::mem::take(&mut queue.dirty) && queue.requests.avail_notif_needed() {
                queue.kick.notify().map_err(os("kick"))?;
            }
        }
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), EngineError> {
        for queue in &mut self.queues {
            done.extend(queue.requests.completions().map(|completion| {
                let result = match completion.ret {
                    0 => Ok(()),
                    errno => Err(Errno::from_raw_os_error(-errno)),
                };
                (completion.context, result)
            }));
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), EngineError> {
        if !self.enable_irqs() {
            let mut fds: Vec<PollFd<'_>> = self
                .queues
                .iter()
                .map(|queue| PollFd::from_borrowed_fd(queue.call.as_fd(), PollFlags::IN))
                .collect();
            let timeout = Timespec {
                tv_sec: timeout.as_secs() as i64,
                tv_nsec: timeout.subsec_nanos().into(),
            };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(EngineError::Os("poll", errno)),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (queue, _) in self.queues.iter().zip(ready).filter(|(_, ready)| *ready) {
                queue.call.read().map_err(os("call"))?;
            }
        }
        for queue in &mut self.queues {
            queue.requests.set_used_notif_enabled(false);
        }
        Ok(())
    }
}
