//! An engine that does what a test says, and the worker's part around a layer.

use super::{Layer, Layered};
use crate::backend::{Backend, Completion, Engine, Error, Info, Kind, Local, Op, Submitted, Token};
use crate::mailbox::{Completer, Mailbox};
use crate::{Extent, Length, Offset};
use rustix::io::Errno;
use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub(crate) fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(Offset(offset), Length(len)).unwrap()
}

/// What reached the engine, in words.
type Log = Arc<Mutex<Vec<String>>>;

/// A backend of 1 MiB that notes what it is asked and leaves everything pending.
pub(super) struct Slow {
    pub(super) log: Log,
    pub(super) kind: Kind,
}

impl Backend for Slow {
    fn info(&self) -> Info {
        Info {
            size: Length(1 << 20),
            block_size: 512,
            read_only: false,
            can_discard: true,
            kind: self.kind,
        }
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(SlowEngine(self.log.clone())))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct SlowEngine(Log);

impl SlowEngine {
    fn note(&self, words: String) {
        self.0.lock().unwrap().push(words);
    }
}

impl Engine for SlowEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let words = match &op {
            Op::Flush => "flush".into(),
            Op::Read { extent, .. } => format!("read {}", extent.offset().0),
            Op::Write { extent, .. } => format!("write {}", extent.offset().0),
            Op::Discard { extent } => format!("discard {}", extent.offset().0),
            Op::WriteZeroes { extent, .. } => format!("write_zeroes {}", extent.offset().0),
        };
        self.note(format!("{} {words}", token.0));
        Submitted::Pending
    }

    fn flush(&mut self) {
        self.note("end of batch".into());
    }

    fn cancel(&mut self, token: Token) {
        self.note(format!("cancel {}", token.0));
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.note(format!("completed {}", completion.token.0));
    }
}

/// A layer on a [`Slow`] backend.
pub(super) struct Bench {
    pub(super) engine: Box<dyn Engine>,
    pub(super) local: Local,
    log: Log,
}

impl Bench {
    pub(super) fn new(layer: impl Layer, kind: Kind) -> Bench {
        let log = Log::default();
        let slow = Slow {
            log: log.clone(),
            kind,
        };
        Bench {
            log,
            ..Bench::on(Arc::new(slow), layer)
        }
    }

    /// A layer on another backend.
    pub(super) fn on(below: Arc<dyn Backend>, layer: impl Layer) -> Bench {
        let local = Local {
            spawner: Default::default(),
            completer: Completer::new(Mailbox::new()),
            uring: RefCell::new(None),
        };
        Bench {
            engine: Layered::new(below, layer).attach(&local).unwrap(),
            local,
            log: Log::default(),
        }
    }

    /// What has reached the engine beneath since the last call.
    pub(super) fn reached(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// What ends at `now`: tokens and results.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(u64, Result<(), Errno>)> {
        let mut ended = Vec::new();
        self.engine.expire(now, &mut ended);
        let ends = ended.into_iter();
        ends.map(|end| (end.token.0, end.result)).collect()
    }
}
