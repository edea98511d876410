//! Replies, as a server writes and a client reads them.

use crate::field;
use crate::numbers::{DONE, Error, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, allocation, chunk};
use crate::request::BadMagic;

/// What a reply begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply: the data of a read without error follows.
    Simple(Simple),
    /// A chunk of a structured reply: its payload follows.
    Chunk(Chunk),
}

/// A simple reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simple {
    /// The request's.
    pub cookie: u64,
    /// How it ended.
    pub error: Option<Error>,
}

/// A chunk's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The request's.
    pub cookie: u64,
    /// The last one of its reply.
    pub is_last: bool,
    /// Its type ([`chunk`]).
    pub kind: u16,
    /// Bytes of payload.
    pub length: u32,
}

impl ReplyHeader {
    /// The longest.
    pub const MOST: usize = 20;

    /// The header at the start of `bytes`, and its length; `None` while it is not there as a
    /// whole.
    pub fn parse(bytes: &[u8]) -> Result<Option<(ReplyHeader, usize)>, BadMagic> {
        if bytes.len() < 4 {
            return Ok(None);
        }
        match u32::from_be_bytes(field(bytes, 0)) {
            SIMPLE_REPLY_MAGIC if bytes.len() < 16 => Ok(None),
            SIMPLE_REPLY_MAGIC => {
                let simple = Simple {
                    cookie: u64::from_be_bytes(field(bytes, 8)),
                    error: Error::parse(u32::from_be_bytes(field(bytes, 4))),
                };
                Ok(Some((ReplyHeader::Simple(simple), 16)))
            }
            STRUCTURED_REPLY_MAGIC if bytes.len() < 20 => Ok(None),
            STRUCTURED_REPLY_MAGIC => {
                let chunk = Chunk {
                    cookie: u64::from_be_bytes(field(bytes, 8)),
                    is_last: u16::from_be_bytes(field(bytes, 4)) & DONE != 0,
                    kind: u16::from_be_bytes(field(bytes, 6)),
                    length: u32::from_be_bytes(field(bytes, 16)),
                };
                Ok(Some((ReplyHeader::Chunk(chunk), 20)))
            }
            magic => Err(BadMagic(magic)),
        }
    }
}

/// What precedes a reply's data.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; Head::MOST],
    len: usize,
}

impl Head {
    /// `NBD_REPLY_TYPE_OFFSET_DATA` has the longest: chunk header and offset.
    const MOST: usize = 28;

    /// A simple reply; a read's data follows.
    pub fn simple(cookie: u64, error: Option<Error>) -> Head {
        Head::empty()
            .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .put(&error.map_or(0, |error| error as u32).to_be_bytes())
            .put(&cookie.to_be_bytes())
    }

    /// Done, without data.
    pub fn none(cookie: u64) -> Head {
        Head::chunk(cookie, chunk::NONE, 0)
    }

    /// `length` bytes of data follow, those at `offset` of the disk.
    pub fn offset_data(cookie: u64, offset: u64, length: u32) -> Head {
        Head::chunk(cookie, chunk::OFFSET_DATA, 8 + length).put(&offset.to_be_bytes())
    }

    /// `extents` descriptors of `base:allocation` follow, of 8 bytes each.
    pub fn block_status(cookie: u64, extents: u32) -> Head {
        Head::chunk(cookie, chunk::BLOCK_STATUS, 4 + 8 * extents).put(&allocation::ID.to_be_bytes())
    }

    /// Failed; there is no message.
    pub fn error(cookie: u64, error: Error) -> Head {
        Head::chunk(cookie, chunk::ERROR, 6)
            .put(&(error as u32).to_be_bytes())
            .put(&0u16.to_be_bytes())
    }

    fn chunk(cookie: u64, kind: u16, length: u32) -> Head {
        Head::empty()
            .put(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
            .put(&DONE.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&cookie.to_be_bytes())
            .put(&length.to_be_bytes())
    }

    fn empty() -> Head {
        Head {
            bytes: [0; Head::MOST],
            len: 0,
        }
    }

    fn put(mut self, field: &[u8]) -> Head {
        self.bytes[self.len..][..field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }

    /// As they go over the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_as_the_document_draws_them() {
        let hex = |head: Head| {
            let bytes = head.bytes().iter();
            bytes.map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(
            hex(Head::simple(7, None)),
            "67446698000000000000000000000007"
        );
        assert_eq!(
            hex(Head::simple(7, Some(Error::NoSpc))),
            "674466980000001c0000000000000007"
        );
        assert_eq!(
            hex(Head::none(7)),
            "668e33ef00010000000000000000000700000000"
        );
        assert_eq!(
            hex(Head::offset_data(7, 512, 1024)),
            "668e33ef000100010000000000000007000004080000000000000200"
        );
        assert_eq!(
            hex(Head::block_status(7, 2)),
            "668e33ef0001000500000000000000070000001400000001"
        );
        assert_eq!(
            hex(Head::error(7, Error::Shutdown)),
            "668e33ef000180010000000000000007000000060000006c0000"
        );
    }

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let simple = Head::simple(7, Some(Error::NoSpc));
        let header = ReplyHeader::Simple(Simple {
            cookie: 7,
            error: Some(Error::NoSpc),
        });
        assert_eq!(ReplyHeader::parse(simple.bytes()), Ok(Some((header, 16))));
        let data = Head::offset_data(8, 512, 1024);
        let header = ReplyHeader::Chunk(Chunk {
            cookie: 8,
            is_last: true,
            kind: chunk::OFFSET_DATA,
            length: 1032,
        });
        assert_eq!(ReplyHeader::parse(data.bytes()), Ok(Some((header, 20))));
    }

    #[test]
    fn a_part_of_a_header_is_waited_for_and_another_magic_refused() {
        for head in [Head::simple(1, None), Head::none(1)] {
            for len in 0..head.bytes().len() {
                assert_eq!(ReplyHeader::parse(&head.bytes()[..len]), Ok(None));
            }
        }
        assert_eq!(ReplyHeader::parse(b"HTTP/1.1"), Err(BadMagic(0x4854_5450)));
    }
}
