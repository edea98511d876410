//! A call that was forwarded, and its answers.

use crate::abi::{self, VQ_SETUP_KICKFD};
use crate::calls::{Call, Subject};
use crate::eventfd::{self, Found};
use crate::listener::{Listener, Target};
use crate::notices::Notice;
use crate::stat::File;
use crate::supervised::Shared;
use crate::tracee::Tracee;
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An answer that cannot be: a mistake of whoever gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// There was one.
    #[error("the call was answered already")]
    Answered,
    /// More bytes than the ioctl's number says, or for a call that is no ioctl.
    #[error("the call has no room for so many bytes")]
    TooLong,
    /// A stat answer to a call that asks for none.
    #[error("the call does not ask how a file looks")]
    NoLook,
}

/// A system call that waits. Answered once; one that is dropped fails with EIO. An answer to a
/// caller that is gone does nothing.
#[derive(Debug)]
pub struct NodeCall {
    shared: Arc<Shared>,
    call: Call,
    answered: AtomicBool,
}

impl NodeCall {
    pub(crate) fn new(shared: Arc<Shared>, call: Call) -> NodeCall {
        let answered = AtomicBool::new(false);
        NodeCall {
            shared,
            call,
            answered,
        }
    }

    /// `open`, `look` or `ioctl`.
    pub fn kind(&self) -> &'static str {
        match self.call.subject {
            Subject::Open { .. } => "open",
            Subject::Look { .. } => "look",
            Subject::Ioctl { .. } => "ioctl",
        }
    }

    /// The calling thread.
    pub fn tid(&self) -> u32 {
        self.call.tid
    }

    /// The calling process, looked up now; the thread where it is gone.
    pub fn pid(&self) -> u32 {
        self.caller().process()
    }

    /// The normalised path of an open or look; empty of an ioctl.
    pub fn path(&self) -> &[u8] {
        match &self.call.subject {
            Subject::Open { path, .. } | Subject::Look { path, .. } => path,
            Subject::Ioctl { .. } => &[],
        }
    }

    /// `O_*` of an open; of a stat call `AT_*`, of an access call its mode; 0 of others.
    pub fn flags(&self) -> u64 {
        match &self.call.subject {
            Subject::Open { flags, .. } => *flags,
            Subject::Look { flags, .. } => u64::from(*flags as u32),
            Subject::Ioctl { .. } => 0,
        }
    }

    /// An ioctl's node, number and struct.
    pub fn ioctl(&self) -> Option<(u64, u32, &[u8])> {
        match &self.call.subject {
            Subject::Ioctl {
                key, nr, payload, ..
            } => Some((*key, *nr, payload)),
            _ => None,
        }
    }

    /// `VDUSE_VQ_SETUP_KICKFD`: the eventfd that its struct names, or one of ours in its place.
    /// `BADF`; `INVAL`: no eventfd, or no such call; `SRCH` or `NOENT`: the caller is gone.
    pub fn kick_fd(&self) -> Result<OwnedFd, Errno> {
        let payload = match self.ioctl() {
            Some((_, VQ_SETUP_KICKFD, payload)) => payload,
            _ => return Err(Errno::INVAL),
        };
        let number = payload.get(4..8).and_then(|word| word.try_into().ok());
        let number = i32::from_ne_bytes(number.ok_or(Errno::INVAL)?);
        let listener = self.shared.listener().ok_or(Errno::NODEV)?;
        let given = &self.shared.given;
        match eventfd::find(&listener, given, self.call.id, self.caller(), number)? {
            Found::Own(fd) => Ok(fd),
            Found::InPlace(fd) => {
                self.shared.notice(Notice::InPlace, self.call.tid);
                Ok(fd)
            }
        }
    }

    /// The call returns `result`, the ioctl's struct written before.
    pub fn reply(&self, result: Result<i64, Errno>, payload: &[u8]) -> Result<(), ReplyError> {
        let target = self.struct_for(payload)?;
        if let Some(listener) = self.claim()? {
            let written = match result {
                Ok(_) => self.write(&listener, target, payload),
                Err(_) => Ok(()),
            };
            listener.answer(self.call.id, written.and(result));
        }
        Ok(())
    }

    /// The call returns a dup of `fd` in the caller, the ioctl's struct written before; whether it
    /// got there. Where it did not, the call fails.
    pub fn reply_fd(
        &self,
        fd: BorrowedFd<'_>,
        payload: &[u8],
        cloexec: bool,
    ) -> Result<bool, ReplyError> {
        let target = self.struct_for(payload)?;
        let Some(listener) = self.claim()? else {
            return Ok(false);
        };
        let id = self.call.id;
        let given = self
            .write(&listener, target, payload)
            .and_then(|()| listener.add_fd(id, fd, Target::Answer, cloexec));
        if let Err(errno) = given {
            listener.answer(id, Err(errno));
        }
        Ok(given.is_ok())
    }

    /// A look finds a file of this `mode` (`S_IF*` and permissions) and `rdev`.
    pub fn reply_stat(&self, mode: u32, rdev: u64) -> Result<(), ReplyError> {
        let Subject::Look { look, .. } = &self.call.subject else {
            return Err(ReplyError::NoLook);
        };
        let told = File { mode, rdev }.answer(*look);
        if let Some(listener) = self.claim()? {
            let told = told.and_then(|told| match told {
                Some((address, bytes)) => self.write(&listener, Some(address), &bytes),
                None => Ok(()),
            });
            listener.answer(self.call.id, told.map(|()| 0));
        }
        Ok(())
    }

    /// Where `payload` is to be written.
    fn struct_for(&self, payload: &[u8]) -> Result<Option<u64>, ReplyError> {
        match &self.call.subject {
            _ if payload.is_empty() => Ok(None),
            Subject::Ioctl { nr, argument, .. }
                if abi::writes(*nr) && payload.len() <= abi::size(*nr) =>
            {
                Ok(Some(*argument))
            }
            _ => Err(ReplyError::TooLong),
        }
    }

    fn write(&self, listener: &Listener, target: Option<u64>, data: &[u8]) -> Result<(), Errno> {
        match target {
            // Not into whoever has its thread id now.
            Some(_) if !listener.waits(self.call.id) => Err(Errno::SRCH),
            Some(address) => self.caller().write(address, data).map_err(|_| Errno::FAULT),
            None => Ok(()),
        }
    }

    /// The right to answer, once; `None`: nobody waits for one.
    fn claim(&self) -> Result<Option<Arc<Listener>>, ReplyError> {
        if self.answered.swap(true, Ordering::AcqRel) {
            return Err(ReplyError::Answered);
        }
        let open = self.shared.calls.claim(self.call.id);
        Ok(self.shared.listener().filter(|_| open))
    }

    fn caller(&self) -> Tracee {
        Tracee(self.call.tid)
    }
}

impl Drop for NodeCall {
    fn drop(&mut self) {
        if let Ok(Some(listener)) = self.claim() {
            listener.answer(self.call.id, Err(Errno::IO));
        }
    }
}
