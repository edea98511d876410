//! Crate `vhost`, rust-vmm's vhost-user front end, as a judge of a back end's replies: every
//! message that the crate speaks, in the order of a VMM, and one request on each virtqueue.

use crate::engine::EngineError;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
    VhostUserProtocolFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_PACKED: the rings here are split ones without event indices.
const NOT_TAKEN: u64 = 1 << 29 | 1 << 34;
/// Descriptors of a ring.
const QUEUE_SIZE: u16 = 8;
/// Bytes of a region of the memory; a ring, and the message of its request, take a page each.
const REGION: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;
/// Guest physical addresses, and the front end's own.
const GUEST: u64 = 0x4000_0000;
const USER: u64 = 0x7f00_0000_0000;
/// Where the parts lie in a ring's page.
const AVAIL: u64 = 0x100;
const USED: u64 = 0x200;
const MESSAGE: u64 = 0x400;
/// Bytes of struct virtio_blk_config (virtio 1.3, 5.2.4) that every device has.
const CONFIG: u32 = 36;
/// `writeback` of the same.
const WRITEBACK: u32 = 32;
/// Milliseconds until what must come has not.
const PATIENCE: i32 = 30_000;
const SERIAL: usize = 20;

/// What the back end answered.
#[derive(Debug, Default)]
pub struct FrontendTalk {
    /// VHOST_USER_GET_FEATURES.
    pub features: u64,
    /// VHOST_USER_GET_PROTOCOL_FEATURES, as far as the crate knows them.
    pub protocol_features: u64,
    /// VHOST_USER_GET_QUEUE_NUM.
    pub queues: u64,
    /// VHOST_USER_GET_MAX_MEM_SLOTS.
    pub memory_slots: u64,
    /// The config space's first [`CONFIG`] bytes.
    pub config: Vec<u8>,
    /// Bytes of the in-flight records.
    pub inflight: u64,
    /// Config changes that were announced.
    pub config_changes: u64,
    /// The serial, as VIRTIO_BLK_T_GET_ID says it on each virtqueue.
    pub serials: Vec<Vec<u8>>,
    /// VHOST_USER_GET_VRING_BASE of each.
    pub bases: Vec<u32>,
}

#[derive(Default)]
struct Changes(AtomicU64);

impl VhostUserFrontendReqHandler for Changes {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(0)
    }
}

fn failed<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> EngineError {
    move |error| EngineError::Driver(what, format!("{error:?}"))
}

/// Waits until `fd` is readable, at most [`PATIENCE`].
fn wait(what: &'static str, fd: &impl AsRawFd) -> Result<(), EngineError> {
    let epoll = Epoll::new().map_err(failed(what))?;
    let interest = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, fd.as_raw_fd(), interest)
        .map_err(failed(what))?;
    loop {
        return match epoll.wait(PATIENCE, &mut [EpollEvent::default()]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(EngineError::Driver(what, "nothing came".into())),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(failed(what)(error)),
        };
    }
}

/// One of a device's virtqueues, its page and its fds.
struct Queue {
    index: usize,
    kick: EventFd,
    call: EventFd,
}

impl Queue {
    fn page(&self) -> u64 {
        self.index as u64 * PAGE
    }

    fn start(&self, vhost: &mut Frontend) -> vhost::Result<()> {
        vhost.set_vring_num(self.index, QUEUE_SIZE)?;
        let user = USER + self.page();
        let areas = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            desc_table_addr: user,
            avail_ring_addr: user + AVAIL,
            used_ring_addr: user + USED,
            ..VringConfigData::default()
        };
        vhost.set_vring_addr(self.index, &areas)?;
        vhost.set_vring_base(self.index, 0)?;
        vhost.set_vring_err(self.index, &self.call)?;
        vhost.set_vring_call(self.index, &self.call)?;
        vhost.set_vring_kick(self.index, &self.kick)?;
        vhost.set_vring_enable(self.index, true)
    }

    /// VIRTIO_BLK_T_GET_ID (virtio 1.3, 5.2.6) in the ring's first entry, waited for.
    fn get_id(&self, memory: &File) -> std::io::Result<()> {
        let page = self.page();
        let message = GUEST + page + MESSAGE;
        let mut descriptors = Vec::new();
        for (address, length, flags, next) in [
            (message, 16u32, 1u16, 1u16),
            (message + 16, SERIAL as u32, 1 | 2, 2),
            (message + 16 + SERIAL as u64, 1, 2, 0),
        ] {
            descriptors.extend(address.to_le_bytes());
            descriptors.extend(length.to_le_bytes());
            descriptors.extend(flags.to_le_bytes());
            descriptors.extend(next.to_le_bytes());
        }
        memory.write_all_at(&descriptors, page)?;
        memory.write_all_at(&8u32.to_le_bytes(), page + MESSAGE)?;
        memory.write_all_at(&[0xff], page + MESSAGE + 16 + SERIAL as u64)?;
        // flags 0, idx 1, ring[0]: the chain at descriptor 0.
        memory.write_all_at(&[0, 0, 1, 0, 0, 0], page + AVAIL)?;
        self.kick.write(1)
    }

    /// The serial that the device wrote.
    fn got_id(&self, memory: &File) -> Result<Vec<u8>, EngineError> {
        wait("call", &self.call)?;
        let mut used = [0; 12];
        let mut reply = [0; SERIAL + 1];
        memory
            .read_exact_at(&mut used, self.page() + USED)
            .and_then(|()| memory.read_exact_at(&mut reply, self.page() + MESSAGE + 16))
            .map_err(failed("memory"))?;
        // flags, idx; id and len of the first element.
        if used[2..4] != [1, 0] || used[4..] != [0, 0, 0, 0, SERIAL as u8 + 1, 0, 0, 0] {
            return Err(EngineError::Driver("used ring", format!("{used:?}")));
        }
        let (serial, status) = reply.split_at(SERIAL);
        match status {
            [0] => Ok(serial.to_vec()),
            other => Err(EngineError::Driver("GET_ID", format!("status {other:?}"))),
        }
    }
}

