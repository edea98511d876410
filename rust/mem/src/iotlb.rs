//! The IOTLB: from I/O virtual addresses to host memory. Translation is data: a look-up
//! returns what it found or the fault; nothing here decides what a fault means.

use crate::{Access, Iova, Perm, Region};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

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

/// Resolves an IOTLB miss. Kernel channel: `VDUSE_IOTLB_GET_FD`; embedded channel: the same
/// request over its call socket. Called from workers, never with the GIL.
pub trait Resolver: Send + Sync {
    /// The first mapping that overlaps `[start, last]`.
    fn resolve(&self, start: Iova, last: Iova) -> Result<(OwnedFd, Entry), Errno>;
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
    /// The range wraps past 2^64, or has no bytes where some are needed.
    #[error("bad range: IOVA {0}, {1} bytes")]
    Range(Iova, u64),
    /// The mapping's file was truncated under it.
    #[error("memory at IOVA {0} was taken away (SIGBUS)")]
    Poisoned(Iova),
    /// The mapping could not be fetched or mapped.
    #[error("cannot map IOVA {0}: {1}")]
    Resolve(Iova, Errno),
}

/// One contiguous piece of host memory, shared with the other side: never form a Rust
/// reference to its bytes. Valid while a [`Pin`] taken after the translation lives.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Bytes.
    pub len: usize,
}

// SAFETY: a Piece is an address; using it needs the caller to hold the Pin, on any thread.
unsafe impl Send for Piece {}

/// The pieces of one translated range, in order.
pub type Pieces = SmallVec<[Piece; 4]>;

/// A contiguous piece together with what keeps it mapped: ring areas, in-flight records.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Bytes.
    pub len: usize,
    /// The mapping it lies in.
    pub region: Arc<Region>,
}

// SAFETY: as for Piece; the Arc keeps the memory mapped.
unsafe impl Send for Pinned {}

impl Pinned {
    /// All of a region.
    pub fn whole(region: Arc<Region>) -> Pinned {
        let ptr = NonNull::new(region.as_ptr()).expect("a mapping is never at address 0");
        Pinned {
            ptr,
            len: region.len(),
            region,
        }
    }
}

/// The mappings of one device, shared by its queues.
pub struct Iotlb {}

impl Iotlb {
    /// An empty IOTLB that fetches what is missing from `resolver`.
    pub fn new(_resolver: Arc<dyn Resolver>) -> Arc<Iotlb> {
        todo!()
    }

    /// Drops every mapping that overlaps `[start, last]` and starts a new generation. Views
    /// see it at their next [`View::refresh`]; requests in flight keep the old mappings alive.
    /// Returns the new generation.
    pub fn invalidate(&self, _start: Iova, _last: Iova) -> u64 {
        todo!()
    }

    /// The current generation.
    pub fn generation(&self) -> u64 {
        todo!()
    }

    /// Whether any region that this IOTLB has handed out is poisoned.
    pub fn is_poisoned(&self) -> bool {
        todo!()
    }
}

/// One queue's private view of an [`Iotlb`]: look-ups share no cache line with other queues.
pub struct View {}

impl View {
    /// A view of `iotlb`, at its current generation.
    pub fn new(_iotlb: Arc<Iotlb>) -> View {
        todo!()
    }

    /// Batch boundary: drops what a newer generation has dropped. Returns the generation this
    /// view is now at (the worker's acknowledgement).
    #[inline]
    pub fn refresh(&mut self) -> u64 {
        todo!()
    }

    /// Appends the pieces of `[iova, iova+len)` to `out`, in order; on a fault `out` is as it
    /// was. `len` 0 is `Fault::Range`.
    #[inline]
    pub fn translate(
        &mut self,
        _iova: Iova,
        _len: u32,
        _access: Access,
        _out: &mut Pieces,
    ) -> Result<(), Fault> {
        todo!()
    }

    /// The range as one contiguous piece that keeps itself mapped (ring areas); a range over
    /// two mappings is `Fault::Range`.
    pub fn pinned(&mut self, _iova: Iova, _len: u64, _access: Access) -> Result<Pinned, Fault> {
        todo!()
    }

    /// Keeps every piece that this view has translated so far mapped until dropped: one for
    /// each request in flight. Cheap: one reference count that only this queue touches.
    #[inline]
    pub fn pin(&self) -> Pin {
        todo!()
    }
}

/// Keeps translated pieces mapped; see [`View::pin`].
#[derive(Clone)]
pub struct Pin {}

impl Pin {
    /// Whether a region this pin holds was poisoned: the request must fail.
    pub fn is_poisoned(&self) -> bool {
        todo!()
    }
}
