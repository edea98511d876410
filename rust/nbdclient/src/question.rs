//! What lies where, asked of the server (`NBD_CMD_BLOCK_STATUS`). Its answer is not trusted, and
//! becomes whole sectors: one that is data in part is data.

use crate::facts::{Facts, MOST_RANGE};
use crate::request::{Kind, Request, Whose};
use rustix::io::Errno;
use vduse_device::backend::{Piece, StatusRequest};
use vduse_device::{Length, SECTOR_SIZE};
use vduse_nbdwire::allocation;

/// Who asks, and what the server has said.
pub(crate) struct Question {
    request: StatusRequest,
    /// Bytes that the server is asked about ahead of what is wanted: its blocks may be larger.
    ahead: u64,
    /// Bytes that the server is asked about.
    length: u64,
    /// Bytes that it has told of.
    told: u64,
    /// Id of `base:allocation`, until the answer has begun.
    context: Option<u32>,
    /// One more than are wanted at most.
    pieces: Vec<Piece>,
    /// What is known of a sector that is told of in parts.
    part: Piece,
}

impl Question {
    /// As it is put to the server: whole blocks, no more than one request may cover.
    pub(crate) fn into_request(request: StatusRequest, facts: Facts) -> Request {
        let (extent, is_one) = (request.extent(), request.most() == 1);
        let block = u64::from(facts.minimum_block);
        let ahead = extent.offset().0 % block;
        let length = (ahead + extent.len().0).next_multiple_of(block);
        let length = length.min(MOST_RANGE);
        let question = Question {
            request,
            ahead,
            length,
            told: 0,
            context: None,
            pieces: Vec::new(),
            part: Piece::data(Length(0)),
        };
        Request {
            whose: Whose::Question(question),
            kind: Kind::BlockStatus { is_one },
            offset: extent.offset().0 - ahead,
            length,
            payload: Vec::new(),
            interrupted: None,
        }
    }

    /// It is put to a server, which has this id for `base:allocation`; what another has said is
    /// forgotten.
    pub(crate) fn ask(&mut self, context: u32) {
        self.told = 0;
        self.context = Some(context);
        self.pieces.clear();
        self.part.len.0 = 0;
    }

    /// The server cannot tell.
    pub(crate) fn all_is_data(&mut self) {
        self.pieces = vec![Piece::data(self.request.extent().len())];
    }

    /// An answer begins; `Err`: what is wrong with it.
    pub(crate) fn begin(&mut self, context: u32) -> Result<(), &'static str> {
        match self.context.take() {
            None => Err("is told twice"),
            Some(known) if known != context => Err("is of a context that was not agreed on"),
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.context.is_none()
    }

