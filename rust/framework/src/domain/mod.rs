//! The IOVA domain of virtio_vdpa: an MMU-based IOMMU in software, with bounce pages.
//!
//! One anonymous file. Addresses below `bounce_size` are bounce pages at the same offset: a
//! streaming mapping takes some, copies what the device shall read into them, and copies back
//! what it wrote when it ends. Above lies coherent memory. The framework maps the file once;
//! devices map what the IOTLB entries name.
//!
//! Beyond the Linux kernel's domain: pages of idle bounce chunks are given back ([`Domain::reclaim`]),
//! as in RFC v2 of VDUSE.

mod chunks;
mod coherent;
mod range;
mod streaming;
#[cfg(test)]
mod tests;
mod umem;

pub(crate) use range::Ranges;

use crate::room::Room;
use crate::{Buffer, Coherent, Direction, Dma, DmaError, Mapping};
use chunks::{CHUNK, Chunks};
use coherent::CoherentSpace;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, ftruncate,
    memfd_create,
};
use rustix::io::Errno;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use streaming::{GRANULE, SHARDS, Streaming};
use umem::Umem;
use vduse_mem::{Entry, Iova, Perm, Pinned, Region};

/// First address beyond a domain (VDUSE_IOVA_SIZE_LIMIT of the kernel, plus one).
const LIMIT: u64 = (1 << 30) + (128 << 20);
/// Bounds of the bounce size (sysfs `bounce_size`).
const BOUNCE_SIZES: RangeInclusive<u64> = (1 << 20)..=(1 << 30);

/// What a domain holds, in bytes, and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainStats {
    /// Bounce bytes of live mappings.
    pub bounce_in_use: u64,
    /// Bounce bytes that have memory.
    pub bounce_allocated: u64,
    /// Most that were seen to have memory; reclaim looks first, so it misses no peak.
    pub bounce_peak: u64,
    /// Given back by reclaim, in total.
    pub bounce_reclaimed: u64,
    /// Coherent bytes.
    pub coherent: u64,
    /// Streaming mappings made.
    pub maps: u64,
    /// Times a driver had to wait for room.
    pub map_waits: u64,
}

/// One reader lock a shard, on cache lines of its own: copies do not meet, and registering user
/// memory excludes them all.
#[derive(Debug, Default)]
#[repr(align(128))]
struct UmemLock(RwLock<Option<Arc<Umem>>>);

/// One anonymous file: bounce pages below `bounce_size`, coherent memory above.
#[derive(Debug)]
pub struct Domain {
    file: OwnedFd,
    region: Arc<Region>,
    bounce_size: u64,
    bounce_mapped: AtomicBool,
    streaming: Streaming,
    chunks: Chunks,
    coherent: CoherentSpace,
    umem: [UmemLock; SHARDS],
    room: Room,
    map_waits: AtomicU64,
    /// Held by one reclaim or umem change at a time.
    pages: Mutex<PageTotals>,
}

#[derive(Debug, Default)]
struct PageTotals {
    peak: u64,
    reclaimed: u64,
}

