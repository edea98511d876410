//! One read or write of a file range as the system sees it: iovecs, progress after a partial
//! result, and the aligned copy that O_DIRECT may need. The thread engine and io_uring run the
//! same transfers.

use super::aligned::Aligned;
use crate::{Buffer, Extent, SECTOR_SIZE};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::sync::Arc;
use vduse_mem::Region;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) enum Direction {
    /// From the file into the buffer.
    Read,
    /// From the buffer into the file.
    Write,
}

/// What O_DIRECT asks of a transfer; both are powers of two, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses.
    pub(super) memory: usize,
    /// Of file offsets and lengths.
    pub(super) file: u64,
}

/// Bytes of the longest copy. A driver chooses how long its requests are, and may name the
/// same page a thousand times in one.
const MOST_COPIED: u64 = 128 << 10;

impl Alignment {
    /// Bytes of the longest copy that a transfer makes; a power of two.
    pub(super) fn most_copied(self) -> u64 {
        MOST_COPIED.max(self.file)
    }
}

/// Most iovecs the kernel takes at once (UIO_MAXIOV).
const MOST_IOVECS: usize = 1024;

/// A transfer under way.
pub(in crate::backend) struct Transfer {
    direction: Direction,
    buffer: Buffer,
    /// An aligned copy of the file range around the buffer's, and where the buffer's begins
    /// in it.
    copy: Option<(Aligned, usize)>,
    iovecs: SmallVec<[libc::iovec; 4]>,
    /// Iovecs that are through.
    first: usize,
    /// Where the next byte goes, in bytes.
    at: u64,
    /// Bytes still to go.
    left: u64,
    /// What a read misses of the sector in which the file ends is zeroes.
    fills_last_sector: bool,
}

// SAFETY: the iovecs point into the buffer and the copy, which the transfer owns.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Plans a transfer; `alignment` is what O_DIRECT asks, if it is used. Gives the buffer
    /// back for a write of part of a block, which needs the rest of the block first, and where
    /// the copy would be too long.
    pub(super) fn plan(
        direction: Direction,
        extent: Extent,
        buffer: Buffer,
        alignment: Option<Alignment>,
    ) -> Result<Transfer, Buffer> {
        let Some(alignment) = alignment.filter(|a| !fits(&buffer, extent, *a)) else {
            let iovecs = buffer
                .pieces()
                .iter()
                .map(|piece| iovec(piece.ptr.as_ptr(), piece.len))
                .collect();
            return Ok(Transfer {
                direction,
                iovecs,
                first: 0,
                at: extent.offset().0,
                left: extent.len().0,
                buffer,
                copy: None,
                fills_last_sector: false,
            });
        };
        let whole = match extent.aligned_out(alignment.file) {
            Some(whole)
                if whole.len().0 <= alignment.most_copied()
                    && (direction == Direction::Read || whole == extent) =>
            {
                whole
            }
            _ => return Err(buffer),
        };
        let mut copy = Aligned::zeroed(whole.len().0 as usize, alignment.memory);
        if direction == Direction::Write {
            buffer.read(copy.bytes());
        }
        let bytes = copy.bytes();
        let iovecs = SmallVec::from_slice(&[iovec(bytes.as_mut_ptr(), bytes.len())]);
        Ok(Transfer {
            direction,
            buffer,
            copy: Some((copy, (extent.offset().0 - whole.offset().0) as usize)),
            iovecs,
            first: 0,
            at: whole.offset().0,
            left: whole.len().0,
            fills_last_sector: false,
        })
    }

    /// The same of a file that may end within a sector, which is read whole all the same.
    pub(super) fn fills_last_sector(mut self) -> Transfer {
        self.fills_last_sector = self.direction == Direction::Read && self.copy.is_none();
        self
    }

    /// The region of our own memory that all of it goes to or comes from, if there is one.
    pub(super) fn own_region(&self) -> Option<&Arc<Region>> {
        match self.copy {
            Some(_) => None,
            None => self.buffer.own_region(),
        }
    }

    pub(in crate::backend) fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether nothing is left (a transfer of no bytes needs no system call).
    pub(in crate::backend) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// What is still to be transferred, as much as one call takes. Stays where it is in memory
    /// while the transfer does.
    pub(in crate::backend) fn iovecs(&self) -> &[libc::iovec] {
        let rest = &self.iovecs[self.first..];
        &rest[..rest.len().min(MOST_IOVECS)]
    }

    /// Where in the file, in bytes.
    pub(in crate::backend) fn offset(&self) -> u64 {
        self.at
    }

    /// Takes a call's result: bytes or an error. `Some` when the transfer has ended; EIO where
    /// the file ends too early.
    pub(in crate::backend) fn advance(
        &mut self,
        result: Result<u32, Errno>,
    ) -> Option<Result<(), Errno>> {
        let mut bytes = match result {
            Ok(0) if self.left > 0 => return Some(self.end_of_file()),
            Ok(bytes) => u64::from(bytes).min(self.left),
            Err(Errno::INTR | Errno::AGAIN) => return None,
            Err(errno) => return Some(Err(errno)),
        };
        self.at += bytes;
        self.left -= bytes;
        while bytes > 0 {
            let iovec = &mut self.iovecs[self.first];
            if bytes < iovec.iov_len as u64 {
                iovec.iov_base = iovec
                    .iov_base
                    .cast::<u8>()
                    .wrapping_add(bytes as usize)
                    .cast();
                iovec.iov_len -= bytes as usize;
                break;
            }
            bytes -= iovec.iov_len as u64;
            self.first += 1;
        }
        if self.left > 0 {
            return None;
        }
        if let (Direction::Read, Some((copy, skip))) = (self.direction, &mut self.copy) {
            let bytes = &copy.bytes()[*skip..];
            self.buffer
                .write(&bytes[..bytes.len().min(self.buffer.len() as usize)]);
        }
        Some(Ok(()))
    }

    /// There are no more bytes.
    fn end_of_file(&mut self) -> Result<(), Errno> {
        let missing = SECTOR_SIZE - self.at % SECTOR_SIZE;
        if !self.fills_last_sector || missing == SECTOR_SIZE || self.left > missing {
            return Err(Errno::IO);
        }
        let zeroes = &[0; SECTOR_SIZE as usize][..self.left as usize]; // less than a sector
        self.buffer.write_at(self.buffer.len() - self.left, zeroes);
        Ok(())
    }
}

/// Whether O_DIRECT takes the buffer and the range as they are.
fn fits(buffer: &Buffer, extent: Extent, alignment: Alignment) -> bool {
    extent.is_aligned(alignment.file)
        && buffer.pieces().iter().all(|piece| {
            (piece.ptr.as_ptr() as usize).is_multiple_of(alignment.memory)
                && (piece.len as u64).is_multiple_of(alignment.file)
        })
}

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}
