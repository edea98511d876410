//! virtio-blk's feature bits and config space (virtio 1.3, sections 5.2.3 and 5.2.4).

use super::Sectors;
use crate::DmaError;
use rustix::io::Errno;
use vduse_ring::RingError;

/// Feature bits, by their spec names.
pub(super) mod feature {
    pub(in crate::blk) const SIZE_MAX: u64 = 1 << 1;
    pub(in crate::blk) const SEG_MAX: u64 = 1 << 2;
    pub(in crate::blk) const RO: u64 = 1 << 5;
    pub(in crate::blk) const BLK_SIZE: u64 = 1 << 6;
    pub(in crate::blk) const FLUSH: u64 = 1 << 9;
    pub(in crate::blk) const DISCARD: u64 = 1 << 13;
    pub(in crate::blk) const WRITE_ZEROES: u64 = 1 << 14;
    pub(in crate::blk) const INDIRECT_DESC: u64 = 1 << 28;
    pub(in crate::blk) const EVENT_IDX: u64 = 1 << 29;
    pub(in crate::blk) const RING_PACKED: u64 = 1 << 34;
}

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
    Dma(#[from] DmaError),
    /// The ring's layout was refused.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No eventfd.
    #[error("eventfd: {0}")]
    Eventfd(Errno),
}

/// The config space as the device showed it, checked; a limit whose feature was not negotiated,
/// or that is 0 for "none", has the largest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// The disk's size.
    pub capacity: Sectors,
    /// Most bytes of one data segment.
    pub size_max: u32,
    /// Most data segments of a request; 1 where the device names no limit, as Linux does.
    pub seg_max: u32,
    /// The block size in bytes: a power of two from 512.
    pub blk_size: u32,
    /// Most sectors of one discard segment.
    pub max_discard_sectors: u32,
    /// Most sectors of one write-zeroes segment.
    pub max_write_zeroes_sectors: u32,
}

impl BlkConfig {
    /// Reads `bytes`, the config space, under the negotiated `features`.
    pub fn parse(bytes: &[u8], features: u64) -> Result<BlkConfig, SetupError> {
        let space = Space { bytes, features };
        let config = BlkConfig {
            capacity: Sectors(u64::from_le_bytes(space.field(0)?)),
            size_max: space.u32_if(feature::SIZE_MAX, 8, u32::MAX)?,
            seg_max: space.u32_if(feature::SEG_MAX, 12, 1)?,
            blk_size: space.u32_if(feature::BLK_SIZE, 20, 512)?,
            max_discard_sectors: unlimited(space.u32_if(feature::DISCARD, 36, 0)?),
            max_write_zeroes_sectors: unlimited(space.u32_if(feature::WRITE_ZEROES, 48, 0)?),
        };
        if config.capacity.bytes().is_none() {
            return Err(SetupError::Config("capacity", config.capacity.0));
        }
        if config.size_max == 0 {
            return Err(SetupError::Config("size_max", 0));
        }
        if config.seg_max == 0 {
            return Err(SetupError::Config("seg_max", 0));
        }
        if config.blk_size < 512 || !config.blk_size.is_power_of_two() {
            return Err(SetupError::Config("blk_size", config.blk_size.into()));
        }
        Ok(config)
    }
}

struct Space<'a> {
    bytes: &'a [u8],
    features: u64,
}

impl Space<'_> {
    fn field<const N: usize>(&self, offset: usize) -> Result<[u8; N], SetupError> {
        self.bytes
            .get(offset..offset + N)
            .and_then(|field| field.try_into().ok())
            .ok_or(SetupError::ConfigSize(self.bytes.len()))
    }

    fn u32_if(&self, feature: u64, offset: usize, default: u32) -> Result<u32, SetupError> {
        if self.features & feature == 0 {
            return Ok(default);
        }
        self.field(offset).map(u32::from_le_bytes)
    }
}

fn unlimited(limit: u32) -> u32 {
    if limit == 0 { u32::MAX } else { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_count_only_when_their_feature_was_negotiated() {
        let mut space = [0xff; 60];
        space[..8].copy_from_slice(&9u64.to_le_bytes());
        let config = BlkConfig::parse(&space, 0).unwrap();
        assert_eq!((config.capacity, config.blk_size), (Sectors(9), 512));
        assert_eq!((config.size_max, config.seg_max), (u32::MAX, 1));
    }

    #[test]
    fn unusable_fields_are_refused() {
        let space = [0; 60];
        let cases = [
            (feature::SIZE_MAX, "size_max"),
            (feature::SEG_MAX, "seg_max"),
            (feature::BLK_SIZE, "blk_size"),
        ];
        for (feature, name) in cases {
            assert_eq!(
                BlkConfig::parse(&space, feature),
                Err(SetupError::Config(name, 0))
            );
        }
        assert_eq!(
            BlkConfig::parse(&[0xff; 8], 0),
            Err(SetupError::Config("capacity", u64::MAX))
        );
    }

    #[test]
    fn a_config_space_shorter_than_its_features_is_refused() {
        assert_eq!(
            BlkConfig::parse(&[0; 39], feature::DISCARD),
            Err(SetupError::ConfigSize(39))
        );
    }
}