    /// So many bytes more are alike; the last may go beyond what was asked about. `Err`: what is
    /// wrong with them.
    pub(crate) fn tell(&mut self, length: u32, flags: u32) -> Result<(), &'static str> {
        if length == 0 {
            return Err("is of no bytes");
        }
        if self.told == self.length {
            return Err("is of what was not asked about");
        }
        let from = self.told.max(self.ahead);
        self.told = self.length.min(self.told + u64::from(length));
        let mut left = self.told.saturating_sub(from);
        let mut piece = Piece {
            len: Length(left),
            is_hole: flags & allocation::HOLE != 0,
            is_zero: flags & allocation::ZERO != 0,
        };
        if self.part.len.0 > 0 {
            let here = left.min(SECTOR_SIZE - self.part.len.0);
            left -= here;
            self.part.len.0 += here;
            self.part.is_hole &= piece.is_hole;
            self.part.is_zero &= piece.is_zero;
            if self.part.len.0 < SECTOR_SIZE {
                return Ok(());
            }
            self.keep(self.part);
        }
        piece.len.0 = left - left % SECTOR_SIZE;
        self.keep(piece);
        piece.len.0 = left % SECTOR_SIZE;
        self.part = piece;
        Ok(())
    }

    /// Neighbours that are alike are one; of what follows the last that is wanted one
    /// piece is kept.
    fn keep(&mut self, piece: Piece) {
        let is_full = self.pieces.len() > self.request.most();
        match self.pieces.last_mut() {
            _ if is_full || piece.len.0 == 0 => {}
            Some(last) if last.is_like(&piece) => last.len.0 += piece.len.0,
            _ => self.pieces.push(piece),
        }
    }

    /// Answers. A server that has told of less than a sector has said nothing of use.
    pub(crate) fn end(mut self, result: Result<(), Errno>) {
        if self.pieces.is_empty() {
            self.pieces.push(Piece::data(Length(SECTOR_SIZE)));
        }
        self.request.answer(result.map(|()| self.pieces));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use vduse_device::{Extent, Offset};

    const HOLE: u32 = allocation::HOLE;
    const ZERO: u32 = allocation::ZERO;
    const FACTS: Facts = Facts {
        size: 1 << 40,
        flags: 0xffff,
        is_structured: true,
        allocation: Some(1),
        minimum_block: 1,
        maximum_payload: 4096,
    };

    fn piece(sectors: u64, flags: u32) -> Piece {
        Piece {
            len: Length(sectors * SECTOR_SIZE),
            is_hole: flags & HOLE != 0,
            is_zero: flags & ZERO != 0,
        }
    }

    /// The answer to a question about 8 sectors at sector 9, of a server with blocks of so many
    /// bytes.
    fn answer(block: u32, most: usize, told: &[(u32, u32)]) -> Result<Vec<Piece>, Errno> {
        let (sender, receiver) = channel();
        let extent = Extent::new(Offset(9 * SECTOR_SIZE), Length(8 * SECTOR_SIZE)).unwrap();
        let tell = move |answer| sender.send(answer).unwrap();
        let facts = Facts {
            minimum_block: block,
            ..FACTS
        };
        let request = Question::into_request(StatusRequest::new(extent, most, tell), facts);
        let Whose::Question(mut question) = request.whose else {
            unreachable!();
        };
        question.ask(7);
        question.begin(7).unwrap();
        for &(length, flags) in told {
            question.tell(length, flags).unwrap();
        }
        question.end(Ok(()));
        receiver.recv().unwrap()
    }

    #[test]
    fn a_sector_that_is_data_in_part_is_data() {
        let told = [
            (512, HOLE | ZERO),
            (100, ZERO),
            (412, HOLE | ZERO),
            (700, HOLE | ZERO),
            (300, 0),
            (24, HOLE),
            (512, HOLE),
        ];
        let want = [
            piece(1, HOLE | ZERO),
            piece(1, ZERO),
            piece(1, HOLE | ZERO),
            piece(1, 0),
            piece(1, HOLE),
        ];
        assert_eq!(answer(1, 9, &told), Ok(want.to_vec()));
    }

    #[test]
    fn many_descriptors_within_a_sector_are_one_piece() {
        let mut told = vec![(1, ZERO); 511];
        told.push((513, HOLE | ZERO));
        let want = vec![piece(1, ZERO), piece(1, HOLE | ZERO)];
        assert_eq!(answer(1, 9, &told), Ok(want));
    }

    #[test]
    fn what_goes_beyond_the_question_is_left_out() {
        let told = [(512, 0), (u32::MAX, ZERO)];
        assert_eq!(answer(1, 9, &told), Ok(vec![piece(1, 0), piece(7, ZERO)]));
    }

    #[test]
    fn less_than_a_sector_is_data() {
        assert_eq!(answer(1, 9, &[(511, HOLE | ZERO)]), Ok(vec![piece(1, 0)]));
        assert_eq!(answer(1, 9, &[]), Ok(vec![piece(1, 0)]));
    }

    #[test]
    fn no_more_pieces_are_kept_than_are_wanted() {
        let told = [(512, 0), (512, ZERO), (512, 0), (512, ZERO), (512, 0)];
        assert_eq!(answer(1, 2, &told), Ok(vec![piece(1, 0), piece(1, ZERO)]));
        assert_eq!(answer(1, 1, &told[..1]), Ok(vec![piece(1, 0)]));
    }

    #[test]
    fn large_blocks_are_asked_about_whole_and_what_lies_ahead_is_skipped() {
        // Sectors 8 to 24 are asked about, 9 to 17 are wanted.
        let told = [(4096, ZERO), (4096, 0)];
        let want = vec![piece(7, ZERO), piece(1, 0)];
        assert_eq!(answer(4096, 9, &told), Ok(want));
        assert_eq!(answer(65536, 9, &[(4608, ZERO)]), Ok(vec![piece(1, 0)]));
    }

    #[test]
    fn nothing_and_what_was_not_asked_about_are_refused() {
        let extent = Extent::new(Offset(0), Length(1 << 40)).unwrap();
        let request = Question::into_request(StatusRequest::new(extent, 9, drop), FACTS);
        assert_eq!((request.offset, request.length), (0, MOST_RANGE));
        let Whose::Question(mut question) = request.whose else {
            unreachable!();
        };
        question.ask(7);
        assert!(question.begin(8).is_err(), "another context");
        question.ask(7);
        assert_eq!(question.begin(7), Ok(()));
        assert!(question.begin(7).is_err(), "twice");
        assert!(question.tell(0, 0).is_err());
        assert_eq!(question.tell(MOST_RANGE as u32, 0), Ok(()));
        assert!(question.tell(1, 0).is_err());
        question.ask(9);
        assert_eq!(question.begin(9), Ok(()), "of the next server");
        assert_eq!(question.tell(1, 0), Ok(()));
    }
}
