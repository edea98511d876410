//! The first bytes of a backend, read by a task that ends with it.

use crate::files::{Ask, Asked, FileId, Files};
use imago::io_buffers::IoBuffer;
use rustix::io::Errno;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use vduse_device::backend::{Backend, Engine, Error, Lane};
use vduse_device::{Extent, Length, Offset};
use vduse_worker::{Next, Place, Task, Turn, Workers};

const URING: u64 = 0;
/// As of O_DIRECT.
const MEMORY_ALIGNMENT: usize = 4096;
/// Pause before what the kernel refused for want of memory is tried again.
const RETRY: Duration = Duration::from_millis(1);

type Answer = Result<Vec<u8>, Error>;

/// The first `most` bytes, or all of a shorter one, waiting for them. Not to be called from a
/// worker.
pub(crate) fn read(file: &Arc<dyn Backend>, most: u64, workers: &Workers) -> Answer {
    let len = file.length().0.min(most);
    let (reply, replied) = sync_channel(1);
    let file = file.clone();
    workers.spawn(0, move |place| {
        match Start::begin(&place, &*file, len, reply.clone()) {
            Ok(task) => Some(Box::new(task)),
            Err(error) => {
                let _ = reply.send(Err(error));
                None
            }
        }
    });
    let ended = || Error::new(Errno::CANCELED, "the workers have ended");
    replied.recv().unwrap_or_else(|_| Err(ended()))
}

struct Start {
    lane: Lane,
    engines: Vec<Box<dyn Engine>>,
    files: Arc<Files>,
    asked: Asked,
    has_to_retry: bool,
    /// `None` once it was answered.
    reply: Option<SyncSender<Answer>>,
}

impl Start {
    fn begin(
        place: &Place,
        file: &dyn Backend,
        len: u64,
        reply: SyncSender<Answer>,
    ) -> Result<Start, Error> {
        let mut lane = Lane::new(place);
        let engines = vec![file.attach(lane.local())?];
        lane.watch(place, URING)?;
        let files = Arc::new(Files::default());
        let extent = Extent::new(Offset(0), Length(len)).ok_or(Errno::FBIG)?;
        let memory = IoBuffer::new(len as usize, MEMORY_ALIGNMENT).map_err(|_| Errno::NOMEM)?;
        let asked = files.ask(FileId(0), Ask::Read(extent, memory));
        Ok(Start {
            lane,
            engines,
            files,
            asked,
            has_to_retry: false,
            reply: Some(reply),
        })
    }
}

impl Task for Start {
    fn event(&mut self, _key: u64) {}

    fn run(&mut self) -> Turn {
        let mut worked = self.files.submit(&mut self.engines);
        worked |= self.files.expire(&mut self.engines);
        let mut completions = Vec::new();
        self.has_to_retry = self.lane.collect(&mut completions);
        for completion in completions {
            worked = true;
            self.files.complete(&mut self.engines, completion);
        }
        let mut context = Context::from_waker(Waker::noop());
        if self.reply.is_some()
            && let Poll::Ready(result) = Pin::new(&mut self.asked).poll(&mut context)
        {
            let read = result.and_then(|memory| memory.ok_or(Errno::IO));
            let bytes = read.map(|memory| memory.as_ref().into_slice().to_vec());
            let bytes = bytes.map_err(|errno| Error::failed("cannot read", errno));
            if let Some(reply) = self.reply.take() {
                let _ = reply.send(bytes);
            }
        }
        match worked {
            true => Turn::Worked,
            false => Turn::Idle,
        }
    }

    fn arm(&mut self) -> Next {
        if self.lane.has_news() {
            return Next::Now;
        }
        let retry = self.has_to_retry.then(|| Instant::now() + RETRY);
        let deadline = Files::deadline(&self.engines);
        match retry.into_iter().chain(deadline).min() {
            Some(when) => Next::At(when),
            None => Next::Event,
        }
    }

    fn needs_events(&self) -> bool {
        false
    }

    fn is_over(&self) -> bool {
        self.reply.is_none()
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.files.close();
    }
}
