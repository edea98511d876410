//! Guest memory as a VDUSE device sees it: regions mapped from fds, and the IOTLB that
//! finds them by I/O virtual address.

mod iotlb;
mod region;
mod sigbus;
mod units;

pub use iotlb::{Entry, Fault, Iotlb, Piece, Pieces, Pin, Pinned, Resolver, View};
pub use region::Region;
pub use units::{Access, Iova, Perm};
