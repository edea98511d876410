//! What goes over the wire (NBD protocol document, "Transmission phase"); all numbers are
//! big-endian.

use rustix::io::Errno;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Commands (`NBD_CMD_*`).
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Command flags (`NBD_CMD_FLAG_*`).
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// `NBD_REPLY_FLAG_DONE`: every reply here is one chunk, its last.
const DONE: u16 = 1 << 0;

/// Types of structured reply chunks (`NBD_REPLY_TYPE_*`).
mod chunk {
    pub(super) const NONE: u16 = 0;
    pub(super) const OFFSET_DATA: u16 = 1;
    pub(super) const BLOCK_STATUS: u16 = 5;
    pub(super) const ERROR: u16 = 0x8001;
}

/// The meta context `base:allocation`, and what its flags say.
pub(crate) mod allocation {
    /// Its id, as the handshake tells the client.
    pub(crate) const ID: u32 = 1;
    /// `NBD_STATE_HOLE`
    pub(crate) const HOLE: u32 = 1 << 0;
    /// `NBD_STATE_ZERO`
    pub(crate) const ZERO: u32 = 1 << 1;
}

/// Error values (`NBD_E*`): Linux's numbers, on every system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Error {
    Perm = 1,
    Io = 5,
    NoMem = 12,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
    NotSup = 95,
    Shutdown = 108,
}

impl From<Errno> for Error {
    /// Of a request that the driver has ended.
    fn from(errno: Errno) -> Error {
        match errno {
            Errno::ROFS | Errno::PERM => Error::Perm,
            // Past the end of a disk that has shrunk; what the device does not know.
            Errno::INVAL | Errno::OPNOTSUPP => Error::Inval,
            Errno::NOSPC => Error::NoSpc,
            Errno::NOMEM => Error::NoMem,
            Errno::NODEV | Errno::SHUTDOWN | Errno::CANCELED => Error::Shutdown,
            _ => Error::Io,
        }
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// The client's; it goes back as it is.
    pub(crate) cookie: u64,
    /// Bytes.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u32,
}

/// A header began with this and not with the request magic: where the next request begins is
/// unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadMagic(pub(crate) u32);

impl Header {
    /// Bytes of a request's header.
    pub(crate) const BYTES: usize = 28;

    pub(crate) fn parse(bytes: &[u8; Header::BYTES]) -> Result<Header, BadMagic> {
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

    /// Whether data follows the header.
    pub(crate) fn has_payload(&self) -> bool {
        self.command == command::WRITE
    }

    /// Whether what it changes is to be on stable storage before the reply.
    pub(crate) fn is_fua(&self) -> bool {
        self.flags & flag::FUA != 0
    }
}

/// `offset + N` is within a header.
fn field<const N: usize>(bytes: &[u8; Header::BYTES], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

/// What precedes a reply's data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    bytes: [u8; Head::MOST],
    len: usize,
}

impl Head {
    /// `NBD_REPLY_TYPE_OFFSET_DATA` has the longest: chunk header and offset.
    const MOST: usize = 28;

    /// A simple reply; a read's data follows.
    pub(crate) fn simple(cookie: u64, error: Option<Error>) -> Head {
        Head::empty()
            .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .put(&error.map_or(0, |error| error as u32).to_be_bytes())
            .put(&cookie.to_be_bytes())
    }

    /// Done, without data.
    pub(crate) fn none(cookie: u64) -> Head {
        Head::chunk(cookie, chunk::NONE, 0)
    }

    /// `length` bytes of data follow, those at `offset` of the disk.
    pub(crate) fn offset_data(cookie: u64, offset: u64, length: u32) -> Head {
        Head::chunk(cookie, chunk::OFFSET_DATA, 8 + length).put(&offset.to_be_bytes())
    }

    /// `extents` descriptors of `base:allocation` follow, of 8 bytes each.
    pub(crate) fn block_status(cookie: u64, extents: u32) -> Head {
        Head::chunk(cookie, chunk::BLOCK_STATUS, 4 + 8 * extents).put(&allocation::ID.to_be_bytes())
    }

    /// Failed; there is no message.
    pub(crate) fn error(cookie: u64, error: Error) -> Head {
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

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
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
        assert_eq!(
            Header::parse(&request(0x2560_9514)),
            Err(BadMagic(0x2560_9514))
        );
    }

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
}
