//! A part of a backend as a disk: QEMU's driver `raw` with `offset` and `size`.

use crate::backend::{
    Backend, Completion, Connection, Engine, Error, Info, Local, Notice, Observer, Observers, Op,
    StatusRequest, Submitted, Token, check, disk_size,
};
use crate::{Extent, Length, Offset};
use rustix::io::Errno;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A range of the backend beneath, which keeps its size whatever becomes of that. Others may use
/// that, too, so closing the window does not close it.
pub struct Window {
    below: Arc<dyn Backend>,
    range: Extent,
    filter: Arc<Filter>,
}

impl Window {
    /// The bytes of `below` from `offset` on: `size` of them, or all there
    /// are now. EINVAL: not within it, or not of whole blocks.
    pub fn new(
        below: Arc<dyn Backend>,
        offset: Offset,
        size: Option<Length>,
    ) -> Result<Window, Error> {
        let info = below.info();
        let invalid = |message| Error::new(Errno::INVAL, message);
        let block = u64::from(info.block_size);
        if !offset.0.is_multiple_of(block) {
            let message = format!("an offset of {} bytes: no multiple of {block}", offset.0);
            return Err(invalid(message));
        }
        let rest = Length(info.size.0.saturating_sub(offset.0));
        let size = disk_size(size.unwrap_or(rest).0)?;
        if !size.0.is_multiple_of(block) {
            let message = format!("a size of {} bytes: no multiple of {block}", size.0);
            return Err(invalid(message));
        }
        let range = Extent::new(offset, size).filter(|range| range.within(info.size));
        let range = range.ok_or_else(|| {
            invalid(format!(
                "{} bytes from {} on do not lie within the {} there are",
                size.0, offset.0, info.size.0
            ))
        })?;
        Ok(Window {
            filter: Filter::on(&*below),
            below,
            range,
        })
    }
}

/// Lets changes of the connection through: the size beneath is not that of the disk above.
#[derive(Default)]
pub struct Filter(Observers);

impl Filter {
    /// Between `below` and those who observe what stands on it.
    pub fn on(below: &dyn Backend) -> Arc<Filter> {
        let filter = Arc::new(Filter::default());
        let told: Weak<dyn Observer> = Arc::downgrade(&(filter.clone() as Arc<dyn Observer>));
        below.observe(told);
        filter
    }

    /// Of those.
    pub fn observers(&self) -> &Observers {
        &self.0
    }
}

impl Observer for Filter {
    fn notice(&self, notice: &Notice) {
        if let Notice::Connection(_) = notice {
            self.0.tell(notice);
        }
    }
}

impl Backend for Window {
    fn info(&self) -> Info {
        Info {
            size: self.range.len(),
            ..self.below.info()
        }
    }

    fn engine_name(&self) -> &'static str {
        self.below.engine_name()
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(WindowEngine {
            engine: self.below.attach(local)?,
            below: self.below.clone(),
            offset: self.range.offset(),
        }))
    }

    fn flush(&self) -> Result<(), Error> {
        self.below.flush()
    }

    fn overlay_allocated(&self) -> u64 {
        self.below.overlay_allocated()
    }

    fn block_status(&self, request: StatusRequest) {
        match moved(request.extent(), self.range.offset()) {
            Ok(extent) => {
                let most = request.most();
                let below = StatusRequest::new(extent, most, |answer| request.answer(answer));
                self.below.block_status(below);
            }
            Err(errno) => request.refuse(errno),
        }
    }

    fn connection(&self) -> Connection {
        self.below.connection()
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.filter.0.add(observer);
    }
}

/// Where a range of the window lies beneath.
fn moved(extent: Extent, by: Offset) -> Result<Extent, Errno> {
    let offset = by.0.checked_add(extent.offset().0);
    let moved = offset.and_then(|offset| Extent::new(Offset(offset), extent.len()));
    moved.ok_or(Errno::NOSPC)
}

struct WindowEngine {
    engine: Box<dyn Engine>,
    below: Arc<dyn Backend>,
    offset: Offset,
}

