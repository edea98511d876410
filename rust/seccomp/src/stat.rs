//! What stat calls are told of a file that is not there: `struct stat` of asm/stat.h and `struct
//! statx` of linux/stat.h.

use crate::decode::Look;
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

const BLOCK_SIZE: u32 = 4096;
/// `STATX_BASIC_STATS`.
const BASIC_STATS: u32 = 0x7ff;

/// A file as it is to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    /// Its kind and permissions.
    pub(crate) mode: u32,
    /// The device that it is, as `makedev(3)` makes it.
    pub(crate) rdev: u64,
}

impl File {
    /// What goes to which address. `ACCES`: it may not be used so; `INVAL`: it is no link.
    pub(crate) fn answer(self, look: Look) -> Result<Option<(u64, Vec<u8>)>, Errno> {
        match look {
            Look::Stat(address) => Ok(Some((address, self.stat()))),
            Look::Statx(address) => Ok(Some((address, self.statx()))),
            // It is its user's, who may read and write it.
            Look::Access(mode) if mode & libc::X_OK == 0 || self.mode & 0o111 != 0 => Ok(None),
            Look::Access(_) => Err(Errno::ACCESS),
            Look::Link => Err(Errno::INVAL),
        }
    }

    fn stat(self) -> Vec<u8> {
        // The one of this architecture; what is not set is zero.
        let mut bytes = vec![0; size_of::<libc::stat>()];
        let mut put = |at: usize, word: &[u8]| bytes[at..at + word.len()].copy_from_slice(word);
        use std::mem::offset_of;
        put(offset_of!(libc::stat, st_ino), &self.inode().to_ne_bytes());
        put(offset_of!(libc::stat, st_mode), &self.mode.to_ne_bytes());
        // A word of either size: its lower half comes first.
        put(offset_of!(libc::stat, st_nlink), &1u32.to_ne_bytes());
        put(
            offset_of!(libc::stat, st_uid),
            &geteuid().as_raw().to_ne_bytes(),
        );
        put(
            offset_of!(libc::stat, st_gid),
            &getegid().as_raw().to_ne_bytes(),
        );
        put(offset_of!(libc::stat, st_rdev), &self.rdev.to_ne_bytes());
        put(
            offset_of!(libc::stat, st_blksize),
            &BLOCK_SIZE.to_ne_bytes(),
        );
        bytes
    }

    fn statx(self) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        let mut put = |at: usize, word: &[u8]| bytes[at..at + word.len()].copy_from_slice(word);
        put(0, &BASIC_STATS.to_ne_bytes());
        put(4, &BLOCK_SIZE.to_ne_bytes());
        put(16, &1u32.to_ne_bytes()); // stx_nlink
        put(20, &geteuid().as_raw().to_ne_bytes());
        put(24, &getegid().as_raw().to_ne_bytes());
        put(28, &(self.mode as u16).to_ne_bytes());
        put(32, &self.inode().to_ne_bytes());
        put(128, &rustix::fs::major(self.rdev).to_ne_bytes());
        put(132, &rustix::fs::minor(self.rdev).to_ne_bytes());
        bytes
    }

    /// Different files have different ones, as far as that goes; none has 0, which means unlinked
    /// to some.
    fn inode(self) -> u64 {
        self.rdev.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;
    use std::mem::offset_of;

    fn node() -> File {
        File {
            mode: libc::S_IFCHR | 0o600,
            rdev: makedev(511, 258),
        }
    }

    fn told(look: Look) -> Vec<u8> {
        node().answer(look).unwrap().unwrap().1
    }

    #[test]
    fn stat_is_this_architectures() {
        let bytes = told(Look::Stat(8));
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len(), size_of::<libc::stat>());
        assert_eq!(word(offset_of!(libc::stat, st_mode)), libc::S_IFCHR | 0o600);
        assert_eq!(word(offset_of!(libc::stat, st_nlink)), 1);
        assert_eq!(word(offset_of!(libc::stat, st_uid)), geteuid().as_raw());
        assert_eq!(
            u64::from(word(offset_of!(libc::stat, st_rdev))),
            makedev(511, 258)
        );
        assert_eq!(word(offset_of!(libc::stat, st_blksize)), 4096);
    }

    #[test]
    fn statx_is_that_of_linux_stat_h() {
        let bytes = told(Look::Statx(8));
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len(), size_of::<libc::statx>());
        assert_eq!(
            word(offset_of!(libc::statx, stx_mode)) & 0xffff,
            libc::S_IFCHR | 0o600
        );
        assert_eq!(word(offset_of!(libc::statx, stx_nlink)), 1);
        assert_eq!(word(offset_of!(libc::statx, stx_uid)), geteuid().as_raw());
        assert_eq!(word(offset_of!(libc::statx, stx_gid)), getegid().as_raw());
        assert_eq!(word(offset_of!(libc::statx, stx_rdev_major)), 511);
        assert_eq!(word(offset_of!(libc::statx, stx_rdev_minor)), 258);
        assert_eq!(
            word(offset_of!(libc::statx, stx_ino)),
            makedev(511, 258) as u32 + 1
        );
    }

    #[test]
    fn a_node_is_no_link() {
        assert_eq!(node().answer(Look::Link), Err(Errno::INVAL));
    }

    #[test]
    fn a_node_is_read_and_written_but_not_executed() {
        let access = |mode| node().answer(Look::Access(mode)).map(|told| told.is_none());
        assert_eq!(access(libc::F_OK), Ok(true));
        assert_eq!(access(libc::R_OK | libc::W_OK), Ok(true));
        assert_eq!(access(libc::R_OK | libc::X_OK), Err(Errno::ACCESS));
        let folder = File {
            mode: libc::S_IFDIR | 0o755,
            rdev: 0,
        };
        assert!(folder.answer(Look::Access(libc::X_OK)).is_ok());
    }
}