impl Domain {
    /// A domain with `bounce_size` bytes of bounce pages: whole pages, 1 MiB to 1 GiB.
    pub fn new(bounce_size: u64) -> io::Result<Arc<Domain>> {
        if !BOUNCE_SIZES.contains(&bounce_size) || !bounce_size.is_multiple_of(GRANULE as u64) {
            return Err(Errno::INVAL.into());
        }
        let file = memfd_create(
            "vduse-domain",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        ftruncate(&file, LIMIT)?;
        // The device has this fd too: it must not be able to take the memory away.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let region = Region::map(file.as_fd(), 0, LIMIT as usize, Perm::Rw)?;
        Ok(Arc::new(Domain {
            file,
            region,
            bounce_size,
            bounce_mapped: AtomicBool::new(false),
            streaming: Streaming::new((bounce_size / GRANULE as u64) as u32),
            chunks: Chunks::new((bounce_size as usize).div_ceil(CHUNK)),
            coherent: CoherentSpace::new(bounce_size, LIMIT),
            umem: Default::default(),
            room: Room::default(),
            map_waits: AtomicU64::new(0),
            pages: Mutex::default(),
        }))
    }

    /// Bytes of the bounce region.
    pub fn bounce_size(&self) -> u64 {
        self.bounce_size
    }

    /// Whether the bounce entry exists: a first buffer was mapped since the last reset.
    pub fn bounce_mapped(&self) -> bool {
        self.bounce_mapped.load(Ordering::Acquire)
    }

    /// The IOTLB entries, ordered by address; the offset of each is its address.
    pub fn entries(&self) -> Vec<Entry> {
        let bounce = self.bounce_mapped().then_some((0, self.bounce_size));
        let coherent = self.coherent.live();
        let ranges = bounce.into_iter().chain(coherent);
        ranges
            .map(|(start, len)| Entry {
                start: Iova(start),
                last: Iova(start + len - 1),
                offset: start,
                perm: Perm::Rw,
            })
            .collect()
    }

    /// Device reset: the bounce entry goes, coherent ones stay.
    pub fn reset_bounce_map(&self) {
        self.bounce_mapped.store(false, Ordering::Release);
    }

    /// `VDUSE_IOTLB_REG_UMEM`: the daemon's memory at `uaddr` of process `pid` takes the place
    /// of the bounce pages; the data of live mappings is copied there. `EEXIST`; `EINVAL` before
    /// the first map; or as process_vm_writev.
    pub fn reg_umem(&self, pid: u32, uaddr: u64) -> Result<(), Errno> {
        let _one = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut locks = self.all_umem_locks();
        if locks[0].is_some() {
            return Err(Errno::EXIST);
        }
        if !self.bounce_mapped() {
            return Err(Errno::INVAL);
        }
        let umem = Arc::new(Umem::new(pid, uaddr)?);
        self.for_live_chunks(|offset, len| {
            // SAFETY: a chunk lies in the mapped bounce region.
            unsafe { umem.write(offset as u64, self.bounce(offset), len) }
        })?;
        for lock in &mut locks {
            **lock = Some(Arc::clone(&umem));
        }
        Ok(())
    }

    /// `VDUSE_IOTLB_DEREG_UMEM`: back to the domain's pages, with the data of live mappings. What
    /// the device wrote into memory that is gone is lost. `ENOENT`.
    pub fn dereg_umem(&self) -> Result<(), Errno> {
        let _one = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut locks = self.all_umem_locks();
        let umem = locks[0].take().ok_or(Errno::NOENT)?;
        for lock in &mut locks {
            **lock = None;
        }
        // Where the daemon or its memory is gone the domain's pages still hold all that was on
        // its way to the device.
        let _ = self.for_live_chunks(|offset, len| {
            // SAFETY: a chunk lies in the mapped bounce region, which copies are kept out of.
            unsafe { umem.read(offset as u64, self.bounce(offset), len) }
        });
        Ok(())
    }

    /// Gives the pages of idle bounce chunks back to the system, from the top, until about
    /// `max_bytes` (to the next chunk) were freed; bytes freed.
    pub fn reclaim(&self, max_bytes: Option<u64>) -> io::Result<u64> {
        let mut totals = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        totals.peak = totals.peak.max(self.bounce_allocated()?);
        let max_bytes = max_bytes.unwrap_or(u64::MAX);
        let mut freed = 0;
        for chunk in (0..self.chunks.len()).rev() {
            if freed >= max_bytes {
                break;
            }
            if let Some(_claim) = self.chunks.claim(chunk) {
                let (offset, len) = self.chunk_bytes(chunk);
                let resident = self.resident(offset, len)?;
                if resident > 0 {
                    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&self.file, punch, offset as u64, len as u64)?;
                    freed += resident;
                    totals.reclaimed += resident;
                }
            }
        }
        Ok(freed)
    }

    /// What it holds and has done.
    pub fn stats(&self) -> io::Result<DomainStats> {
        let mut totals = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let bounce_allocated = self.bounce_allocated()?;
        totals.peak = totals.peak.max(bounce_allocated);
        let (granules, maps) = self.streaming.totals();
        Ok(DomainStats {
            bounce_in_use: granules * GRANULE as u64,
            bounce_allocated,
            bounce_peak: totals.peak,
            bounce_reclaimed: totals.reclaimed,
            coherent: self.coherent.bytes(),
            maps,
            map_waits: self.map_waits.load(Ordering::Relaxed),
        })
    }

    /// The file's memory less coherent memory, all of which is real.
    fn bounce_allocated(&self) -> io::Result<u64> {
        let allocated = u64::try_from(fstat(&self.file)?.st_blocks).unwrap_or(0) * 512;
        Ok(allocated.saturating_sub(self.coherent.bytes()))
    }

