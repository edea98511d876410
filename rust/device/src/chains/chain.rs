//! A chain in a handler's hands.

use super::returns::{Return, Returns};
use crate::Buffer;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use vduse_mem::Access;

/// A chain has ended for its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It was completed before.
    #[error("the chain was completed already")]
    Completed,
    /// The device was reset or has broken: the driver does not wait for it any more.
    #[error("the device was reset: the chain is the driver's again")]
    Reset,
}

/// One direction of a chain's memory. While an owner lives the memory stays mapped, and a reset
/// waits for it, since the owner may write there.
pub struct Memory {
    buffer: Buffer,
    returns: Arc<Returns>,
}

impl Memory {
    /// The memory's pieces.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.returns.released();
    }
}

/// Something that gives a holder direct access to a chain's [`Memory`].
pub trait Exported: Send {
    /// Ends the access, as far as possible. Called once the chain has ended.
    fn release(self: Box<Self>);
}

struct Open {
    readable: Arc<Memory>,
    writable: Arc<Memory>,
    exported: Vec<Box<dyn Exported>>,
}

/// A descriptor chain that was taken and is not yet used. Methods may be called from any
/// thread. Dropped without having been completed, it is completed with nothing written.
pub struct HeldChain {
    slot: u32,
    readable_len: u64,
    writable_len: u64,
    state: Mutex<Result<Open, Ended>>,
    returns: Arc<Returns>,
}

impl HeldChain {
    /// With it, what shows whether anybody has access to its memory.
    pub(super) fn new(
        slot: u32,
        readable: Buffer,
        writable: Buffer,
        returns: Arc<Returns>,
    ) -> (HeldChain, [Weak<Memory>; 2]) {
        let memory = |buffer| {
            let returns = returns.clone();
            Arc::new(Memory { buffer, returns })
        };
        let (readable_len, writable_len) = (readable.len(), writable.len());
        let (readable, writable) = (memory(readable), memory(writable));
        let access = [Arc::downgrade(&readable), Arc::downgrade(&writable)];
        let open = Open {
            readable,
            writable,
            exported: Vec::new(),
        };
        let chain = HeldChain {
            slot,
            readable_len,
            writable_len,
            state: Mutex::new(Ok(open)),
            returns,
        };
        (chain, access)
    }

    /// Bytes of the device-readable part.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes of the device-writable part.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Whether it was completed, or taken back by a reset.
    pub fn has_ended(&self) -> bool {
        self.lock().is_err()
    }

    /// All device-readable bytes, copied.
    pub fn read(&self) -> Result<Vec<u8>, Ended> {
        match &*self.lock() {
            Ok(open) => Ok(open.readable.buffer.to_vec()),
            Err(ended) => Err(*ended),
        }
    }

    /// Copies `data` to `offset` of the device-writable part; how many bytes had room.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Ended> {
        let state = self.lock();
        let open = state.as_ref().map_err(|ended| *ended)?;
        let room = self.writable_len.saturating_sub(offset);
        let count = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let part = open.writable.buffer.part(offset, count as u64);
        part.write(&data[..count]);
        Ok(count)
    }

    /// The memory of the part that `access` names, for direct access until the chain ends; who
    /// takes it says by [`HeldChain::exported`] how it is made to let go.
    pub fn memory(&self, access: Access) -> Result<Arc<Memory>, Ended> {
        let state = self.lock();
        let open = state.as_ref().map_err(|ended| *ended)?;
        Ok(match access {
            Access::Read => open.readable.clone(),
            Access::Write => open.writable.clone(),
        })
    }

    /// Calls `exported` once the chain has ended: at once, if it has.
    pub fn exported(&self, exported: Box<dyn Exported>) -> Result<(), Ended> {
        let ended = match &mut *self.lock() {
            Ok(open) => {
                open.exported.push(exported);
                return Ok(());
            }
            Err(ended) => *ended,
        };
        exported.release();
        Err(ended)
    }

    /// The driver gets it back; `written` bytes were written to the device-writable part. After
    /// a reset nothing happens.
    pub fn complete(&self, written: u32) -> Result<(), Ended> {
        match self.end(written, false) {
            Err(Ended::Completed) => Err(Ended::Completed),
            Ok(()) | Err(Ended::Reset) => Ok(()),
        }
    }

    /// Takes the memory away: the driver does not wait for the chain any more. Who has direct
    /// access is told to let go.
    pub(super) fn revoke(&self) {
        if let Ok(open) = self.close(Ended::Reset) {
            open.exported.into_iter().for_each(Exported::release);
        }
    }

    fn end(&self, written: u32, is_forgotten: bool) -> Result<(), Ended> {
        let open = self.close(Ended::Completed)?;
        open.exported.into_iter().for_each(Exported::release);
        self.returns.put(Return {
            slot: self.slot,
            written,
            is_forgotten,
        });
        Ok(())
    }

    /// What it had. The lock is not held any more: releasing runs the holder's code.
    fn close(&self, how: Ended) -> Result<Open, Ended> {
        let mut state = self.lock();
        if let Err(ended) = &*state {
            return Err(*ended);
        }
        std::mem::replace(&mut *state, Err(how))
    }

    fn lock(&self) -> MutexGuard<'_, Result<Open, Ended>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldChain {
    fn drop(&mut self) {
        // An error means that it had ended, as it should.
        let _ = self.end(0, true);
    }
}
