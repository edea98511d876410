//! Layer `read-only`: whoever asks for a change hears EROFS.

use super::Layer;
use crate::backend::{Engine, Info, Local};

/// Makes a disk read-only. The refusal itself is that of [`check`](crate::backend::check).
pub struct ReadOnly;

impl Layer for ReadOnly {
    fn info(&self, below: Info) -> Info {
        Info {
            read_only: true,
            can_discard: false,
            ..below
        }
    }

    fn wrap(&self, below: Box<dyn Engine>, _local: &Local) -> Box<dyn Engine> {
        below
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Memory, Op, check};
    use crate::layers::Layered;
    use crate::layers::testing::extent;
    use rustix::io::Errno;
    use std::sync::Arc;

    #[test]
    fn changes_are_refused_and_nothing_else() {
        let memory = Arc::new(Memory::new(4096).unwrap());
        let info = Layered::new(memory, ReadOnly).info();
        let extent = extent(0, 512);
        let zeroes = Op::WriteZeroes {
            extent,
            may_unmap: false,
        };
        assert_eq!(check(&info, &Op::Discard { extent }), Err(Errno::ROFS));
        assert_eq!(check(&info, &zeroes), Err(Errno::ROFS));
        assert_eq!(check(&info, &Op::Flush), Ok(()));
        assert_eq!(info.size.0, 4096);
        assert!(!info.can_discard);
    }
}
