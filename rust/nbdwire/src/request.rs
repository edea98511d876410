//! Requests.

use crate::field;
use crate::numbers::{REQUEST_MAGIC, command, flag};

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Command flags ([`crate::flag`]).
    pub flags: u16,
    /// The command ([`crate::command`]).
    pub command: u16,
    /// The client's; it goes back as it is.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// A header began with this and not with the request magic: where the next request begins is
/// unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMagic(pub u32);

impl Header {
    /// Bytes of a request's header.
    pub const BYTES: usize = 28;

    /// Bytes as they came.
    pub fn parse(bytes: &[u8; Header::BYTES]) -> Result<Header, BadMagic> {
        let magic = u32::from_be_bytes(field(bytes, 0));
        if magic != REQUEST_MAGIC {
            return Err(BadMagic(magic));
        }
        Ok(Header {
            flags: u16::from_be_bytes(field(bytes, 4)),
            command: u16::from_be_bytes(field(bytes, 6)),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            length: u32::from_be_bytes(field(bytes, 24)),
        })
    }

    /// As it goes over the wire.
    pub fn encode(&self) -> [u8; Header::BYTES] {
        let mut bytes = [0; Header::BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Whether data follows the header.
    pub fn has_payload(&self) -> bool {
        self.command == command::WRITE
    }

    /// Whether what it changes is to be on stable storage before the reply.
    pub fn is_fua(&self) -> bool {
        self.flags & flag::FUA != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(magic: u32) -> [u8; Header::BYTES] {
        let mut bytes = [0; Header::BYTES];
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..8].copy_from_slice(&[0, 1, 0, 6]);
        bytes[8..16].copy_from_slice(&0x1122_3344_5566_7788u64.to_be_bytes());
        bytes[16..24].copy_from_slice(&0x1_0000_0200u64.to_be_bytes());
        bytes[24..].copy_from_slice(&4096u32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_request_is_28_big_endian_bytes() {
        let header = Header {
            flags: flag::FUA,
            command: command::WRITE_ZEROES,
            cookie: 0x1122_3344_5566_7788,
            offset: 0x1_0000_0200,
            length: 4096,
        };
        assert_eq!(Header::parse(&request(0x2560_9513)), Ok(header));
        assert_eq!(header.encode(), request(0x2560_9513));
        assert_eq!(
            Header::parse(&request(0x2560_9514)),
            Err(BadMagic(0x2560_9514))
        );
    }
}
