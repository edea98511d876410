//! A small virtio-blk device to test the driver with: the device side of the ring crate, over
//! the same memory, one thread for all queues.

use super::request::ID_BYTES;
use super::{BlkDriver, config::feature};
use crate::{Arena, Buffer, Dma, Domain, VqLine};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use vduse_mem::{Access, Backing, Entry, Iotlb, Iova, Perm, Pieces, Resolver, View};
use vduse_ring::{Areas, Chain, DeviceQueue, Layout, QueueState, Segment};

/// The driver's memory, either kind.
#[derive(Clone)]
pub enum Memory {
    /// Bounce pages.
    Domain(Arc<Domain>),
    /// The driver's own, not copied.
    Arena(Arc<Arena>),
}

impl Memory {
    /// A domain with `bounce_size` bytes of bounce pages.
    pub fn domain(bounce_size: u64) -> Memory {
        Memory::Domain(Domain::new(bounce_size).unwrap())
    }

    /// As a driver uses it.
    pub fn dma(&self) -> Arc<dyn Dma> {
        match self {
            Memory::Domain(domain) => Arc::clone(domain) as Arc<dyn Dma>,
            Memory::Arena(arena) => Arc::clone(arena) as Arc<dyn Dma>,
        }
    }

    /// Bytes of bounce pages that are mapped.
    pub fn bounce_in_use(&self) -> u64 {
        match self {
            Memory::Domain(domain) => domain.stats().unwrap().bounce_in_use,
            Memory::Arena(_) => 0,
        }
    }
}

impl Resolver for Memory {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        let (entries, fd) = match self {
            Memory::Domain(domain) => (domain.entries(), domain.as_fd()),
            Memory::Arena(arena) => {
                let entry = Entry {
                    start: arena.iova(),
                    last: arena.iova().last(arena.size()).unwrap(),
                    offset: 0,
                    perm: Perm::Rw,
                };
                (vec![entry], arena.as_fd())
            }
        };
        let mut entries = entries.into_iter();
        let entry = entries.find(|entry| entry.start <= last && entry.last >= start);
        Ok((
            fcntl_dupfd_cloexec(fd, 0)?.into(),
            entry.ok_or(Errno::INVAL)?,
        ))
    }
}

/// What the device does, changed by tests as it runs.
pub struct Behaviour {
    /// Its contents.
    pub disk: Vec<u8>,
    /// Status byte instead of the true one; 0xff: none is written.
    pub status: Option<u8>,
    /// Requests are taken and not completed.
    pub hold: bool,
    /// Type, sector and bytes of each request seen.
    pub seen: Vec<(u32, u64, u64)>,
}

/// Driver and device together; the device's thread ends on drop.
pub struct Rig {
    /// Its driver.
    pub driver: Arc<BlkDriver>,
    /// Where they meet.
    pub memory: Memory,
    /// One a queue.
    pub lines: Vec<Arc<VqLine>>,
    shape: Shape,
    behaviour: Arc<Mutex<Behaviour>>,
    quit: Arc<AtomicBool>,
    kick: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// What a rig is built from.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Negotiated.
    pub features: u64,
    /// How many.
    pub queues: usize,
    /// Descriptors.
    pub queue_size: u16,
    /// The disk's size.
    pub sectors: u64,
    /// Most bytes of a segment.
    pub size_max: u32,
    /// Most data segments of a request.
    pub seg_max: u32,
}

/// A small device.
pub const SHAPE: Shape = Shape {
    features: feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::FLUSH
        | feature::DISCARD
        | feature::WRITE_ZEROES
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX,
    queues: 1,
    queue_size: 16,
    sectors: 16384,
    size_max: 64 << 10,
    seg_max: 4,
};

/// Most sectors of a discard or write-zeroes.
pub const MAX_RANGE: u32 = 100;

