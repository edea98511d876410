//! A driver's own memory, shared by fd: what is allocated in it needs no copy.

use crate::domain::Ranges;
use crate::room::Room;
use crate::{Buffer, Coherent, Direction, Dma, DmaError, Mapping};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vduse_mem::{Iova, Perm, Pinned, Region};

const PAGE: usize = 4096;

/// One memory file, mapped by the device at `iova` and by the driver here (the vhost_vdpa way).
/// Buffers that lie in it are reached directly; others are copied through pages of it.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    region: Arc<Region>,
    iova: Iova,
    pages: Mutex<Pages>,
    room: Room,
}

#[derive(Debug)]
struct Pages {
    ranges: Ranges,
    /// Pages that streaming mappings hold: they come back.
    streaming: u32,
}

impl Arena {
    /// `size` bytes (whole pages, at most 2^40), whose first byte is at `iova`.
    pub fn new(size: u64, iova: Iova) -> io::Result<Arc<Arena>> {
        let pages = size / PAGE as u64;
        if size == 0
            || size > 1 << 40
            || !size.is_multiple_of(PAGE as u64)
            || iova.last(size).is_none()
        {
            return Err(Errno::INVAL.into());
        }
        let file = memfd_create("vduse-arena", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, size)?;
        let region = Region::map(file.as_fd(), 0, size as usize, Perm::Rw)?;
        Ok(Arc::new(Arena {
            file,
            region,
            iova,
            pages: Mutex::new(Pages {
                ranges: Ranges::new(0, pages as u32),
                streaming: 0,
            }),
            room: Room::default(),
        }))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.region.len() as u64
    }

    /// IOVA of the first byte.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Takes `len` bytes, page-aligned, for the program's buffers; their offset. They are not
    /// given back before the arena goes.
    pub fn alloc(&self, len: usize) -> Result<usize, DmaError> {
        let pages = page_count(len)?;
        let first = self.pages().ranges.take(pages);
        first
            .map(|first| first as usize * PAGE)
            .ok_or(DmaError::Memory(Errno::NOMEM))
    }

    /// The bytes at `offset` as a buffer that needs no copy; `None` out of range.
    pub fn buffer(&self, offset: usize, len: usize) -> Option<Buffer> {
        Buffer::shared(Arc::clone(&self.region), offset, len)
    }

    /// Copies bytes out of the arena; false out of range.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.buffer(offset, out.len()) else {
            return false;
        };
        // SAFETY: both ranges hold `out.len()` bytes; `out` is exclusively ours.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr().as_ptr(), out.as_mut_ptr(), out.len())
        };
        true
    }

    /// Copies bytes into the arena; false out of range.
    pub fn write(&self, offset: usize, data: &[u8]) -> bool {
        let Some(to) = self.buffer(offset, data.len()) else {
            return false;
        };
        // SAFETY: both ranges hold `data.len()` bytes; nobody holds a reference into the arena.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.as_ptr().as_ptr(), data.len()) };
        true
    }

    /// Changes the file's size under everybody's mapping (hostile tests).
    pub fn truncate(&self, size: u64) -> io::Result<()> {
        Ok(ftruncate(&self.file, size)?)
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `buffer` lies in the arena, if it does.
    fn offset_of(&self, buffer: &Buffer) -> Option<usize> {
        let offset =
            (buffer.as_ptr().as_ptr() as usize).checked_sub(self.region.as_ptr() as usize)?;
        (offset.checked_add(buffer.len())? <= self.region.len()).then_some(offset)
    }

    /// Copies between a mapped buffer and the pages that stand for it.
    fn copy(&self, mapping: &Mapping, to_device: bool) {
        let offset = (mapping.iova.0 - self.iova.0) as usize;
        let pages = self.region.as_ptr().wrapping_add(offset);
        let (buffer, len) = (mapping.buffer.as_ptr().as_ptr(), mapping.buffer.len());
        let (from, to) = if to_device {
            (buffer, pages)
        } else {
            (pages, buffer)
        };
        // SAFETY: the pages are this mapping's alone and lie in the arena, the buffer outside;
        // who made the buffer answers for it. The device may use the pages meanwhile: plain bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
    }

    fn check_memory(&self) -> Result<(), DmaError> {
        if self.region.is_poisoned() {
            return Err(DmaError::Memory(Errno::FAULT));
        }
        Ok(())
    }
}

