//! What can be done with an open file or block device, waiting for each call.

use super::aligned::Aligned;
use super::image::Image;
use super::transfer::{Alignment, Direction, Transfer};
use super::{last_errno, probe};
use crate::backend::Op;
use crate::{Buffer, Extent, Length, Offset};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{MutexGuard, PoisonError};

/// Zeroes written at once where the file system has no quicker way.
const ZEROES_AT_ONCE: u64 = 1 << 20;

impl Image {
    pub(super) fn flush(&self) -> Result<(), Errno> {
        if self.read_only {
            return Ok(());
        }
        fdatasync(&self.file)
    }

    /// Carries one operation out.
    pub(super) fn run(&self, op: Op) -> Result<(), Errno> {
        match op {
            Op::Read { extent, buffer } => self.transfer(Direction::Read, extent, buffer),
            Op::Write { extent, buffer } => self.transfer(Direction::Write, extent, buffer),
            Op::Flush => self.flush(),
            Op::Discard { extent } => self.discard(extent),
            Op::WriteZeroes { extent, may_unmap } => self.write_zeroes(extent, may_unmap),
        }
    }

    /// Reads the first bytes of the file, which are there.
    pub(super) fn read_start(&self, bytes: &mut [u8]) -> Result<(), Errno> {
        let len = Length(bytes.len() as u64);
        let extent = Extent::new(Offset(0), len).ok_or(Errno::FBIG)?;
        let piece = vduse_mem::Piece {
            ptr: std::ptr::NonNull::from(&mut *bytes).cast(),
            len: bytes.len(),
        };
        // SAFETY: the transfer is over before `bytes` is used again.
        let buffer = unsafe { Buffer::borrowed(smallvec::smallvec![piece]) };
        self.transfer(Direction::Read, extent, buffer)
    }

    fn transfer(&self, way: Direction, extent: Extent, buffer: Buffer) -> Result<(), Errno> {
        match self.plan(way, extent, buffer) {
            Ok(transfer) => self.complete(transfer),
            Err(buffer) => self.transfer_by_copies(way, extent, &buffer),
        }
    }

    /// What needs a longer copy than one transfer makes, or other bytes of its blocks.
    fn transfer_by_copies(
        &self,
        way: Direction,
        extent: Extent,
        buffer: &Buffer,
    ) -> Result<(), Errno> {
        let alignment = self.alignment.ok_or(Errno::INVAL)?;
        for part in steps(extent, alignment.most_copied()) {
            let done = part.offset().0 - extent.offset().0;
            let buffer = buffer.part(done, part.len().0);
            match Transfer::plan(way, part, buffer, Some(alignment)) {
                Ok(transfer) => self.complete(transfer)?,
                Err(buffer) => self.modify(part, |bytes| buffer.read(bytes))?,
            }
        }
        Ok(())
    }

    fn complete(&self, mut transfer: Transfer) -> Result<(), Errno> {
        if transfer.is_done() {
            return Ok(());
        }
        loop {
            let iovecs = transfer.iovecs();
            let count = iovecs.len() as i32;
            let at = i64::try_from(transfer.offset()).map_err(|_| Errno::FBIG)?;
            let fd = self.file.as_raw_fd();
            // SAFETY: the iovecs describe memory that the transfer keeps for the call: private
            // memory or shared memory that the kernel may read and write.
            let result = unsafe {
                match transfer.direction() {
                    Direction::Read => libc::preadv(fd, iovecs.as_ptr(), count, at),
                    Direction::Write => libc::pwritev(fd, iovecs.as_ptr(), count, at),
                }
            };
            // One call moves less than 2^31 bytes.
            let result = u32::try_from(result).map_err(|_| last_errno());
            if let Some(end) = transfer.advance(result) {
                return end;
            }
        }
    }

    /// Read-modify-write of the blocks around `extent`, one at a time for the whole file, so
    /// that two writers of one block do not undo each other.
    fn modify(&self, extent: Extent, change: impl FnOnce(&mut [u8])) -> Result<(), Errno> {
        let alignment = self.alignment.ok_or(Errno::INVAL)?;
        let whole = extent.aligned_out(alignment.file).ok_or(Errno::FBIG)?;
        let skip = (extent.offset().0 - whole.offset().0) as usize;
        let mut copy = Aligned::zeroed(whole.len().0 as usize, alignment.memory);
        let _one = self.lock_modify();
        self.complete(own(Direction::Read, whole, copy.bytes()))?;
        change(&mut copy.bytes()[skip..skip + extent.len().0 as usize]);
        self.complete(own(Direction::Write, whole, copy.bytes()))
    }

