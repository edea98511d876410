//! A load generator: the same load on our own virtio-blk driver and on two that nobody here
//! wrote.

mod baseline;
mod buffers;
mod engine;
mod entropy;
mod hal;
mod ours;
mod random;
mod report;
mod run;
mod spec;
mod transport;
mod vhost_frontend;
mod virtio_driver;
mod virtio_drivers;

pub use baseline::Baseline;
pub use buffers::{Buffers, Pattern};
pub use engine::{Direction, Done, Engine, EngineError};
pub use entropy::virtio_drivers_entropy;
pub use ours::Ours;
pub use report::Report;
pub use run::{Interrupted, LoadError, Phase, Progress, run};
pub use spec::{Op, SECTOR, Spec, SpecError, Stop};
pub use transport::VdpaPort;
pub use vhost_frontend::{FrontendTalk, vhost_frontend};
pub use virtio_driver::{Disk, VirtioDriver, VirtioDriverSetup};
pub use virtio_drivers::VirtioDrivers;
