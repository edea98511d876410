//! How large one virtio-blk request may be, and into which segments its data falls.

use super::Sectors;
use super::config::{BlkConfig, SetupError};
use super::request::Kind;
use smallvec::SmallVec;
use vduse_mem::Iova;
use vduse_ring::{DriverQueue, Segment};

/// Descriptors of a request besides its data: header and status.
const FRAME: usize = 2;

/// What one request on one queue may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of one data segment.
    segment: u32,
    /// Bytes of data of one read or write, whole sectors.
    transfer: u64,
    /// Bytes of one discard.
    discard: u64,
    /// Bytes of one write-zeroes.
    write_zeroes: u64,
}

impl Limits {
    /// From what the device says, the ring holds, and DMA can map at once (bytes).
    pub(super) fn new(
        config: &BlkConfig,
        queue_size: u16,
        indirect: bool,
        max_mapping: usize,
    ) -> Result<Limits, SetupError> {
        // An indirect table is no longer than the queue either (virtio 1.3, section 2.7.5.3.1).
        let chain = match indirect {
            true => DriverQueue::INDIRECT_SEGMENTS.min(queue_size.into()),
            false => usize::from(queue_size),
        };
        let data_segments = chain.saturating_sub(FRAME).min(config.seg_max as usize);
        if data_segments == 0 {
            return Err(SetupError::QueueSize(queue_size));
        }
        let most = (u64::from(config.size_max) * data_segments as u64).min(max_mapping as u64);
        let block = u64::from(config.blk_size);
        let unit = if most < block { Sectors::SIZE } else { block };
        let transfer = most / unit * unit;
        if transfer == 0 {
            return Err(SetupError::Config("size_max", config.size_max.into()));
        }
        Ok(Limits {
            segment: config.size_max,
            transfer,
            discard: u64::from(config.max_discard_sectors) * Sectors::SIZE,
            write_zeroes: u64::from(config.max_write_zeroes_sectors) * Sectors::SIZE,
        })
    }

    /// Bytes that the next virtio-blk request takes of a request with `left` bytes to go.
    pub(super) fn part(&self, kind: Kind, left: u64) -> u64 {
        left.min(match kind {
            Kind::Read | Kind::Write => self.transfer,
            Kind::Discard => self.discard,
            Kind::WriteZeroes { .. } => self.write_zeroes,
            Kind::Flush | Kind::GetId => u64::MAX,
        })
    }

    /// Segments of `len` bytes of data at `iova`.
    pub(super) fn segments(&self, iova: Iova, len: u32) -> SmallVec<[Segment; 4]> {
        (0..len)
            .step_by(self.segment as usize)
            .map(|at| Segment {
                iova: Iova(iova.0 + u64::from(at)),
                len: self.segment.min(len - at),
            })
            .collect()
    }

    /// Ring descriptors, at most, of a request with `bytes` of data.
    pub(super) fn descriptors(&self, bytes: u64) -> usize {
        FRAME + bytes.div_ceil(self.segment.into()) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::feature;
    use super::*;

    fn config(size_max: u32, seg_max: u32) -> BlkConfig {
        let mut space = [0; 60];
        space[8..12].copy_from_slice(&size_max.to_le_bytes());
        space[12..16].copy_from_slice(&seg_max.to_le_bytes());
        BlkConfig::parse(&space, feature::SIZE_MAX | feature::SEG_MAX).unwrap()
    }

    #[test]
    fn a_transfer_obeys_device_ring_and_dma() {
        let transfer = |limits: Result<Limits, _>| limits.unwrap().transfer;
        assert_eq!(
            transfer(Limits::new(&config(4096, 3), 128, false, 1 << 20)),
            12288
        );
        assert_eq!(
            transfer(Limits::new(&config(4096, 300), 8, false, 1 << 20)),
            6 * 4096
        );
        assert_eq!(
            transfer(Limits::new(&config(4096, 300), 8, true, 1 << 20)),
            6 * 4096,
            "an indirect table is no longer than the queue"
        );
        assert_eq!(
            transfer(Limits::new(&config(4096, 300), 128, true, 1 << 20)),
            14 * 4096
        );
        assert_eq!(
            transfer(Limits::new(&config(4096, 300), 128, true, 5000)),
            4608
        );
    }

    #[test]
    fn what_can_never_hold_a_request_is_refused() {
        for indirect in [false, true] {
            assert_eq!(
                Limits::new(&config(4096, 3), 2, indirect, 1 << 20),
                Err(SetupError::QueueSize(2))
            );
        }
        assert_eq!(
            Limits::new(&config(100, 5), 128, false, 1 << 20),
            Err(SetupError::Config("size_max", 100))
        );
    }

    #[test]
    fn data_falls_into_segments_of_size_max() {
        let limits = Limits::new(&config(1000, 2), 128, false, 1 << 20).unwrap();
        assert_eq!(limits.transfer, 1536);
        let segments = limits.segments(Iova(0x1000), 1536);
        let expected = [
            Segment {
                iova: Iova(0x1000),
                len: 1000,
            },
            Segment {
                iova: Iova(0x13e8),
                len: 536,
            },
        ];
        assert_eq!(segments[..], expected);
        assert_eq!(limits.descriptors(1536), 4);
    }
}
