//! Kick and irq of one virtqueue, as the framework holds them.
//!
//! A line lives as long as its device. The kick eventfd behind it changes hands when a daemon is
//! replaced; while there is none, a kick is remembered (`kicked`), as in the kernel.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::readlink;
use rustix::io::{Errno, ReadWriteFlags, fcntl_dupfd_cloexec, preadv2};
use rustix::net::{AddressFamily, sockopt::socket_domain};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use vduse_ring::notify;

/// What went over a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineStats {
    /// Kicks, remembered ones among them.
    pub kicks: u64,
    /// Irqs injected here (a device that holds the call fd signals without passing by).
    pub irqs: u64,
}

/// The framework's end of one virtqueue's kick and irq.
#[derive(Debug)]
pub struct VqLine {
    ready: AtomicBool,
    kick: RwLock<Option<Arc<OwnedFd>>>,
    kicked: AtomicBool,
    own_call: OwnedFd,
    foreign_call: RwLock<Option<Arc<OwnedFd>>>,
    kicks: AtomicU64,
    irqs: AtomicU64,
}

impl VqLine {
    /// A ready line without kick eventfd, whose irqs signal an eventfd of its own.
    pub fn new() -> Result<VqLine, Errno> {
        Ok(VqLine {
            ready: AtomicBool::new(true),
            kick: RwLock::new(None),
            kicked: AtomicBool::new(false),
            own_call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            foreign_call: RwLock::new(None),
            kicks: AtomicU64::new(0),
            irqs: AtomicU64::new(0),
        })
    }

    /// Takes a dup of the device's kick eventfd, made O_NONBLOCK so that a device which lets
    /// its counter overflow cannot stop the driver; `None` deassigns. `EINVAL` where it is no
    /// eventfd.
    pub fn set_kickfd(&self, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let fd = match fd {
            Some(fd) if is_eventfd(fd)? => Some(Arc::new(nonblocking_dup(fd)?)),
            Some(_) => return Err(Errno::INVAL),
            None => None,
        };
        *self.kick.write().unwrap_or_else(PoisonError::into_inner) = fd;
        Ok(())
    }

    /// Whether kicks count: not while the virtqueue is not enabled.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Signals the kick eventfd; without one, remembers the kick. Nothing while not ready.
    pub fn kick(&self) {
        if !self.ready.load(Ordering::Acquire) {
            return;
        }
        self.kicks.fetch_add(1, Ordering::Relaxed);
        // Not under the lock: whoever signals waits for nobody.
        match current(&self.kick) {
            Some(fd) => notify::signal(fd.as_fd()),
            None => self.kicked.store(true, Ordering::Release),
        }
    }

    /// Whether a kick found no eventfd.
    pub fn kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire)
    }

    /// Forgets the remembered kick.
    pub fn clear_kicked(&self) {
        self.kicked.store(false, Ordering::Release);
    }

    /// Irqs go to a dup of this fd, an eventfd, a pipe or a unix socket (user-mode-linux's), made
    /// O_NONBLOCK; `None`: back to the line's own eventfd. `EINVAL` for any other kind of file: an
    /// irq writes into it.
    pub fn set_callfd(&self, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let fd = match fd {
            Some(fd) if is_eventfd(fd)? || is_pipe(fd)? || is_unix_socket(fd)? => {
                Some(Arc::new(nonblocking_dup(fd)?))
            }
            Some(_) => return Err(Errno::INVAL),
            None => None,
        };
        *self
            .foreign_call
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fd;
        Ok(())
    }

    /// Calls `f` with the fd that an irq signals now.
    pub fn with_callfd<T>(&self, f: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        match current(&self.foreign_call) {
            Some(fd) => f(fd.as_fd()),
            None => f(self.own_call.as_fd()),
        }
    }

    /// VDUSE_VQ_INJECT_IRQ, of a driver that is live or not; false: it is not taken. One that is
    /// live, or has given an eventfd of its own and made the queue ready, takes it; a queue that is
    /// not ready has none. Once [`VqLine::set_callfd`] has returned, no irq goes to the fd before.
    pub(crate) fn irq(&self, driver_ok: bool) -> bool {
        // Held while the fd is signalled, which waits for nobody.
        let foreign = self
            .foreign_call
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let ready = self.ready.load(Ordering::Acquire);
        if ready && (driver_ok || foreign.is_some()) {
            self.irqs.fetch_add(1, Ordering::Relaxed);
            notify::signal(
                foreign
                    .as_ref()
                    .map_or(self.own_call.as_fd(), |fd| fd.as_fd()),
            );
            return true;
        }
        driver_ok
    }

    /// An irq: signals the call fd, if it has room (see [`notify::signal`]); never runs driver
    /// code on this stack.
    pub fn inject(&self) {
        self.irqs.fetch_add(1, Ordering::Relaxed);
        self.with_callfd(notify::signal);
    }

    /// The line's own eventfd, which a driver in this process polls.
    pub fn irq_fd(&self) -> BorrowedFd<'_> {
        self.own_call.as_fd()
    }

    /// Takes the irqs that arrived on the line's own eventfd: how many.
    pub fn take_irqs(&self) -> u64 {
        let mut counter = [0; 8];
        // The device has this eventfd too, and may have made it blocking: NOWAIT is our own.
        // The offset: that of the file, which has none.
        let mut buffer = [IoSliceMut::new(&mut counter)];
        match preadv2(
            &self.own_call,
            &mut buffer,
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(8) => u64::from_ne_bytes(counter),
            _ => 0,
        }
    }

    /// What went over the line.
    pub fn stats(&self) -> LineStats {
        LineStats {
            kicks: self.kicks.load(Ordering::Relaxed),
            irqs: self.irqs.load(Ordering::Relaxed),
        }
    }
}

pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(link(fd)? == b"anon_inode:[eventfd]")
}

fn is_pipe(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(link(fd)?.starts_with(b"pipe:["))
}

fn is_unix_socket(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(link(fd)?.starts_with(b"socket:[") && socket_domain(fd)? == AddressFamily::UNIX)
}

/// What an fd is, from its link in /proc: eventfds have no file type of their own. And the file
/// itself is not asked: the other side may be the one that answers (FUSE), and never do.
fn link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match readlink(path, Vec::new()) {
        Ok(target) => Ok(target.into_bytes()),
        Err(Errno::NOENT) => Err(Errno::BADF),
        Err(errno) => Err(errno),
    }
}

fn nonblocking_dup(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let fd = fcntl_dupfd_cloexec(fd, 3)?;
    notify::make_nonblocking(fd.as_fd())?;
    Ok(fd)
}

fn current(slot: &RwLock<Option<Arc<OwnedFd>>>) -> Option<Arc<OwnedFd>> {
    slot.read().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::io::{read, write};
    use rustix::pipe::{PipeFlags, pipe_with};

    fn count(fd: &OwnedFd) -> u64 {
        let mut counter = [0; 8];
        read(fd, &mut counter).map_or(0, |_| u64::from_ne_bytes(counter))
    }

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn a_kick_without_kickfd_is_remembered() {
        let line = VqLine::new().unwrap();
        line.kick();
        assert!(line.kicked());
        line.clear_kicked();
        assert!(!line.kicked());
        assert_eq!(line.stats().kicks, 1);
    }

    #[test]
    fn a_kick_signals_the_kickfd_until_it_is_deassigned() {
        let (line, fd) = (VqLine::new().unwrap(), event());
        line.set_kickfd(Some(fd.as_fd())).unwrap();
        line.kick();
        line.kick();
        assert_eq!((count(&fd), line.kicked()), (2, false));
        line.set_kickfd(None).unwrap();
        line.kick();
        assert_eq!((count(&fd), line.kicked()), (0, true));
    }

    #[test]
    fn a_kick_of_a_queue_not_ready_is_nothing() {
        let (line, fd) = (VqLine::new().unwrap(), event());
        line.set_ready(false);
        line.kick();
        line.set_kickfd(Some(fd.as_fd())).unwrap();
        line.kick();
        assert_eq!(
            (count(&fd), line.kicked(), line.stats().kicks),
            (0, false, 0)
        );
        line.set_ready(true);
        line.kick();
        assert_eq!(count(&fd), 1);
    }

    #[test]
    fn a_full_kick_counter_does_not_block() {
        let (line, fd) = (
            VqLine::new().unwrap(),
            eventfd(0, EventfdFlags::empty()).unwrap(),
        );
        line.set_kickfd(Some(fd.as_fd())).unwrap();
        write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        line.kick();
        assert_eq!(count(&fd), u64::MAX - 1);
    }

    #[test]
    fn only_an_eventfd_is_a_kickfd() {
        let line = VqLine::new().unwrap();
        let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        assert_eq!(line.set_kickfd(Some(reader.as_fd())), Err(Errno::INVAL));
    }

    #[test]
    fn irqs_go_to_the_foreign_callfd_while_there_is_one() {
        let (line, fd) = (VqLine::new().unwrap(), event());
        line.inject();
        line.set_callfd(Some(fd.as_fd())).unwrap();
        line.inject();
        line.inject();
        assert_eq!((line.take_irqs(), count(&fd)), (1, 2));
        line.set_callfd(None).unwrap();
        line.inject();
        assert_eq!((line.take_irqs(), count(&fd)), (1, 0));
        assert_eq!(line.stats().irqs, 4);
    }

    /// O_NONBLOCK belongs to the open file, which the device has too.
    #[test]
    fn taking_irqs_does_not_block_where_the_device_made_the_eventfd_blocking() {
        let line = VqLine::new().unwrap();
        let device = line.with_callfd(|fd| fd.try_clone_to_owned()).unwrap();
        fcntl_setfl(&device, OFlags::empty()).unwrap();
        assert_eq!(line.take_irqs(), 0);
        line.inject();
        line.inject();
        assert_eq!(line.take_irqs(), 2);
    }

    #[test]
    fn a_full_or_broken_call_pipe_does_not_block() {
        let line = VqLine::new().unwrap();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        line.set_callfd(Some(writer.as_fd())).unwrap();
        for _ in 0..10_000 {
            line.inject();
        }
        drop(reader);
        line.inject();
    }

    #[test]
    fn a_full_or_broken_call_socket_does_not_block() {
        let line = VqLine::new().unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        line.set_callfd(Some(ours.as_fd())).unwrap();
        for _ in 0..10_000 {
            line.inject();
        }
        drop(theirs);
        line.inject();
    }

    #[test]
    fn another_kind_of_socket_is_no_callfd() {
        let line = VqLine::new().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(line.set_callfd(Some(tcp.as_fd())), Err(Errno::INVAL));
    }

    #[test]
    fn a_regular_file_is_no_callfd() {
        let line = VqLine::new().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(line.set_callfd(Some(file.as_fd())), Err(Errno::INVAL));
    }
}
