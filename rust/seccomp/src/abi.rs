//! The system calls that are looked at, by architecture, and the ioctls of linux/vduse.h as far as
//! they must be known to be read.

/// What a system call is, by its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syscall {
    /// ioctl(fd, number, argument)
    Ioctl,
    /// open(path, flags, mode)
    Open,
    /// openat(dirfd, path, flags, mode)
    Openat,
    /// openat2(dirfd, path, how, size)
    Openat2,
    /// stat(path, buffer), lstat
    Stat,
    /// newfstatat(dirfd, path, buffer, flags)
    Newfstatat,
    /// statx(dirfd, path, flags, mask, buffer)
    Statx,
    /// access(path, mode)
    Access,
    /// faccessat(dirfd, path, mode), faccessat2(.., flags)
    Faccessat,
    /// readlink(path, buffer, size)
    Readlink,
    /// readlinkat(dirfd, path, buffer, size)
    Readlinkat,
    /// io_uring_setup(2): an open by io_uring cannot be seen.
    IoUringSetup,
}

/// One architecture's system calls.
#[derive(Debug)]
pub(crate) struct Abi {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    pub(crate) audit_arch: u32,
    /// A bit that makes a number one of another calling convention (x32); 0: none.
    pub(crate) foreign_bit: u32,
    /// Numbers, of asm/unistd.h.
    pub(crate) calls: &'static [(u32, Syscall)],
}

impl Abi {
    /// The call of this number, if it is looked at.
    pub(crate) fn call(&self, number: u32) -> Option<Syscall> {
        let mut calls = self.calls.iter();
        calls.find(|(nr, _)| *nr == number).map(|(_, call)| *call)
    }
}

/// x86-64.
pub(crate) const X86_64: Abi = Abi {
    audit_arch: 0xc000_003e,
    foreign_bit: 0x4000_0000,
    calls: &[
        (16, Syscall::Ioctl),
        (2, Syscall::Open),
        (257, Syscall::Openat),
        (437, Syscall::Openat2),
        (4, Syscall::Stat),
        (6, Syscall::Stat),
        (262, Syscall::Newfstatat),
        (332, Syscall::Statx),
        (21, Syscall::Access),
        (89, Syscall::Readlink),
        (267, Syscall::Readlinkat),
        (269, Syscall::Faccessat),
        (439, Syscall::Faccessat),
        (425, Syscall::IoUringSetup),
    ],
};

/// 64-bit ARM, which has the calls with a directory only.
pub(crate) const AARCH64: Abi = Abi {
    audit_arch: 0xc000_00b7,
    foreign_bit: 0,
    calls: &[
        (29, Syscall::Ioctl),
        (56, Syscall::Openat),
        (437, Syscall::Openat2),
        (79, Syscall::Newfstatat),
        (291, Syscall::Statx),
        (48, Syscall::Faccessat),
        (78, Syscall::Readlinkat),
        (439, Syscall::Faccessat),
        (425, Syscall::IoUringSetup),
    ],
};

