//! The IOTLB: from I/O virtual addresses to host memory. Translation is data: a look-up
//! returns what it found or the fault; nothing here decides what a fault means.

use crate::published::Published;
use crate::sigbus;
use crate::table::{Mapping, Table};
use crate::{Access, DirtyLog, Iova, Perm, Region};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Most mappings of a device at a time (Linux 7.2 allows a device 2048 entries).
const MAX_MAPPINGS: usize = 4096;
/// Most bytes of a device's mappings: a wrong entry must not take the whole process's address
/// space (128 TiB) from other devices.
const MAX_BYTES: usize = 1 << 43;

/// One mapping as `VDUSE_IOTLB_GET_FD` describes it: `[start, last]` is at `offset` of the fd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    pub start: Iova,
    /// Last address, inclusive.
    pub last: Iova,
    /// Offset of `start` in the fd, in bytes.
    pub offset: u64,
    /// What the device may do.
    pub perm: Perm,
}

/// What holds an entry's bytes.
#[derive(Debug)]
pub enum Backing {
    /// A file, to be mapped.
    File(OwnedFd),
    /// Memory of our own, as long as the entry; the offset means nothing.
    Own(Arc<Region>),
}

impl From<OwnedFd> for Backing {
    fn from(fd: OwnedFd) -> Backing {
        Backing::File(fd)
    }
}

/// Resolves an IOTLB miss. Kernel channel: `VDUSE_IOTLB_GET_FD`; embedded channel: the same
/// request over its call socket. Called from workers, never with the GIL.
pub trait Resolver: Send + Sync {
    /// The first mapping that overlaps `[start, last]`; `EINVAL` if there is none.
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno>;
}

/// Why an address range cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing is mapped at this address.
    #[error("no mapping at IOVA {0}")]
    Unmapped(Iova),
    /// A mapping exists but does not permit the access.
    #[error("mapping at IOVA {0} does not permit {1:?}")]
    Denied(Iova, Access),
    /// The range wraps past 2^64, or has no bytes where some are needed, or lies in two
    /// mappings where one is needed.
    #[error("bad range: IOVA {0}, {1} bytes")]
    Range(Iova, u64),
    /// The mapping's file was truncated under it.
    #[error("memory at IOVA {0} was taken away (SIGBUS)")]
    Poisoned(Iova),
    /// The mapping could not be fetched or mapped. `EPROTO`: the entry makes no sense;
    /// `ENOSPC`: too many or too large mappings; `EAGAIN`: it changed again and again.
    #[error("cannot map IOVA {0}: {1}")]
    Resolve(Iova, Errno),
}

/// Addresses, both ends inclusive, `start <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) last: u64,
}

impl Span {
    #[inline]
    pub(crate) fn contains(self, iova: u64) -> bool {
        self.start <= iova && iova <= self.last
    }

    pub(crate) fn overlaps(self, other: Span) -> bool {
        self.start <= other.last && other.start <= self.last
    }
}

/// The mappings of one device, shared by its queues.
pub struct Iotlb {
    mappings: Published<Table>,
    resolver: Arc<dyn Resolver>,
    misses: AtomicU64,
    /// Every region handed out that may still be in use, for `is_poisoned`.
    handed_out: Mutex<Vec<Weak<Region>>>,
    poisoned: AtomicBool,
    /// `sigbus::lost()` when `handed_out` was last looked through.
    looked_at: AtomicUsize,
}

impl Iotlb {
    /// An empty IOTLB that fetches what is missing from `resolver`.
    pub fn new(resolver: Arc<dyn Resolver>) -> Arc<Iotlb> {
        Arc::new(Iotlb {
            mappings: Published::new(Table::default()),
            resolver,
            misses: AtomicU64::new(0),
            handed_out: Mutex::new(Vec::new()),
            poisoned: AtomicBool::new(false),
            looked_at: AtomicUsize::new(0),
        })
    }

    /// Drops every mapping that overlaps `[start, last]` and starts a new generation. Views
    /// see it at their next [`View::refresh`](crate::View::refresh); requests in flight keep
    /// the old mappings alive. Never waits for the resolver. Returns the new generation.
    pub fn invalidate(&self, start: Iova, last: Iova) -> u64 {
        let span = Span {
            start: start.0,
            last: last.0,
        };
        self.mappings.publish(|table| table.remove(span))
    }

