//! Why an image is not opened, and what to do about it.

/// Why an image is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No magic.
    #[error("no qcow2 image")]
    NotQcow2,
    /// It ends within its header.
    #[error("a qcow2 image cut short: its header is not whole")]
    Short,
    /// Neither 2 nor 3.
    #[error("qcow2 of version {0}: versions 2 and 3 are known")]
    Version(u32),
    /// By this method (1: AES, 2: LUKS).
    #[error(
        "encrypted ({}): not supported; decrypt it: qemu-img convert",
        match .0 { 1 => "AES", 2 => "LUKS", _ => "an unknown method" }
    )]
    Encrypted(u32),
    /// Refcounts may be wrong.
    #[error("marked dirty: lazy refcounts were not written back; repair it: qemu-img check -r all")]
    Dirty,
    /// Anything may be wrong.
    #[error("marked corrupt; repair it: qemu-img check -r all")]
    Corrupt,
    /// Compressed otherwise than by zlib.
    #[error(
        "compression type other than zlib: not supported; convert it: qemu-img convert -O qcow2"
    )]
    CompressionType,
    /// Subclusters.
    #[error(
        "extended L2 entries: not supported; convert it: qemu-img convert -O qcow2 -o extended_l2=off"
    )]
    ExtendedL2,
    /// A feature bit that nobody may ignore.
    #[error("incompatible feature bit {bit} ({name}): not supported")]
    Feature {
        /// Which, from 0.
        bit: u32,
        /// As the image calls it.
        name: String,
    },
    /// No disk has this size, in bytes.
    #[error("a disk of {0} bytes: the size must be a multiple of 512, not 0, and at most 2^62")]
    Size(u64),
    /// What makes no sense.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}