impl WindowEngine {
    fn shift(&self, op: Op) -> Result<Op, Errno> {
        let op = match op {
            Op::Read { extent, buffer } => Op::Read {
                extent: moved(extent, self.offset)?,
                buffer,
            },
            Op::Write { extent, buffer } => Op::Write {
                extent: moved(extent, self.offset)?,
                buffer,
            },
            Op::Flush => Op::Flush,
            Op::Discard { extent } => Op::Discard {
                extent: moved(extent, self.offset)?,
            },
            Op::WriteZeroes { extent, may_unmap } => Op::WriteZeroes {
                extent: moved(extent, self.offset)?,
                may_unmap,
            },
        };
        // What lies beneath may have shrunk since.
        check(&self.below.info(), &op)?;
        Ok(op)
    }
}

impl Engine for WindowEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        match self.shift(op) {
            Ok(op) => self.engine.submit(token, op),
            Err(errno) => Submitted::Done(Err(errno)),
        }
    }

    fn flush(&mut self) {
        self.engine.flush();
    }

    fn cancel(&mut self, token: Token) {
        self.engine.cancel(token);
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.engine.completed(completion);
    }

    fn deadline(&self) -> Option<Instant> {
        self.engine.deadline()
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        self.engine.expire(now, ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Memory, Piece};
    use crate::testing::{buffer, status_of};

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(Offset(offset), Length(len)).unwrap()
    }

    fn memory() -> Arc<dyn Backend> {
        Arc::new(Memory::new(8192).unwrap())
    }

    fn local() -> Local {
        let mailbox = crate::mailbox::Mailbox::new();
        Local {
            spawner: Default::default(),
            completer: crate::Completer::new(mailbox),
            uring: Default::default(),
        }
    }

    #[test]
    fn its_bytes_are_those_beneath_from_the_offset_on() {
        let below = memory();
        let window = Window::new(below.clone(), Offset(1024), Some(Length(2048))).unwrap();
        assert_eq!(window.info().size, Length(2048));
        let mut engine = window.attach(&local()).unwrap();
        let mut bytes = vec![7; 512];
        let write = Op::Write {
            extent: extent(512, 512),
            // SAFETY: the backend in memory is done when `submit` is.
            buffer: unsafe { buffer(&mut bytes, &[]) },
        };
        assert_eq!(engine.submit(Token(0), write), Submitted::Done(Ok(())));
        let mut all = vec![0; 8192];
        let read = Op::Read {
            extent: extent(0, 8192),
            // SAFETY: as above.
            buffer: unsafe { buffer(&mut all, &[]) },
        };
        let mut beneath = below.attach(&local()).unwrap();
        assert_eq!(beneath.submit(Token(0), read), Submitted::Done(Ok(())));
        let mut expected = vec![0; 8192];
        expected[1536..2048].fill(7);
        assert!(all == expected);
    }

    #[test]
    fn it_tells_what_lies_beneath_from_the_offset_on() {
        let below = memory();
        let mut bytes = vec![7; 512];
        let write = Op::Write {
            extent: extent(4096, 512),
            // SAFETY: the backend in memory is done when `submit` is.
            buffer: unsafe { buffer(&mut bytes, &[]) },
        };
        let mut engine = below.attach(&local()).unwrap();
        assert_eq!(engine.submit(Token(0), write), Submitted::Done(Ok(())));
        let window = Window::new(below, Offset(1024), Some(Length(6144))).unwrap();
        let (data, hole) = (Piece::data, Piece::hole);
        let all = [hole(Length(3072)), data(Length(3072))];
        assert_eq!(status_of(&window, extent(0, 6144), 9), Ok(all.to_vec()));
        let one = [hole(Length(1024))];
        assert_eq!(status_of(&window, extent(2048, 2048), 1), Ok(one.to_vec()));
    }

    #[test]
    fn without_a_size_it_is_all_the_rest() {
        let window = Window::new(memory(), Offset(512), None).unwrap();
        assert_eq!(window.info().size, Length(7680));
    }

    #[test]
    fn what_does_not_lie_within_is_refused() {
        let refused = |offset, size| {
            let window = Window::new(memory(), Offset(offset), size);
            window.err().unwrap().message
        };
        assert_eq!(
            refused(8192 - 512, Some(Length(1024))),
            "1024 bytes from 7680 on do not lie within the 8192 there are"
        );
        assert_eq!(
            refused(u64::MAX - 511, Some(Length(512))),
            "512 bytes from 18446744073709551104 on do not lie within the 8192 there are"
        );
        assert_eq!(
            refused(100, None),
            "an offset of 100 bytes: no multiple of 512"
        );
        let empty = "a disk of 0 bytes: the size must be a multiple of 512 and not 0";
        assert_eq!(refused(8192, None), empty);
    }
}
