//! From a chain of descriptors to a request. The header may lie in several descriptors, data
//! may share one with the header or with the status: only the order of bytes counts.

use super::Finish;
use super::limits::Rules;
use super::wire::{
    Header, ID_BYTES, RangeEntry, Status, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES,
};
use crate::{Buffer, Extent, Length, SECTOR_SIZE, Sector};
use smallvec::SmallVec;
use vduse_mem::{Access, Fault, Pieces, View};
use vduse_ring::{Chain, Segment};

/// A chain, understood.
pub(crate) enum Parsed {
    /// A request to carry out.
    Run(Request),
    /// A request that is refused.
    Refuse(Finish, Status),
    /// No byte to write a status to: used with length 0.
    Short,
}

/// A request that passed every check.
pub(crate) struct Request {
    pub(super) what: What,
    pub(super) finish: Finish,
}

impl Request {
    /// Bytes that are discarded or zeroed, which the chain does not hold.
    pub(super) fn range_bytes(&self) -> u64 {
        match &self.what {
            What::Discard(ranges) | What::WriteZeroes { ranges, .. } => {
                ranges.iter().map(|(extent, _)| extent.len().0).sum()
            }
            _ => 0,
        }
    }
}

/// What is asked for.
pub(super) enum What {
    Read {
        extent: Extent,
        buffer: Buffer,
    },
    Write {
        extent: Extent,
        buffer: Buffer,
        write_through: bool,
    },
    Flush,
    GetId {
        buffer: Buffer,
    },
    Discard(Ranges),
    WriteZeroes {
        ranges: Ranges,
        write_through: bool,
    },
}

/// Ranges, each with whether its space may be given back.
pub(super) type Ranges = SmallVec<[(Extent, bool); 1]>;

/// Understands a chain. A fault means that not even an error can be reported: the status byte
/// is not reachable, or memory was taken away.
pub(crate) fn parse(chain: &Chain, view: &mut View, rules: &Rules) -> Result<Parsed, Fault> {
    let Some(last) = chain.writable.last() else {
        return Ok(Parsed::Short);
    };
    let status_at = u64::from(last.len)
        .checked_sub(1)
        .and_then(|before| last.iova.checked_add(before))
        .ok_or(Fault::Range(last.iova, u64::from(last.len)))?;
    let mut pieces = Pieces::new();
    view.translate(status_at, 1, Access::Write, &mut pieces)?;
    let what = match understand(chain, view, rules) {
        Err(Refusal::Fault(fault @ Fault::Poisoned(_))) => return Err(fault),
        Err(Refusal::Fault(_)) => Err(Status::IoErr),
        Err(Refusal::Status(status)) => Err(status),
        Ok(what) => Ok(what),
    };
    // SAFETY: the piece was translated for writing by `view`, which the pin is taken of now.
    let finish = unsafe { Finish::new(chain.id, chain.slots, pieces[0], view.pin()) };
    Ok(match what {
        Ok(what) => Parsed::Run(Request { what, finish }),
        Err(status) => Parsed::Refuse(finish, status),
    })
}

/// Why a request is not carried out.
enum Refusal {
    Status(Status),
    Fault(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal::Fault(fault)
    }
}

const IOERR: Refusal = Refusal::Status(Status::IoErr);
const UNSUPP: Refusal = Refusal::Status(Status::Unsupp);

fn understand(chain: &Chain, view: &mut View, rules: &Rules) -> Result<What, Refusal> {
    let mut header = [0; Header::BYTES];
    copy_in(&chain.readable, 0, view, &mut header)?;
    let header = Header::from_bytes(header);
    match header.kind {
        T_IN => {
            let data = Data::before_status(&chain.writable);
            let extent = on_disk(header.sector, data.len, rules)?;
            let buffer = data.translate(view, rules, Access::Write)?;
            Ok(What::Read { extent, buffer })
        }
        T_OUT if rules.refuses_writes() => Err(IOERR),
        T_OUT => {
            let data = Data::after_header(&chain.readable);
            let extent = on_disk(header.sector, data.len, rules)?;
            let buffer = data.translate(view, rules, Access::Read)?;
            Ok(What::Write {
                extent,
                buffer,
                write_through: rules.write_through(),
            })
        }
        T_FLUSH => Ok(What::Flush),
        T_GET_ID => {
            let data = Data::before_status(&chain.writable);
            if data.len < ID_BYTES as u64 {
                return Err(IOERR);
            }
            let buffer = data.translate(view, rules, Access::Write)?;
            Ok(What::GetId { buffer })
        }
        T_DISCARD if rules.discards() => {
            let discard = RangeLimits {
                most: rules.limits.max_discard_seg,
                most_sectors: rules.limits.max_discard_sectors,
                // The unmap flag is for write zeroes alone (section 5.2.6.2).
                flags: 0,
            };
            ranges(chain, view, rules, discard).map(What::Discard)
        }
        T_WRITE_ZEROES if rules.writes_zeroes() => {
            let write_zeroes = RangeLimits {
                most: rules.limits.max_write_zeroes_seg,
                most_sectors: rules.limits.max_write_zeroes_sectors,
                flags: RangeEntry::UNMAP,
            };
            Ok(What::WriteZeroes {
                ranges: ranges(chain, view, rules, write_zeroes)?,
                write_through: rules.write_through(),
            })
        }
        _ => Err(UNSUPP),
    }
}

