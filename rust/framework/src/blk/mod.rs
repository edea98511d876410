//! The driver's side of virtio-blk (virtio 1.3, section 5.2).
//!
//! [`BlkDriver`] owns the queues. Two ways to use it, on the same queue too:
//! - [`BlkDriver::run`]: one request, from any thread, waits for its end;
//! - [`BlkDriver::queue`]: a [`BlkQueue`] to `submit`, `kick`, `reap` and `wait` with, or to
//!   `arm` in an event loop.
//!
//! Requests beyond the device's limits are split and joined here; what does not fit the ring or
//! the address space now waits its turn in the queue. The device is not trusted: what it breaks
//! ends every request with `EIO` and says why ([`BlkDriver::failure`]).

mod config;
mod driver;
mod handle;
mod hold;
mod jobs;
mod limits;
mod queue;
mod request;
mod sector;
mod shared;
mod slots;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use config::{BlkConfig, SetupError};
pub use driver::{BlkDriver, BlkStats};
pub use handle::{Armed, BlkQueue};
pub use hold::Hold;
pub use jobs::Wake;
pub use request::Request;
pub use sector::Sectors;
