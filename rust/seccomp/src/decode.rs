//! A notification's registers as the request they are.

use crate::abi::{Abi, Syscall};
use libc::{AT_FDCWD, seccomp_data};

/// A path as a call names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    /// Where a relative path begins: an fd, or `AT_FDCWD`.
    pub(crate) dirfd: i32,
    /// Address of the path.
    pub(crate) path: u64,
}

/// Where an open's flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenFlags {
    /// In a register.
    Given(i32),
    /// In a `struct open_how`.
    How { address: u64, size: u64 },
}

/// What a call wants to know of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// A `struct stat`, at this address.
    Stat(u64),
    /// A `struct statx`, at this address.
    Statx(u64),
    /// Whether it may be used so (`R_OK`, `W_OK`, `X_OK`).
    Access(i32),
    /// Whether it is a symbolic link, and where to: realpath(3) asks it of every folder on its way.
    Link,
}

/// A call that was notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Open {
        at: At,
        flags: OpenFlags,
    },
    Look {
        at: At,
        flags: i32,
        look: Look,
    },
    Ioctl {
        fd: i32,
        nr: u32,
        argument: u64,
    },
    IoUringSetup,
    /// Another architecture's or convention's.
    Foreign,
    /// None that is looked at.
    Unknown,
}

impl Request {
    /// The request in `data`.
    pub(crate) fn decode(abi: &Abi, data: &seccomp_data) -> Request {
        let number = data.nr as u32;
        // -1 is no call at all, but what a debugger makes of one.
        if data.arch != abi.audit_arch || (number & abi.foreign_bit != 0 && data.nr != -1) {
            return Request::Foreign;
        }
        let Some(call) = abi.call(number) else {
            return Request::Unknown;
        };
        let arguments = &data.args;
        // Ints: what the upper half of a register holds does not count.
        let int = |index: usize| arguments[index] as i32;
        let here = At {
            dirfd: AT_FDCWD,
            path: arguments[0],
        };
        let at = At {
            dirfd: int(0),
            path: arguments[1],
        };
        let look = |at, flags, look| Request::Look { at, flags, look };
        let open = |at, flags| Request::Open { at, flags };
        match call {
            Syscall::Ioctl => Request::Ioctl {
                fd: int(0),
                nr: int(1) as u32,
                argument: arguments[2],
            },
            Syscall::Open => open(here, OpenFlags::Given(int(1))),
            Syscall::Openat => open(at, OpenFlags::Given(int(2))),
            Syscall::Openat2 => {
                let (address, size) = (arguments[2], arguments[3]);
                open(at, OpenFlags::How { address, size })
            }
            Syscall::Stat => look(here, 0, Look::Stat(arguments[1])),
            Syscall::Newfstatat => look(at, int(3), Look::Stat(arguments[2])),
            Syscall::Statx => look(at, int(2), Look::Statx(arguments[4])),
            Syscall::Access => look(here, int(1), Look::Access(int(1))),
            Syscall::Faccessat => look(at, int(2), Look::Access(int(2))),
            Syscall::Readlink => look(here, 0, Look::Link),
            Syscall::Readlinkat => look(at, 0, Look::Link),
            Syscall::IoUringSetup => Request::IoUringSetup,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::X86_64;

    fn decode(nr: i32, args: [u64; 6]) -> Request {
        let arch = X86_64.audit_arch;
        let instruction_pointer = 0;
        let data = seccomp_data {
            nr,
            arch,
            instruction_pointer,
            args,
        };
        Request::decode(&X86_64, &data)
    }

    const CWD: u64 = AT_FDCWD as u32 as u64;

    #[test]
    fn calls_with_and_without_a_directory() {
        let open = |dirfd, flags| Request::Open {
            at: At { dirfd, path: 100 },
            flags,
        };
        let given = OpenFlags::Given(2);
        assert_eq!(decode(2, [100, 2, 9, 9, 9, 9]), open(AT_FDCWD, given));
        assert_eq!(decode(257, [CWD, 100, 2, 9, 9, 9]), open(AT_FDCWD, given));
        assert_eq!(decode(257, [7, 100, 2, 9, 9, 9]), open(7, given));
        let how = OpenFlags::How {
            address: 200,
            size: 24,
        };
        assert_eq!(decode(437, [7, 100, 200, 24, 9, 9]), open(7, how));
    }

    #[test]
    fn looks_know_what_is_to_be_filled() {
        let look = |dirfd, flags, look| Request::Look {
            at: At { dirfd, path: 100 },
            flags,
            look,
        };
        assert_eq!(
            decode(4, [100, 200, 9, 9, 9, 9]),
            look(AT_FDCWD, 0, Look::Stat(200))
        );
        assert_eq!(
            decode(6, [100, 200, 9, 9, 9, 9]),
            look(AT_FDCWD, 0, Look::Stat(200))
        );
        assert_eq!(
            decode(262, [7, 100, 200, 0x100, 9, 9]),
            look(7, 0x100, Look::Stat(200))
        );
        assert_eq!(
            decode(332, [7, 100, 1, 9, 200, 9]),
            look(7, 1, Look::Statx(200))
        );
        assert_eq!(
            decode(21, [100, 6, 9, 9, 9, 9]),
            look(AT_FDCWD, 6, Look::Access(6))
        );
        assert_eq!(
            decode(269, [7, 100, 6, 9, 9, 9]),
            look(7, 6, Look::Access(6))
        );
        assert_eq!(
            decode(439, [7, 100, 6, 9, 9, 9]),
            look(7, 6, Look::Access(6))
        );
        let link = Look::Link;
        assert_eq!(decode(89, [100, 9, 9, 9, 9, 9]), look(AT_FDCWD, 0, link));
        assert_eq!(decode(267, [7, 100, 9, 9, 9, 9]), look(7, 0, link));
    }

    #[test]
    fn the_upper_half_of_an_int_does_not_count() {
        let expected = Request::Ioctl {
            fd: 3,
            nr: 0x4004_8117,
            argument: u64::MAX,
        };
        assert_eq!(
            decode(16, [0xdead_0000_0003, 0xbeef_4004_8117, u64::MAX, 9, 9, 9]),
            expected
        );
    }

    #[test]
    fn foreign_calls_are_told_from_unknown_ones() {
        assert_eq!(decode(0x4000_0002, [0; 6]), Request::Foreign, "x32");
        assert_eq!(decode(-1, [0; 6]), Request::Unknown);
        assert_eq!(decode(0, [0; 6]), Request::Unknown);
        let (nr, arch, instruction_pointer, args) = (5, 0x4000_0003, 0, [0; 6]);
        let data = seccomp_data {
            nr,
            arch,
            instruction_pointer,
            args,
        };
        assert_eq!(Request::decode(&X86_64, &data), Request::Foreign, "i386");
    }
}