fn page_count(len: usize) -> Result<u32, DmaError> {
    match u32::try_from(len.div_ceil(PAGE)) {
        Ok(pages) if pages > 0 => Ok(pages),
        _ => Err(DmaError::Length(len)),
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Dma for Arena {
    fn alloc_coherent(&self, len: u64) -> Result<Coherent, DmaError> {
        let len = usize::try_from(len).map_err(|_| DmaError::Length(usize::MAX))?;
        let offset = self.alloc(len)?;
        let memory = self.region.as_ptr().wrapping_add(offset);
        let ptr = NonNull::new(memory).ok_or(DmaError::Memory(Errno::FAULT))?;
        // SAFETY: the range was just taken, lies in the region, and nobody else uses it.
        unsafe { std::ptr::write_bytes(memory, 0, len) };
        Ok(Coherent {
            memory: Pinned {
                ptr,
                len,
                region: Arc::clone(&self.region),
            },
            iova: Iova(self.iova.0 + offset as u64),
        })
    }

    fn free_coherent(&self, memory: Coherent) {
        let offset = (memory.iova.0 - self.iova.0) as usize;
        let pages = memory.memory.len.div_ceil(PAGE) as u32;
        self.pages().ranges.give((offset / PAGE) as u32, pages);
        self.room.announce();
    }

    fn map(&self, buffer: Buffer, direction: Direction) -> Result<Mapping, DmaError> {
        if buffer.is_empty() || buffer.len() > self.max_mapping() {
            return Err(DmaError::Length(buffer.len()));
        }
        if let Some(offset) = self.offset_of(&buffer) {
            let iova = Iova(self.iova.0 + offset as u64);
            return Ok(Mapping {
                iova,
                buffer,
                direction,
                granules: 0,
            });
        }
        let granules = page_count(buffer.len())?;
        let first = {
            let mut pages = self.pages();
            let Some(first) = pages.ranges.take(granules) else {
                // With no mapping to wait for, room will never come.
                return Err(match pages.streaming {
                    0 => DmaError::Memory(Errno::NOMEM),
                    _ => DmaError::NoSpace,
                });
            };
            pages.streaming += granules;
            first
        };
        let mapping = Mapping {
            iova: Iova(self.iova.0 + u64::from(first) * PAGE as u64),
            buffer,
            direction,
            granules,
        };
        if direction.to_device() {
            self.copy(&mapping, true);
        }
        Ok(mapping)
    }

    fn unmap(&self, mapping: Mapping, copy: bool) -> Result<(), DmaError> {
        if mapping.granules > 0 {
            if copy && mapping.direction.from_device() {
                self.copy(&mapping, false);
            }
            let first = (mapping.iova.0 - self.iova.0) / PAGE as u64;
            let mut pages = self.pages();
            pages.ranges.give(first as u32, mapping.granules);
            pages.streaming -= mapping.granules;
            drop(pages);
            self.room.announce();
        }
        self.check_memory()
    }

    /// An eighth of the arena, and at least a page.
    fn max_mapping(&self) -> usize {
        (self.region.len() / 8 / PAGE * PAGE).clamp(PAGE, 1 << 30)
    }

    fn wait_room(&self, timeout: Duration, retry: &mut dyn FnMut() -> bool) {
        self.room.wait(timeout, retry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arc<Arena> {
        Arena::new(64 << 10, Iova(0x10_0000)).unwrap()
    }

    fn foreign(bytes: &mut [u8]) -> Buffer {
        // SAFETY: the tests keep `bytes` longer than the mapping, and do not touch it meanwhile.
        unsafe { Buffer::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len()) }
    }

    #[test]
    fn a_buffer_in_the_arena_is_mapped_where_it_is() {
        let arena = arena();
        let offset = arena.alloc(4096).unwrap();
        let buffer = arena.buffer(offset + 512, 1024).unwrap();
        let mapping = arena.map(buffer, Direction::FromDevice).unwrap();
        assert_eq!(mapping.iova, Iova(0x10_0000 + offset as u64 + 512));
        arena.unmap(mapping, true).unwrap();
    }

    #[test]
    fn a_buffer_elsewhere_is_copied_both_ways() {
        let arena = arena();
        let mut bytes = vec![7u8; 3000];
        let mapping = arena
            .map(foreign(&mut bytes), Direction::Bidirectional)
            .unwrap();
        let offset = (mapping.iova.0 - arena.iova().0) as usize;
        let mut seen = vec![0; 3000];
        assert!(arena.read(offset, &mut seen));
        assert_eq!(seen, vec![7; 3000]);
        assert!(arena.write(offset, &[9; 3000]));
        arena.unmap(mapping, true).unwrap();
        assert_eq!(bytes, vec![9; 3000]);
    }

    #[test]
    fn ranges_outside_the_arena_are_refused() {
        let arena = arena();
        assert!(!arena.read(64 << 10, &mut [0]));
        assert!(!arena.write(usize::MAX, &[0, 0]));
        assert!(arena.buffer(65_536 - 8, 9).is_none());
        assert_eq!(arena.alloc(65 << 10), Err(DmaError::Memory(Errno::NOMEM)));
    }

    #[test]
    fn coherent_memory_is_zeroed_when_used_again() {
        let arena = arena();
        let memory = arena.alloc_coherent(4096).unwrap();
        let offset = (memory.iova.0 - arena.iova().0) as usize;
        assert!(arena.write(offset, &[1; 64]));
        arena.free_coherent(memory);
        let again = arena.alloc_coherent(4096).unwrap();
        assert_eq!(again.iova.0 - arena.iova().0, offset as u64);
        let mut seen = [1; 64];
        assert!(arena.read(offset, &mut seen));
        assert_eq!(seen, [0; 64]);
    }

    #[test]
    fn where_nothing_will_come_back_a_mapping_fails_instead_of_waiting() {
        let arena = arena();
        arena.alloc(64 << 10).unwrap();
        let mut bytes = vec![0u8; 512];
        let refused = arena.map(foreign(&mut bytes), Direction::ToDevice);
        assert_eq!(refused.unwrap_err(), DmaError::Memory(Errno::NOMEM));
    }

    #[test]
    fn a_truncated_arena_fails_the_mapping_that_touches_it() {
        let arena = arena();
        arena.truncate(0).unwrap();
        let mut bytes = vec![0u8; 512];
        let mapping = arena.map(foreign(&mut bytes), Direction::ToDevice).unwrap();
        assert_eq!(
            arena.unmap(mapping, true),
            Err(DmaError::Memory(Errno::FAULT))
        );
    }
}
