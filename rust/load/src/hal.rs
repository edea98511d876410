//! The memory half of engine `virtio-drivers`: its `Hal` has no `self`, so the DMA in use is a
//! thread's own. Rings and request headers are coherent memory, data goes by streaming
//! mappings (through bounce pages, where the DMA is a domain).

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use vduse_framework::{Buffer, Coherent, Direction, Dma, DmaError, Mapping};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

struct Current {
    dma: Arc<dyn Dma>,
    coherent: HashMap<PhysAddr, Coherent>,
    mappings: HashMap<PhysAddr, Mapping>,
    failure: Option<DmaError>,
}

impl Current {
    /// The crate's `Hal` cannot fail: the first failure is kept for the engine to find.
    fn keep<T>(&mut self, result: Result<T, DmaError>) -> Option<T> {
        result
            .inspect_err(|error| {
                self.failure.get_or_insert(*error);
            })
            .ok()
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// While it lives, [`DmaHal`] on this thread, where it must stay, uses the DMA it was made with.
pub(crate) struct DmaScope(PhantomData<*const ()>);

impl DmaScope {
    /// One at a time on a thread; a second takes the first one's place.
    pub(crate) fn new(dma: Arc<dyn Dma>) -> DmaScope {
        let current = Current {
            dma,
            coherent: HashMap::new(),
            mappings: HashMap::new(),
            failure: None,
        };
        CURRENT.set(Some(current));
        DmaScope(PhantomData)
    }

    /// Why the DMA could not do what it was asked, if so.
    pub(crate) fn failure(&self) -> Option<DmaError> {
        with(|current| current.failure).flatten()
    }
}

impl Drop for DmaScope {
    fn drop(&mut self) {
        let Some(current) = CURRENT.take() else {
            return;
        };
        // What a driver that gave up did not unshare; the device was reset before.
        for mapping in current.mappings.into_values() {
            let _ = current.dma.unmap(mapping, false);
        }
    }
}

fn with<T>(f: impl FnOnce(&mut Current) -> T) -> Option<T> {
    CURRENT.with_borrow_mut(|current| current.as_mut().map(f))
}

/// Address 0 is never mapped: the device refuses what points there.
const NOWHERE: PhysAddr = 0;

/// The DMA of the thread's [`DmaScope`].
pub(crate) struct DmaHal;

// SAFETY: coherent memory is page-aligned, zeroed, mapped until `dma_dealloc`, and handed out
// once; failures are address 0, which `Dma::new` of the crate takes as such.
unsafe impl Hal for DmaHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        with(|current| {
            let coherent = current.dma.alloc_coherent((pages * PAGE_SIZE) as u64);
            let coherent = current.keep(coherent)?;
            let result = (coherent.iova.0, coherent.memory.ptr);
            current.coherent.insert(result.0, coherent);
            Some(result)
        })
        .flatten()
        .unwrap_or((NOWHERE, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        let freed = with(|current| {
            let coherent = current.coherent.remove(&paddr)?;
            current.dma.free_coherent(coherent);
            Some(())
        });
        match freed.flatten() {
            Some(()) => 0,
            None => -1,
        }
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("only the crate's PCI transport maps registers")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let direction = match direction {
            BufferDirection::DriverToDevice => Direction::ToDevice,
            BufferDirection::DeviceToDriver => Direction::FromDevice,
            BufferDirection::Both => Direction::Bidirectional,
        };
        // SAFETY: the crate keeps a shared buffer alone and alive until it unshares it, or
        // resets the device on the way out.
        let buffer = unsafe { Buffer::new(buffer.cast(), buffer.len()) };
        with(|current| {
            let mapping = current.dma.map(buffer, direction);
            let mapping = current.keep(mapping)?;
            let iova = mapping.iova.0;
            current.mappings.insert(iova, mapping);
            Some(iova)
        })
        .flatten()
        .unwrap_or(NOWHERE)
    }

    unsafe fn unshare(paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {
        with(|current| {
            if let Some(mapping) = current.mappings.remove(&paddr) {
                let copied = current.dma.unmap(mapping, true);
                current.keep(copied);
            }
        });
    }
}
