//! The one place that every operation passes on its way to a backend: range and capability.

use super::{Info, Op};
use rustix::io::Errno;

/// Refuses what the backend cannot do: EROFS for a change to a read-only disk, ENOSPC past
/// its end, EINVAL for a buffer that is not as long as its range.
pub fn check(info: &Info, op: &Op) -> Result<(), Errno> {
    let (extent, changes) = match op {
        Op::Flush => return Ok(()),
        Op::Read { extent, buffer } => {
            if buffer.len() != extent.len().0 {
                return Err(Errno::INVAL);
            }
            (extent, false)
        }
        Op::Write { extent, buffer } => {
            if buffer.len() != extent.len().0 {
                return Err(Errno::INVAL);
            }
            (extent, true)
        }
        Op::Discard { extent } | Op::WriteZeroes { extent, .. } => (extent, true),
    };
    if changes && info.read_only {
        return Err(Errno::ROFS);
    }
    if !extent.within(info.size) {
        return Err(Errno::NOSPC);
    }
    Ok(())
}
