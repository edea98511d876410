//! The thread that takes notifications. It waits for nothing but them: what is not answered here
//! is put into a queue.

use crate::abi::{self, Abi, VQ_INJECT_IRQ};
use crate::calls::{Call, Subject};
use crate::decode::{At, OpenFlags, Request};
use crate::listener::{Listener, Notification};
use crate::notices::Notice;
use crate::path;
use crate::stats::count;
use crate::supervised::Shared;
use crate::tracee::Tracee;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vduse_framework::IrqGate;

/// Serves until no process has the filter any more, or until it is stopped.
pub(crate) fn serve(abi: &Abi, shared: &Shared, listener: &Listener) {
    let server = Server {
        abi,
        shared,
        listener,
    };
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(shared.stop(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return server.fail(errno),
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let events = fds[0].revents();
        if events.contains(PollFlags::IN) {
            match listener.receive() {
                Ok(Some(notification)) => server.handle(&notification),
                Ok(None) => {}
                Err(errno) => return server.fail(errno),
            }
        } else if !events.is_empty() {
            return;
        }
    }
}

/// What becomes of a call.
enum Verdict {
    /// It goes on in the kernel.
    Pass,
    /// It returns this.
    Answer(Result<i64, Errno>),
    /// Somebody else answers.
    Forward(Subject),
}

struct Server<'a> {
    abi: &'a Abi,
    shared: &'a Shared,
    listener: &'a Listener,
}

impl Server<'_> {
    fn handle(&self, notification: &Notification) {
        let counters = &self.shared.counters;
        let Notification { id, tid, data } = notification;
        match self.judge(*id, Tracee(*tid), Request::decode(self.abi, data)) {
            Verdict::Pass => {
                count(&counters.passed);
                self.listener.pass(*id);
            }
            Verdict::Answer(result) => self.listener.answer(*id, result),
            Verdict::Forward(subject) => {
                count(match subject {
                    Subject::Open { .. } => &counters.opens,
                    Subject::Look { .. } => &counters.looks,
                    Subject::Ioctl { .. } => &counters.ioctls,
                });
                let (id, tid) = (*id, *tid);
                let call = Call { id, tid, subject };
                self.shared.calls.add(call, |id| self.listener.waits(id));
                self.shared.ring();
            }
        }
    }

    fn judge(&self, id: u64, caller: Tracee, request: Request) -> Verdict {
        match request {
            Request::Open { at, flags } => self.open(id, caller, at, flags),
            Request::Look { at, flags, look } => match self.path(id, caller, at) {
                Some(path) => Verdict::Forward(Subject::Look { path, flags, look }),
                None => Verdict::Pass,
            },
            Request::Ioctl { fd, nr, argument } => self.ioctl(id, caller, fd, nr, argument),
            Request::IoUringSetup => {
                count(&self.shared.counters.io_uring);
                self.notice(Notice::IoUring, caller);
                Verdict::Pass
            }
            Request::Foreign => {
                count(&self.shared.counters.foreign);
                self.notice(Notice::Foreign, caller);
                Verdict::Answer(Err(Errno::NOSYS))
            }
            Request::Unknown => Verdict::Pass,
        }
    }

    /// The path, if it is one of ours. The kernel itself says what is wrong with others.
    fn path(&self, id: u64, caller: Tracee, at: At) -> Option<Vec<u8>> {
        let path = self.allowed(caller, caller.read_path(at.path)).ok()?;
        let path = path::normalise(&path, || caller.folder(at.dirfd).ok())?;
        (path::is_ours(&path) && self.listener.waits(id)).then_some(path)
    }

    fn open(&self, id: u64, caller: Tracee, at: At, flags: OpenFlags) -> Verdict {
        let Some(path) = self.path(id, caller, at) else {
            return Verdict::Pass;
        };
        let flags = match flags {
            OpenFlags::Given(flags) => u64::from(flags as u32),
            OpenFlags::How { address, size } => {
                let mut flags = [0; 8];
                if size < flags.len() as u64 {
                    return Verdict::Answer(Err(Errno::INVAL));
                }
                match caller.read(address, &mut flags) {
                    Ok(8) => u64::from_ne_bytes(flags),
                    _ => return Verdict::Answer(Err(Errno::FAULT)),
                }
            }
        };
        Verdict::Forward(Subject::Open { path, flags })
    }

    fn ioctl(&self, id: u64, caller: Tracee, fd: i32, nr: u32, argument: u64) -> Verdict {
        let node = caller
            .socket(fd)
            .and_then(|inode| self.shared.nodes.get(inode));
        let Some(node) = node else {
            return Verdict::Pass;
        };
        if let (VQ_INJECT_IRQ, Some(gate)) = (nr, &node.gate) {
            count(&self.shared.counters.irqs);
            return Verdict::Answer(self.irq(id, caller, gate, argument));
        }
        // What cannot be read is left out: an ioctl that would fail anyway fails with its own errno.
        let payload = self
            .allowed(caller, payload(caller, nr, argument))
            .unwrap_or_default();
        let key = node.key;
        Verdict::Forward(Subject::Ioctl {
            key,
            nr,
            argument,
            payload,
        })
    }

    fn irq(&self, id: u64, caller: Tracee, gate: &IrqGate, argument: u64) -> Result<i64, Errno> {
        gate.check().map_err(|error| error.errno())?;
        let mut index = [0; 4];
        let length = self.allowed(caller, caller.read(argument, &mut index))?;
        if length != index.len() {
            return Err(Errno::FAULT);
        }
        if self.listener.waits(id) {
            let index = u32::from_ne_bytes(index);
            gate.inject(index).map_err(|error| error.errno())?;
        }
        Ok(0)
    }

    /// Memory that this process may not look at is worth a word; to the caller it is not there.
    fn allowed<T>(&self, caller: Tracee, read: Result<T, Errno>) -> Result<T, Errno> {
        match read {
            Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
                self.notice(Notice::Memory(errno), caller);
                Err(Errno::FAULT)
            }
            read => read,
        }
    }

    fn notice(&self, notice: Notice, caller: Tracee) {
        self.shared.notice(notice, caller.0);
    }

    /// The thread's end is the program's.
    fn fail(&self, errno: Errno) {
        self.shared.notice(Notice::Listener(errno), 0);
    }
}

/// The struct of an ioctl that reads one, and what follows it.
fn payload(caller: Tracee, nr: u32, argument: u64) -> Result<Vec<u8>, Errno> {
    if !abi::reads(nr) {
        return Ok(Vec::new());
    }
    let mut payload = caller.read_exactly(argument, abi::size(nr))?;
    let tail = abi::tail(nr, &payload);
    let behind = argument.saturating_add(payload.len() as u64);
    payload.extend(caller.read_exactly(behind, tail)?);
    Ok(payload)
}
