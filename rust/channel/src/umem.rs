//! The program's own memory in place of the bounce pages, as a channel offers it.

use crate::{CallSocket, KernelNode, abi};
use rustix::io::Errno;
use vduse_mem::{Iova, Resolver};

/// A channel whose framework takes user memory. All of address space 0.
pub trait UmemPort: Resolver {
    /// `VDUSE_IOTLB_GET_INFO`: bytes of the region around `iova`, where it is the bounce region and
    /// takes user memory; `None` for any other. `EINVAL`: nothing is mapped in `[iova, last]`.
    fn umem_size(&self, iova: Iova, last: Iova) -> Result<Option<u64>, Errno>;

    /// `VDUSE_IOTLB_REG_UMEM`: the `size` bytes at `address` are the bounce region from now on, what
    /// is under way included. `ENOMEM`: RLIMIT_MEMLOCK; `EEXIST`; `EINVAL`: not the region's size,
    /// or no buffer was mapped yet.
    ///
    /// # Safety
    /// They stay mapped, and the framework's to write, until [`UmemPort::dereg_umem`] has
    /// succeeded or the channel is closed.
    unsafe fn reg_umem(&self, address: usize, size: u64) -> Result<(), Errno>;

    /// `VDUSE_IOTLB_DEREG_UMEM`: the framework's own pages again, with what is under way. `ENOENT`:
    /// nothing is registered.
    fn dereg_umem(&self, size: u64) -> Result<(), Errno>;
}

impl UmemPort for KernelNode {
    fn umem_size(&self, iova: Iova, last: Iova) -> Result<Option<u64>, Errno> {
        let mut info = abi::iova_info(iova, last);
        self.call::<{ abi::IOTLB_GET_INFO }, { abi::IOVA_INFO_SIZE }>(&mut info)?;
        Ok(abi::umem_size(&info, iova))
    }

    unsafe fn reg_umem(&self, address: usize, size: u64) -> Result<(), Errno> {
        let mut umem = abi::iova_umem(address, size);
        self.call::<{ abi::IOTLB_REG_UMEM }, { abi::IOVA_UMEM_SIZE }>(&mut umem)
            .map(drop)
    }

    fn dereg_umem(&self, size: u64) -> Result<(), Errno> {
        let mut umem = abi::iova_umem(0, size);
        self.call::<{ abi::IOTLB_DEREG_UMEM }, { abi::IOVA_UMEM_SIZE }>(&mut umem)
            .map(drop)
    }
}

impl UmemPort for CallSocket {
    fn umem_size(&self, iova: Iova, last: Iova) -> Result<Option<u64>, Errno> {
        let asked = abi::iova_info(iova, last);
        let answer = self.counted(abi::IOTLB_GET_INFO, &asked)?;
        Ok(abi::umem_size(&answer.payload, iova))
    }

    unsafe fn reg_umem(&self, address: usize, size: u64) -> Result<(), Errno> {
        let umem = abi::iova_umem(address, size);
        self.counted(abi::IOTLB_REG_UMEM, &umem).map(drop)
    }

    fn dereg_umem(&self, size: u64) -> Result<(), Errno> {
        let umem = abi::iova_umem(0, size);
        self.counted(abi::IOTLB_DEREG_UMEM, &umem).map(drop)
    }
}
