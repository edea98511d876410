//! One virtqueue for a driver that is written elsewhere, and makes few requests: each request
//! has its own mappings, and its data is copied. The virtio-blk driver does better in `blk`.

use crate::{Buffer, Coherent, Direction, Dma, DmaError, Mapping, VqLine};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vduse_mem::Iova;
use vduse_ring::{AddError, Areas, DriverQueue, Layout, RingError, Segment};

/// Why a virtqueue was not made.
#[derive(Debug, thiserror::Error)]
pub enum VirtqueueError {
    /// No memory the device can reach.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// A size or format that no virtqueue has.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No eventfd.
    #[error("eventfd: {0}")]
    Eventfd(Errno),
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No room now: reap, and try again.
    #[error("the virtqueue is full")]
    Full,
    /// It never fits: no pieces, too many, an empty one, or more bytes than can be mapped.
    #[error("such a request never fits the virtqueue")]
    NeverFits,
    /// The driver has ended: stopped, or the device broke the ring's rules.
    #[error("{0}")]
    Ended(Errno),
}

/// A request that the device is done with.
#[derive(Debug, PartialEq, Eq)]
pub struct Used {
    /// As [`Virtqueue::add`] gave it.
    pub token: u64,
    /// What the device has written, from the first device-writable byte on.
    pub data: Vec<u8>,
}

/// A piece of a request's data and its mapping.
struct Part {
    mapping: Mapping,
    /// Where the mapping's bytes are; not touched before it is unmapped.
    bytes: NonNull<[u8]>,
}

// SAFETY: a Part owns its bytes, as a Box does.
unsafe impl Send for Part {}

impl Part {
    /// Ends the mapping; the bytes are this program's again.
    fn end(self, dma: &dyn Dma, copy: bool) -> (Box<[u8]>, Result<(), DmaError>) {
        let ended = dma.unmap(self.mapping, copy);
        // SAFETY: `bytes` came from a Box, and the mapping that used them has ended.
        (unsafe { Box::from_raw(self.bytes.as_ptr()) }, ended)
    }
}

struct Request {
    number: u64,
    readable: Vec<Part>,
    writable: Vec<Part>,
}

struct Inner {
    ring: DriverQueue,
    /// Under the ring's token.
    requests: BTreeMap<u32, Request>,
    free_tokens: Vec<u32>,
    next_number: u64,
    used: VecDeque<Used>,
    ending: Option<Errno>,
    /// Why the device was given up.
    failure: Option<String>,
    areas: Vec<Coherent>,
    /// The device may use the areas.
    is_live: bool,
}

/// The driver's side of one virtqueue, shared by threads.
pub struct Virtqueue {
    dma: Arc<dyn Dma>,
    line: Arc<VqLine>,
    inner: Mutex<Inner>,
    /// Readable once the driver has ended.
    stopped: OwnedFd,
}

impl Virtqueue {
    /// A fresh virtqueue in coherent memory of `dma`, whose kicks and irqs go by `line`.
    pub fn new(
        dma: Arc<dyn Dma>,
        line: Arc<VqLine>,
        layout: Layout,
    ) -> Result<Virtqueue, VirtqueueError> {
        layout.check().map_err(RingError::from)?;
        let stopped = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(VirtqueueError::Eventfd)?;
        let mut areas = Vec::new();
        let ring = match build(&*dma, &layout, &mut areas) {
            Ok(ring) => ring,
            Err(error) => {
                areas.drain(..).for_each(|area| dma.free_coherent(area));
                return Err(error);
            }
        };
        Ok(Virtqueue {
            dma,
            line,
            inner: Mutex::new(Inner {
                ring,
                requests: BTreeMap::new(),
                free_tokens: (0..u32::from(layout.size)).rev().collect(),
                next_number: 0,
                used: VecDeque::new(),
                ending: None,
                failure: None,
                areas,
                is_live: false,
            }),
            stopped,
        })
    }

    /// IOVAs of the descriptor, driver and device areas.
    pub fn areas(&self) -> [Iova; 3] {
        let inner = self.lock();
        [0, 1, 2].map(|area| inner.areas[area].iova)
    }

