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
mod nbd_client;
mod nbd_tls;
mod python;
mod qcow2;
mod rbd;
mod report;
mod stats;
mod supervised;
mod virtio_driver;
mod virtqueue;

/// The Rust half of vduse.
#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    channel::register(m)?;
    framework::register(m)?;
    virtqueue::register(m)?;
    supervised::register(m)?;
    datapath::register(m)?;
    device::register(m)?;
    layers::register(m)?;
    chains::register(m)?;
    load::register(m)?;
    virtio_driver::register(m)?;
    nbd::register(m)?;
    nbd_client::register(m)?;
    nbd_tls::register(m)?;
    python::register(m)?;
    qcow2::register(m)?;
    rbd::register(m)?;
    gate::register(m)?;
    fork::watch(m.py())?;
    Ok(())
}
