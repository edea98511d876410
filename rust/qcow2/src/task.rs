//! The task that serves one image: it takes letters, polls their futures, and moves what those ask
//! of files to the engines and back. All of an image runs on one worker: its metadata is behind
//! locks anyway.

use crate::chain::Link;
use crate::door::{Door, Job, Letter, Reply, complete};
use crate::executor::{Executor, Panicked};
use crate::files::Files;
use crate::image::{self, Image, Nature};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use vduse_device::Completer;
use vduse_device::backend::{Completion, Engine, Error, Lane, StatusRequest, Token};
use vduse_worker::{Next, Place, Task, Turn};

/// Requests under way at once. Each may hold one of the 128 L2 tables that imago keeps, which
/// fails where all of them are held.
const MOST_RUNNING: usize = 64;
/// Times that a turn goes from futures to files and back before others have theirs.
const ROUNDS: usize = 4;
/// Pause before what the kernel refused for want of memory is tried again.
const RETRY: Duration = Duration::from_millis(1);
const URING: u64 = 0;

/// What the image's opening brings: the disk's size in bytes.
pub(crate) type Opening = SyncSender<Result<u64, Error>>;

/// Who waits for a future.
enum Owner {
    Opener(Opening),
    /// Token, and where its completion goes.
    Queue(Token, Completer),
    Caller(Reply),
    /// It answers by itself.
    Asker,
    /// The last flush.
    Closer,
}

/// What a future brings.
enum End {
    Opened(Box<Image>),
    Done(Option<Vec<u8>>),
}

type Executed = (Owner, Result<io::Result<End>, Panicked>);

enum State {
    Opening,
    Open(Arc<Image>),
    /// The format driver has made a mistake, or could not open it.
    Broken,
}

pub(crate) struct ImageTask {
    door: Arc<Door>,
    lane: Lane,
    engines: Vec<Box<dyn Engine>>,
    executor: Executor<io::Result<End>, Owner>,
    state: State,
    /// Not begun.
    waiting: VecDeque<Job>,
    /// In order with those that wait: they begin once these have begun.
    callers: VecDeque<Letter>,
    /// One is answered at a time.
    questions: VecDeque<StatusRequest>,
    is_answering: bool,
    closers: Vec<Reply>,
    is_closing: bool,
    /// The last flush is under way or over.
    is_flushed: bool,
    last: Result<(), Error>,
    has_to_retry: bool,
    letters: Vec<Letter>,
    completions: Vec<Completion>,
    ended: Vec<Executed>,
}