    /// The device may use the virtqueue from now on: after DRIVER_OK.
    pub fn start(&self) {
        self.lock().is_live = true;
    }

    /// After a reset: outstanding and later requests end with `errno`.
    pub fn stop(&self, errno: Errno) {
        let mut inner = self.lock();
        inner.is_live = false;
        inner.ending.get_or_insert(errno);
        self.drop_requests(&mut inner);
        drop(inner);
        // A full counter is readable already.
        let _ = rustix::io::write(&self.stopped, &1u64.to_ne_bytes());
    }

    /// Stages a request of these device-readable bytes and device-writable lengths; the device
    /// sees it at the next [`Virtqueue::kick`].
    pub fn add(&self, readable: Vec<Vec<u8>>, writable: &[usize]) -> Result<u64, RequestError> {
        let mut inner = self.lock();
        if let Some(errno) = inner.ending {
            return Err(RequestError::Ended(errno));
        }
        if !inner.ring.has_room(readable.len() + writable.len()) && inner.ring.in_flight() > 0 {
            return Err(RequestError::Full);
        }
        let Some(token) = inner.free_tokens.pop() else {
            return Err(RequestError::Full);
        };
        let number = inner.next_number;
        let mut request = Request {
            number,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let issued = self.issue(&mut inner.ring, &mut request, readable, writable, token);
        if let Err(error) = issued {
            let nothing_else = inner.requests.is_empty();
            self.end(request, false);
            inner.free_tokens.push(token);
            return Err(match error {
                RequestError::Full if nothing_else => RequestError::NeverFits,
                error => error,
            });
        }
        inner.next_number += 1;
        inner.requests.insert(token, request);
        Ok(number)
    }

    fn issue(
        &self,
        ring: &mut DriverQueue,
        request: &mut Request,
        readable: Vec<Vec<u8>>,
        writable: &[usize],
        token: u32,
    ) -> Result<(), RequestError> {
        let most = self.dma.max_mapping();
        for bytes in readable {
            let part = self.map(bytes.into_boxed_slice(), Direction::ToDevice)?;
            request.readable.push(part);
        }
        for &len in writable {
            if len > most {
                return Err(RequestError::NeverFits);
            }
            let part = self.map(vec![0; len].into_boxed_slice(), Direction::FromDevice)?;
            request.writable.push(part);
        }
        let segments = |parts: &[Part]| parts.iter().map(segment).collect::<Vec<_>>();
        let (readable, writable) = (segments(&request.readable), segments(&request.writable));
        ring.add(&readable, &writable, token)
            .map_err(|error| match error {
                AddError::Full => RequestError::Full,
                AddError::TooLarge(_) => RequestError::NeverFits,
            })
    }

    fn map(&self, bytes: Box<[u8]>, direction: Direction) -> Result<Part, RequestError> {
        let len = bytes.len();
        let bytes = NonNull::from(Box::leak(bytes));
        // SAFETY: the bytes are the Part's, which touches them only once the mapping has ended.
        let buffer = unsafe { Buffer::new(bytes.cast(), len) };
        match self.dma.map(buffer, direction) {
            Ok(mapping) => Ok(Part { mapping, bytes }),
            Err(error) => {
                // SAFETY: they came from a Box and nothing was mapped.
                drop(unsafe { Box::from_raw(bytes.as_ptr()) });
                Err(match error {
                    DmaError::NoSpace => RequestError::Full,
                    DmaError::Length(_) => RequestError::NeverFits,
                    DmaError::Memory(errno) => RequestError::Ended(errno),
                })
            }
        }
    }

    /// Makes what was added available, and kicks the device where it wants that.
    pub fn kick(&self) {
        let mut inner = self.lock();
        if inner.ending.is_none() && inner.ring.publish() {
            self.line.kick();
        }
    }

    /// What the device is done with, in its order. Err: the driver has ended, and all that was
    /// done before was reaped.
    pub fn reap(&self) -> Result<Vec<Used>, Errno> {
        let mut inner = self.lock();
        self.pump(&mut inner);
        let used: Vec<Used> = inner.used.drain(..).collect();
        match inner.ending {
            Some(errno) if used.is_empty() => Err(errno),
            _ => Ok(used),
        }
    }

    /// Requests that were added and not reaped.
    pub fn outstanding(&self) -> usize {
        let inner = self.lock();
        inner.requests.len() + inner.used.len()
    }

    /// What the device did wrong, once it was given up for that.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Waits until there is something to reap, or the driver has ended; false after `timeout`, or
    /// earlier where a signal interrupts.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        while !self.is_due() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let fds = [self.line.irq_fd(), self.stopped.as_fd()];
            let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            if !poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0) {
                return self.is_due();
            }
            // It may be an old one: all that it says is to look again.
            self.line.take_irqs();
        }
        true
    }

    /// Whether there is something to reap; asks for an irq if not.
    fn is_due(&self) -> bool {
        let mut inner = self.lock();
        loop {
            self.pump(&mut inner);
            if inner.ending.is_some() || !inner.used.is_empty() {
                return true;
            }
            if !inner.ring.enable_irqs() {
                return false;
            }
        }
    }

    fn pump(&self, inner: &mut Inner) {
        while inner.ending.is_none() {
            match inner.ring.pop_used() {
                Ok(Some((token, written))) => {
                    let Some(request) = inner.requests.remove(&token) else {
                        continue;
                    };
                    inner.free_tokens.push(token);
                    let used = Used {
                        token: request.number,
                        data: self.end(request, true),
                    };
                    inner.used.push_back(used.cut(written));
                }
                Ok(None) => break,
                Err(error) => {
                    inner.failure = Some(error.to_string());
                    inner.ending = Some(Errno::IO);
                }
            }
        }
    }

    /// The bytes of its device-writable part.
    fn end(&self, request: Request, copy: bool) -> Vec<u8> {
        for part in request.readable {
            // Nothing is copied from it, which alone could fail.
            let _ = part.end(&*self.dma, false);
        }
        let mut data = Vec::new();
        for part in request.writable {
            // Where memory was taken away the rest are zeroes.
            let (bytes, _) = part.end(&*self.dma, copy);
            data.extend_from_slice(&bytes);
        }
        data
    }

    fn drop_requests(&self, inner: &mut Inner) {
        for (token, request) in std::mem::take(&mut inner.requests) {
            self.end(request, false);
            inner.free_tokens.push(token);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Virtqueue {
    /// A device that was started and not reset may still use everything: it stays allocated.
    fn drop(&mut self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.is_live {
            return;
        }
        self.drop_requests(&mut inner);
        for area in inner.areas.drain(..) {
            self.dma.free_coherent(area);
        }
    }
}

impl Used {
    /// The ring has checked that the request has room for `written` bytes.
    fn cut(mut self, written: u32) -> Used {
        self.data.truncate(written as usize);
        self
    }
}

fn segment(part: &Part) -> Segment {
    Segment {
        iova: part.mapping.iova,
        len: part.mapping.len() as u32, // at most a mapping's, far below 2^32
    }
}

/// The ring; what was allocated is in `memory`, the three areas first.
fn build(
    dma: &dyn Dma,
    layout: &Layout,
    memory: &mut Vec<Coherent>,
) -> Result<DriverQueue, VirtqueueError> {
    for bytes in layout.area_sizes() {
        memory.push(dma.alloc_coherent(bytes)?);
    }
    let areas = Areas {
        desc: memory[0].memory.clone(),
        driver: memory[1].memory.clone(),
        device: memory[2].memory.clone(),
    };
    let tables = if layout.indirect {
        let bytes = u64::from(layout.size) * DriverQueue::INDIRECT_SEGMENTS as u64 * 16;
        let tables = dma.alloc_coherent(bytes)?;
        let place = (tables.memory.clone(), tables.iova);
        memory.push(tables);
        Some(place)
    } else {
        None
    };
    Ok(DriverQueue::new(*layout, areas, tables)?)
}
