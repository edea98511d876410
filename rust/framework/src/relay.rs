//! Kick eventfds in other hands (a vhost_vdpa user's): each signal becomes a kick of a line, on
//! one thread for all of them, in place of the kernel's vhost workers.

use crate::VqLine;
use crate::line::is_eventfd;
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, fcntl_dupfd_cloexec, write};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The epoll data of the eventfd that ends the thread; watches count from 1.
const END: u64 = 0;

#[derive(Debug)]
struct Watches {
    next: u64,
    lines: HashMap<u64, (OwnedFd, Arc<VqLine>)>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    watches: Mutex<Watches>,
}

/// The thread, which ends with this object.
#[derive(Debug)]
pub struct KickRelay {
    shared: Arc<Shared>,
    end: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Watches) -> T) -> T {
        f(&mut self.watches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn serve(&self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                // No other error can be met with an epoll of our own.
                Err(_) => return,
            }
            for event in &events {
                let watch = event.data.u64();
                if watch == END {
                    return;
                }
                let line = self.with(|watches| {
                    let (_, line) = watches.lines.get(&watch)?;
                    Some(line.clone())
                });
                if let Some(line) = line {
                    line.kick();
                }
            }
        }
    }
}

impl KickRelay {
    /// Starts the thread.
    pub fn new() -> Result<KickRelay, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(END);
        epoll::add(&epoll, &end, data, epoll::EventFlags::IN)?;
        let lines = HashMap::new();
        let shared = Arc::new(Shared {
            epoll,
            watches: Mutex::new(Watches { next: 1, lines }),
        });
        let serving = shared.clone();
        let thread = std::thread::Builder::new()
            .name("vduse-kick".into())
            .spawn(move || serving.serve())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        Ok(KickRelay {
            shared,
            end,
            thread: Some(thread),
        })
    }

    /// Kicks `line` at every signal of `fd`, of which it takes a dup, until
    /// [`KickRelay::unwatch`]. The eventfd is never read, as in the kernel, so neither another
    /// reader nor a blocking one can hold the thread up; `EINVAL` for any other kind of file,
    /// which could.
    pub fn watch(&self, fd: BorrowedFd<'_>, line: Arc<VqLine>) -> Result<u64, Errno> {
        if !is_eventfd(fd)? {
            return Err(Errno::INVAL);
        }
        let fd = fcntl_dupfd_cloexec(fd, 0)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        self.shared.with(|watches| {
            let watch = watches.next;
            let data = epoll::EventData::new_u64(watch);
            epoll::add(&self.shared.epoll, &fd, data, flags)?;
            watches.next += 1;
            watches.lines.insert(watch, (fd, line));
            Ok(watch)
        })
    }

    /// Ends a watch; nothing if it has ended. A kick that is under way may still arrive.
    pub fn unwatch(&self, watch: u64) {
        let ended = self.shared.with(|watches| watches.lines.remove(&watch));
        if let Some((fd, _)) = ended {
            // A dup of the eventfd elsewhere would keep it in the epoll set.
            let _ = epoll::delete(&self.shared.epoll, &fd);
        }
    }
}

impl Drop for KickRelay {
    fn drop(&mut self) {
        let _ = write(self.end.as_fd(), &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::read;
    use rustix::pipe::{PipeFlags, pipe_with};

    struct Queue {
        line: Arc<VqLine>,
        device: OwnedFd,
    }

    impl Queue {
        fn new() -> Queue {
            let line = Arc::new(VqLine::new().unwrap());
            let device = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            line.set_kickfd(Some(device.as_fd())).unwrap();
            Queue { line, device }
        }

        fn wait_for_kick(&self) {
            let timeout = Timespec {
                tv_sec: 30,
                tv_nsec: 0,
            };
            let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1));
            read(&self.device, &mut [0; 8]).unwrap();
        }
    }

    fn signal(fd: &OwnedFd) {
        write(fd, &1u64.to_ne_bytes()).unwrap();
    }

    #[test]
    fn every_signal_arrives_at_its_line() {
        let relay = KickRelay::new().unwrap();
        let queues = [Queue::new(), Queue::new()];
        let fds = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        for (queue, fd) in queues.iter().zip(&fds) {
            relay.watch(fd.as_fd(), queue.line.clone()).unwrap();
        }
        for _ in 0..3 {
            for (queue, fd) in queues.iter().zip(&fds) {
                signal(fd);
                queue.wait_for_kick();
            }
        }
        assert_eq!(queues[0].line.stats().kicks, 3);
    }

    #[test]
    fn a_signal_from_before_the_watch_is_no_loss() {
        let relay = KickRelay::new().unwrap();
        let (queue, fd) = (Queue::new(), eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        signal(&fd);
        relay.watch(fd.as_fd(), queue.line.clone()).unwrap();
        queue.wait_for_kick();
    }

    #[test]
    fn after_unwatch_nothing_arrives() {
        let relay = KickRelay::new().unwrap();
        let (quiet, loud) = (Queue::new(), Queue::new());
        let fds = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let watch = relay.watch(fds[0].as_fd(), quiet.line.clone()).unwrap();
        relay.watch(fds[1].as_fd(), loud.line.clone()).unwrap();
        relay.unwatch(watch);
        relay.unwatch(watch);
        signal(&fds[0]);
        signal(&fds[1]);
        loud.wait_for_kick();
        assert_eq!(quiet.line.stats().kicks, 0);
    }

    #[test]
    fn only_an_eventfd_can_be_watched() {
        let relay = KickRelay::new().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let (pipe, _writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        for fd in [file.as_fd(), pipe.as_fd(), relay.shared.epoll.as_fd()] {
            let error = relay.watch(fd, Queue::new().line).unwrap_err();
            assert_eq!(error, Errno::INVAL);
        }
    }
}
