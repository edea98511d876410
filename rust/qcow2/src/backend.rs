//! The backend, and its engines: letters to the image's task.

use crate::chain::{self, Beneath, Link, Opened, Options, Owner};
use crate::door::{Door, Job, Letter, Reply, Work};
use crate::header::LOOKED_AT;
use crate::image::Nature;
use crate::shortcut::Shortcut;
use crate::start;
use crate::task::ImageTask;
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::Instant;
use vduse_device::backend::{
    Backend, Completion, Connection, Engine, Error, Info, Kind, Local, Notice, Observer, Op,
    StatusRequest, Submitted, Token, disk_size,
};
use vduse_device::layers::Filter;
use vduse_device::{Buffer, Completer, Length};
use vduse_worker::Workers;

/// The worker of the next image.
static NEXT_WORKER: AtomicUsize = AtomicUsize::new(0);

/// A disk in a qcow2 image.
pub struct Qcow2 {
    door: Arc<Door>,
    links: Arc<Vec<Link>>,
    size: AtomicU64,
    read_only: bool,
    block_size: u32,
    kind: Kind,
    engine_name: &'static str,
    /// Tells of the connection of what it lies on, and of resizes.
    filter: Arc<Filter>,
    engines: AtomicU64,
    is_closed: AtomicBool,
}

impl Qcow2 {
    /// Opens and locks an image and what it names, and serves it on one of `workers`; waits for
    /// them. Not to be called from a worker. EINVAL: what it is, by name; EAGAIN: locked by
    /// another program.
    pub fn open(
        path: &Path,
        options: Options,
        beneath: Beneath,
        workers: &Workers,
    ) -> Result<Qcow2, Error> {
        let links = chain::open(path, options, beneath)?;
        Qcow2::serve(links, options.read_only, workers)
    }

    /// The same of an image that `file` holds, which is its alone until it is released. `path` is
    /// for messages.
    pub fn on(
        file: Arc<dyn Backend>,
        path: &Path,
        read_only: bool,
        beneath: Beneath,
        workers: &Workers,
    ) -> Result<Qcow2, Error> {
        let start = start::read(&file, LOOKED_AT as u64, workers)?;
        let image = Opened {
            file,
            path: path.to_owned(),
            owner: Owner::Layer,
        };
        Qcow2::serve(chain::on(image, &start, beneath)?, read_only, workers)
    }

