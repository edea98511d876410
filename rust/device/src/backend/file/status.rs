//! What lies where in a file: its holes (lseek(2), SEEK_DATA and SEEK_HOLE).

use super::image::Image;
use crate::backend::{Piece, StatusRequest};
use crate::{Length, SECTOR_SIZE};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

impl Image {
    /// Waits for the file system. A hole reads as zeroes, and so does what lies past the end, as
    /// long as there is something to read. A block device knows no holes.
    pub(super) fn block_status(&self, request: StatusRequest) {
        if self.is_block_device {
            return request.answer_data();
        }
        match self.pieces(&request) {
            Ok(pieces) => request.answer(Ok(pieces)),
            // The file system does not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => request.answer_data(),
            Err(errno) => request.refuse(errno),
        }
    }

    /// A sector that is partly data is data.
    fn pieces(&self, request: &StatusRequest) -> Result<Vec<Piece>, Errno> {
        let end = request.extent().end().0;
        let mut at = request.extent().offset().0;
        let mut pieces = Vec::new();
        while at < end && pieces.len() < request.most() {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => (data - data % SECTOR_SIZE).clamp(at, end),
                // None from here to the end of the file.
                Err(Errno::NXIO) => end,
                Err(errno) => return Err(errno),
            };
            if data > at {
                pieces.push(Piece::hole(Length(data - at)));
                at = data;
                continue;
            }
            let hole = match seek(&self.file, SeekFrom::Hole(at)) {
                Ok(hole) => hole.next_multiple_of(SECTOR_SIZE).min(end),
                // The file ends before this by now.
                Err(Errno::NXIO) => end,
                Err(errno) => return Err(errno),
            };
            // A hole by now: it was data.
            let hole = hole.max(at + SECTOR_SIZE);
            pieces.push(Piece::data(Length(hole - at)));
            at = hole;
        }
        Ok(pieces)
    }
}
