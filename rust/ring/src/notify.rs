//! Notifications: kicks and irqs, as one event on an fd that the other side holds too.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, write};
use std::os::fd::BorrowedFd;

/// Makes an eventfd, pipe or socket ready for [`signal`]: O_NONBLOCK.
pub fn make_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

/// One event on an eventfd, pipe or socket. A full counter or pipe is readable already, and a reader
/// that is gone needs no event: no error is of use here.
///
/// O_NONBLOCK belongs to the open file, so the other side can take it away, and a full counter
/// would then block: whether there is room is asked first (docs/decisions, note 8, says what
/// that leaves open).
pub fn signal(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    if poll(&mut fds, Some(&Timespec::default())) == Ok(1) && fds[0].revents() == PollFlags::OUT {
        let _ = write(fd, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::read;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::os::fd::AsFd;

    fn counter(fd: BorrowedFd<'_>) -> u64 {
        let mut counter = [0; 8];
        read(fd, &mut counter).unwrap();
        u64::from_ne_bytes(counter)
    }

    #[test]
    fn every_signal_counts() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        signal(fd.as_fd());
        signal(fd.as_fd());
        assert_eq!(counter(fd.as_fd()), 2);
    }

    #[test]
    fn a_full_blocking_eventfd_does_not_block() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        signal(fd.as_fd());
        assert_eq!(counter(fd.as_fd()), u64::MAX - 1);
    }

    #[test]
    fn a_full_blocking_pipe_and_one_without_reader_do_not_block() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        for _ in 0..10_000 {
            signal(writer.as_fd());
        }
        drop(reader);
        signal(writer.as_fd());
    }
}