    fn serve(links: Vec<Link>, read_only: bool, workers: &Workers) -> Result<Qcow2, Error> {
        let links = Arc::new(links);
        let Some(Link {
            image,
            format: Some(format),
        }) = links.first()
        else {
            return Err(Errno::INVAL.into());
        };
        let nature = Nature {
            has_zeroes: format.header.version >= 3,
            read_only,
            cluster_size: format.header.cluster_size,
            backing: 0,
        };
        let infos = || chain::files(&links).map(|it| it.file.info());
        let block_size = infos().map(|info| info.block_size).max();
        let kind = match infos().all(|info| info.kind == Kind::Direct) {
            true => Kind::Direct,
            false => Kind::Detachable,
        };
        let engine_name = image.file.engine_name();
        let (opening, opened) = sync_channel(1);
        let door = Door::new();
        let (its_door, its_links) = (door.clone(), links.clone());
        workers.spawn(NEXT_WORKER.fetch_add(1, Ordering::Relaxed), move |place| {
            match ImageTask::begin(&place, its_door, &its_links, nature, opening) {
                Some(task) => Some(Box::new(task)),
                None => None,
            }
        });
        let ended = || Error::new(Errno::CANCELED, "the workers have ended");
        let size = opened.recv().unwrap_or_else(|_| Err(ended()));
        let size = size.map_err(|error| {
            let message = format!("{}: {}", image.path.display(), error.message);
            Error::new(error.errno, message)
        })?;
        Ok(Qcow2 {
            filter: Filter::on(&*image.file),
            door,
            size: AtomicU64::new(size),
            read_only,
            block_size: block_size.unwrap_or(512),
            kind,
            engine_name,
            links,
            engines: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Ends it, and closes the files of these owners.
    fn end(&self, owners: &[Owner]) -> Result<(), Error> {
        if self.is_closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let mut ended = self.call(|reply| Letter::Close(Some(reply)));
        for opened in chain::files(&self.links) {
            if owners.contains(&opened.owner) {
                ended = ended.and(opened.file.close());
            }
        }
        ended
    }

    /// Sends a letter and waits for its answer.
    fn call(&self, letter: impl FnOnce(Reply) -> Letter) -> Result<(), Error> {
        let (reply, replied) = sync_channel(1);
        self.door.send(&mut vec![letter(reply)]);
        let ended = || Error::new(Errno::CANCELED, "the workers have ended");
        replied.recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Backend for Qcow2 {
    fn info(&self) -> Info {
        Info {
            size: Length(self.size.load(Ordering::Relaxed)),
            block_size: self.block_size,
            read_only: self.read_only,
            can_discard: !self.read_only,
            kind: self.kind,
        }
    }

    fn engine_name(&self) -> &'static str {
        self.engine_name
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        let is_direct = self.kind == Kind::Direct;
        let engines = chain::files(&self.links).map(|opened| {
            let is_usable = opened.file.info().kind == self.kind;
            is_usable.then(|| opened.file.attach(local)).transpose()
        });
        let engines = engines.collect::<Result<_, _>>()?;
        let image = self.door.image();
        Ok(Box::new(Qcow2Engine {
            id: self.engines.fetch_add(1, Ordering::Relaxed),
            shortcut: image.map(|image| Shortcut::new(image, engines, is_direct)),
            reads: is_direct.then(HashMap::new),
            door: self.door.clone(),
            completer: local.completer.clone(),
            letters: Vec::new(),
        }))
    }

    fn resize(&self, size: Length) -> Result<(), Error> {
        disk_size(size.0)?;
        self.call(|reply| Letter::Resize(size.0, reply))?;
        self.size.store(size.0, Ordering::Relaxed);
        self.filter.observers().tell(&Notice::Resized(size));
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        self.call(Letter::Flush)
    }

    fn close(&self) -> Result<(), Error> {
        self.end(&[Owner::Image, Owner::Layer])
    }

    fn release(&self) -> Result<(), Error> {
        self.end(&[Owner::Image])
    }

    fn block_status(&self, request: StatusRequest) {
        self.door.send(&mut vec![Letter::Status(request)]);
    }

    fn connection(&self) -> Connection {
        let below = self.links.first();
        below.map_or(Connection::Local, |link| link.image.file.connection())
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.filter.observers().add(observer);
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        self.door.send(&mut vec![Letter::Close(None)]);
    }
}

/// One virtqueue's operations, on their way to the image's task.
struct Qcow2Engine {
    id: u64,
    door: Arc<Door>,
    completer: Completer,
    /// Of this batch.
    letters: Vec<Letter>,
    shortcut: Option<Shortcut>,
    /// Where what the task reads goes; `None`: the queue does that itself.
    reads: Option<HashMap<Token, Buffer>>,
}

impl Engine for Qcow2Engine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let op = match &mut self.shortcut {
            Some(shortcut) if self.door.is_served() => match shortcut.submit(token, op) {
                Ok(submitted) => return submitted,
                Err(op) => op,
            },
            _ => op,
        };
        let work = match op {
            Op::Read { extent, buffer } => {
                self.reads.as_mut().map(|it| it.insert(token, buffer));
                Work::Read(extent)
            }
            Op::Write { extent, buffer } => Work::Write(extent, buffer.to_vec()),
            Op::Flush => Work::Flush,
            Op::Discard { extent } => Work::Discard(extent),
            Op::WriteZeroes { extent, may_unmap } => Work::WriteZeroes(extent, may_unmap),
        };
        self.letters.push(Letter::Do(Job {
            engine: self.id,
            token,
            work,
            completer: self.completer.clone(),
        }));
        Submitted::Pending
    }

    fn flush(&mut self) {
        if let Some(shortcut) = &mut self.shortcut {
            shortcut.flush();
        }
        if !self.letters.is_empty() {
            self.door.send(&mut self.letters);
        }
    }

    fn cancel(&mut self, token: Token) {
        if let Some(shortcut) = &mut self.shortcut {
            shortcut.cancel(token);
        }
        self.reads.as_mut().map(|it| it.remove(&token));
        self.letters.push(Letter::Cancel(self.id, token));
    }

    fn completed(&mut self, completion: &mut Completion) {
        if let Some(shortcut) = &mut self.shortcut
            && shortcut.completed(completion)
        {
            return;
        }
        let Some(buffer) = self
            .reads
            .as_mut()
            .and_then(|it| it.remove(&completion.token))
        else {
            return;
        };
        if let (Ok(()), Some(data)) = (completion.result, completion.data.take()) {
            buffer.write(&data);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.shortcut.as_ref()?.deadline()
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        if let Some(shortcut) = &mut self.shortcut {
            shortcut.expire(now, ended);
        }
    }
}
