//! The image's exclusive lock: who has it, and what is done about that.

use crate::library::FEATURE_EXCLUSIVE_LOCK;
use crate::session::Image;
use crate::{Lock, Options};
use rustix::io::Errno;
use std::ffi::CString;
use vduse_device::backend::Error;

/// Takes the lock as the options say. EBUSY: somebody who is alive has it.
pub(crate) fn lock(image: &Image, options: &Options) -> Result<(), Error> {
    if options.is_read_only() || options.lock == Lock::Share {
        return Ok(());
    }
    let spec = options.spec();
    let failed = |errno| Error::failed(format!("{spec}: its lock"), errno);
    if image.features().map_err(failed)? & FEATURE_EXCLUSIVE_LOCK == 0 {
        return Err(Error::new(
            Errno::NOTSUP,
            format!(
                "{spec}: the image has no exclusive lock: rbd feature enable {spec} \
                 exclusive-lock, or open it with lock=share"
            ),
        ));
    }
    let owners = image.lock_owners().map_err(failed)?;
    match options.lock {
        Lock::Break => {
            for owner in &owners {
                match image.break_lock(owner) {
                    // Gone meanwhile.
                    Ok(()) | Err(Errno::NOENT) => (),
                    Err(errno) => return Err(not_broken(&spec, owner, errno)),
                }
            }
        }
        _ => {
            let alive = image.watchers().map_err(failed)?;
            if let Some(owner) = owners.iter().find(|owner| alive.contains(owner)) {
                return Err(in_use(&spec, &owner.to_string_lossy()));
            }
        }
    }
    match image.lock() {
        Err(Errno::BUSY | Errno::ROFS | Errno::AGAIN) => Err(in_use(&spec, "another client")),
        other => other.map_err(failed),
    }
}

fn in_use(spec: &str, owner: &str) -> Error {
    Error::new(
        Errno::BUSY,
        format!(
            "{spec}: {owner} has its lock; end what uses it there (a program that was killed \
             counts for half a minute), or take it away with lock=break"
        ),
    )
}

fn not_broken(spec: &str, owner: &CString, errno: Errno) -> Error {
    let hint = match errno {
        Errno::PERM | Errno::ACCESS => {
            "; breaking a lock needs the monitors' capability 'profile rbd'"
        }
        _ => "",
    };
    let owner = owner.to_string_lossy();
    Error::new(
        errno,
        format!("{spec}: the lock of {owner} cannot be broken: {errno}{hint}"),
    )
}
