//! What a file or block device is: its size, its blocks, what it can do.

use super::last_errno;
use super::transfer::Alignment;
use crate::backend::{Error, disk_size};
use crate::{Extent, Length};
use rustix::fs::{AtFlags, FallocateFlags, SeekFrom, StatxFlags, fallocate, fstat, seek, statx};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// linux/fs.h: _IO(0x12, 104), the logical block size in bytes.
const BLKSSZGET: libc::c_ulong = 0x1268;
/// linux/fs.h: _IO(0x12, 119), discards a range (start, length) in bytes.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Bytes; refuses a size that is no whole number of sectors.
pub(super) fn size(file: &OwnedFd, path: &Path) -> Result<Length, Error> {
    let size = length(file)?.0;
    disk_size(size).map_err(|_| {
        Error::new(
            Errno::INVAL,
            format!(
                "{} has {size} bytes: a disk's size must be a multiple of 512 and not 0 (truncate -s makes it one)",
                path.display()
            ),
        )
    })
}

/// Bytes, however many.
pub(super) fn length(file: &OwnedFd) -> Result<Length, Error> {
    Ok(Length(seek(file, SeekFrom::End(0))?))
}

/// Logical block size in bytes; 512 for a regular file.
pub(super) fn block_size(file: &OwnedFd, is_block_device: bool) -> u32 {
    let mut size: libc::c_int = 512;
    if is_block_device {
        // SAFETY: BLKSSZGET writes an int.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &mut size) };
        if result < 0 || size < 512 || !size.cast_unsigned().is_power_of_two() {
            return 512;
        }
    }
    size.cast_unsigned()
}

/// What O_DIRECT asks for (statx, Linux 6.1); where the kernel does not say: the block size
/// of a device, 4096 for a file.
pub(super) fn alignment(file: &OwnedFd, block_size: u32) -> Alignment {
    let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    if let Some(told) = told
        && told.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && told.stx_dio_mem_align.is_power_of_two()
        && told.stx_dio_offset_align.is_power_of_two()
    {
        return Alignment {
            memory: told.stx_dio_mem_align as usize,
            file: u64::from(told.stx_dio_offset_align).max(512),
        };
    }
    let unit = if block_size > 512 { block_size } else { 4096 };
    Alignment {
        memory: unit as usize,
        file: u64::from(unit),
    }
}

/// Whether space can be given back.
pub(super) fn can_discard(file: &OwnedFd, is_block_device: bool, size: Length) -> bool {
    if is_block_device {
        return device_discards(file).unwrap_or(false);
    }
    // A hole past the end changes nothing but says whether holes exist.
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, size.0, 512).is_ok()
}

/// The queue's discard limit in sysfs, of the device or the disk that it is a partition of.
fn device_discards(file: &OwnedFd) -> Option<bool> {
    let device = fstat(file).ok()?.st_rdev;
    let dir = format!(
        "/sys/dev/block/{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| std::fs::read_to_string(format!("{dir}/{queue}/discard_max_bytes")).ok())
        .map(|bytes| bytes.trim() != "0")
}

/// BLKDISCARD of a block device.
pub(super) fn block_discard(file: &OwnedFd, extent: Extent) -> Result<(), Errno> {
    let range = [extent.offset().0, extent.len().0];
    // SAFETY: BLKDISCARD reads two u64.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) } < 0 {
        return Err(last_errno());
    }
    Ok(())
}
