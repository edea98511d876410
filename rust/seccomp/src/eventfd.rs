//! The eventfd behind a number of the caller's: its own, or one of ours in its place where the
//! system does not let us have that (pidfd_getfd(2) wants CAP_SYS_PTRACE under Docker's filter).

use crate::listener::{Listener, Target};
use crate::tracee::{Tracee, field};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, fcntl_dupfd_cloexec, write};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// What an fd was found as.
pub(crate) enum Found {
    /// A dup of the caller's own.
    Own(OwnedFd),
    /// One of ours, which its number names from now on. Dups of the old one, and an epoll that
    /// watched it, do not follow.
    InPlace(OwnedFd),
}

/// Eventfds of ours in a program, by the kernel's number for them: one that serves several
/// virtqueues is not replaced a second time, which would cut off the first.
#[derive(Debug, Default)]
pub(crate) struct Given(Mutex<VecDeque<(u64, OwnedFd)>>);

impl Given {
    /// Of a program that uses up ever new ones, the latest are known.
    const MOST: usize = 256;

    fn find(&self, id: u64) -> Result<Option<OwnedFd>, Errno> {
        let given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = given.iter().find(|(known, _)| *known == id);
        known.map(|(_, fd)| fcntl_dupfd_cloexec(fd, 0)).transpose()
    }

    fn add(&self, fd: &OwnedFd) -> Result<(), Errno> {
        let id = Looks::read(&this_process().fd_info(fd.as_raw_fd())?).id;
        let fd = fcntl_dupfd_cloexec(fd, 0)?;
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if given.len() == Given::MOST {
            given.pop_front();
        }
        // A kernel before 5.2 does not number them.
        given.extend(id.map(|id| (id, fd)));
        Ok(())
    }
}

fn this_process() -> Tracee {
    Tracee(std::process::id())
}

/// The eventfd `number` of the thread that waits in call `id`. `BADF`; `INVAL`: no eventfd; `SRCH`
/// or `NOENT`: the caller is gone; `MFILE` and the like: no room here.
pub(crate) fn find(
    listener: &Listener,
    given: &Given,
    id: u64,
    caller: Tracee,
    number: i32,
) -> Result<Found, Errno> {
    let index = u32::try_from(number).map_err(|_| Errno::BADF)?;
    if caller.fd(number)? != b"anon_inode:[eventfd]" {
        return Err(Errno::INVAL);
    }
    let own = caller.dup(number);
    if !listener.waits(id) {
        return Err(Errno::SRCH);
    }
    match own {
        Err(Errno::PERM | Errno::NOSYS) => {
            let found = Looks::read(&caller.fd_info(number)?);
            if let Some(ours) = found.id.map_or(Ok(None), |id| given.find(id))? {
                return Ok(Found::InPlace(ours));
            }
            let ours = found.alike()?;
            given.add(&ours)?;
            listener.add_fd(id, ours.as_fd(), Target::Number(index), found.cloexec)?;
            Ok(Found::InPlace(ours))
        }
        own => own.map(Found::Own),
    }
}

/// What can be seen of an eventfd from outside.
#[derive(Debug, PartialEq, Eq)]
struct Looks {
    id: Option<u64>,
    count: u64,
    semaphore: bool,
    nonblocking: bool,
    cloexec: bool,
}

impl Looks {
    /// From /proc/PID/fdinfo/N.
    fn read(info: &str) -> Looks {
        let known = |name, radix| u64::from_str_radix(field(info, name)?, radix).ok();
        let number = |name, radix| known(name, radix).unwrap_or(0);
        let flags = number("flags:", 8);
        Looks {
            id: known("eventfd-id:", 10),
            count: number("eventfd-count:", 16),
            semaphore: number("eventfd-semaphore:", 10) != 0,
            nonblocking: flags & libc::O_NONBLOCK as u64 != 0,
            cloexec: flags & libc::O_CLOEXEC as u64 != 0,
        }
    }

    /// An eventfd that looks the same.
    fn alike(&self) -> Result<OwnedFd, Errno> {
        let mut flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        flags.set(EventfdFlags::SEMAPHORE, self.semaphore);
        let fd = eventfd(0, flags)?;
        if self.count > 0 {
            write(&fd, &self.count.to_ne_bytes())?;
        }
        if !self.nonblocking {
            rustix::io::ioctl_fionbio(&fd, false)?;
        }
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{OFlags, fcntl_getfl};

    fn look(fd: &OwnedFd) -> Looks {
        Looks::read(&this_process().fd_info(fd.as_raw_fd()).unwrap())
    }

    #[test]
    fn one_in_its_place_looks_the_same() {
        for flags in [
            EventfdFlags::empty(),
            EventfdFlags::NONBLOCK,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        ] {
            let theirs = eventfd(17, flags).unwrap();
            let found = look(&theirs);
            assert_eq!(found.count, 17);
            assert_eq!(found.cloexec, flags.contains(EventfdFlags::CLOEXEC));
            let ours = found.alike().unwrap();
            let (id, cloexec) = (look(&ours).id, true);
            assert_ne!(id, found.id);
            assert_eq!(
                look(&ours),
                Looks {
                    id,
                    cloexec,
                    ..found
                }
            );
            let nonblocking = fcntl_getfl(&ours).unwrap().contains(OFlags::NONBLOCK);
            assert_eq!(nonblocking, flags.contains(EventfdFlags::NONBLOCK));
        }
    }

    #[test]
    fn a_counter_that_is_full_is_one_here() {
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert_eq!(look(&look(&theirs).alike().unwrap()).count, u64::MAX - 1);
    }

    #[test]
    fn ours_are_known_again_the_latest_of_them() {
        let given = Given::default();
        let fds: Vec<OwnedFd> = (0..Given::MOST + 1)
            .map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap())
            .collect();
        for fd in &fds {
            given.add(fd).unwrap();
        }
        let known = |fd| given.find(look(fd).id.unwrap()).unwrap();
        assert!(known(&fds[0]).is_none());
        write(known(&fds[1]).unwrap(), &3u64.to_ne_bytes()).unwrap();
        assert_eq!(look(&fds[1]).count, 3);
    }

    #[test]
    fn what_proc_does_not_say_is_none() {
        let nothing = Looks {
            id: None,
            count: 0,
            semaphore: false,
            nonblocking: false,
            cloexec: false,
        };
        assert_eq!(Looks::read("flags: x\n"), nothing);
    }
}