/// The range of `len` bytes from `sector`: whole sectors, inside the capacity.
fn on_disk(sector: u64, len: u64, rules: &Rules) -> Result<Extent, Refusal> {
    let capacity = Length::of_sectors(rules.capacity).ok_or(IOERR)?;
    Sector(sector)
        .offset()
        .and_then(|offset| Extent::new(offset, Length(len)))
        .filter(|extent| extent.len().is_sectors() && extent.within(capacity))
        .ok_or(IOERR)
}

/// What holds for the ranges of a discard or write-zeroes request.
struct RangeLimits {
    most: u32,
    most_sectors: u32,
    /// Flags that are known.
    flags: u32,
}

fn ranges(
    chain: &Chain,
    view: &mut View,
    rules: &Rules,
    limits: RangeLimits,
) -> Result<Ranges, Refusal> {
    if rules.refuses_writes() {
        return Err(IOERR);
    }
    let len = Data::after_header(&chain.readable).len;
    let entry_bytes = RangeEntry::BYTES as u64;
    let count = len / entry_bytes;
    if count == 0 || !len.is_multiple_of(entry_bytes) || count > u64::from(limits.most) {
        return Err(IOERR);
    }
    let may_unmap = rules.limits.write_zeroes_may_unmap;
    (0..count)
        .map(|i| {
            let mut entry = [0; RangeEntry::BYTES];
            let skip = Header::BYTES as u64 + i * entry_bytes;
            copy_in(&chain.readable, skip, view, &mut entry)?;
            let entry = RangeEntry::from_bytes(entry);
            if entry.flags & !limits.flags != 0 {
                return Err(UNSUPP);
            }
            if entry.num_sectors > limits.most_sectors {
                return Err(IOERR);
            }
            let len = u64::from(entry.num_sectors) * SECTOR_SIZE;
            let unmap = entry.flags & RangeEntry::UNMAP != 0 && may_unmap;
            Ok((on_disk(entry.sector, len, rules)?, unmap))
        })
        .collect()
}

/// A run of bytes in a list of segments.
struct Data<'a> {
    segments: &'a [Segment],
    skip: u64,
    len: u64,
}

impl<'a> Data<'a> {
    /// What follows the header, which is known to be there.
    fn after_header(readable: &'a [Segment]) -> Data<'a> {
        let skip = Header::BYTES as u64;
        Data {
            segments: readable,
            skip,
            len: total(readable).saturating_sub(skip),
        }
    }

    /// What precedes the status byte, which is known to be there.
    fn before_status(writable: &'a [Segment]) -> Data<'a> {
        Data {
            segments: writable,
            skip: 0,
            len: total(writable).saturating_sub(1),
        }
    }

    fn translate(&self, view: &mut View, rules: &Rules, access: Access) -> Result<Buffer, Refusal> {
        let (most_segments, most_bytes) = rules.segment_limits();
        let mut pieces = Pieces::new();
        for (before, part) in (0..).zip(parts(self.segments, self.skip, self.len)) {
            if before >= most_segments || part.len > most_bytes {
                return Err(IOERR);
            }
            view.translate(part.iova, part.len, access, &mut pieces)?;
        }
        // SAFETY: translated for `access` by `view`, which the pin is taken of now.
        Ok(unsafe { Buffer::pinned(pieces, view.pin()) })
    }
}

/// Copies `to.len()` bytes, `skip` bytes into the segments; IOERR where there are not as many.
fn copy_in(segments: &[Segment], skip: u64, view: &mut View, to: &mut [u8]) -> Result<(), Refusal> {
    let mut rest = to;
    for part in parts(segments, skip, rest.len() as u64) {
        let (bytes, others) = rest.split_at_mut(part.len as usize);
        view.read(part.iova, bytes)?;
        rest = others;
    }
    match rest.is_empty() {
        true => Ok(()),
        false => Err(IOERR),
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// The parts of the segments that hold `len` bytes after `skip` bytes.
fn parts(segments: &[Segment], skip: u64, len: u64) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (skip, len);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(u64::from(segment.len));
        skip -= skipped;
        let taken = left.min(u64::from(segment.len) - skipped);
        left -= taken;
        // An address past 2^64 becomes a range that no mapping holds.
        let iova = vduse_mem::Iova(segment.iova.0.saturating_add(skipped));
        (taken > 0).then_some(Segment {
            iova,
            len: taken as u32,
        })
    })
}
