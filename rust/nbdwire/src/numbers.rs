//! The protocol's numbers.

use rustix::io::Errno;

pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// `NBD_REPLY_FLAG_DONE`: the last chunk of its reply.
pub(crate) const DONE: u16 = 1 << 0;

/// Commands (`NBD_CMD_*`).
pub mod command {
    /// `NBD_CMD_READ`
    pub const READ: u16 = 0;
    /// `NBD_CMD_WRITE`
    pub const WRITE: u16 = 1;
    /// `NBD_CMD_DISC`
    pub const DISC: u16 = 2;
    /// `NBD_CMD_FLUSH`
    pub const FLUSH: u16 = 3;
    /// `NBD_CMD_TRIM`
    pub const TRIM: u16 = 4;
    /// `NBD_CMD_CACHE`
    pub const CACHE: u16 = 5;
    /// `NBD_CMD_WRITE_ZEROES`
    pub const WRITE_ZEROES: u16 = 6;
    /// `NBD_CMD_BLOCK_STATUS`
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags (`NBD_CMD_FLAG_*`).
pub mod flag {
    /// `NBD_CMD_FLAG_FUA`
    pub const FUA: u16 = 1 << 0;
    /// `NBD_CMD_FLAG_NO_HOLE`
    pub const NO_HOLE: u16 = 1 << 1;
    /// `NBD_CMD_FLAG_DF`
    pub const DF: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_REQ_ONE`
    pub const REQ_ONE: u16 = 1 << 3;
    /// `NBD_CMD_FLAG_FAST_ZERO`
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of structured reply chunks (`NBD_REPLY_TYPE_*`).
pub mod chunk {
    /// `NBD_REPLY_TYPE_NONE`
    pub const NONE: u16 = 0;
    /// `NBD_REPLY_TYPE_OFFSET_DATA`: an offset of 8 bytes, then data.
    pub const OFFSET_DATA: u16 = 1;
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`: an offset of 8 bytes, a length of 4.
    pub const OFFSET_HOLE: u16 = 2;
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`: a context's id of 4 bytes, then descriptors of 8.
    pub const BLOCK_STATUS: u16 = 5;
    /// `NBD_REPLY_TYPE_ERROR`: an error of 4 bytes, a message's length of 2, the message.
    pub const ERROR: u16 = 0x8001;
    /// Types with this bit are errors, and begin like ERROR, known or not.
    pub const ERROR_BIT: u16 = 0x8000;
}

/// The meta context `base:allocation`, and what its flags say.
pub mod allocation {
    /// Its id, as our server tells its clients.
    pub const ID: u32 = 1;
    /// `NBD_STATE_HOLE`
    pub const HOLE: u32 = 1 << 0;
    /// `NBD_STATE_ZERO`
    pub const ZERO: u32 = 1 << 1;
}

/// Error values (`NBD_E*`): Linux's numbers, on every system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Error {
    /// `NBD_EPERM`
    Perm = 1,
    /// `NBD_EIO`
    Io = 5,
    /// `NBD_ENOMEM`
    NoMem = 12,
    /// `NBD_EINVAL`
    Inval = 22,
    /// `NBD_ENOSPC`
    NoSpc = 28,
    /// `NBD_EOVERFLOW`
    Overflow = 75,
    /// `NBD_ENOTSUP`
    NotSup = 95,
    /// `NBD_ESHUTDOWN`
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

impl Error {
    /// What a server said; `None`: no error. Values that the document does not know are EINVAL,
    /// as it asks.
    pub fn parse(value: u32) -> Option<Error> {
        Some(match value {
            0 => return None,
            1 => Error::Perm,
            5 => Error::Io,
            12 => Error::NoMem,
            28 => Error::NoSpc,
            75 => Error::Overflow,
            95 => Error::NotSup,
            108 => Error::Shutdown,
            _ => Error::Inval,
        })
    }

    /// As an errno of this system.
    pub fn errno(self) -> Errno {
        match self {
            Error::Perm => Errno::PERM,
            Error::Io => Errno::IO,
            Error::NoMem => Errno::NOMEM,
            Error::Inval => Errno::INVAL,
            Error::NoSpc => Errno::NOSPC,
            Error::Overflow => Errno::OVERFLOW,
            Error::NotSup => Errno::OPNOTSUPP,
            Error::Shutdown => Errno::SHUTDOWN,
        }
    }
}
