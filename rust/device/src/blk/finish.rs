//! The end of a request: the one place that writes the status byte and says the used length.

use super::wire::Status;
use vduse_mem::{Piece, Pin};

/// A used element, for the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) id: u16,
    pub(crate) slots: u16,
    /// Bytes written to the chain's device-writable part.
    pub(crate) written: u32,
}

/// What a request needs to end. Dropped unused where the request must not reach the driver
/// any more.
pub(crate) struct Finish {
    id: u16,
    slots: u16,
    status: Piece,
    pin: Pin,
}

impl Finish {
    /// For the chain `id`, whose last device-writable byte is `status`.
    ///
    /// # Safety
    /// `status` was translated for writing by the view that `pin` was taken of afterwards.
    pub(super) unsafe fn new(id: u16, slots: u16, status: Piece, pin: Pin) -> Finish {
        Finish {
            id,
            slots,
            status,
            pin,
        }
    }

    /// Writes the status byte. `data` bytes were written before it: the used length counts
    /// them and the status.
    pub(super) fn end(self, status: Status, data: u32) -> Used {
        // SAFETY: the piece was translated for writing (`new`'s caller) and the pin is alive.
        unsafe { self.status.write_from(&[status as u8]) };
        drop(self.pin);
        Used {
            id: self.id,
            slots: self.slots,
            // A chain has at most 2^32 - 1 device-writable bytes and the status is one of them.
            written: data.saturating_add(1),
        }
    }

    /// Refuses the request: nothing but the status was written.
    pub(crate) fn refuse(self, status: Status) -> Used {
        self.end(status, 0)
    }
}
