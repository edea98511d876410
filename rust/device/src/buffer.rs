//! The buffers of one request in memory shared with the driver. The driver may change every
//! byte at any time, so bytes are only ever copied, once.

use std::sync::Arc;
use vduse_mem::{Piece, Pieces, Pin, Region};

/// Pieces of shared memory, in order, and what keeps them mapped.
pub struct Buffer {
    pieces: Pieces,
    len: u64,
    pin: Option<Pin>,
}

impl Buffer {
    /// Pieces of the view that `pin` was taken of, after their translation.
    ///
    /// # Safety
    /// They are exactly that, and translated for what will be done with the buffer: reading
    /// for [`Op::Write`](crate::backend::Op::Write), writing for `Op::Read`.
    pub(crate) unsafe fn pinned(pieces: Pieces, pin: Pin) -> Buffer {
        Buffer {
            len: total(&pieces),
            pieces,
            pin: Some(pin),
        }
    }

    /// Pieces of memory that something else keeps alive.
    ///
    /// # Safety
    /// All pieces stay valid for reads and writes until the buffer and what shares it are gone.
    pub unsafe fn borrowed(pieces: Pieces) -> Buffer {
        Buffer {
            len: total(&pieces),
            pieces,
            pin: None,
        }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces; valid as long as the buffer (or what shares it) lives.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The region of our own memory that holds all of it; `None` where some of it is the driver's.
    /// What is all our own may be used after a reset, too: nobody else has it then.
    pub fn own_region(&self) -> Option<&Arc<Region>> {
        let region = self.pin.as_ref()?.own_region()?;
        let holds_all = self.pieces.iter().all(|piece| region.contains(piece));
        holds_all.then_some(region)
    }

    /// Another owner of the same memory.
    pub fn share(&self) -> Buffer {
        Buffer {
            pieces: self.pieces.clone(),
            len: self.len,
            pin: self.pin.clone(),
        }
    }

    /// Another owner of the same memory, its pieces as one; `None` where they do not follow each
    /// other in memory.
    pub fn whole(&self) -> Option<Buffer> {
        let mut pieces = self.pieces.iter();
        let mut whole: Pieces = pieces.next().copied().into_iter().collect();
        for piece in pieces {
            let first = &mut whole[0];
            if first.ptr.addr().get().checked_add(first.len)? != piece.ptr.addr().get() {
                return None;
            }
            first.len += piece.len;
        }
        Some(Buffer {
            pieces: whole,
            len: self.len,
            pin: self.pin.clone(),
        })
    }

    /// The `len` bytes at `offset`, or what there is of them, as another owner.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Buffer {
        let (mut skip, mut left) = (offset as usize, len as usize);
        let mut pieces = Pieces::new();
        for piece in &self.pieces {
            let skipped = skip.min(piece.len);
            let taken = left.min(piece.len - skipped);
            skip -= skipped;
            left -= taken;
            pieces.extend(piece.part(skipped, taken).filter(|part| part.len > 0));
        }
        Buffer {
            len: total(&pieces),
            pieces,
            pin: self.pin.clone(),
        }
    }

    /// Copies `from` into the buffer's first bytes; bytes beyond the buffer are left out.
    pub fn write(&self, from: &[u8]) {
        let mut rest = from;
        for piece in &self.pieces {
            // SAFETY: the pin, or `borrowed`'s caller, keeps the piece valid for writes.
            rest = &rest[unsafe { piece.write_from(rest) }..];
        }
    }

    /// Copies the buffer's first bytes into `to`; `to` beyond the buffer is left as it is.
    pub fn read(&self, to: &mut [u8]) {
        let mut done = 0;
        for piece in &self.pieces {
            // SAFETY: as in `write`, for reads.
            done += unsafe { piece.read_into(&mut to[done..]) };
        }
    }

    /// As [`Buffer::write`], from the byte at `offset` on.
    pub fn write_at(&self, offset: u64, from: &[u8]) {
        let mut rest = from;
        for piece in self.pieces_from(offset) {
            // SAFETY: as in `write`.
            rest = &rest[unsafe { piece.write_from(rest) }..];
        }
    }

    /// As [`Buffer::read`], from the byte at `offset` on.
    pub fn read_at(&self, offset: u64, to: &mut [u8]) {
        let mut done = 0;
        for piece in self.pieces_from(offset) {
            // SAFETY: as in `write`, for reads.
            done += unsafe { piece.read_into(&mut to[done..]) };
        }
    }

    fn pieces_from(&self, offset: u64) -> impl Iterator<Item = Piece> {
        let mut skip = offset as usize;
        self.pieces.iter().filter_map(move |piece| {
            let skipped = skip.min(piece.len);
            skip -= skipped;
            piece.part(skipped, piece.len - skipped)
        })
    }

    /// All bytes, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(&mut bytes);
        bytes
    }
}

fn total(pieces: &Pieces) -> u64 {
    pieces.iter().map(|piece| piece.len as u64).sum()
}
