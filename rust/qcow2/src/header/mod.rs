//! The header of an image (QEMU's docs/interop/qcow2.txt), read before anybody else follows what
//! it says. It may be hostile: nothing beyond the bytes given is looked at, every sum is checked,
//! and what the format driver would allocate is bounded first.

mod refusal;
#[cfg(test)]
pub(crate) mod tests;

pub use refusal::Refusal;

use std::ops::Range;

/// Bytes of a file that [`Header::parse`] wants to see: its first ones, or all of a shorter file.
pub const LOOKED_AT: usize = 64 << 10;

/// "QFI\xfb".
const MAGIC: u32 = 0x5146_49fb;
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
/// QEMU's limits.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const MOST_L1_BYTES: u64 = 32 << 20;
const MOST_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MOST_SNAPSHOTS: u32 = 65536;
const MOST_REFCOUNT_ORDER: u32 = 6;
const MOST_BACKING_NAME: usize = 1023;

const DIRTY: u32 = 0;
const CORRUPT: u32 = 1;
const DATA_FILE: u32 = 2;
const COMPRESSION_TYPE: u32 = 3;
const EXTENDED_L2: u32 = 4;
const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
const EXT_DATA_FILE: u32 = 0x4441_5441;
const FEATURE_NAME_ENTRY: usize = 48;

/// What an image says of itself, as far as it is needed to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// What shows through where nothing is allocated.
    pub backing: Option<Backing>,
    /// Guest data lies in a file of its own.
    pub data_file: Option<DataFile>,
    /// Persistent dirty bitmaps are there and consistent; whoever writes without keeping them
    /// makes them inconsistent.
    pub has_bitmaps: bool,
}

/// Where an image's uppermost tables lie, in bytes of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The active L1 table.
    pub l1: Range<u64>,
    /// The refcount table.
    pub refcounts: Range<u64>,
}

impl Tables {
    /// As a header says that begins with `start`. `None`: it does not, or they cannot be there.
    pub(crate) fn read(start: &[u8]) -> Option<Tables> {
        let bytes = Bytes(start);
        let table = |offset: u64, len: u64| Some(offset..offset.checked_add(len)?);
        let refcount_clusters = u64::from(bytes.u32(56)?);
        let cluster_size = 1u64.checked_shl(bytes.u32(20)?)?;
        Some(Tables {
            l1: table(bytes.u64(40)?, u64::from(bytes.u32(36)?) * 8)?,
            refcounts: table(bytes.u64(48)?, refcount_clusters.checked_mul(cluster_size)?)?,
        })
    }
}

/// The image beneath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// As written in the image; relative to the image's directory.
    pub name: String,
    /// `raw`, `qcow2` or another of QEMU's names.
    pub format: Option<String>,
}

/// An external data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// As written in the image; relative to the image's directory.
    pub name: Option<String>,
    /// It is the disk's bytes, readable without the image. A format driver that writes without
    /// keeping that up clears the promise.
    pub is_raw: bool,
}