impl ImageTask {
    /// On its worker's thread; the answer goes to `opening`. `None`: it could not begin, and
    /// `opening` was told.
    pub(crate) fn begin(
        place: &Place,
        door: Arc<Door>,
        links: &[Link],
        nature: Nature,
        opening: Opening,
    ) -> Option<ImageTask> {
        let mut lane = Lane::new(place);
        let attached = image::attach(links, &door.files, lane.local()).and_then(|attached| {
            lane.watch(place, URING)?;
            Ok(attached)
        });
        let (storages, engines) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                door.close();
                let _ = opening.send(Err(error));
                return None;
            }
        };
        door.set_waker(place.waker());
        let waker = place.waker();
        let mut executor = Executor::new(move || waker.wake());
        executor.spawn(Owner::Opener(opening), async move {
            let image = Image::open(storages, nature).await?;
            Ok(End::Opened(Box::new(image)))
        });
        Some(ImageTask {
            door,
            lane,
            engines,
            executor,
            state: State::Opening,
            waiting: VecDeque::new(),
            callers: VecDeque::new(),
            questions: VecDeque::new(),
            is_answering: false,
            closers: Vec::new(),
            is_closing: false,
            is_flushed: false,
            last: Ok(()),
            has_to_retry: false,
            letters: Vec::new(),
            completions: Vec::new(),
            ended: Vec::new(),
        })
    }

    fn read_letters(&mut self) -> bool {
        let mut letters = std::mem::take(&mut self.letters);
        self.door.take(&mut letters);
        let had_some = !letters.is_empty();
        for letter in letters.drain(..) {
            match letter {
                Letter::Do(job) => self.waiting.push_back(job),
                Letter::Cancel(engine, token) => self.cancel(engine, token),
                Letter::Close(reply) => {
                    self.door.shut();
                    self.is_closing = true;
                    self.closers.extend(reply);
                }
                Letter::Status(request) => self.questions.push_back(request),
                call => self.callers.push_back(call),
            }
        }
        self.letters = letters;
        had_some
    }

    fn cancel(&mut self, engine: u64, token: Token) {
        let all = std::mem::take(&mut self.waiting);
        let is_meant = |job: &Job| job.engine == engine && job.token == token;
        let (these, others): (VecDeque<Job>, _) = all.into_iter().partition(is_meant);
        self.waiting = others;
        these
            .into_iter()
            .for_each(|job| job.end(Err(Errno::CANCELED)));
    }

    /// Begins what waits, as much as may run.
    fn start(&mut self) {
        let image = match &self.state {
            State::Opening => return,
            State::Open(image) => image.clone(),
            State::Broken => return self.refuse_all(),
        };
        while self.executor.len() < MOST_RUNNING
            && let Some(job) = self.waiting.pop_front()
        {
            let image = image.clone();
            let owner = Owner::Queue(job.token, job.completer);
            let work = job.work;
            self.executor
                .spawn(owner, async move { Ok(End::Done(image.run(work).await?)) });
        }
        while let Some(call) = self.callers.pop_front() {
            self.call(call, image.clone());
        }
        if !self.is_answering
            && let Some(request) = self.questions.pop_front()
        {
            self.is_answering = true;
            let image = image.clone();
            self.executor.spawn(Owner::Asker, async move {
                image.status(request).await;
                Ok(End::Done(None))
            });
        }
        let is_idle = self.executor.len() == 0 && self.waiting.is_empty();
        if self.is_closing && is_idle && !std::mem::replace(&mut self.is_flushed, true) {
            self.executor.spawn(Owner::Closer, async move {
                image.flush().await?;
                Ok(End::Done(None))
            });
        }
    }

    fn call(&mut self, call: Letter, image: Arc<Image>) {
        match call {
            Letter::Flush(reply) => self.executor.spawn(Owner::Caller(reply), async move {
                image.flush().await?;
                Ok(End::Done(None))
            }),
            Letter::Resize(size, reply) => self.executor.spawn(Owner::Caller(reply), async move {
                image.resize(size).await?;
                Ok(End::Done(None))
            }),
            Letter::Do(_) | Letter::Cancel(..) | Letter::Status(_) | Letter::Close(_) => {}
        }
    }

    /// Takes what ended; a panic breaks the image.
    fn finish(&mut self, (owner, result): Executed) {
        let is_broken = result.is_err();
        let result = result.unwrap_or_else(|_| Err(Errno::IO.into()));
        match (owner, result) {
            (Owner::Opener(opening), Ok(End::Opened(image))) => {
                let size = image.size();
                let image = Arc::new(*image);
                self.door.open(image.clone());
                self.state = State::Open(image);
                let _ = opening.send(Ok(size));
            }
            (Owner::Opener(opening), other) => {
                self.state = State::Broken;
                self.is_closing = true;
                let _ = opening.send(Err(other.err().map_or(Errno::IO.into(), explain)));
            }
            (Owner::Queue(token, completer), result) => {
                let (result, data) = match result {
                    Ok(End::Done(data)) => (Ok(()), data),
                    Ok(End::Opened(_)) => (Err(Errno::IO), None),
                    Err(error) => (Err(errno(&error)), None),
                };
                complete(&completer, token, result, data);
            }
            (Owner::Caller(reply), result) => {
                let _ = reply.send(result.map(drop).map_err(explain));
            }
            (Owner::Asker, _) => self.is_answering = false,
            (Owner::Closer, result) => self.last = result.map(drop).map_err(explain),
        }
        if is_broken {
            self.door.shut();
            self.state = State::Broken;
            let owners = self.executor.clear();
            owners.into_iter().for_each(|owner| self.refuse(owner));
        }
    }

    /// Nothing comes of it any more.
    fn refuse(&mut self, owner: Owner) {
        match owner {
            Owner::Opener(opening) => drop(opening.send(Err(broken()))),
            Owner::Queue(token, completer) => complete(&completer, token, Err(Errno::IO), None),
            Owner::Caller(reply) => drop(reply.send(Err(broken()))),
            Owner::Asker => self.is_answering = false,
            Owner::Closer => self.last = Err(broken()),
        }
    }

    fn refuse_all(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().for_each(|job| job.end(Err(Errno::IO)));
        // They are answered by that.
        self.questions.clear();
        for call in std::mem::take(&mut self.callers) {
            if let Letter::Flush(reply) | Letter::Resize(_, reply) = call {
                let _ = reply.send(Err(broken()));
            }
        }
        if self.is_closing && !std::mem::replace(&mut self.is_flushed, true) {
            self.last = Err(broken());
        }
    }

    /// From futures to files and back, once; whether anything happened.
    fn round(&mut self) -> bool {
        self.start();
        let mut ended = std::mem::take(&mut self.ended);
        let mut worked = self.executor.turn(&mut ended);
        ended.drain(..).for_each(|one| self.finish(one));
        self.ended = ended;
        worked |= self.door.files.submit(&mut self.engines);
        worked |= self.door.files.expire(&mut self.engines);
        self.has_to_retry = self.lane.collect(&mut self.completions);
        let completions = std::mem::take(&mut self.completions);
        worked |= !completions.is_empty();
        for completion in completions {
            self.door.files.complete(&mut self.engines, completion);
        }
        worked
    }
}

