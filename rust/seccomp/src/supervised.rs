//! One program and its descendants under the filter.

use crate::call::NodeCall;
use crate::calls::Calls;
use crate::eventfd::Given;
use crate::launch::{Launch, LaunchError};
use crate::listener::{Listener, Quiet};
use crate::nodes::{Node, Nodes};
use crate::notices::{Notice, Notices};
use crate::serve::serve;
use crate::stats::{Counters, Stats};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use vduse_framework::IrqGate;

/// What the thread, the program's owner and its calls share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) nodes: Nodes,
    pub(crate) calls: Calls,
    pub(crate) notices: Notices,
    pub(crate) counters: Counters,
    pub(crate) given: Given,
    /// Readable when the owner should look.
    bell: OwnedFd,
    /// Readable when the thread should end.
    stop: OwnedFd,
    ended: AtomicBool,
    /// `None` before the start, and once nobody answers any more.
    listener: Mutex<Option<Arc<Listener>>>,
}

impl Shared {
    fn new() -> Result<Shared, Errno> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Shared {
            nodes: Nodes::default(),
            calls: Calls::new(),
            notices: Notices::default(),
            counters: Counters::default(),
            given: Given::default(),
            bell: event()?,
            stop: event()?,
            ended: AtomicBool::new(false),
            listener: Mutex::new(None),
        })
    }

    pub(crate) fn stop(&self) -> &OwnedFd {
        &self.stop
    }

    /// The owner should look.
    pub(crate) fn ring(&self) {
        // A full counter is readable, too.
        let _ = write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(crate) fn notice(&self, notice: Notice, tid: u32) {
        if self.notices.add(notice, tid) {
            self.ring();
        }
    }

    /// `None`: no call needs an answer any more.
    pub(crate) fn listener(&self) -> Option<Arc<Listener>> {
        self.listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_listener(&self, listener: Option<Arc<Listener>>) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = listener;
    }
}

/// The thread's end, however it comes.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.ring();
    }
}

/// A program, and the thread that takes its notifications. All methods may be called from any
/// thread.
#[derive(Debug)]
pub struct Supervised {
    pid: u32,
    pidfd: OwnedFd,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Supervised {
    /// Starts a program; waits until it runs. It is killed when this object or this process ends.
    pub fn spawn(launch: Launch) -> Result<Supervised, LaunchError> {
        let shared = Arc::new(Shared::new()?);
        let (sender, receiver) = mpsc::channel();
        let serving = shared.clone();
        // The one thread is the program's parent and serves it: it lives as long as it is needed.
        let body = move || {
            let _end = End(&serving);
            match launch.run() {
                Err(error) => drop(sender.send(Err(error))),
                Ok(launched) => {
                    let listener = Arc::new(launched.listener);
                    serving.set_listener(Some(listener.clone()));
                    drop(sender.send(Ok((launched.pid, launched.pidfd))));
                    let _quiet = Quiet::begin();
                    serve(launched.abi, &serving, &listener);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("vduse-notify".into())
            .spawn(body);
        let thread =
            thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        // A sender that is dropped unused: its thread has panicked.
        let (pid, pidfd) = receiver
            .recv()
            .unwrap_or(Err(LaunchError::Start(Errno::IO)))?;
        let thread = Mutex::new(Some(thread));
        Ok(Supervised {
            pid,
            pidfd,
            shared,
            thread,
        })
    }

    /// The program's process, a child of this one. Whoever waits for it does it by this number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Calls that came since the last time.
    pub fn take(&self) -> Vec<NodeCall> {
        let mut counter = [0; 8];
        let _ = read(&self.shared.bell, &mut counter);
        let calls = self.shared.calls.take().into_iter();
        calls
            .map(|call| NodeCall::new(self.shared.clone(), call))
            .collect()
    }

    /// What there is to tell since the last time, each kind once a program.
    pub fn notices(&self) -> Vec<String> {
        self.shared.notices.take()
    }

    /// Ioctls on the socket with this inode are calls on the node `key`; with a gate, irqs are
    /// answered at once. `EXIST`.
    pub fn add_node(&self, inode: u64, key: u64, gate: Option<Arc<IrqGate>>) -> Result<(), Errno> {
        self.shared.nodes.add(inode, Node { key, gate })
    }

    /// The node is closed. Nothing where there is none.
    pub fn remove_node(&self, inode: u64) {
        self.shared.nodes.remove(inode);
    }

    /// What was notified.
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// No process has the filter any more (before Linux 6.11: and all of them were waited for), or
    /// this object is closed.
    pub fn ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Kills the program and ends the thread; calls that wait for an answer fail with ENODEV.
    pub fn close(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else {
            return;
        };
        // ESRCH: it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = write(&self.shared.stop, &1u64.to_ne_bytes());
        let _ = thread.join();
        let listener = self.shared.listener();
        self.shared.set_listener(None);
        for id in self.shared.calls.end() {
            if let Some(listener) = &listener {
                listener.answer(id, Err(Errno::NODEV));
            }
        }
    }
}

impl AsFd for Supervised {
    /// An eventfd, readable when there are calls or notices to take, or at the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.close();
    }
}
