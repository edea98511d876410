//! Crate `virtio-drivers`' entropy driver, on a vDPA device.

use crate::engine::EngineError;
use crate::hal::{DmaHal, DmaScope};
use crate::transport::{FirstError, VdpaPort, VdpaTransport};
use std::sync::Arc;
use vduse_framework::{Dma, VqLine};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

/// Takes the device over, fills `out` in requests of at most `part` bytes, and resets it. The
/// crate spins while the device answers.
pub fn virtio_drivers_entropy(
    dma: Arc<dyn Dma>,
    port: Box<dyn VdpaPort>,
    line: Arc<VqLine>,
    out: &mut [u8],
    part: usize,
) -> Result<(), EngineError> {
    // Dropped after the driver, which resets the device and frees its rings in the scope.
    let scope = DmaScope::new(dma);
    let error = FirstError::default();
    let transport = VdpaTransport::new(DeviceType::EntropySource, port, line, error.clone());
    let driver = VirtIORng::<DmaHal, _>::new(transport);
    // The crate's interfaces to memory and device cannot fail; this is how they did.
    let check = || match (error.take(), scope.failure()) {
        (Some(error), _) => Err(error),
        (None, Some(error)) => Err(EngineError::Driver("dma", error.to_string())),
        (None, None) => Ok(()),
    };
    check()?;
    let failed =
        |what| move |error: virtio_drivers::Error| EngineError::Driver(what, error.to_string());
    let mut driver = driver.map_err(failed("set-up"))?;
    let mut rest = out;
    while !rest.is_empty() {
        let part = part.min(rest.len());
        let filled = driver.request_entropy(&mut rest[..part]);
        check()?;
        let filled = filled.map_err(failed("entropy"))?;
        if filled == 0 {
            return Err(EngineError::Driver(
                "entropy",
                "a buffer used with no bytes".into(),
            ));
        }
        rest = rest.split_at_mut(filled.min(part)).1;
    }
    Ok(())
}