/// This program's, if it is one of them.
pub(crate) const NATIVE: Option<&Abi> = if cfg!(target_arch = "x86_64") {
    Some(&X86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(&AARCH64)
} else {
    None
};

/// `_IOC_TYPE` of an ioctl's number, in place.
pub(crate) const IOC_TYPE: u32 = 0xff00;
/// `VDUSE_BASE`, in place.
pub(crate) const VDUSE: u32 = 0x8100;

/// `VDUSE_CREATE_DEV`: `_IOW(0x81, 0x02, struct vduse_dev_config)`.
pub(crate) const CREATE_DEV: u32 = 0x4150_8102;
/// `VDUSE_DEV_SET_CONFIG`: `_IOW(0x81, 0x12, struct vduse_config_data)`.
pub(crate) const DEV_SET_CONFIG: u32 = 0x4008_8112;
/// `VDUSE_VQ_SETUP_KICKFD`: `_IOW(0x81, 0x16, struct vduse_vq_eventfd)`.
pub(crate) const VQ_SETUP_KICKFD: u32 = 0x4008_8116;
/// `VDUSE_VQ_INJECT_IRQ`: `_IOW(0x81, 0x17, __u32)`.
pub(crate) const VQ_INJECT_IRQ: u32 = 0x4004_8117;

/// Bytes of the longest config space (a page), which two of the structs carry behind them.
const MAX_CONFIG: usize = 4096;

/// Bytes of the struct that an ioctl's argument points to (`_IOC_SIZE`).
pub(crate) fn size(nr: u32) -> usize {
    (nr >> 16 & 0x3fff) as usize
}

/// Whether the ioctl reads its argument (`_IOC_WRITE`, as its caller sees it).
pub(crate) fn reads(nr: u32) -> bool {
    nr & 1 << 30 != 0
}

/// Whether the ioctl writes its argument (`_IOC_READ`).
pub(crate) fn writes(nr: u32) -> bool {
    nr & 1 << 31 != 0
}

/// Bytes that follow the struct of an ioctl, as the struct itself says; 0 where that is more than
/// any device has: they are not looked at then.
pub(crate) fn tail(nr: u32, fixed: &[u8]) -> usize {
    let at = match nr {
        CREATE_DEV => size(CREATE_DEV) - 4,
        DEV_SET_CONFIG => 4,
        _ => return 0,
    };
    let length = fixed.get(at..at + 4).and_then(|word| word.try_into().ok());
    let length = length.map_or(0, u32::from_ne_bytes) as usize;
    if length <= MAX_CONFIG { length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_this_machines_headers() {
        let expected = [
            (libc::SYS_ioctl, Syscall::Ioctl),
            (libc::SYS_openat, Syscall::Openat),
            (libc::SYS_openat2, Syscall::Openat2),
            (libc::SYS_newfstatat, Syscall::Newfstatat),
            (libc::SYS_statx, Syscall::Statx),
            (libc::SYS_faccessat, Syscall::Faccessat),
            (libc::SYS_faccessat2, Syscall::Faccessat),
            (libc::SYS_readlinkat, Syscall::Readlinkat),
            (libc::SYS_io_uring_setup, Syscall::IoUringSetup),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_open, Syscall::Open),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_stat, Syscall::Stat),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_lstat, Syscall::Stat),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_access, Syscall::Access),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_readlink, Syscall::Readlink),
        ];
        let native = NATIVE.unwrap();
        for (number, call) in expected {
            assert_eq!(native.call(number as u32), Some(call));
        }
        assert_eq!(native.calls.len(), expected.len());
        assert_eq!(native.call(libc::SYS_read as u32), None);
    }

    #[test]
    fn ioctl_numbers_of_linux_vduse_h() {
        let ioc = |direction: u32, nr: u32, size: u32| direction << 30 | size << 16 | 0x8100 | nr;
        assert_eq!(CREATE_DEV, ioc(1, 0x02, 336));
        assert_eq!(DEV_SET_CONFIG, ioc(1, 0x12, 8));
        assert_eq!(VQ_SETUP_KICKFD, ioc(1, 0x16, 8));
        assert_eq!(VQ_INJECT_IRQ, ioc(1, 0x17, 4));
        assert_eq!(
            (size(CREATE_DEV), reads(CREATE_DEV), writes(CREATE_DEV)),
            (336, true, false)
        );
        assert_eq!((reads(ioc(2, 0, 8)), writes(ioc(2, 0, 8))), (false, true));
    }

    #[test]
    fn what_follows_a_struct_is_as_long_as_it_says_and_no_longer_than_a_config_space() {
        let mut config = [0; 336];
        config[332..].copy_from_slice(&60u32.to_ne_bytes());
        assert_eq!(tail(CREATE_DEV, &config), 60);
        config[332..].copy_from_slice(&4097u32.to_ne_bytes());
        assert_eq!(tail(CREATE_DEV, &config), 0);
        let update = [8u32, 4096].map(u32::to_ne_bytes).concat();
        assert_eq!(tail(DEV_SET_CONFIG, &update), 4096);
        assert_eq!(tail(DEV_SET_CONFIG, &update[..7]), 0, "cut off");
        assert_eq!(tail(VQ_INJECT_IRQ, &update), 0);
    }
}
