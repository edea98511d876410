//! The Python binding: thin, one file a half.

use pyo3::prelude::*;

mod attachment;
mod buffer;
mod chains;
mod channel;
mod datapath;
mod device;
mod error;
mod exporter;
mod fd;
mod fork;
mod framework;
mod gate;
mod layers;
mod load;
mod nbd;
mod python;
mod report;
mod stats;
mod virtio_driver;
mod virtqueue;

/// The Rust half of vduse.
#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    channel::register(m)?;
    framework::register(m)?;
    virtqueue::register(m)?;
    datapath::register(m)?;
    device::register(m)?;
    layers::register(m)?;
    chains::register(m)?;
    load::register(m)?;
    virtio_driver::register(m)?;
    nbd::register(m)?;
    python::register(m)?;
    gate::register(m)?;
    fork::watch(m.py())?;
    Ok(())
}
