//! The daemon's own memory in place of the bounce pages (`VDUSE_IOTLB_REG_UMEM`).
//!
//! Whoever plays the kernel cannot map another process's anonymous pages: bytes are copied
//! into and out of that process instead. What goes to the device is also kept in the domain's
//! file, so that a daemon that dies takes no data of the driver's along.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;

/// A range of another process's memory.
#[derive(Debug)]
pub(super) struct Umem {
    pid: Pid,
    /// Readable once the process is gone: its number may then be another's.
    process: OwnedFd,
    base: u64,
}

impl Umem {
    /// `ESRCH` if there is no such process, `EINVAL` for no process number.
    pub(super) fn new(pid: u32, base: u64) -> Result<Umem, Errno> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(Errno::INVAL)?;
        Ok(Umem {
            pid,
            process: pidfd_open(pid, PidfdFlags::empty())?,
            base,
        })
    }

    /// Copies `len` bytes at `src` to `offset` of the daemon's memory. `ESRCH`: it is gone.
    ///
    /// # Safety
    /// The bytes must be mapped readable in this process.
    pub(super) unsafe fn write(
        &self,
        offset: u64,
        src: *const u8,
        len: usize,
    ) -> Result<(), Errno> {
        // SAFETY: writev only reads the local bytes, which the caller answers for.
        unsafe { self.transfer(offset, src.cast_mut(), len, libc::process_vm_writev) }
    }

    /// Copies `len` bytes at `offset` of the daemon's memory to `dst`. `ESRCH`: it is gone.
    ///
    /// # Safety
    /// The bytes at `dst` must be mapped writable in this process, for the caller to overwrite.
    pub(super) unsafe fn read(&self, offset: u64, dst: *mut u8, len: usize) -> Result<(), Errno> {
        // SAFETY: the caller answers for the local bytes.
        unsafe { self.transfer(offset, dst, len, libc::process_vm_readv) }
    }

    /// # Safety
    /// The local bytes must be valid for what `call` does to them.
    unsafe fn transfer(
        &self,
        offset: u64,
        local: *mut u8,
        len: usize,
        call: unsafe extern "C" fn(
            libc::pid_t,
            *const libc::iovec,
            libc::c_ulong,
            *const libc::iovec,
            libc::c_ulong,
            libc::c_ulong,
        ) -> isize,
    ) -> Result<(), Errno> {
        let mut gone = [PollFd::new(&self.process, PollFlags::IN)];
        if matches!(poll(&mut gone, Some(&Timespec::default())), Ok(1)) {
            return Err(Errno::SRCH);
        }
        let remote = self.base.checked_add(offset).ok_or(Errno::FAULT)?;
        let mut done = 0;
        while done < len {
            let ours = libc::iovec {
                iov_base: local.wrapping_add(done).cast(),
                iov_len: len - done,
            };
            let theirs = libc::iovec {
                iov_base: remote.wrapping_add(done as u64) as *mut libc::c_void,
                iov_len: len - done,
            };
            // SAFETY: both vectors live through the call; the caller answers for the local
            // bytes, the kernel checks the remote ones.
            let moved = unsafe { call(self.pid.as_raw_nonzero().get(), &ours, 1, &theirs, 1, 0) };
            match usize::try_from(moved) {
                Ok(0) => return Err(Errno::FAULT),
                Ok(moved) => done += moved,
                Err(_) => {
                    return Err(std::io::Error::last_os_error()
                        .raw_os_error()
                        .map_or(Errno::IO, Errno::from_raw_os_error));
                }
            }
        }
        Ok(())
    }
}