/// The config space of a device of this shape.
pub fn config_space(shape: &Shape) -> [u8; 60] {
    let mut space = [0; 60];
    space[..8].copy_from_slice(&shape.sectors.to_le_bytes());
    space[8..12].copy_from_slice(&shape.size_max.to_le_bytes());
    space[12..16].copy_from_slice(&shape.seg_max.to_le_bytes());
    space[36..40].copy_from_slice(&MAX_RANGE.to_le_bytes());
    space[48..52].copy_from_slice(&MAX_RANGE.to_le_bytes());
    space
}

impl Rig {
    /// With a started driver.
    pub fn new(memory: Memory, shape: Shape) -> Rig {
        let rig = Rig::unstarted(memory, shape);
        rig.driver.start();
        rig
    }

    /// With a driver that was not started.
    pub fn unstarted(memory: Memory, shape: Shape) -> Rig {
        let lines: Vec<_> = (0..shape.queues)
            .map(|_| Arc::new(VqLine::new().unwrap()))
            .collect();
        let driver = BlkDriver::new(
            memory.dma(),
            shape.features,
            &config_space(&shape),
            &vec![shape.queue_size; shape.queues],
            &lines,
        )
        .unwrap();
        let kick = eventfd(0, EventfdFlags::empty()).unwrap();
        for line in &lines {
            line.set_kickfd(Some(kick.as_fd())).unwrap();
        }
        let behaviour = Arc::new(Mutex::new(Behaviour {
            disk: vec![0; shape.sectors as usize * 512],
            status: None,
            hold: false,
            seen: Vec::new(),
        }));
        let mut rig = Rig {
            driver,
            memory,
            lines,
            shape,
            behaviour,
            quit: Arc::default(),
            kick,
            thread: None,
        };
        rig.set_up_device();
        rig
    }

    /// A reset: the device forgets its rings and what it has taken.
    pub fn reset_device(&mut self) {
        self.quit.store(true, Ordering::Release);
        self.prod();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// The device is live, on the driver's rings as they are now.
    pub fn set_up_device(&mut self) {
        self.quit.store(false, Ordering::Release);
        let mut device = Device {
            queues: queues(&self.driver, &self.memory, &self.shape),
            lines: self.lines.clone(),
            behaviour: Arc::clone(&self.behaviour),
            quit: Arc::clone(&self.quit),
            kick: self.kick.try_clone().unwrap(),
        };
        self.thread = Some(std::thread::spawn(move || device.run()));
    }

    /// What the device does from now on.
    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }

    /// Lets the device look at its rings again.
    pub fn prod(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.reset_device();
    }
}

type Queue = (DeviceQueue, View, Vec<Chain>);

fn queues(driver: &BlkDriver, memory: &Memory, shape: &Shape) -> Vec<Queue> {
    let iotlb = Iotlb::new(Arc::new(memory.clone()));
    let layout = Layout {
        size: shape.queue_size,
        packed: shape.features & feature::RING_PACKED != 0,
        event_idx: shape.features & feature::EVENT_IDX != 0,
        indirect: shape.features & feature::INDIRECT_DESC != 0,
    };
    let queue = |index| {
        let mut view = View::new(Arc::clone(&iotlb));
        let iovas = driver.areas(index).unwrap();
        let sizes = layout.area_sizes();
        let mut area = |area: usize| {
            view.pinned(iovas[area], sizes[area], Access::Write)
                .unwrap()
        };
        let areas = Areas {
            desc: area(0),
            driver: area(1),
            device: area(2),
        };
        let state = QueueState::initial(layout.packed);
        (
            DeviceQueue::new(layout, areas, state).unwrap(),
            view,
            Vec::new(),
        )
    };
    (0..shape.queues).map(queue).collect()
}

struct Device {
    queues: Vec<Queue>,
    lines: Vec<Arc<VqLine>>,
    behaviour: Arc<Mutex<Behaviour>>,
    quit: Arc<AtomicBool>,
    kick: OwnedFd,
}

