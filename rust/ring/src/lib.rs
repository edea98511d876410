//! Virtqueues (virtio 1.3, sections 2.7 split and 2.8 packed): the device side, the driver
//! side, and the record of requests in flight (vhost-user specification), and how the sides notify and
//! wait for each other.

mod bits;
mod device;
mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod inflight;
mod layout;
pub mod notify;
mod packed;
mod shared;
mod spin;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "the tests use more of it"))]
mod testing;
#[cfg(test)]
mod tests;

pub use device::{Chain, DeviceQueue, Malformed, RingError, RingLog, Segments};
pub use driver::{AddError, DriverError, DriverQueue};
pub use layout::{Areas, Layout, LayoutError, QueueState, Segment};
pub use spin::{Spin, SpinStats};