    /// Has writes marked in `log` from now on, or no more, and starts a new generation: who has
    /// acknowledged it marks what it writes, requests that were in flight before included.
    /// Returns the new generation.
    pub fn set_log(&self, log: Option<DirtyLog>) -> u64 {
        let log = log.map(Arc::new);
        if let Some(log) = &log {
            self.hand_out(log.region());
        }
        self.mappings.publish(|table| table.log = log)
    }

    /// The log of the current generation.
    pub(crate) fn log(&self) -> Option<Arc<DirtyLog>> {
        self.mappings.read(|table| table.log.clone())
    }

    /// The current generation.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.mappings.generation()
    }

    /// How often the resolver was asked.
    pub fn misses(&self) -> u64 {
        self.misses.load(Relaxed)
    }

    /// Whether any region that this IOTLB has handed out is poisoned. Stays true once seen.
    /// Costs one load while no region of the process was ever lost.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        sigbus::any_lost() && self.look_for_poison()
    }

    #[cold]
    fn look_for_poison(&self) -> bool {
        let lost = sigbus::lost();
        if !self.poisoned.load(Acquire) && self.looked_at.load(Acquire) != lost {
            let handed_out = self
                .handed_out
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let mut regions = handed_out.iter().filter_map(Weak::upgrade);
            if regions.any(|region| region.is_poisoned()) {
                self.poisoned.store(true, Release);
            }
            self.looked_at.store(lost, Release);
        }
        self.poisoned.load(Acquire)
    }

    /// The mapping that holds `iova`; the resolver is asked for `[iova, last]`.
    #[cold]
    pub(crate) fn mapping(&self, iova: Iova, last: Iova) -> Result<Mapping, Fault> {
        self.mappings
            .find_or_fetch(
                |table| table.find(iova.0).map(|(_, mapping)| mapping.clone()),
                || self.fetch(iova, last),
                |table, mapping| {
                    let bytes = table.bytes().saturating_add(mapping.region.len());
                    if table.len() >= MAX_MAPPINGS || bytes > MAX_BYTES {
                        return Err(Fault::Resolve(iova, Errno::NOSPC));
                    }
                    self.hand_out(&mapping.region);
                    let place = table.insert(mapping, iova.0);
                    Ok(table[place].clone())
                },
            )
            .unwrap_or(Err(Fault::Resolve(iova, Errno::AGAIN)))
    }

    fn fetch(&self, iova: Iova, last: Iova) -> Result<Mapping, Fault> {
        self.misses.fetch_add(1, Relaxed);
        let failed = |errno| Fault::Resolve(iova, errno);
        let (backing, entry) = self
            .resolver
            .resolve(iova, last)
            .map_err(|errno| match errno {
                Errno::INVAL => Fault::Unmapped(iova),
                errno => failed(errno),
            })?;
        let span = Span {
            start: entry.start.0,
            last: entry.last.0,
        };
        if span.start > span.last || span.last < iova.0 {
            return Err(failed(Errno::PROTO));
        }
        if span.start > iova.0 {
            return Err(Fault::Unmapped(iova)); // mapped only further on
        }
        let len = usize::try_from(span.last - span.start)
            .ok()
            .and_then(|bytes| bytes.checked_add(1))
            .filter(|&len| len <= MAX_BYTES)
            .ok_or(failed(Errno::NOSPC))?;
        let region = match backing {
            Backing::File(fd) => Region::map(fd.as_fd(), entry.offset, len, entry.perm)
                .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?,
            Backing::Own(region) if region.len() == len => region,
            Backing::Own(_) => return Err(failed(Errno::PROTO)),
        };
        Mapping::whole(span.start, entry.perm, region).ok_or(failed(Errno::PROTO))
    }

    fn hand_out(&self, region: &Arc<Region>) {
        let mut handed_out = self
            .handed_out
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        handed_out.retain(|region| region.strong_count() > 0);
        handed_out.push(Arc::downgrade(region));
    }
}
