//! The connection while nobody uses the disk. It has no worker: who makes connections watches it,
//! so that its end is known before the first request.

use crate::facts::Facts;
use crate::replies::Fault;
use crate::stream::Loss;
use rustix::event::epoll;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vduse_nbdsocket::{Moved, Socket};

/// At most one.
pub(crate) struct Idle {
    /// Readable when [`Idle::look`] has something to see.
    epoll: Arc<OwnedFd>,
    socket: Option<(Socket, Facts)>,
    /// Why there is none.
    lost: Option<String>,
}

impl Idle {
    /// Its number; workers' connections have others.
    pub(crate) const NUMBER: u32 = 0;

    pub(crate) fn new(epoll: Arc<OwnedFd>, socket: Socket, facts: Facts) -> Idle {
        let mut idle = Idle {
            epoll,
            socket: None,
            lost: None,
        };
        idle.put(socket, facts);
        idle
    }

    /// Why one was lost, if it was not made again.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Whether there is none.
    pub(crate) fn is_down(&self) -> bool {
        self.socket.is_none()
    }

    /// A connection; whether one had been lost.
    pub(crate) fn put(&mut self, socket: Socket, facts: Facts) -> bool {
        // Where it cannot be watched, the first request finds out.
        let _ = epoll::add(
            &*self.epoll,
            socket.fd(),
            epoll::EventData::new_u64(Idle::NUMBER.into()),
            epoll::EventFlags::IN,
        );
        self.socket = Some((socket, facts));
        self.lost.take().is_some()
    }

    /// It goes to a worker, or why there is none.
    pub(crate) fn take(&mut self) -> (Option<(Socket, Facts)>, Option<String>) {
        let socket = self.socket.take();
        if let Some((socket, _)) = &socket {
            let _ = epoll::delete(&*self.epoll, socket.fd()); // it may not be watched
        }
        (socket, self.lost.take())
    }

    /// Looks whether it has ended; true: just now. Nothing was asked, so nothing may come, but for
    /// what TLS has to say.
    pub(crate) fn look(&mut self) -> bool {
        let Some((socket, _)) = &mut self.socket else {
            return false;
        };
        let loss = match socket.receive(&mut [], &mut [0]) {
            Ok(Moved::Last(0)) => return false,
            Ok(Moved::End) => Loss::Closed,
            Ok(_) => Fault::Stray.into(),
            Err(why) => Loss::Broken(why),
        };
        self.take();
        self.refused(&loss.to_string());
        true
    }

    /// There is still none, and why; whether that is news.
    pub(crate) fn refused(&mut self, why: &str) -> bool {
        self.lost.replace(why.to_string()).as_deref() != Some(why)
    }
}
