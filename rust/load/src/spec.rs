//! What load to make.

use std::time::Duration;

/// Bytes of a virtio-blk sector (virtio 1.3, 5.2.6): offsets and lengths are multiples of it.
pub const SECTOR: u64 = 512;

/// Which requests, in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads, block after block, again from the start at the span's end.
    Read,
    /// Writes, likewise.
    Write,
    /// Reads of random blocks.
    RandRead,
    /// Writes of random blocks.
    RandWrite,
    /// Random blocks, reads and writes in the proportion of [`Spec::reads`].
    Mixed,
}

impl Op {
    /// `read`, `write`, `randread`, `randwrite`, `mixed`.
    pub fn from_name(name: &str) -> Option<Op> {
        Some(match name {
            "read" => Op::Read,
            "write" => Op::Write,
            "randread" => Op::RandRead,
            "randwrite" => Op::RandWrite,
            "mixed" => Op::Mixed,
            _ => return None,
        })
    }

    pub(crate) fn is_random(self) -> bool {
        matches!(self, Op::RandRead | Op::RandWrite | Op::Mixed)
    }

    pub(crate) fn writes(self) -> bool {
        !matches!(self, Op::Read | Op::RandRead)
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After so many requests.
    Requests(u64),
    /// After so much time.
    After(Duration),
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Which requests.
    pub op: Op,
    /// Bytes of a request, a multiple of 512.
    pub block_size: u32,
    /// Requests kept in flight.
    pub depth: u32,
    /// When to stop.
    pub stop: Stop,
    /// Where the random numbers start.
    pub seed: u64,
    /// Blocks are written with a pattern of their own; what is read must match what was last
    /// written. Loads that only read write the span first; loads that write read it back.
    pub verify: bool,
    /// Bytes of the disk to use, from its start; `None`: all of it.
    pub span: Option<u64>,
    /// Of [`Op::Mixed`]: how many requests of a hundred are reads.
    pub reads: u32,
    /// Look for what has completed all the time instead of sleeping until an irq.
    pub poll: bool,
    /// How long no request may complete while some are in flight; `None`: for ever.
    pub patience: Option<Duration>,
}

/// A load that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not a multiple of 512, or none.
    #[error("block_size {0} is not a positive multiple of 512 bytes")]
    BlockSize(u32),
    /// No request in flight at all, or more than an engine can number.
    #[error("depth {0} is not between 1 and 32768")]
    Depth(u32),
    /// More than all of them.
    #[error("{0} reads of a hundred requests")]
    Reads(u32),
    /// Not one block fits.
    #[error("a span of {span} bytes does not hold one block of {block_size} bytes")]
    Span {
        /// Bytes to use.
        span: u64,
        /// Bytes of a request.
        block_size: u32,
    },
    /// The span is longer than the disk.
    #[error("a span of {span} bytes is more than the disk's {capacity} bytes")]
    Capacity {
        /// Bytes to use.
        span: u64,
        /// Bytes there are.
        capacity: u64,
    },
}

impl Spec {
    /// How many blocks the load uses on a disk of `capacity` bytes.
    pub fn blocks(&self, capacity: u64) -> Result<u64, SpecError> {
        if self.block_size == 0 || u64::from(self.block_size) % SECTOR != 0 {
            return Err(SpecError::BlockSize(self.block_size));
        }
        if self.depth == 0 || self.depth > 32768 {
            return Err(SpecError::Depth(self.depth));
        }
        if self.reads > 100 {
            return Err(SpecError::Reads(self.reads));
        }
        let span = self.span.unwrap_or(capacity);
        if span > capacity {
            return Err(SpecError::Capacity { span, capacity });
        }
        match span / u64::from(self.block_size) {
            0 => Err(SpecError::Span {
                span,
                block_size: self.block_size,
            }),
            blocks => Ok(blocks),
        }
    }
}