impl Device {
    fn run(&mut self) {
        while !self.quit.load(Ordering::Acquire) {
            let _ = poll(&mut [PollFd::new(&self.kick, PollFlags::IN)], None);
            let _ = read(&self.kick, &mut [0; 8]);
            let mut behaviour = self.behaviour.lock().unwrap();
            for ((queue, view, held), line) in self.queues.iter_mut().zip(&self.lines) {
                loop {
                    view.refresh();
                    queue.suppress_kicks();
                    let mut chain = Chain::default();
                    while queue.pop(view, &mut chain).unwrap() {
                        held.push(std::mem::take(&mut chain));
                    }
                    if !behaviour.hold {
                        for chain in held.drain(..) {
                            let written = serve(&mut behaviour, view, &chain);
                            queue.complete(chain.id, chain.slots, written);
                        }
                        if queue.publish() {
                            line.inject();
                        }
                    }
                    if !queue.enable_kicks() {
                        break;
                    }
                }
            }
        }
    }
}

/// Carries a request out; bytes written to the driver's memory.
fn serve(behaviour: &mut Behaviour, view: &mut View, chain: &Chain) -> u32 {
    let mut input = gather(view, &chain.readable);
    let data = input.split_off(16);
    let kind = u32::from_le_bytes(input[..4].try_into().unwrap());
    let sector = u64::from_le_bytes(input[8..16].try_into().unwrap());
    let room: usize = chain
        .writable
        .iter()
        .map(|segment| segment.len as usize)
        .sum();
    let at = sector as usize * 512;
    let mut output = vec![0; room - 1];
    let mut bytes = data.len().max(output.len()) as u64;
    let mut start = sector;
    match kind {
        0 => output.copy_from_slice(&behaviour.disk[at..at + room - 1]),
        1 => behaviour.disk[at..at + data.len()].copy_from_slice(&data),
        8 => output[..ID_BYTES].copy_from_slice(b"serial-of-20-bytes!!"),
        11 | 13 => {
            start = u64::from_le_bytes(data[..8].try_into().unwrap());
            let count = u32::from_le_bytes(data[8..12].try_into().unwrap());
            bytes = u64::from(count) * 512;
            behaviour.disk[start as usize * 512..][..bytes as usize].fill(0);
        }
        _ => {}
    }
    behaviour.seen.push((kind, start, bytes));
    match behaviour.status {
        Some(0xff) => scatter(view, &chain.writable, &output),
        status => {
            output.push(status.unwrap_or(0));
            scatter(view, &chain.writable, &output);
        }
    }
    output.len() as u32
}

fn pieces(view: &mut View, segments: &[Segment], access: Access) -> Pieces {
    let mut pieces = Pieces::new();
    for segment in segments {
        view.translate(segment.iova, segment.len, access, &mut pieces)
            .unwrap();
    }
    pieces
}

fn gather(view: &mut View, segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces(view, segments, Access::Read) {
        let mut part = vec![0; piece.len];
        // SAFETY: the view keeps the piece mapped until its next refresh.
        unsafe { std::ptr::copy_nonoverlapping(piece.ptr.as_ptr(), part.as_mut_ptr(), piece.len) };
        bytes.append(&mut part);
    }
    bytes
}

fn scatter(view: &mut View, segments: &[Segment], mut bytes: &[u8]) {
    for piece in pieces(view, segments, Access::Write) {
        let len = piece.len.min(bytes.len());
        // SAFETY: the view keeps the piece mapped until its next refresh.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.ptr.as_ptr(), len) };
        bytes = &bytes[len..];
    }
}

/// `bytes` as a request's buffer.
pub fn buffer(bytes: &mut [u8]) -> Buffer {
    // SAFETY: the tests keep `bytes` longer than the request, and do not touch it meanwhile.
    unsafe { Buffer::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len()) }
}
