//! The kernel's device node, /dev/vduse/NAME, as the data path uses it.

use crate::outcomes::{Counts, Outcomes};
use crate::{IrqSink, abi};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use std::ffi::c_void;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use vduse_mem::{Backing, Entry, Iova, Resolver};

/// An open /dev/vduse/NAME. The node takes one opener at a time, so [`KernelNode::close`] closes
/// it whoever still holds this value.
#[derive(Debug)]
pub struct KernelNode {
    /// `None` after close.
    fd: RwLock<Option<OwnedFd>>,
    api_version: u64,
    outcomes: Outcomes,
}

impl KernelNode {
    /// Takes over the fd of a node whose device was created with this API version.
    pub fn new(fd: OwnedFd, api_version: u64) -> KernelNode {
        KernelNode {
            fd: RwLock::new(Some(fd)),
            api_version,
            outcomes: Outcomes::default(),
        }
    }

    /// Counts what the data path calls from now on.
    pub fn start_counting(&self) {
        self.outcomes.start();
    }

    /// What the data path has called, by result.
    pub fn counts(&self) -> Counts {
        self.outcomes.counts()
    }

    /// Closes the node: once this returns, the next one may open it. Later calls get `EBADF`.
    pub fn close(&self) {
        *self.fd.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The fd's number, for poll, read and write; `None` after close.
    pub fn as_raw_fd(&self) -> Option<RawFd> {
        self.open().as_ref().map(AsRawFd::as_raw_fd)
    }

    fn open(&self) -> RwLockReadGuard<'_, Option<OwnedFd>> {
        self.fd.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn call<const NR: u32, const SIZE: usize>(
        &self,
        arg: &mut [u8; SIZE],
    ) -> Result<i32, Errno> {
        let fd = self.open();
        let fd = fd.as_ref().ok_or(Errno::BADF)?;
        // SAFETY: an ioctl of linux/vduse.h reads and writes the struct behind its pointer, of
        // the size that its number names, which is what `Struct` passes. It keeps no pointer to that; what
        // the struct's own addresses name is for `UmemPort::reg_umem`'s caller to answer for.
        let result = unsafe { ioctl(fd, Struct::<NR, SIZE>(arg)) };
        self.outcomes.note(NR, result)
    }

    fn iotlb_get_fd<const NR: u32, const SIZE: usize>(
        &self,
        start: Iova,
        last: Iova,
    ) -> Result<(OwnedFd, Entry), Errno> {
        // All of struct vduse_iotlb_entry_v2 behind its first part is zero: address space 0.
        let mut arg = [0; SIZE];
        arg[..abi::IOTLB_ENTRY_SIZE].copy_from_slice(&abi::iotlb_request(start, last));
        let number = self.call::<NR, SIZE>(&mut arg)?;
        if number < 0 {
            return Err(Errno::PROTO);
        }
        // SAFETY: what the ioctl returns is an fd that it has just opened for its caller.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        // The kernel leaves it open across exec.
        fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        let entry = abi::iotlb_entry(&arg[..abi::IOTLB_ENTRY_SIZE]).ok_or(Errno::PROTO)?;
        Ok((fd, entry))
    }
}

impl Resolver for KernelNode {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        let (fd, entry) = match self.api_version {
            0 => self.iotlb_get_fd::<{ abi::IOTLB_GET_FD }, { abi::IOTLB_ENTRY_SIZE }>(start, last),
            _ => self
                .iotlb_get_fd::<{ abi::IOTLB_GET_FD2 }, { abi::IOTLB_ENTRY_V2_SIZE }>(start, last),
        }?;
        Ok((fd.into(), entry))
    }
}

impl IrqSink for KernelNode {
    fn inject_irq(&self, index: u32) -> Result<(), Errno> {
        const SIZE: usize = size_of::<u32>();
        self.call::<{ abi::VQ_INJECT_IRQ }, SIZE>(&mut index.to_ne_bytes())
            .map(drop)
    }
}

/// The ioctl `NR` with a pointer to its struct of `SIZE` bytes.
struct Struct<'a, const NR: u32, const SIZE: usize>(&'a mut [u8; SIZE]);

// SAFETY: the pointer is to `SIZE` bytes, borrowed for as long as the call lasts, and `SIZE` is
// the size in the number: another does not compile. The result is passed on as it is.
unsafe impl<const NR: u32, const SIZE: usize> Ioctl for Struct<'_, NR, SIZE> {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        const { assert!(abi::size_of_argument(NR) == SIZE) };
        NR
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(result: IoctlOutput, _: *mut c_void) -> Result<i32, Errno> {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn null(api_version: u64) -> KernelNode {
        let file = File::options().read(true).write(true).open("/dev/null");
        KernelNode::new(file.expect("/dev/null opens").into(), api_version)
    }

    /// The kernel's own errno comes back; the rest needs the kernel: tests/kernel.
    #[test]
    fn a_file_that_is_no_device_node_is_enotty() {
        for version in [0, 1] {
            let node = null(version);
            assert_eq!(node.resolve(Iova(0), Iova(1)).err(), Some(Errno::NOTTY));
            assert_eq!(node.inject_irq(0), Err(Errno::NOTTY));
        }
    }

    #[test]
    fn after_close_everything_is_ebadf() {
        let node = null(0);
        assert!(node.as_raw_fd().is_some());
        node.close();
        node.close();
        assert_eq!(node.as_raw_fd(), None);
        assert_eq!(node.resolve(Iova(0), Iova(1)).err(), Some(Errno::BADF));
        assert_eq!(node.inject_irq(0), Err(Errno::BADF));
    }
}
