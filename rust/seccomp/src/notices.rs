//! What the supervisor's user should hear of: each kind once, so that a program fills no log.

use rustix::io::Errno;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// A kind of notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// A call of another architecture or convention.
    Foreign,
    /// Memory that this process may not read.
    Memory(Errno),
    /// io_uring_setup(2).
    IoUring,
    /// The kick eventfd is one of ours.
    InPlace,
    /// The listener failed.
    Listener(Errno),
}

impl Notice {
    fn words(self, tid: u32) -> String {
        match self {
            Notice::Foreign => format!(
                "thread {tid} makes system calls of another architecture (32-bit or x32), which \
                 fail with ENOSYS: only native 64-bit programs can be served"
            ),
            Notice::Memory(errno) => format!(
                "the memory of thread {tid} cannot be read ({}), its calls on /dev/vduse \
                 fail: is it of another user, or made unreadable by prctl(PR_SET_DUMPABLE), or is \
                 /proc/sys/kernel/yama/ptrace_scope above 1?",
                plain(errno)
            ),
            Notice::IoUring => format!(
                "thread {tid} sets up io_uring: a /dev/vduse node that is opened by io_uring is \
                 not seen here, and is not there"
            ),
            Notice::InPlace => format!(
                "pidfd_getfd is refused here: kick eventfds of thread {tid} were replaced by ours \
                 under the same number; dups made before, and an epoll that watched them, see no \
                 kicks"
            ),
            Notice::Listener(errno) => {
                let errno = plain(errno);
                format!("the seccomp listener failed ({errno}): the program is ended")
            }
        }
    }
}

/// An errno in the system's words alone.
fn plain(errno: Errno) -> String {
    let words = errno.to_string();
    words.split(" (os error").take(1).collect()
}

#[derive(Debug, Default)]
struct State {
    known: HashSet<Notice>,
    unread: Vec<String>,
}

/// The notices of one program.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<State>);

impl Notices {
    /// A notice about a thread; whether it is the first of its kind.
    pub(crate) fn add(&self, notice: Notice, tid: u32) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = state.known.insert(notice);
        if new {
            state.unread.push(notice.words(tid));
        }
        new
    }

    /// Those since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_are_words() {
        let notices = Notices::default();
        notices.add(Notice::Memory(Errno::PERM), 7);
        assert!(notices.take()[0].contains("cannot be read (Operation not permitted), its"));
    }

    #[test]
    fn each_kind_is_told_once() {
        let notices = Notices::default();
        assert!(notices.add(Notice::Foreign, 7));
        assert!(!notices.add(Notice::Foreign, 8));
        assert!(notices.add(Notice::IoUring, 8));
        let told = notices.take();
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("thread 7 makes system calls of another architecture"));
        assert!(!notices.add(Notice::IoUring, 9));
        assert_eq!(notices.take(), Vec::<String>::new());
    }
}
