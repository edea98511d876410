//! A worker's epoll, and whose the fds in it are.
//!
//! Fds are watched for edges and never read here: every signal is an edge, nothing that the other
//! side does to the fd can block a read, and a signal costs no second system call.

use crate::task::TaskId;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events fetched at once.
const EVENTS: usize = 64;
/// The worker's own fd, which wakes it: no watch has this number.
const BELL: u64 = 0;

/// The fds that a worker waits for.
pub(crate) struct Watches {
    epoll: OwnedFd,
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    /// Number of the last watch; numbers are never used again, so an event of a watch that has
    /// ended finds nobody.
    last: u64,
    owners: HashMap<u64, (TaskId, u64)>,
    numbers: HashMap<RawFd, u64>,
}

impl Watches {
    /// With the fd that wakes the worker.
    pub(crate) fn new(bell: BorrowedFd<'_>) -> Result<Watches, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, bell, epoll::EventData::new_u64(BELL), flags)?;
        let watches = Watches {
            epoll,
            table: RefCell::default(),
        };
        // A system without epoll_pwait2 says so now.
        watches.fetch(&mut Vec::with_capacity(EVENTS), Some(Duration::ZERO))?;
        Ok(watches)
    }

    pub(crate) fn add(
        &self,
        task: TaskId,
        fd: BorrowedFd<'_>,
        key: u64,
        writable: bool,
    ) -> Result<(), Errno> {
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        flags.set(epoll::EventFlags::OUT, writable);
        let table = &mut *self.table.borrow_mut();
        let number = table.last + 1;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(number), flags)?;
        table.last = number;
        table.owners.insert(number, (task, key));
        if let Some(stale) = table.numbers.insert(fd.as_raw_fd(), number) {
            table.owners.remove(&stale);
        }
        Ok(())
    }

    pub(crate) fn remove(&self, task: TaskId, fd: BorrowedFd<'_>) {
        let table = &mut *self.table.borrow_mut();
        let number = table.numbers.get(&fd.as_raw_fd()).copied();
        let owner = number.and_then(|number| table.owners.get(&number));
        if let Some(number) = number
            && owner.is_some_and(|(owner, _)| *owner == task)
        {
            table.numbers.remove(&fd.as_raw_fd());
            table.owners.remove(&number);
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    /// Events of a task's fds find nobody from now on.
    pub(crate) fn forget(&self, task: TaskId) {
        let table = &mut *self.table.borrow_mut();
        table.owners.retain(|_, (owner, _)| *owner != task);
        table
            .numbers
            .retain(|_, number| table.owners.contains_key(number));
    }

    /// Whose an event is, and the key that it was watched under.
    pub(crate) fn owner(&self, event: &epoll::Event) -> Option<(TaskId, u64)> {
        self.table.borrow().owners.get(&event.data.u64()).copied()
    }

    /// Waits for events, at most `timeout` (`None`: for ever), and appends them.
    pub(crate) fn fetch(
        &self,
        events: &mut Vec<epoll::Event>,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        events.reserve(EVENTS);
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let room = rustix::buffer::spare_capacity(events);
        epoll::wait(&self.epoll, room, timeout.as_ref()).map(drop)
    }
}
