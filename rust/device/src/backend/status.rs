//! What lies where on a disk: holes, zeroes, data (NBD's `base:allocation`).

use crate::{Extent, Length};
use rustix::io::Errno;

/// A part of a disk that is alike from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes, a multiple of 512 and not 0.
    pub len: Length,
    /// It takes no room.
    pub is_hole: bool,
    /// It reads as zeroes.
    pub is_zero: bool,
}

impl Piece {
    /// Anything.
    pub fn data(len: Length) -> Piece {
        Piece {
            len,
            is_hole: false,
            is_zero: false,
        }
    }

    /// Zeroes that take no room.
    pub fn hole(len: Length) -> Piece {
        Piece {
            len,
            is_hole: true,
            is_zero: true,
        }
    }

    /// Whether both are the same but for their length.
    pub fn is_like(&self, other: &Piece) -> bool {
        (self.is_hole, self.is_zero) == (other.is_hole, other.is_zero)
    }
}

type Tell = Box<dyn FnOnce(Result<Vec<Piece>, Errno>) + Send>;

/// The question what lies in a part of a disk. Dropped, it is answered EIO.
pub struct StatusRequest {
    extent: Extent,
    most: usize,
    tell: Option<Tell>,
}

impl StatusRequest {
    /// About `extent`, whole sectors of the disk; `tell` gets at most `most` pieces, once, on any
    /// thread.
    pub fn new(
        extent: Extent,
        most: usize,
        tell: impl FnOnce(Result<Vec<Piece>, Errno>) + Send + 'static,
    ) -> StatusRequest {
        StatusRequest {
            extent,
            most,
            tell: Some(Box::new(tell)),
        }
    }

    /// Which part.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Pieces that are wanted, at most; at least 1.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Answers with pieces that follow each other from the part's beginning on. They may cover less
    /// than was asked for, but not nothing; what is beyond is left out, and neighbours that
    /// are alike become one. A length that is no whole number of sectors, or 0, is an EIO.
    pub fn answer(mut self, pieces: Result<impl IntoIterator<Item = Piece>, Errno>) {
        let merged = pieces.and_then(|pieces| self.merge(pieces));
        if let Some(tell) = self.tell.take() {
            tell(merged);
        }
    }

    /// All of it may be anything.
    pub fn answer_data(self) {
        let all = Piece::data(self.extent.len());
        self.answer(Ok([all]));
    }

    /// Answers that it cannot be told.
    pub fn refuse(self, errno: Errno) {
        self.answer(Err::<[Piece; 0], _>(errno));
    }

    fn merge(&self, pieces: impl IntoIterator<Item = Piece>) -> Result<Vec<Piece>, Errno> {
        let mut merged: Vec<Piece> = Vec::new();
        let mut left = self.extent.len().0;
        for mut piece in pieces {
            if piece.len.0 == 0 || !piece.len.is_sectors() {
                return Err(Errno::IO);
            }
            let room = merged.len() < self.most;
            piece.len.0 = piece.len.0.min(left);
            left -= piece.len.0;
            match merged.last_mut() {
                Some(last) if last.is_like(&piece) => last.len.0 += piece.len.0,
                _ if room && piece.len.0 > 0 => merged.push(piece),
                _ => break,
            }
        }
        if merged.is_empty() {
            return Err(Errno::IO);
        }
        Ok(merged)
    }
}

impl Drop for StatusRequest {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(Err(Errno::IO));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Offset;
    use std::sync::mpsc::{Receiver, channel};

    type Answer = Result<Vec<Piece>, Errno>;

    fn request(sectors: u64, most: usize) -> (StatusRequest, Receiver<Answer>) {
        let (sender, receiver) = channel();
        let extent = Extent::new(Offset(4096), Length(sectors * 512)).unwrap();
        let tell = move |answer| sender.send(answer).unwrap();
        (StatusRequest::new(extent, most, tell), receiver)
    }

    fn data(sectors: u64) -> Piece {
        Piece::data(Length(sectors * 512))
    }

    fn hole(sectors: u64) -> Piece {
        Piece::hole(Length(sectors * 512))
    }

    #[test]
    fn neighbours_that_are_alike_are_one() {
        let (request, answer) = request(10, 2);
        request.answer(Ok([data(1), data(2), hole(3), hole(1), data(3)]));
        assert_eq!(answer.recv(), Ok(Ok(vec![data(3), hole(4)])));
    }

    #[test]
    fn what_lies_beyond_the_end_is_left_out() {
        let (request, answer) = request(10, 9);
        request.answer(Ok([data(4), hole(1 << 40), data(1)]));
        assert_eq!(answer.recv(), Ok(Ok(vec![data(4), hole(6)])));
    }

    #[test]
    fn nothing_and_parts_of_sectors_are_errors() {
        for pieces in [
            vec![],
            vec![data(0)],
            vec![data(1), Piece::hole(Length(511))],
        ] {
            let (request, answer) = request(10, 9);
            request.answer(Ok(pieces));
            assert_eq!(answer.recv(), Ok(Err(Errno::IO)));
        }
    }

    #[test]
    fn a_question_that_is_dropped_is_answered() {
        let (request, answer) = request(10, 9);
        drop(request);
        assert_eq!(answer.recv(), Ok(Err(Errno::IO)));
    }
}
