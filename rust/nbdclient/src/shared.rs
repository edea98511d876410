//! What all connections to one export share, and where they meet who makes connections.

use crate::facts::{Facts, flag};
use crate::idle::Idle;
use crate::link::Link;
use crate::post::Post;
use crate::stale::Stale;
use crate::state::State;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use vduse_device::Length;
use vduse_device::backend::{Connection, Error, Notice, Observers};
use vduse_nbdsocket::Socket;
use vduse_worker::Spawner;

/// What follows when a request has waited for `reconnect_delay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It fails with EIO.
    Report,
    /// It waits on.
    Wait,
}

/// What the user wants.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long requests wait for a connection.
    pub reconnect_delay: Duration,
    /// What follows.
    pub on_error: OnError,
}

/// One export.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) observers: Observers,
    /// What requests wait for, on all connections.
    pub(crate) stale: Arc<Stale>,
    state: Mutex<State>,
    event: OwnedFd,
    /// Of the event and the idle connection.
    epoll: Arc<OwnedFd>,
}

impl Shared {
    pub(crate) fn new(socket: Socket, facts: Facts, options: Options) -> Result<Shared, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let data = epoll::EventData::new_u64(0);
        epoll::add(&*epoll, &event, data, epoll::EventFlags::IN)?;
        Ok(Shared {
            options,
            observers: Observers::default(),
            stale: Arc::default(),
            state: Mutex::new(State {
                facts,
                links: BTreeMap::new(),
                last_number: 0,
                idle: Idle::new(epoll.clone(), socket, facts),
                is_closed: false,
            }),
            event,
            epoll,
        })
    }

    pub(crate) fn facts(&self) -> Facts {
        self.lock().facts
    }

    /// The connections for a virtqueue on the calling worker's thread: several of each worker's own
    /// where the server says that flushes of one cover all, else one for all.
    pub(crate) fn links(self: &Arc<Shared>, spawner: &Spawner) -> Result<Vec<Arc<Post>>, Error> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Error::new(Errno::SHUTDOWN, "the backend is closed"));
        }
        if !state.facts.has(flag::CAN_MULTI_CONN)
            && let Some(first) = state.links.values().next()
        {
            return Ok(vec![first.post.clone()]);
        }
        let here = thread::current().id();
        let known = state.links.values().filter(|it| it.thread == here);
        let known: Vec<Arc<Post>> = known.map(|it| it.post.clone()).collect();
        if !known.is_empty() {
            return Ok(known);
        }
        let made: Vec<(u32, Arc<Post>)> = (0..state.to_make()).map(|_| state.add(here)).collect();
        drop(state);
        for (number, post) in &made {
            self.stale.add(post);
            let (number, shared, its) = (*number, self.clone(), post.clone());
            let spawned =
                spawner.spawn(move |place| Some(Box::new(Link::new(number, shared, its, place))));
            if !spawned {
                made.iter().for_each(|(number, _)| self.gone(*number));
                return Err(Error::new(Errno::SHUTDOWN, "the worker has ended"));
            }
        }
        self.ring();
        Ok(made.into_iter().map(|(_, post)| post).collect())
    }

    /// The connection at which requests wait while there is none: the oldest.
    pub(crate) fn main_link(&self) -> Option<Arc<Post>> {
        self.lock().links.values().next().map(|it| it.post.clone())
    }

    /// The connection with the fewest requests under way; the oldest where there is none.
    pub(crate) fn quietest_link(&self) -> Option<Arc<Post>> {
        let state = self.lock();
        let posts = state.links.values().map(|it| &it.post);
        posts.min_by_key(|post| post.load()).cloned()
    }

    /// The same, where it is another than this one.
    pub(crate) fn main_link_beside(&self, number: u32) -> Option<Arc<Post>> {
        let state = self.lock();
        let (&main, entry) = state.links.first_key_value()?;
        (main != number).then(|| entry.post.clone())
    }

    /// A connection was lost.
    pub(crate) fn lost(&self, number: u32, why: &str) {
        self.set_lost(number, why, true);
        self.ring();
    }

    /// A connection was not made; it is tried again.
    pub(crate) fn refused(&self, number: u32, why: &str) {
        {
            let mut state = self.lock();
            if !state.is_main(number)
                && let Some(entry) = state.links.get_mut(&number)
                && !entry.was_up
            {
                entry.is_given_up = true;
                return;
            }
        }
        self.set_lost(number, why, false);
    }

    fn set_lost(&self, number: u32, why: &str, wants: bool) {
        let changed = {
            let mut state = self.lock();
            let is_main = state.is_main(number);
            match state.links.get_mut(&number) {
                Some(entry) => {
                    entry.wants |= wants;
                    is_main & (entry.lost.replace(why.to_string()).as_deref() != Some(why))
                }
                None => state.has(number) && state.idle.refused(why),
            }
        };
        if changed {
            self.tell_connection();
        }
    }

    /// A connection's task has ended.
    pub(crate) fn gone(&self, number: u32) {
        {
            let mut state = self.lock();
            state.links.remove(&number);
            // The next oldest is the main one now.
            if let Some(mut main) = state.links.first_entry() {
                let main = main.get_mut();
                main.wants |= std::mem::take(&mut main.is_given_up);
            }
        }
        self.ring();
    }

    /// A socket for this connection; false: it is not wanted any more, and closed.
    pub(crate) fn arrive(&self, number: u32, socket: Socket, facts: Facts) -> bool {
        let (was_lost, resized) = {
            let mut state = self.lock();
            let resized = state.facts.size != facts.size;
            if !facts.has(flag::CAN_MULTI_CONN) {
                state.give_up_others();
            }
            let Some(was_lost) = state.arrive(number, socket, facts) else {
                return false;
            };
            state.facts = facts;
            (was_lost, resized)
        };
        if resized {
            self.observers.tell(&Notice::Resized(Length(facts.size)));
        }
        if was_lost {
            self.tell_connection();
        }
        true
    }

    /// Connections that want a socket, each told once a loss.
    pub(crate) fn wants(&self) -> Vec<u32> {
        let mut state = self.lock();
        // Under the lock, so that no want is left without a readable fd.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let links = state.links.iter_mut();
        let mut wants: Vec<u32> = links
            .filter_map(|(&number, entry)| std::mem::take(&mut entry.wants).then_some(number))
            .collect();
        if state.idle.look() {
            wants.push(Idle::NUMBER);
            drop(state);
            self.tell_connection();
        }
        wants
    }

    /// Whether this connection is still there.
    pub(crate) fn has(&self, number: u32) -> bool {
        self.lock().has(number)
    }

    /// Readable when [`Shared::wants`] or [`Shared::is_closed`] has news.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Connections end after their last request, and none is made any more.
    pub(crate) fn close(&self) {
        let posts: Vec<Arc<Post>> = {
            let mut state = self.lock();
            state.is_closed = true;
            state.idle.take();
            state.links.values().map(|it| it.post.clone()).collect()
        };
        for post in posts {
            post.put(|mail| mail.is_closing = true);
        }
        self.ring();
    }

    pub(crate) fn connection(&self) -> Connection {
        let lost = self.lock().lost().map(String::from);
        lost.map_or(Connection::Connected, Connection::Lost)
    }

    fn tell_connection(&self) {
        self.observers.tell(&Notice::Connection(self.connection()));
    }

    fn ring(&self) {
        // A full counter is readable already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn facts(flags: u16) -> Facts {
        Facts {
            size: 1 << 20,
            flags,
            is_structured: true,
            allocation: None,
            minimum_block: 1,
            maximum_payload: 1 << 20,
        }
    }

    fn socket() -> Socket {
        let (ours, _) = UnixStream::pair().expect("a pair");
        Socket::new(ours.into(), None).expect("a stream socket")
    }

    #[test]
    fn a_server_without_multi_conn_any_more_keeps_one_connection() {
        let several = facts(flag::CAN_MULTI_CONN);
        let one = facts(0);
        let options = Options {
            reconnect_delay: Duration::ZERO,
            on_error: OnError::Wait,
        };
        let shared = Shared::new(socket(), several, options).expect("an eventfd");
        let here = thread::current().id();
        let posts: Vec<Arc<Post>> = (0..3).map(|_| shared.lock().add(here).1).collect();
        assert_eq!(shared.wants(), [2, 3]);
        assert!(shared.arrive(2, socket(), several));

        assert!(!shared.arrive(3, socket(), one), "not beside others");
        let given_up: Vec<bool> = posts.iter().map(|it| it.take().is_given_up).collect();
        assert_eq!(given_up, [false, true, true]);
        assert_eq!(
            [1, 2, 3].map(|number| shared.has(number)),
            [true, false, false]
        );
        assert!(!shared.arrive(2, socket(), several), "nor later");

        shared.lost(1, "the server was restarted");
        assert_eq!(shared.wants(), [1]);
        assert!(shared.arrive(1, socket(), one));
        assert!(!shared.facts().has(flag::CAN_MULTI_CONN));

        shared.gone(1);
        assert_eq!(shared.wants(), [2], "the next oldest alone");
        assert!(shared.arrive(2, socket(), one));
    }

    #[test]
    fn a_connection_that_nobody_uses_is_watched_and_made_again() {
        let options = Options {
            reconnect_delay: Duration::ZERO,
            on_error: OnError::Report,
        };
        let (ours, server) = UnixStream::pair().expect("a pair");
        let ours = Socket::new(ours.into(), None).expect("a stream socket");
        let shared = Shared::new(ours, facts(0), options).expect("an eventfd");
        assert!(!shared.has(0) && shared.wants().is_empty());

        drop(server);
        await_event(&shared);
        assert_eq!(shared.wants(), [0]);
        let closed = "the server closed the connection";
        assert_eq!(shared.connection(), Connection::Lost(closed.to_string()));
        assert!(shared.has(0) && shared.wants().is_empty(), "told once");
        shared.refused(0, "nobody there");
        let refused = Connection::Lost("nobody there".to_string());
        assert_eq!(shared.connection(), refused);

        let (ours, mut server) = UnixStream::pair().expect("a pair");
        let ours = Socket::new(ours.into(), None).expect("a stream socket");
        assert!(shared.arrive(0, ours, facts(0)));
        assert_eq!(shared.connection(), Connection::Connected);
        assert!(!shared.has(0));

        server.write_all(b"?").expect("a byte nobody asked for");
        await_event(&shared);
        assert_eq!(shared.wants(), [0]);
        let Connection::Lost(why) = shared.connection() else {
            panic!("the server broke the protocol");
        };
        assert!(why.ends_with("a reply to no request"), "{why}");

        // A worker's connection takes over, and is lost as this was.
        shared.lock().add(thread::current().id());
        assert_eq!(shared.connection(), Connection::Lost(why));
        assert_eq!(shared.wants(), [1]);
        assert!(!shared.arrive(0, socket(), facts(0)));
        assert!(shared.arrive(1, socket(), facts(0)));
        assert_eq!(shared.connection(), Connection::Connected);
    }

    fn await_event(shared: &Shared) {
        let event = shared.event();
        let event = PollFd::from_borrowed_fd(event, PollFlags::IN);
        assert_eq!(poll(&mut [event], None), Ok(1));
    }
}
