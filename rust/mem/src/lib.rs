//! Guest memory as a VDUSE device sees it: regions mapped from fds, and the IOTLB that
//! finds them by I/O virtual address.

mod iotlb;
mod log;
mod piece;
mod published;
mod region;
mod sigbus;
mod slot;
mod sync;
mod table;
mod units;
mod view;

pub use iotlb::{Backing, Entry, Fault, Iotlb, Resolver};
pub use log::DirtyLog;
pub use piece::{Piece, Pieces, Pinned};
pub use region::Region;
pub use units::{Access, Iova, Perm};
pub use view::{Pin, View};