/// Negotiates everything that the crate knows; acknowledgements are wanted from then on.
fn agree(vhost: &mut Frontend, talk: &mut FrontendTalk) -> vhost::Result<()> {
    vhost.set_owner()?;
    talk.features = vhost.get_features()?;
    vhost.set_features(talk.features & !NOT_TAKEN)?;
    let offered = vhost.get_protocol_features()?;
    talk.protocol_features = offered.bits();
    // Status is QEMU's word for the reset of a device; the crate has none for the rest of it.
    vhost.set_protocol_features(offered & !VhostUserProtocolFeatures::STATUS)?;
    vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    talk.queues = vhost.get_queue_num()?;
    talk.memory_slots = vhost.get_max_mem_slots()?;
    let empty = [0; CONFIG as usize];
    let config = vhost.get_config(0, CONFIG, VhostUserConfigFlags::WRITABLE, &empty)?;
    talk.config = config.1;
    Ok(())
}

/// The memory table, and one region more that goes again.
fn share_memory(vhost: &mut Frontend, memory: &File) -> vhost::Result<()> {
    let region = |number: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST + number * REGION,
        memory_size: REGION,
        userspace_addr: USER + number * REGION,
        mmap_offset: number * REGION,
        mmap_handle: memory.as_raw_fd(),
    };
    vhost.set_mem_table(&[region(0), region(1)])?;
    vhost.add_mem_region(&region(2))?;
    vhost.remove_mem_region(&region(2))
}

/// GET_INFLIGHT_FD, and what came of it back; its bytes.
fn share_records(vhost: &mut Frontend, queues: u16) -> vhost::Result<u64> {
    let asked = VhostUserInflight::new(0, 0, queues, QUEUE_SIZE);
    let (made, file) = vhost.get_inflight_fd(&asked)?;
    vhost.set_inflight_fd(&made, file.as_raw_fd())?;
    Ok(made.mmap_size)
}

/// Talks to the vhost-user block device at `path`, twice over, with a reset between. `change`
/// makes the device change its config space, which the back end must announce.
pub fn vhost_frontend(
    path: &str,
    mut change: impl FnMut() -> Result<(), EngineError>,
) -> Result<FrontendTalk, EngineError> {
    let mut talk = FrontendTalk::default();
    let mut vhost = Frontend::connect(path, 1).map_err(failed("connect"))?;
    agree(&mut vhost, &mut talk).map_err(failed("negotiation"))?;
    let changes = Arc::new(Changes::default());
    let mut announced = FrontendReqHandler::new(changes.clone()).map_err(failed("channel"))?;
    vhost
        .set_backend_request_fd(&announced.get_tx_raw_fd())
        .map_err(failed("SET_BACKEND_REQ_FD"))?;
    let memory = memfd_create("vhost-frontend", MemfdFlags::CLOEXEC)
        .map_err(|errno| EngineError::Os("memory", errno))?;
    ftruncate(&memory, 3 * REGION).map_err(|errno| EngineError::Os("memory", errno))?;
    let memory = File::from(memory);
    for _ in 0..2 {
        share_memory(&mut vhost, &memory).map_err(failed("memory table"))?;
        let queues = u16::try_from(talk.queues).map_err(failed("queues"))?;
        talk.inflight = share_records(&mut vhost, queues).map_err(failed("in-flight records"))?;
        memory
            .write_all_at(&vec![0; REGION as usize], 0)
            .map_err(failed("memory"))?;
        for index in 0..queues.into() {
            let queue = Queue {
                index,
                kick: EventFd::new(0).map_err(failed("kick"))?,
                call: EventFd::new(0).map_err(failed("call"))?,
            };
            queue.start(&mut vhost).map_err(failed("virtqueue"))?;
            queue.get_id(&memory).map_err(failed("request"))?;
            talk.serials.push(queue.got_id(&memory)?);
        }
        // Announced to a driver that is live only.
        change()?;
        wait("config change", &announced)?;
        announced
            .handle_request()
            .map_err(failed("config change"))?;
        vhost
            .set_config(WRITEBACK, VhostUserConfigFlags::WRITABLE, &[0])
            .map_err(failed("SET_CONFIG"))?;
        for index in 0..queues.into() {
            vhost
                .set_vring_enable(index, false)
                .and_then(|()| vhost.get_vring_base(index))
                .map(|base| talk.bases.push(base))
                .map_err(failed("GET_VRING_BASE"))?;
        }
        vhost.reset_device().map_err(failed("RESET_DEVICE"))?;
        vhost
            .set_features(talk.features & !NOT_TAKEN)
            .map_err(failed("SET_FEATURES"))?;
    }
    vhost.reset_owner().map_err(failed("RESET_OWNER"))?;
    talk.config_changes = changes.0.load(Ordering::Relaxed);
    Ok(talk)
}