    /// Bytes of `[offset, offset + len)` that have memory.
    fn resident(&self, offset: usize, len: usize) -> io::Result<u64> {
        let mut pages = [0u8; CHUNK / GRANULE];
        // SAFETY: the range lies in the mapped region and has no more pages than the array.
        let done = unsafe { libc::mincore(self.bounce(offset).cast(), len, pages.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let resident = pages.iter().filter(|&&page| page & 1 != 0).count();
        Ok((resident * GRANULE) as u64)
    }

    /// Host address of a bounce byte; `offset` is below `bounce_size`.
    fn bounce(&self, offset: usize) -> *mut u8 {
        self.region.as_ptr().wrapping_add(offset)
    }

    fn chunk_bytes(&self, chunk: usize) -> (usize, usize) {
        let offset = chunk * CHUNK;
        (offset, CHUNK.min(self.bounce_size as usize - offset))
    }

    fn for_live_chunks(
        &self,
        mut copy: impl FnMut(usize, usize) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        (0..self.chunks.len())
            .filter(|&chunk| self.chunks.in_use(chunk))
            .map(|chunk| self.chunk_bytes(chunk))
            .try_for_each(|(offset, len)| copy(offset, len))
    }

    /// Keeps all copies out.
    fn all_umem_locks(&self) -> Vec<std::sync::RwLockWriteGuard<'_, Option<Arc<Umem>>>> {
        self.umem
            .iter()
            .map(|lock| lock.0.write().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    fn umem(&self, shard: usize) -> RwLockReadGuard<'_, Option<Arc<Umem>>> {
        self.umem[shard]
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn chunks_of(&self, mapping: &Mapping) -> RangeInclusive<usize> {
        let offset = mapping.iova.0 as usize;
        offset / CHUNK..=(offset + mapping.buffer.len() - 1) / CHUNK
    }

    fn copy_to_device(&self, mapping: &Mapping, umem: Option<&Umem>) -> Result<(), Errno> {
        let (from, len) = (mapping.buffer.as_ptr().as_ptr(), mapping.buffer.len());
        let to = self.bounce(mapping.iova.0 as usize);
        // SAFETY: the bounce bytes are this mapping's alone, in the mapped region, and the
        // buffer is the program's own memory. The device may look at the bytes meanwhile; they
        // are plain bytes that nobody here reads back.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        let Some(umem) = umem else { return Ok(()) };
        // SAFETY: as above.
        match unsafe { umem.write(mapping.iova.0, from, len) } {
            // The next daemon finds the data in the domain's file.
            Err(Errno::SRCH) => Ok(()),
            done => done,
        }
    }

    fn copy_from_device(&self, mapping: &Mapping, umem: Option<&Umem>) -> Result<(), Errno> {
        let (to, len) = (mapping.buffer.as_ptr().as_ptr(), mapping.buffer.len());
        if let Some(umem) = umem {
            // SAFETY: who made the buffer answers for it until the mapping ends.
            return unsafe { umem.read(mapping.iova.0, to, len) };
        }
        let from = self.bounce(mapping.iova.0 as usize);
        // SAFETY: as in copy_to_device, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        Ok(())
    }

    fn give_back(&self, shard: usize, mapping: &Mapping) {
        self.chunks.release(self.chunks_of(mapping));
        let first = (mapping.iova.0 / GRANULE as u64) as u32;
        self.streaming.give(shard, first, mapping.granules);
    }

    fn check_memory(&self) -> Result<(), Errno> {
        if self.region.is_poisoned() {
            return Err(Errno::FAULT);
        }
        Ok(())
    }
}

impl AsFd for Domain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Dma for Domain {
    fn alloc_coherent(&self, len: u64) -> Result<Coherent, DmaError> {
        let (start, len) = self.coherent.alloc(self.file.as_fd(), len)?;
        let ptr = NonNull::new(self.region.as_ptr().wrapping_add(start as usize))
            .ok_or(DmaError::Memory(Errno::FAULT))?;
        Ok(Coherent {
            memory: Pinned {
                ptr,
                len: len as usize,
                region: Arc::clone(&self.region),
            },
            iova: Iova(start),
        })
    }

    fn free_coherent(&self, memory: Coherent) {
        self.coherent.free(self.file.as_fd(), memory.iova.0);
    }

    fn map(&self, buffer: Buffer, direction: Direction) -> Result<Mapping, DmaError> {
        if buffer.is_empty() || buffer.len() > self.max_mapping() {
            return Err(DmaError::Length(buffer.len()));
        }
        let shard = streaming::shard();
        let granules = streaming::granules(buffer.len());
        let first = self
            .streaming
            .take(shard, granules)
            .ok_or(DmaError::NoSpace)?;
        let mapping = Mapping {
            iova: Iova(u64::from(first) * GRANULE as u64),
            buffer,
            direction,
            granules,
        };
        let umem = self.umem(shard);
        self.chunks.acquire(self.chunks_of(&mapping));
        if !self.bounce_mapped.load(Ordering::Relaxed) {
            self.bounce_mapped.store(true, Ordering::Release);
        }
        let copied = if direction.to_device() {
            self.copy_to_device(&mapping, umem.as_deref())
        } else {
            Ok(())
        };
        match copied.and_then(|()| self.check_memory()) {
            Ok(()) => Ok(mapping),
            Err(errno) => {
                self.give_back(shard, &mapping);
                Err(DmaError::Memory(errno))
            }
        }
    }

    fn unmap(&self, mapping: Mapping, copy: bool) -> Result<(), DmaError> {
        let shard = streaming::shard();
        let umem = self.umem(shard);
        let copied = if copy && mapping.direction.from_device() {
            self.copy_from_device(&mapping, umem.as_deref())
        } else {
            Ok(())
        };
        self.give_back(shard, &mapping);
        drop(umem);
        self.room.announce();
        copied
            .and_then(|()| self.check_memory())
            .map_err(DmaError::Memory)
    }

    /// A quarter of the bounce region: several requests are under way even where each is as
    /// large as can be.
    fn max_mapping(&self) -> usize {
        (self.bounce_size as usize - GRANULE) / 4 / GRANULE * GRANULE
    }

    fn wait_room(&self, timeout: Duration, retry: &mut dyn FnMut() -> bool) {
        self.map_waits.fetch_add(1, Ordering::Relaxed);
        self.room.wait(timeout, retry);
    }
}
