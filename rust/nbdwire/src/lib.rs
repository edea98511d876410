//! NBD's transmission phase on the wire (NBD protocol document, "Transmission phase"), for both
//! sides; without I/O. All numbers are big-endian.

mod numbers;
mod reply;
mod request;

pub use numbers::{Error, allocation, chunk, command, flag};
pub use reply::{Chunk, Head, ReplyHeader, Simple};
pub use request::{BadMagic, Header};

/// `offset + N` is within `bytes`.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}
