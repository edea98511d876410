//! All connections to one disk.

use crate::ledger::{Ledger, Order, Stats};
use crate::task::Seed;
use crate::{Allocation, Options};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vduse_framework::blk::BlkDriver;
use vduse_nbdsocket::{Socket, Tls};
use vduse_worker::Workers;

/// How long connections that were aborted may take to end: a worker may be in a backend.
const ABORT: Duration = Duration::from_secs(1);

/// Why a socket was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// After [`Export::close`].
    #[error("the export is closed")]
    Closed,
    /// Not a stream socket.
    #[error("no stream socket: {0}")]
    Socket(Errno),
}

/// Serves connections in the transmission phase, on the queues of a driver.
pub struct Export {
    driver: Arc<BlkDriver>,
    workers: Workers,
    first_worker: usize,
    ledger: Arc<Ledger>,
    allocation: Option<Arc<dyn Allocation>>,
}

impl Export {
    /// Connection n uses queue n % queues, on worker (`first_worker` + queue) % workers.
    /// `allocation`: knows what lies where; where nobody does, all is data.
    pub fn new(
        driver: Arc<BlkDriver>,
        workers: Workers,
        first_worker: usize,
        allocation: Option<Arc<dyn Allocation>>,
    ) -> Result<Export, Errno> {
        Ok(Export {
            allocation,
            driver,
            workers,
            first_worker,
            ledger: Arc::new(Ledger::new()?),
        })
    }

    /// Serves a connected stream socket from now on. `tls`: the session that the handshake was
    /// made in.
    pub fn attach(
        &self,
        socket: OwnedFd,
        tls: Option<Tls>,
        options: Options,
    ) -> Result<(), AttachError> {
        let socket = Socket::new(socket, tls).map_err(AttachError::Socket)?;
        let entry = self.ledger.enter().ok_or(AttachError::Closed)?;
        let queue = (entry.number() % self.driver.queues() as u64) as usize;
        let seed = Seed {
            driver: self.driver.clone(),
            queue,
            socket,
            options,
            entry,
            allocation: self.allocation.clone(),
        };
        let worker = self.first_worker.wrapping_add(queue) % self.workers.count();
        self.workers.spawn(worker, move |place| seed.serve(place));
        Ok(())
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.ledger.open()
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.ledger.stats()
    }

    /// Readable when [`Export::events`] has something.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.ledger.event_fd()
    }

    /// Why connections ended that did not end as they should.
    pub fn events(&self) -> Vec<String> {
        self.ledger.take_events()
    }

    /// Takes no request any more, waits until those that were taken are answered, at most
    /// `timeout`, and ends all connections; false if some requests were not answered.
    pub fn close(&self, timeout: Duration) -> bool {
        let now = Instant::now();
        self.ledger.tell_all(Order::Close);
        let deadline = now.checked_add(timeout).unwrap_or(now);
        let answered = self.ledger.wait_ended(deadline);
        if !answered {
            self.ledger.tell_all(Order::Abort);
            self.ledger.wait_ended(Instant::now() + ABORT);
        }
        answered
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.ledger.tell_all(Order::Abort);
    }
}