impl Task for ImageTask {
    fn event(&mut self, _key: u64) {}

    fn run(&mut self) -> Turn {
        let mut worked = self.read_letters();
        for _ in 0..ROUNDS {
            if !self.round() {
                break;
            }
            worked = true;
        }
        match worked {
            true => Turn::Worked,
            false => Turn::Idle,
        }
    }

    fn arm(&mut self) -> Next {
        if !self.executor.sleep() || self.lane.has_news() {
            return Next::Now;
        }
        let retry = self.has_to_retry.then(|| Instant::now() + RETRY);
        let deadline = Files::deadline(&self.engines);
        match retry.into_iter().chain(deadline).min() {
            Some(when) => Next::At(when),
            None => Next::Event,
        }
    }

    /// The io_uring says in memory that it has news.
    fn needs_events(&self) -> bool {
        false
    }

    fn is_over(&self) -> bool {
        let is_idle = self.executor.len() == 0 && self.waiting.is_empty();
        self.is_closing && self.is_flushed && is_idle && self.door.files.is_idle()
    }
}

impl Drop for ImageTask {
    fn drop(&mut self) {
        self.door.close();
        let owners = self.executor.clear();
        owners.into_iter().for_each(|owner| self.refuse(owner));
        self.refuse_all();
        self.door.files.close();
        self.state = State::Broken;
        self.engines.clear();
        for reply in self.closers.drain(..) {
            let _ = reply.send(self.last.clone());
        }
    }
}

/// The errno of what imago says.
fn errno(error: &io::Error) -> Errno {
    match (error.raw_os_error(), error.kind()) {
        (Some(raw), _) => Errno::from_raw_os_error(raw),
        (None, io::ErrorKind::Unsupported) => Errno::OPNOTSUPP,
        (None, io::ErrorKind::OutOfMemory) => Errno::NOMEM,
        _ => Errno::IO,
    }
}

fn explain(error: io::Error) -> Error {
    Error::new(errno(&error), error.to_string())
}

fn broken() -> Error {
    Error::new(
        Errno::IO,
        "the format driver has failed in this image; look at it: qemu-img check",
    )
}
