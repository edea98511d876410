//! virtio-blk's feature bits and config space (virtio 1.3, sections 5.2.3 and 5.2.4).

/// Why a driver cannot be set up on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The config space is shorter than the negotiated features need.
    #[error("config space of {0} bytes is too short")]
    ConfigSize(usize),
    /// A field of the config space has no usable value.
    #[error("config space: {0} = {1} is not usable")]
    Config(&'static str, u64),
    /// No queues, or not one line for each.
    #[error("{0} queues and {1} lines")]
    Queues(usize, usize),
    /// A queue that cannot hold one request.
    #[error("a queue of {0} descriptors cannot hold a request")]
    QueueSize(u16),
    /// No memory for the rings.
    #[error(transparent)]
    Dma(#[from] crate::DmaError),
    /// The ring's layout was refused.
    #[error(transparent)]
    Ring(#[from] vduse_ring::RingError),
}

/// The config space as the device showed it, checked; fields whose feature was not negotiated
/// have their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkConfig {}