    fn lock_modify(&self) -> MutexGuard<'_, ()> {
        self.modify.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discard(&self, extent: Extent) -> Result<(), Errno> {
        let result = if extent.is_empty() {
            Ok(())
        } else if self.is_block_device {
            probe::block_discard(&self.file, extent)
        } else {
            self.punch_hole(extent)
        };
        match result {
            // A hint: a disk that cannot, keeps its bytes.
            Err(Errno::OPNOTSUPP | Errno::NODEV) => Ok(()),
            other => other,
        }
    }

    fn punch_hole(&self, extent: Extent) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        allocate(&self.file, flags, extent)
    }

    fn write_zeroes(&self, extent: Extent, may_unmap: bool) -> Result<(), Errno> {
        if extent.is_empty() {
            return Ok(());
        }
        match self.zero_range(extent, may_unmap) {
            Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS | Errno::INVAL) => {
                self.write_zeroes_slowly(extent)
            }
            other => other,
        }
    }

    /// What the file system does at once, where it can.
    fn zero_range(&self, extent: Extent, may_unmap: bool) -> Result<(), Errno> {
        // A read-modify-write of the rest of a block is not to bring the old bytes back.
        let _one = self
            .alignment
            .filter(|alignment| !extent.is_aligned(alignment.file))
            .map(|_| self.lock_modify());
        // A hole reads as zeroes in a file; what a discarded block device reads is not said.
        if may_unmap && !self.is_block_device && self.punch_hole(extent).is_ok() {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        allocate(&self.file, flags, extent)
    }

    fn write_zeroes_slowly(&self, extent: Extent) -> Result<(), Errno> {
        let alignment = self.alignment.unwrap_or(Alignment {
            memory: 1,
            file: 512,
        });
        let step = ZEROES_AT_ONCE.max(alignment.file);
        let mut zeroes = Aligned::zeroed(step.min(extent.len().0) as usize, alignment.memory);
        for part in steps(extent, step) {
            if part.is_aligned(alignment.file) {
                let bytes = &mut zeroes.bytes()[..part.len().0 as usize];
                self.complete(own(Direction::Write, part, bytes))?;
            } else {
                self.modify_or_write(part, &mut zeroes)?;
            }
        }
        Ok(())
    }

    fn modify_or_write(&self, part: Extent, zeroes: &mut Aligned) -> Result<(), Errno> {
        if self.alignment.is_some() {
            return self.modify(part, |bytes| bytes.fill(0));
        }
        let bytes = &mut zeroes.bytes()[..part.len().0 as usize];
        self.complete(own(Direction::Write, part, bytes))
    }
}

/// The extent in parts that end on multiples of `step`, a power of two: only the first and the
/// last may be shorter.
fn steps(extent: Extent, step: u64) -> impl Iterator<Item = Extent> {
    let mut at = extent.offset().0;
    std::iter::from_fn(move || {
        let left = extent.end().0 - at;
        let len = left.min(step - at % step);
        let part = Extent::new(Offset(at), Length(len)).filter(|part| !part.is_empty())?;
        at += len;
        Some(part)
    })
}

/// A transfer of private aligned memory, carried out before `bytes` is used again.
fn own(direction: Direction, extent: Extent, bytes: &mut [u8]) -> Transfer {
    let piece = vduse_mem::Piece {
        ptr: std::ptr::NonNull::from(&mut *bytes).cast(),
        len: bytes.len(),
    };
    // SAFETY: the callers complete the transfer while they hold `bytes`.
    let buffer = unsafe { Buffer::borrowed(smallvec::smallvec![piece]) };
    match Transfer::plan(direction, extent, buffer, None) {
        Ok(transfer) => transfer,
        Err(_) => unreachable!("without an alignment every transfer is planned"),
    }
}

fn allocate(file: &OwnedFd, flags: FallocateFlags, extent: Extent) -> Result<(), Errno> {
    loop {
        match fallocate(file, flags, extent.offset().0, extent.len().0) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
