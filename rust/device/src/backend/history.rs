//! What is remembered of a backend's connection: since when it stands as it does, how often it
//! came back.

use super::{Backend, Connection, Notice, Observer};
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// A connection as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// How it stands, and where it is lost, why.
    pub connection: Connection,
    /// When it came to that, by this host's clock.
    pub since: SystemTime,
    /// How often it was lost and came back since the backend was opened.
    pub reconnections: u64,
}

/// Remembers one backend's.
pub struct History(Mutex<ConnectionState>);

impl History {
    /// From now on, as long as it is kept.
    pub fn watch(backend: &dyn Backend) -> Arc<History> {
        let history = Arc::new(History(Mutex::new(ConnectionState {
            connection: backend.connection(),
            since: SystemTime::now(),
            reconnections: 0,
        })));
        let observer: Arc<dyn Observer> = history.clone();
        backend.observe(Arc::downgrade(&observer));
        history
    }

    /// As it stands now; `backend` is the one that is watched, or a layer on it. Notices of several
    /// threads may come in any order: what the backend says itself is what counts.
    pub fn state(&self, backend: &dyn Backend) -> ConnectionState {
        let now = backend.connection();
        let mut state = self.lock();
        state.change(now);
        state.clone()
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionState {
    fn change(&mut self, now: Connection) {
        if discriminant(&self.connection) != discriminant(&now) {
            self.since = SystemTime::now();
            self.reconnections += u64::from(matches!(self.connection, Connection::Lost(_)));
        }
        self.connection = now;
    }
}

impl Observer for History {
    fn notice(&self, notice: &Notice) {
        if let Notice::Connection(connection) = notice {
            self.lock().change(connection.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Engine, Error, Info, Kind, Local, Observers, disk_size};
    use super::*;
    use crate::layers::{Layered, ReadOnly};
    use std::sync::Weak;

    struct Remote {
        connection: Mutex<Connection>,
        observers: Observers,
    }

    impl Remote {
        fn new() -> Remote {
            Remote {
                connection: Mutex::new(Connection::Connected),
                observers: Observers::default(),
            }
        }

        fn becomes(&self, connection: Connection) {
            *self.connection.lock().unwrap() = connection.clone();
            self.observers.tell(&Notice::Connection(connection));
        }
    }

    impl Backend for Remote {
        fn info(&self) -> Info {
            Info {
                size: disk_size(512).unwrap(),
                block_size: 512,
                read_only: false,
                can_discard: false,
                kind: Kind::Detachable,
            }
        }

        fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
            unreachable!()
        }

        fn flush(&self) -> Result<(), Error> {
            Ok(())
        }

        fn connection(&self) -> Connection {
            self.connection.lock().unwrap().clone()
        }

        fn observe(&self, observer: Weak<dyn Observer>) {
            self.observers.add(observer);
        }
    }

    fn lost(why: &str) -> Connection {
        Connection::Lost(why.into())
    }

    #[test]
    fn losses_between_two_looks_are_counted() {
        let remote = Remote::new();
        let history = History::watch(&remote);
        for _ in 0..3 {
            remote.becomes(lost("reset by peer"));
            remote.becomes(Connection::Connected);
        }
        let state = history.state(&remote);
        assert_eq!(
            (state.connection, state.reconnections),
            (Connection::Connected, 3)
        );
    }

    #[test]
    fn another_reason_is_the_same_loss() {
        let remote = Remote::new();
        let history = History::watch(&remote);
        remote.becomes(lost("reset by peer"));
        let first = history.state(&remote);
        remote.becomes(lost("connection refused"));
        let second = history.state(&remote);
        assert_eq!(second.connection, lost("connection refused"));
        assert_eq!(
            (second.since, second.reconnections),
            (first.since, first.reconnections)
        );
    }

    #[test]
    fn a_late_notice_is_put_right_at_the_next_look() {
        let remote = Remote::new();
        let history = History::watch(&remote);
        history.notice(&Notice::Connection(lost("late")));
        assert_eq!(history.state(&remote).connection, Connection::Connected);
    }

    #[test]
    fn a_layer_hears_of_what_lies_beneath() {
        let remote = Arc::new(Remote::new());
        let layered = Layered::new(remote.clone(), ReadOnly);
        let history = History::watch(&layered);
        remote.becomes(lost("gone"));
        remote.becomes(Connection::Connected);
        remote.becomes(lost("again"));
        let state = history.state(&layered);
        assert_eq!((state.connection, state.reconnections), (lost("again"), 1));
    }
}
