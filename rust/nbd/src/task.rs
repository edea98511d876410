//! A connection on its worker.

use crate::Allocation;
use crate::connection::{Connection, Failure, Options};
use crate::ledger::{Entry, Order};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vduse_framework::blk::{Armed, BlkDriver};
use vduse_nbdsocket::Socket;
use vduse_worker::{Next, Place, Task, Turn};

const SOCKET: u64 = 0;
const IRQ: u64 = 1;

/// When to look again where nobody will tell.
const STALLED: Duration = Duration::from_millis(1);

/// What a connection is made from, on its way to its worker.
pub(crate) struct Seed {
    pub(crate) driver: Arc<BlkDriver>,
    /// Which of the driver's queues.
    pub(crate) queue: usize,
    pub(crate) socket: Socket,
    pub(crate) options: Options,
    pub(crate) entry: Entry,
    pub(crate) allocation: Option<Arc<dyn Allocation>>,
}

impl Seed {
    /// On its worker's thread. `None`: it did not come about, which was told.
    pub(crate) fn serve(self, place: Place) -> Option<Box<dyn Task>> {
        let waker = place.waker();
        self.entry.set_waker(waker.clone());
        let wake = Arc::new(move || waker.wake());
        let queue = self.driver.queue_for_events(self.queue, wake.clone())?;
        // Connections on one queue may share a worker, whose epoll has each fd once.
        let irq = rustix::io::fcntl_dupfd_cloexec(queue.irq_fd(), 0);
        let connection = Connection::new(
            self.socket,
            self.driver,
            queue,
            self.options,
            self.allocation,
            wake,
        );
        let mut served = Served {
            connection,
            entry: self.entry,
            irq: None,
            place,
            watches_room: false,
        };
        match irq.and_then(|irq| served.watch(irq)) {
            Ok(()) => Some(Box::new(served)),
            Err(errno) => {
                served.connection.fail(Failure::NotTakenOn(errno));
                None
            }
        }
    }
}

struct Served {
    // Before its entry: a connection that has left the count holds nothing any more.
    connection: Connection,
    entry: Entry,
    irq: Option<OwnedFd>,
    place: Place,
    /// The socket is watched for room too. Not always: then each reply that the client takes
    /// would wake us.
    watches_room: bool,
}

impl Served {
    fn watch(&mut self, irq: OwnedFd) -> Result<(), Errno> {
        use std::os::fd::AsFd;
        self.place.watch(irq.as_fd(), IRQ, false)?;
        self.irq = Some(irq);
        self.place.watch(self.connection.socket(), SOCKET, false)
    }

    /// Watches for room while the client does not read.
    fn follow_blocking(&mut self) {
        let blocked = self.connection.is_blocked();
        if blocked == self.watches_room {
            return;
        }
        self.watches_room = blocked;
        self.place.unwatch(self.connection.socket());
        let watched = self.place.watch(self.connection.socket(), SOCKET, blocked);
        if let Err(errno) = watched {
            self.connection.fail(Failure::Unwatched(errno));
            self.connection.abort();
        }
    }
}

impl Task for Served {
    fn event(&mut self, key: u64) {
        if key == SOCKET {
            self.connection.socket_event();
        }
    }

    fn run(&mut self) -> Turn {
        match self.entry.order() {
            Order::GoOn => {}
            Order::Close => self.connection.close(),
            Order::Abort => self.connection.abort(),
        }
        let worked = self.connection.run();
        self.entry.add(self.connection.take_done());
        self.follow_blocking();
        match worked {
            true => Turn::Worked,
            false => Turn::Idle,
        }
    }

    fn arm(&mut self) -> Next {
        match self.connection.arm() {
            Armed::Ready => Next::Now,
            Armed::Waiting => Next::Event,
            Armed::Stalled => Next::At(Instant::now() + STALLED),
        }
    }

    fn is_over(&self) -> bool {
        self.connection.is_over()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(failure) = self.connection.failure() {
            self.entry.set_why(failure.to_string());
        }
        self.place.unwatch(self.connection.socket());
        if let Some(irq) = &self.irq {
            use std::os::fd::AsFd;
            self.place.unwatch(irq.as_fd());
        }
    }
}