impl Header {
    /// Reads the header of a file of `file_size` bytes that begins with `start`.
    pub fn parse(start: &[u8], file_size: u64) -> Result<Header, Refusal> {
        let start = &start[..start.len().min(LOOKED_AT)];
        let bytes = Bytes(start);
        if bytes.u32(0) != Some(MAGIC) {
            return Err(Refusal::NotQcow2);
        }
        let version = bytes.need_u32(4)?;
        let length = match version {
            2 => V2_LENGTH,
            3 => bytes.need_u32(100)? as usize,
            other => return Err(Refusal::Version(other)),
        };
        if version == 3 && (length < V3_LENGTH || !length.is_multiple_of(8)) {
            return Err(Refusal::Malformed("header length"));
        }
        match bytes.need_u32(32)? {
            0 => {}
            method => return Err(Refusal::Encrypted(method)),
        }
        let cluster_bits = bytes.need_u32(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Refusal::Malformed("cluster size"));
        }
        let cluster_size = 1u64 << cluster_bits;
        // What the specification keeps in the first cluster.
        let first = Bytes(&start[..start.len().min(cluster_size as usize)]);
        let features = match version {
            2 => Features::default(),
            _ => Features {
                incompatible: bytes.need_u64(72)?,
                autoclear: bytes.need_u64(88)?,
            },
        };
        let extensions = Extensions::parse(first, length)?;
        features.check(&extensions)?;
        let header = Header {
            version,
            size: bytes.need_u64(24)?,
            cluster_size,
            backing: backing(first, extensions.backing_format)?,
            data_file: features.has(DATA_FILE).then_some(DataFile {
                name: extensions.data_file,
                is_raw: features.autoclear & AUTOCLEAR_RAW_DATA != 0,
            }),
            has_bitmaps: features.autoclear & AUTOCLEAR_BITMAPS != 0,
        };
        header.check_tables(bytes, file_size)?;
        Ok(header)
    }

    /// The tables are where they can be, and no longer than the disk needs.
    fn check_tables(&self, bytes: Bytes<'_>, file_size: u64) -> Result<(), Refusal> {
        if self.size == 0 || !self.size.is_multiple_of(512) || self.size > 1 << 62 {
            return Err(Refusal::Size(self.size));
        }
        let l1_bytes = u64::from(bytes.need_u32(36)?) * 8;
        if l1_bytes > MOST_L1_BYTES {
            return Err(Refusal::Malformed("length of the L1 table"));
        }
        // One L1 entry names a cluster of L2 entries of 8 bytes.
        let per_entry = u128::from(self.cluster_size / 8) * u128::from(self.cluster_size);
        if u128::from(l1_bytes / 8) * per_entry < u128::from(self.size) {
            return Err(Refusal::Malformed("L1 table, shorter than the disk"));
        }
        let refcount_bytes = u64::from(bytes.need_u32(56)?)
            .checked_mul(self.cluster_size)
            .filter(|&len| len > 0 && len <= MOST_REFCOUNT_TABLE_BYTES)
            .ok_or(Refusal::Malformed("length of the refcount table"))?;
        let tables = [
            ("place of the L1 table", bytes.need_u64(40)?, l1_bytes),
            (
                "place of the refcount table",
                bytes.need_u64(48)?,
                refcount_bytes,
            ),
        ];
        for (what, offset, len) in tables {
            let is_whole = offset.is_multiple_of(self.cluster_size) && offset >= self.cluster_size;
            // The last table of a file need not be filled up to a whole cluster.
            let end = offset.checked_add(len);
            let room = file_size.checked_next_multiple_of(self.cluster_size);
            if !is_whole || end.is_none() || end > room {
                return Err(Refusal::Malformed(what));
            }
        }
        if bytes.need_u32(60)? > MOST_SNAPSHOTS {
            return Err(Refusal::Malformed("number of snapshots"));
        }
        if self.version == 3 && bytes.need_u32(96)? > MOST_REFCOUNT_ORDER {
            return Err(Refusal::Malformed("refcount width"));
        }
        if self.data_file.as_ref().is_some_and(|data| data.is_raw) && self.backing.is_some() {
            return Err(Refusal::Malformed("raw data file, beside a backing file"));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Features {
    incompatible: u64,
    autoclear: u64,
}

impl Features {
    fn has(&self, bit: u32) -> bool {
        self.incompatible & (1 << bit) != 0
    }

    /// Refuses what the format driver does not know, by name.
    fn check(&self, extensions: &Extensions) -> Result<(), Refusal> {
        let known = [
            (CORRUPT, Refusal::Corrupt),
            (DIRTY, Refusal::Dirty),
            (COMPRESSION_TYPE, Refusal::CompressionType),
            (EXTENDED_L2, Refusal::ExtendedL2),
        ];
        for (bit, refusal) in known {
            if self.has(bit) {
                return Err(refusal);
            }
        }
        match (EXTENDED_L2 + 1..64).find(|&bit| self.has(bit)) {
            Some(bit) => Err(Refusal::Feature {
                bit,
                name: extensions.feature_name(bit),
            }),
            None => Ok(()),
        }
    }
}

/// What the header extensions say.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    /// Bit and name of incompatible features.
    names: Vec<(u8, String)>,
}

impl Extensions {
    fn parse(first: Bytes<'_>, mut at: usize) -> Result<Extensions, Refusal> {
        let malformed = Refusal::Malformed("header extension");
        let mut all = Extensions::default();
        // Each takes at least 8 of the bytes there are.
        loop {
            // Images of version 2 may end with the header.
            let (Some(kind), Some(length)) = (first.u32(at), first.u32(at + 4)) else {
                return Ok(all);
            };
            if kind == EXT_END {
                return Ok(all);
            }
            at += 8;
            let data = first
                .part(at, length as usize)
                .ok_or_else(|| malformed.clone())?;
            match kind {
                EXT_BACKING_FORMAT => all.backing_format = Some(text(data, "backing format")?),
                EXT_DATA_FILE => all.data_file = Some(text(data, "name of the data file")?),
                EXT_FEATURE_NAMES => all.names = feature_names(data),
                _ => {}
            }
            at += data.len().next_multiple_of(8);
        }
    }

    fn feature_name(&self, bit: u32) -> String {
        let found = self
            .names
            .iter()
            .find(|(named, _)| u32::from(*named) == bit);
        found.map_or_else(|| "unknown".to_owned(), |(_, name)| name.clone())
    }
}

/// The names of incompatible features in a feature name table; made printable.
fn feature_names(table: &[u8]) -> Vec<(u8, String)> {
    let entries = table.chunks_exact(FEATURE_NAME_ENTRY);
    entries
        .filter(|entry| entry[0] == 0)
        .take(64)
        .map(|entry| {
            let name = entry[2..].iter().take_while(|&&byte| byte != 0);
            let printable = name.map(|&byte| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '?',
            });
            (entry[1], printable.collect())
        })
        .collect()
}

fn backing(first: Bytes<'_>, format: Option<String>) -> Result<Option<Backing>, Refusal> {
    let malformed = Refusal::Malformed("name of the backing file");
    let (offset, length) = (first.need_u64(8)?, first.need_u32(16)? as usize);
    if offset == 0 {
        return Ok(None);
    }
    let offset = usize::try_from(offset).map_err(|_| malformed.clone())?;
    let name = first.part(offset, length);
    let name = name.filter(|name| (1..=MOST_BACKING_NAME).contains(&name.len()));
    let name = text(name.ok_or(malformed)?, "name of the backing file")?;
    Ok(Some(Backing { name, format }))
}

/// A name: text without control characters.
fn text(bytes: &[u8], what: &'static str) -> Result<String, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed(what))?;
    match text.chars().any(char::is_control) {
        true => Err(Refusal::Malformed(what)),
        false => Ok(text.to_owned()),
    }
}

/// Big-endian fields of bytes whose end is not known to be far enough.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn part(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }

    fn u32(self, at: usize) -> Option<u32> {
        let bytes = self.part(at, 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    fn need_u32(self, at: usize) -> Result<u32, Refusal> {
        self.u32(at).ok_or(Refusal::Short)
    }

    fn u64(self, at: usize) -> Option<u64> {
        let bytes = self.part(at, 8)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    }

    fn need_u64(self, at: usize) -> Result<u64, Refusal> {
        self.u64(at).ok_or(Refusal::Short)
    }
}
