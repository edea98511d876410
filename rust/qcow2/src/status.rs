//! What lies where in an image: what its tables say, and those of the images beneath.

use crate::storage::FileStorage;
use imago::{FormatAccess, Mapping};
use rustix::io::Errno;
use vduse_device::backend::Piece;
use vduse_device::{Extent, Length, SECTOR_SIZE};

/// Clusters that are looked at for one answer.
const MOST_CLUSTERS: u64 = 4096;
/// Clusters without anything that count as one: tables that are not there cost nothing.
const EMPTY_AT_ONCE: u64 = 64;

/// The pieces of a range from its beginning on. The last may end before the range does.
pub(crate) async fn pieces(
    access: &FormatAccess<FileStorage>,
    extent: Extent,
    cluster_size: u64,
) -> Result<Vec<Piece>, Errno> {
    let mut pieces = Vec::new();
    let (mut at, mut looked_at) = (extent.offset().0, 0);
    while at < extent.end().0 && looked_at < MOST_CLUSTERS {
        let len = (extent.end().0 - at).min(MOST_CLUSTERS * cluster_size);
        let (mapping, len) = access.get_mapping(at, len).await.map_err(|_| Errno::IO)?;
        let clusters = len / cluster_size;
        let (piece, cost): (fn(Length) -> Piece, _) = match mapping {
            // Where room is kept for them, too: QEMU calls these holes as well.
            Mapping::Zero { explicit: true, .. } => (Piece::hole, clusters),
            Mapping::Zero {
                explicit: false, ..
            } => (Piece::hole, clusters / EMPTY_AT_ONCE),
            Mapping::Eof { .. } => break,
            _ => (Piece::data, clusters),
        };
        // The sector in which a file beneath ends is data.
        let piece = match len - len % SECTOR_SIZE {
            0 => Piece::data(Length(SECTOR_SIZE)),
            whole => piece(Length(whole)),
        };
        pieces.push(piece);
        at += piece.len.0;
        looked_at += cost + 1;
    }
    Ok(pieces)
}
