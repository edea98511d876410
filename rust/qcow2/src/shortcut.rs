//! The shortcut of one virtqueue: what lies in a file as it is goes straight between guest memory
//! and that file's engine, on the queue's own worker. The image's task has the rest: what has to be
//! allocated, what is compressed, tables that are not in memory.

use crate::files::FileId;
use crate::glance::at_once;
use crate::image::{Image, Reading};
use crate::storage::FileStorage;
use imago::Mapping;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;
use vduse_device::backend::{Completion, Engine, Op, Submitted, Token};
use vduse_device::{Buffer, Extent, Offset};

/// What is where in a file.
struct Found {
    file: FileId,
    offset: u64,
}

enum Answer {
    InFile(Found),
    Zeroes,
}

/// An operation at a file's engine. The image is not changed below it while this lives.
struct Running {
    file: FileId,
    _reading: Reading,
}

/// See above.
pub(crate) struct Shortcut {
    image: Arc<Image>,
    /// By [`FileId`]; `None`: not to be used from here.
    engines: Vec<Option<Box<dyn Engine>>>,
    /// Reads may be answered at once.
    is_direct: bool,
    running: HashMap<Token, Running>,
}

impl Shortcut {
    pub(crate) fn new(
        image: Arc<Image>,
        engines: Vec<Option<Box<dyn Engine>>>,
        is_direct: bool,
    ) -> Shortcut {
        Shortcut {
            image,
            engines,
            is_direct,
            running: HashMap::new(),
        }
    }

    /// Takes an operation, or gives it back.
    pub(crate) fn submit(&mut self, token: Token, op: Op) -> Result<Submitted, Op> {
        let (extent, is_write) = match &op {
            Op::Read { extent, .. } => (*extent, false),
            Op::Write { extent, .. } => (*extent, true),
            _ => return Err(op),
        };
        let Some(reading) = self.image.try_read() else {
            return Err(op);
        };
        let found = match find(&reading, extent, is_write) {
            Some(Answer::InFile(found)) => found,
            Some(Answer::Zeroes) if self.is_direct => {
                if let Op::Read { buffer, .. } = &op {
                    zero(buffer);
                }
                return Ok(Submitted::Done(Ok(())));
            }
            _ => return Err(op),
        };
        let Some(Some(engine)) = self.engines.get_mut(found.file.0) else {
            return Err(op);
        };
        let Some(extent) = Extent::new(Offset(found.offset), extent.len()) else {
            return Err(op);
        };
        let op = match op {
            Op::Read { buffer, .. } => Op::Read { extent, buffer },
            Op::Write { buffer, .. } => Op::Write { extent, buffer },
            other => return Err(other),
        };
        let submitted = engine.submit(token, op);
        if submitted == Submitted::Pending {
            let file = found.file;
            let running = Running {
                file,
                _reading: reading,
            };
            self.running.insert(token, running);
        }
        Ok(submitted)
    }

    pub(crate) fn flush(&mut self) {
        self.each(|engine| engine.flush());
    }

    pub(crate) fn cancel(&mut self, token: Token) {
        self.each(|engine| engine.cancel(token));
    }

    /// Whether the completion was of an operation from here.
    pub(crate) fn completed(&mut self, completion: &mut Completion) -> bool {
        let Some(running) = self.running.remove(&completion.token) else {
            return false;
        };
        if let Some(Some(engine)) = self.engines.get_mut(running.file.0) {
            engine.completed(completion);
        }
        true
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let engines = self.engines.iter().flatten();
        engines.filter_map(|engine| engine.deadline()).min()
    }

    pub(crate) fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        let known = ended.len();
        self.each(|engine| engine.expire(now, ended));
        for completion in &mut ended[known..] {
            self.completed(completion);
        }
    }

    fn each(&mut self, mut call: impl FnMut(&mut dyn Engine)) {
        for engine in self.engines.iter_mut().flatten() {
            call(&mut **engine);
        }
    }
}

/// Where all of the range is, if that is known without waiting. It may be read there, or written if
/// `is_write`.
fn find(reading: &Reading, extent: Extent, is_write: bool) -> Option<Answer> {
    let len = extent.len().0;
    let look = || at_once(reading.get_mapping(extent.offset().0, len));
    // A mistake of the format driver's is the task's to meet: it ends the image's service.
    let (mapping, mapped) = catch_unwind(AssertUnwindSafe(look)).ok()??.ok()?;
    if mapped < len || len == 0 {
        return None;
    }
    match mapping {
        Mapping::Raw {
            storage,
            offset,
            writable,
            ..
        } if writable || !is_write => in_file(storage, offset, len, is_write),
        Mapping::Zero { .. } if !is_write => Some(Answer::Zeroes),
        _ => None,
    }
}

fn in_file(storage: &FileStorage, offset: u64, len: u64, is_write: bool) -> Option<Answer> {
    // Past its end a file reads as zeroes, which engines do not know, and is made longer by who
    // keeps account of its length.
    let extent = storage.within(offset, len)?;
    if is_write {
        storage.touch(extent);
    }
    Some(Answer::InFile(Found {
        file: storage.id(),
        offset,
    }))
}

fn zero(buffer: &Buffer) {
    let zeroes = [0; 4096];
    let mut at = 0;
    while at < buffer.len() {
        let len = zeroes.len().min((buffer.len() - at) as usize);
        buffer.write_at(at, &zeroes[..len]);
        at += len as u64;
    }
}
