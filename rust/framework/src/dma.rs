//! How a driver's memory reaches the device: what Linux calls the DMA API.

use rustix::io::Errno;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;
use vduse_mem::{Iova, Pinned, Region};

/// Which way the data of a streaming mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads (a write request).
    ToDevice,
    /// The device writes (a read request).
    FromDevice,
    /// Both.
    Bidirectional,
}

impl Direction {
    /// Whether the device may read the buffer.
    #[inline]
    pub fn to_device(self) -> bool {
        self != Direction::FromDevice
    }

    /// Whether the device may write the buffer.
    #[inline]
    pub fn from_device(self) -> bool {
        self != Direction::ToDevice
    }
}

/// Why memory was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// No room now: try again after something was unmapped.
    #[error("no I/O virtual addresses left")]
    NoSpace,
    /// A buffer of no bytes, or of more than [`Dma::max_mapping`].
    #[error("a buffer of {0} bytes cannot be mapped")]
    Length(usize),
    /// The memory behind the mapping could not be made or reached.
    #[error("memory: {0}")]
    Memory(Errno),
}

/// Bytes of the driver's program that a request reads from or writes to.
#[derive(Debug)]
pub struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
    /// What keeps shared memory mapped while the buffer is in use.
    _region: Option<Arc<Region>>,
}

// SAFETY: a Buffer is an address range whose validity does not depend on the thread; who made
// it answered for its lifetime.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `len` bytes at `ptr`.
    ///
    /// # Safety
    /// Until the request or mapping made with it has ended, the bytes must be valid for reads,
    /// and for writes too where the device writes; nobody else may use them meanwhile, except
    /// that bytes the device only reads may be read.
    pub unsafe fn new(ptr: NonNull<u8>, len: usize) -> Buffer {
        Buffer {
            ptr,
            len,
            _region: None,
        }
    }

    /// `len` bytes at `offset` of a shared mapping, which the buffer keeps; `None` where they
    /// do not lie in it. Shared memory may change at any time: only its bytes are copied.
    pub fn shared(region: Arc<Region>, offset: usize, len: usize) -> Option<Buffer> {
        if offset.checked_add(len)? > region.len() {
            return None;
        }
        let ptr = NonNull::new(region.as_ptr().wrapping_add(offset))?;
        Some(Buffer {
            ptr,
            len,
            _region: Some(region),
        })
    }

    /// First byte.
    #[inline]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes from `offset` on, `len` of them, as a buffer of their own that must end before
    /// this one does; `None` out of range.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Option<Buffer> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let ptr = NonNull::new(self.ptr.as_ptr().wrapping_add(offset))?;
        Some(Buffer {
            ptr,
            len,
            _region: None,
        })
    }
}

/// Memory that driver and device share for as long as it is allocated (rings, headers), zeroed.
#[derive(Clone, Debug)]
pub struct Coherent {
    /// The driver's view.
    pub memory: Pinned,
    /// The device's view: address of the first byte.
    pub iova: Iova,
}

/// A streaming mapping: a buffer that the device can reach until it is unmapped.
pub struct Mapping {
    /// The device's address of the buffer's first byte.
    pub iova: Iova,
    pub(crate) buffer: Buffer,
    pub(crate) direction: Direction,
    /// Granules taken from the address space; 0 where the buffer was there already.
    pub(crate) granules: u32,
}

impl Mapping {
    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.buffer.len
    }

    /// Whether there are no bytes (never: such a buffer is refused).
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} + {})", self.iova, self.buffer.len)
    }
}

/// A driver's way to the device's address space. One a device.
pub trait Dma: Send + Sync {
    /// Allocates `len` bytes of shared memory, page-aligned and zeroed.
    fn alloc_coherent(&self, len: u64) -> Result<Coherent, DmaError>;

    /// Gives it back. The device must not use it any more.
    fn free_coherent(&self, memory: Coherent);

    /// Makes `buffer` reachable; never waits.
    fn map(&self, buffer: Buffer, direction: Direction) -> Result<Mapping, DmaError>;

    /// Ends a mapping. With `copy`, what the device wrote is in the buffer afterwards; without,
    /// the buffer is not touched. The device must not use the mapping any more.
    fn unmap(&self, mapping: Mapping, copy: bool) -> Result<(), DmaError>;

    /// Most bytes of one mapping: what always succeeds once everything else was unmapped.
    fn max_mapping(&self) -> usize;

    /// Waits, after [`DmaError::NoSpace`], until something was unmapped or `timeout` passed.
    /// `retry` is called once the wait can miss nothing any more: true ends it at once.
    fn wait_room(&self, timeout: Duration, retry: &mut dyn FnMut() -> bool);
}
