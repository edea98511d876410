//! The backend, and the other end of it: who makes its connections.

use crate::engine::NbdEngine;
use crate::facts::{Facts, flag};
use crate::question::Question;
use crate::request::{Kind, Request, Waiter, Whose};
use crate::shared::{Options, Shared};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;
use vduse_device::backend::{
    Backend, Connection, Engine, Error, Info, Local, Observer, Piece, StatusRequest,
};
use vduse_nbdsocket::Socket;

/// How long [`Backend::flush`] waits for a server that does not answer.
const FLUSH: Duration = Duration::from_secs(30);

/// An export of an NBD server.
pub struct Nbd(pub(crate) Arc<Shared>);

impl Nbd {
    /// With a first connection; and what makes the next ones.
    pub fn new(socket: Socket, facts: Facts, options: Options) -> Result<(Nbd, Control), Error> {
        let shared = Arc::new(Shared::new(socket, facts.checked()?, options)?);
        Ok((Nbd(shared.clone()), Control(shared)))
    }
}

impl Backend for Nbd {
    fn info(&self) -> Info {
        self.0.facts().info()
    }

    fn engine_name(&self) -> &'static str {
        "nbd"
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        let posts = self.0.links(&local.spawner)?;
        let completer = local.completer.clone();
        Ok(Box::new(NbdEngine::new(self.0.clone(), posts, completer)))
    }

    fn flush(&self) -> Result<(), Error> {
        // Before a first connection is used, and after the last, there is nothing to flush.
        let Some(post) = self
            .0
            .main_link()
            .filter(|_| self.0.facts().has(flag::SEND_FLUSH))
        else {
            return Ok(());
        };
        let waiter = Arc::new(Waiter::default());
        let request = Request {
            whose: Whose::Waiter(waiter.clone()),
            kind: Kind::Flush,
            offset: 0,
            length: 0,
            payload: Vec::new(),
            interrupted: None,
        };
        if !post.put(|mail| mail.requests.push(request)) {
            return Ok(());
        }
        let flushed = waiter.wait(FLUSH);
        flushed.map_err(|errno| Error::failed("flushing the NBD export", errno))
    }

    fn close(&self) -> Result<(), Error> {
        let flushed = self.flush();
        self.0.close();
        flushed
    }

    fn block_status(&self, request: StatusRequest) {
        let length = request.extent().len();
        match self.0.quietest_link() {
            // What is not taken any more is dropped, and so answered.
            Some(post) if length.0 > 0 => {
                let request = Question::into_request(request, self.0.facts());
                post.put(|mail| mail.requests.push(request));
            }
            // Nobody uses the disk.
            _ => request.answer(Ok([Piece::data(length)])),
        }
    }

    fn connection(&self) -> Connection {
        self.0.connection()
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.0.observers.add(observer);
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Makes connections for an [`Nbd`], from any thread.
pub struct Control(Arc<Shared>);

impl Control {
    /// Readable when [`Control::wants`] or [`Control::is_closed`] has news.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.event()
    }

    /// Numbers of connections that want a socket: each is named once, and to be tried until it has
    /// one or is not [`Control::wanted`] any more.
    pub fn wants(&self) -> Vec<u32> {
        self.0.wants()
    }

    /// Whether this connection still wants a socket, if it did.
    pub fn wanted(&self, number: u32) -> bool {
        !self.0.is_closed() && self.0.has(number)
    }

    /// A socket past the handshake for this connection; false: it is not wanted any more. EINVAL:
    /// the export cannot be used as it is now.
    pub fn connected(&self, number: u32, socket: Socket, facts: Facts) -> Result<bool, Error> {
        Ok(self.0.arrive(number, socket, facts.checked()?))
    }

    /// No socket yet for this connection, and why.
    pub fn refused(&self, number: u32, why: &str) {
        self.0.refused(number, why);
    }

    /// The backend is closed: no connection is wanted any more.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}
