//! What a server has told in the handshake.

use rustix::io::Errno;
use vduse_device::Length;
use vduse_device::backend::{Error, Info, Kind, disk_size};

/// Transmission flags (`NBD_FLAG_*`).
pub(crate) mod flag {
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Bytes: the longest payload of any server's (NBD protocol document, "Block size constraints").
const MOST_PAYLOAD: u32 = 32 << 20;
/// Bytes: what one TRIM, WRITE_ZEROES or BLOCK_STATUS covers here at most; a sum of sectors and
/// blocks.
pub(crate) const MOST_RANGE: u64 = 1 << 30;
/// Bytes: the largest minimum block that a driver can be told of.
const MOST_BLOCK: u32 = 64 << 10;

/// An export as a connection has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bytes.
    pub size: u64,
    /// Transmission flags (`NBD_FLAG_*`).
    pub flags: u16,
    /// Replies are structured.
    pub is_structured: bool,
    /// Id of the meta context `base:allocation`; `None`: the server does not tell what lies where.
    pub allocation: Option<u32>,
    /// Bytes: every offset and length is a multiple of it.
    pub minimum_block: u32,
    /// Bytes: the longest read or write.
    pub maximum_payload: u32,
}

impl Facts {
    /// Numbers that can be worked with; EINVAL for an export that no virtio-blk device can be.
    pub fn checked(mut self) -> Result<Facts, Error> {
        let block = self.minimum_block.max(1);
        if !block.is_power_of_two() || block > MOST_BLOCK {
            return Err(Error::new(
                Errno::INVAL,
                format!(
                    "the server's minimum block of {block} bytes is no power of two up to {MOST_BLOCK}"
                ),
            ));
        }
        self.minimum_block = block;
        let payload = self.maximum_payload.min(MOST_PAYLOAD);
        self.maximum_payload = payload - payload % block.max(512);
        if self.maximum_payload == 0 {
            return Err(Error::new(
                Errno::INVAL,
                format!("the server's maximum payload of {payload} bytes is below one block"),
            ));
        }
        self.size -= self.size % u64::from(block.max(512));
        disk_size(self.size)?;
        Ok(self)
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn info(&self) -> Info {
        Info {
            size: Length(self.size),
            block_size: self.minimum_block.max(512),
            read_only: self.has(flag::READ_ONLY),
            can_discard: self.has(flag::SEND_TRIM),
            kind: Kind::Detachable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Facts = Facts {
        size: 1 << 20,
        flags: 1,
        is_structured: true,
        allocation: None,
        minimum_block: 1,
        maximum_payload: MOST_PAYLOAD,
    };

    #[test]
    fn what_the_server_says_is_held_to_what_a_disk_can_be() {
        let odd = Facts {
            size: (1 << 20) + 511,
            maximum_payload: u32::MAX,
            ..PLAIN
        };
        assert_eq!(odd.checked(), Ok(PLAIN));
        for bad in [
            Facts { size: 511, ..PLAIN },
            Facts {
                size: u64::MAX,
                ..PLAIN
            },
            Facts {
                minimum_block: 3,
                ..PLAIN
            },
            Facts {
                minimum_block: 128 << 10,
                ..PLAIN
            },
            Facts {
                maximum_payload: 511,
                ..PLAIN
            },
        ] {
            assert_eq!(
                bad.checked().map_err(|error| error.errno),
                Err(Errno::INVAL)
            );
        }
    }
}
