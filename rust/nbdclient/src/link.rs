//! One connection to the server, on its worker: up, or down and waiting for another socket.

use crate::outstanding::Outstanding;
use crate::post::{Mail, Post};
use crate::request::{Request, Whose};
use crate::shared::{OnError, Shared};
use crate::stale::CancelledSet;
use crate::stream::{Loss, Stream};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vduse_worker::{Next, Place, Task, Turn};

const SOCKET: u64 = 0;

/// How long requests wait for a worker's first connection at least: nothing was lost yet.
const FIRST: Duration = Duration::from_secs(10);

/// The task.
pub(crate) struct Link {
    number: u32,
    shared: Arc<Shared>,
    post: Arc<Post>,
    place: Place,
    outstanding: Outstanding,
    /// What waits until nothing is left behind by drivers that are gone.
    held: Vec<Request>,
    stream: Option<Stream>,
    /// When there was a connection last, while there is none.
    down_since: Option<Instant>,
    /// There never was one.
    is_new: bool,
    has_mail: bool,
    is_closing: bool,
    is_over: bool,
}

impl Link {
    /// On its worker's thread, without a connection.
    pub(crate) fn new(number: u32, shared: Arc<Shared>, post: Arc<Post>, place: Place) -> Link {
        post.set_waker(place.waker());
        let facts = shared.facts();
        Link {
            number,
            shared,
            post,
            place,
            outstanding: Outstanding::new(facts),
            held: Vec::new(),
            stream: None,
            down_since: Some(Instant::now()),
            is_new: true,
            has_mail: true,
            is_closing: false,
            is_over: false,
        }
    }

    fn read_mail(&mut self) {
        let Mail {
            requests,
            cancelled,
            arrival,
            is_given_up,
            is_closing,
            ..
        } = self.post.take();
        self.held.extend(requests);
        if !cancelled.is_empty() {
            self.cancel(&CancelledSet::new(cancelled));
        }
        if self.shared.stale.is_none() {
            self.take_held();
        }
        if let Some((socket, facts)) = arrival {
            self.drop_stream();
            let stream = Stream::new(socket, facts.is_structured);
            match self.place.watch(stream.socket(), SOCKET, true) {
                Ok(()) => {
                    self.outstanding.connect(facts);
                    self.stream = Some(stream);
                    self.down_since = None;
                    self.is_new = false;
                }
                Err(errno) => self.lose(errno.into()),
            }
        }
        if is_given_up {
            self.interrupt();
        }
        self.is_closing |= is_closing;
    }

    fn cancel(&mut self, cancelled: &CancelledSet) {
        self.outstanding.cancel(cancelled);
        for request in std::mem::take(&mut self.held) {
            match &request.whose {
                Whose::Engine(token, completer) if cancelled.find(*token, completer).is_some() => {
                    let ended = &mut self.outstanding.ended;
                    ended.add(request.whose, Err(Errno::CANCELED), None);
                }
                _ => self.held.push(request),
            }
        }
    }

    /// What was held back goes on its way.
    fn take_held(&mut self) {
        for request in self.held.drain(..) {
            self.outstanding.add(request, self.down_since);
        }
    }

    fn lose(&mut self, why: Loss) {
        self.interrupt();
        self.shared.lost(self.number, &why.to_string());
    }

    fn interrupt(&mut self) {
        self.drop_stream();
        let now = Instant::now();
        self.down_since.get_or_insert(now);
        self.outstanding.interrupt(now);
    }

    fn drop_stream(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.place.unwatch(stream.socket());
        }
    }

    /// Without a connection, requests wait at the main one, if this is another.
    fn hand_over(&mut self) {
        let Some(main) = self.shared.main_link_beside(self.number) else {
            return;
        };
        let mut requests = self.outstanding.take_all();
        requests.append(&mut self.held);
        main.put(|mail| mail.requests.append(&mut requests));
        // Its task has ended.
        for request in requests {
            self.outstanding.add(request, self.down_since);
        }
    }

    /// How many have not ended.
    fn requests(&self) -> usize {
        self.outstanding.len() + self.held.len()
    }

    /// When requests that wait for a connection are to fail.
    fn deadline(&self) -> Option<Instant> {
        if self.stream.is_some() || self.shared.options.on_error == OnError::Wait {
            return None;
        }
        self.outstanding.deadline(self.delay())
    }

    /// How long requests wait for a connection.
    fn delay(&self) -> Duration {
        let delay = self.shared.options.reconnect_delay;
        match self.is_new {
            true => delay.max(FIRST),
            false => delay,
        }
    }

    /// The end: the backend is closed once nobody uses it, so nobody waits for what is left.
    fn close(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.disconnect();
        }
        self.take_held();
        self.outstanding.end_all(Errno::SHUTDOWN);
        self.is_over = true;
    }
}

impl Task for Link {
    fn event(&mut self, _key: u64) {
        if let Some(stream) = &mut self.stream {
            stream.event();
        }
    }

    fn woken(&mut self) {
        self.has_mail = true;
    }

    fn run(&mut self) -> Turn {
        let mut worked = std::mem::take(&mut self.has_mail);
        if worked {
            self.read_mail();
        }
        let turn = self
            .stream
            .as_mut()
            .map(|stream| stream.turn(&mut self.outstanding));
        match turn {
            Some(Ok(moved)) => worked |= moved,
            Some(Err(why)) => {
                self.lose(why);
                worked = true;
            }
            None => {}
        }
        if self.stream.is_none() && self.requests() > 0 && !self.is_closing {
            self.hand_over();
        }
        if let Some(at) = self.deadline() {
            let now = Instant::now();
            if at <= now {
                self.outstanding.expire(now, self.delay());
            }
        }
        if self.is_closing {
            self.close();
        }
        worked |= self.outstanding.ended.tell();
        let load = self.stream.is_some().then(|| self.requests());
        self.post.set_load(load);
        match worked {
            true => Turn::Worked,
            false => Turn::Idle,
        }
    }

    fn arm(&mut self) -> Next {
        let is_ready = self
            .stream
            .as_mut()
            .is_some_and(|stream| stream.arm(&self.outstanding));
        match self.deadline() {
            _ if is_ready || self.has_mail => Next::Now,
            Some(at) => Next::At(at),
            None => Next::Event,
        }
    }

    fn is_over(&self) -> bool {
        self.is_over
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.held.extend(self.post.close().requests);
        self.take_held();
        self.outstanding.end_all(Errno::IO);
        self.outstanding.ended.tell();
        self.drop_stream();
        self.shared.gone(self.number);
    }
}
