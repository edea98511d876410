//! The filter: which system calls are notified. A classic BPF program over `struct seccomp_data`.
//!
//! What it lets through by number alone (read, write, poll and all but a few) costs nothing: the
//! kernel keeps a bitmap of those (5.11 and newer).

use crate::abi::{Abi, IOC_TYPE, Syscall, VDUSE};
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF, sock_filter,
};

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
/// The lower half of `args[1]` (both architectures are little-endian): an ioctl's number is an int.
const ARG1: u32 = 24;

/// The program for `abi`: notified are the calls of its table, of ioctls those of VDUSE only, and
/// every call of another architecture or convention.
pub(crate) fn program(abi: &Abi) -> Vec<sock_filter> {
    let others = abi.calls.iter().filter(|(_, call)| *call != Syscall::Ioctl);
    let others: Vec<u32> = others.map(|(number, _)| *number).collect();
    let ioctls = abi.calls.iter().filter(|(_, call)| *call == Syscall::Ioctl);

    // Backwards: a jump is as far as what is there already.
    let mut code = Backwards::default();
    let notify = code.push(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    let allow = code.push(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code.jump(BPF_JEQ, VDUSE, notify, allow);
    code.push(BPF_ALU | BPF_AND | BPF_K, IOC_TYPE);
    let ioctl = code.push(BPF_LD | BPF_W | BPF_ABS, ARG1);
    let mut next = code.push(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    for number in others.into_iter().rev() {
        next = code.jump(BPF_JEQ, number, notify, next);
    }
    for (number, _) in ioctls {
        next = code.jump(BPF_JEQ, *number, ioctl, next);
    }
    if abi.foreign_bit != 0 {
        next = code.jump(BPF_JSET, abi.foreign_bit, notify, next);
    }
    let native = code.push(BPF_LD | BPF_W | BPF_ABS, NR);
    debug_assert_eq!(native, next + 1);
    code.jump(BPF_JEQ, abi.audit_arch, native, notify);
    code.push(BPF_LD | BPF_W | BPF_ABS, ARCH);
    code.0.reverse();
    code.0
}

/// A program from its end; places count from there, too.
#[derive(Default)]
struct Backwards(Vec<sock_filter>);

impl Backwards {
    /// An instruction; its place.
    fn push(&mut self, code: u32, k: u32) -> usize {
        self.add(code, k, 0, 0)
    }

    /// A jump to one of two places; its own.
    fn jump(&mut self, test: u32, k: u32, if_true: usize, if_false: usize) -> usize {
        let here = self.0.len();
        // The program is far shorter than a jump can be long.
        let distance = |place: usize| (here - place - 1) as u8;
        self.add(
            BPF_JMP | test | BPF_K,
            k,
            distance(if_true),
            distance(if_false),
        )
    }

    fn add(&mut self, code: u32, k: u32, jt: u8, jf: u8) -> usize {
        let code = code as u16;
        self.0.push(sock_filter { code, jt, jf, k });
        self.0.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{AARCH64, X86_64};

    /// What the kernel would return for a call, interpreting the program.
    fn run(program: &[sock_filter], data: &[u8; 64]) -> u32 {
        let word = |at: u32| {
            let at = at as usize;
            u32::from_ne_bytes(data[at..at + 4].try_into().unwrap())
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let code = u32::from(code);
            let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
            if code == BPF_LD | BPF_W | BPF_ABS {
                accumulator = word(k);
            } else if code == BPF_ALU | BPF_AND | BPF_K {
                accumulator &= k;
            } else if code == BPF_JMP | BPF_JEQ | BPF_K {
                branch(accumulator == k);
            } else if code == BPF_JMP | BPF_JSET | BPF_K {
                branch(accumulator & k != 0);
            } else if code == BPF_RET | BPF_K {
                return k;
            } else {
                panic!("instruction {code:#x}");
            }
        }
    }

    fn notified(abi: &Abi, arch: u32, number: u32, argument: u64) -> bool {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        data[24..32].copy_from_slice(&argument.to_ne_bytes());
        match run(&program(abi), &data) {
            SECCOMP_RET_USER_NOTIF => true,
            SECCOMP_RET_ALLOW => false,
            other => panic!("{other:#x}"),
        }
    }

    const BOTH: [&Abi; 2] = [&X86_64, &AARCH64];

    #[test]
    fn every_call_of_the_table_is_notified_and_no_other() {
        for abi in BOTH {
            for number in 0..600 {
                let expected = !matches!(abi.call(number), None | Some(Syscall::Ioctl));
                assert_eq!(
                    notified(abi, abi.audit_arch, number, 0),
                    expected,
                    "{number}"
                );
            }
        }
    }

    #[test]
    fn of_ioctls_those_of_vduse_are() {
        for (abi, ioctl) in BOTH.into_iter().zip([16, 29]) {
            for (nr, expected) in [
                (0x4004_8117, true),
                (0xc020_8110, true),
                (0x81ff, true),
                (0xffff_ffff_4004_8117, true),
                (0x5401, false),
                (0x4004_8017, false),
                (0x4004_ae81, false),
                (0x8100_0000_0000, false),
            ] {
                assert_eq!(
                    notified(abi, abi.audit_arch, ioctl, nr),
                    expected,
                    "{nr:#x}"
                );
            }
        }
    }

    #[test]
    fn every_call_of_another_architecture_is() {
        for abi in BOTH {
            for arch in [0x4000_0003, 0x4000_0028, 0] {
                assert!(notified(abi, arch, 0, 0));
            }
        }
        assert!(notified(&X86_64, AARCH64.audit_arch, 0, 0));
    }

    #[test]
    fn x32_calls_are_notified_on_x86_64() {
        assert!(notified(&X86_64, X86_64.audit_arch, 0x4000_0000, 0));
        assert!(!notified(&AARCH64, AARCH64.audit_arch, 0x4000_0000, 0));
    }

    #[test]
    fn programs_are_short() {
        assert!(BOTH.iter().all(|abi| program(abi).len() < 32));
    }
}
