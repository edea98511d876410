//! Starting a program under the filter.
//!
//! The child puts the filter over itself between fork and exec, sends its listener to us, and
//! execs. Not one of its calls in between is notified, so nobody need answer meanwhile.

use crate::abi::{Abi, NATIVE};
use crate::filter;
use crate::listener::{Listener, last_errno};
use libc::{
    SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_GET_NOTIF_SIZES, SECCOMP_SET_MODE_FILTER, seccomp_notif, seccomp_notif_resp,
    seccomp_notif_sizes, sock_filter, sock_fprog,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal,
};
use std::ffi::{OsString, c_ulong, c_void};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::slice;

/// `WAIT_KILLABLE_RECV`: a signal does not end a call that we have received already, which would
/// take effect here and fail there.
const FLAGS: c_ulong = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// A program to be started.
#[derive(Debug)]
pub struct Launch {
    /// The program, looked up in `env`'s PATH, and its arguments.
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it begins; `None`: where we are.
    pub folder: Option<PathBuf>,
    /// Its stdin, stdout and stderr.
    pub stdio: [OwnedFd; 3],
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Neither x86-64 nor 64-bit ARM.
    #[error("only x86-64 and 64-bit ARM are known here: other programs cannot be served")]
    Architecture,
    /// A kernel before 5.19.
    #[error(
        "Linux 5.19 or newer is needed: this kernel's seccomp(2) has no \
         SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    )]
    Kernel,
    /// seccomp(2) is not there, or forbidden.
    #[error("seccomp(2) is refused here: {0}")]
    Refused(Errno),
    /// One listener is all that a process can have above it.
    #[error(
        "there is a seccomp listener above this process already (another `vduse run`, or a \
         container manager's), and the kernel allows one: run it outside of that"
    )]
    Nested,
    /// Something else in the child, before exec.
    #[error("{0}: {1}")]
    Child(Step, Errno),
    /// No such folder to begin in.
    #[error("cannot change to {0:?}: {1}")]
    Folder(PathBuf, Errno),
    /// A string ends at a NUL.
    #[error("a NUL character is in the arguments or the environment")]
    Nul,
    /// exec failed.
    #[error("cannot run {0:?}: {1}")]
    Program(OsString, Errno),
    /// This process has no room for another.
    #[error("cannot start a process: {0}")]
    Start(#[from] Errno),
}

impl LaunchError {
    /// The errno that says most of it.
    pub fn errno(&self) -> Errno {
        match self {
            LaunchError::Architecture | LaunchError::Kernel => Errno::NOSYS,
            LaunchError::Nested => Errno::BUSY,
            LaunchError::Nul => Errno::INVAL,
            LaunchError::Refused(errno)
            | LaunchError::Child(_, errno)
            | LaunchError::Folder(_, errno)
            | LaunchError::Program(_, errno)
            | LaunchError::Start(errno) => *errno,
        }
    }
}

/// What the child does before it becomes the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Step {
    /// `PR_SET_PDEATHSIG`.
    #[error("prctl(PR_SET_PDEATHSIG)")]
    DeathSignal,
    /// `PR_SET_NO_NEW_PRIVS`.
    #[error("prctl(PR_SET_NO_NEW_PRIVS)")]
    NoNewPrivileges,
    /// seccomp(2).
    #[error("seccomp(SECCOMP_SET_MODE_FILTER)")]
    Filter,
}

/// What becomes of the steps: a listener, or the one that failed.
type Outcome<T> = Result<T, (Step, Errno)>;

const STEPS: [Step; 3] = [Step::DeathSignal, Step::NoNewPrivileges, Step::Filter];

/// A program that runs.
pub(crate) struct Launched {
    pub(crate) abi: &'static Abi,
    /// Its process; a child of ours, to be waited for by others.
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) listener: Listener,
}

impl Launch {
    /// Starts it. The program is killed when the calling thread ends.
    pub(crate) fn run(self) -> Result<Launched, LaunchError> {
        let abi = NATIVE.ok_or(LaunchError::Architecture)?;
        probe()?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Not where the program's stdio will be.
        let theirs = fcntl_dupfd_cloexec(theirs, 3)?;
        let (program, folder) = (self.argv.first().cloned(), self.folder.clone());
        let program = program.unwrap_or_default();
        let mut command = self.command(program.clone(), filter::program(abi), theirs);
        let child = command.spawn();
        drop(command); // and with it their end of the socket
        match (child, receive(&ours)) {
            (Ok(child), Ok(Some(Ok(listener)))) => take(abi, child, listener),
            // exec closes the socket; what the child has sent before is there.
            (Ok(child), message) => {
                end(child);
                Err(LaunchError::Start(message.err().unwrap_or(Errno::PROTO)))
            }
            (Err(_), Ok(Some(Err((Step::Filter, Errno::BUSY))))) => Err(LaunchError::Nested),
            (Err(_), Ok(Some(Err((step, errno))))) => Err(LaunchError::Child(step, errno)),
            (Err(error), Ok(Some(Ok(_)))) => Err(LaunchError::Program(program, errno(&error))),
            (Err(error), _) => Err(match (error.kind(), folder) {
                (ErrorKind::InvalidInput, _) => LaunchError::Nul,
                (
                    ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied,
                    Some(folder),
                ) => LaunchError::Folder(folder, errno(&error)),
                _ => LaunchError::Start(errno(&error)),
            }),
        }
    }

    fn command(self, program: OsString, code: Vec<sock_filter>, socket: OwnedFd) -> Command {
        let mut command = Command::new(program);
        command.args(self.argv.into_iter().skip(1));
        command.env_clear().envs(self.env);
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        let [stdin, stdout, stderr] = self.stdio.map(Stdio::from);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        // Ctrl-C is its supervisor's affair, which ends it in order.
        command.process_group(0);
        let supervisor = std::process::id();
        // SAFETY: system calls alone, on what was allocated before: as a fork of a process with
        // threads has to.
        unsafe { command.pre_exec(move || prepare(&code, supervisor, socket.as_fd())) };
        command
    }
}

/// A child that has become the program.
fn take(abi: &'static Abi, child: Child, listener: OwnedFd) -> Result<Launched, LaunchError> {
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Launched {
            abi,
            pid: child.id(),
            pidfd,
            listener: Listener::new(listener),
        }),
        Err(errno) => {
            end(child);
            Err(LaunchError::Start(errno))
        }
    }
}

/// A child that nobody is going to be told of.
fn end(mut child: Child) {
    // Neither fails, unless somebody else has waited for it.
    let _ = child.kill();
    let _ = child.wait();
}

/// Whether the kernel can do what we need: with no filter given, it looks at the flags only.
fn probe() -> Result<(), LaunchError> {
    // SAFETY: no argument.
    match unsafe { seccomp(SECCOMP_SET_MODE_FILTER, FLAGS, std::ptr::null_mut()) } {
        Err(Errno::FAULT) => {}
        Err(Errno::INVAL) => return Err(LaunchError::Kernel),
        Err(errno) => return Err(LaunchError::Refused(errno)),
        Ok(_) => return Err(LaunchError::Refused(Errno::PROTO)),
    }
    let mut sizes = MaybeUninit::<seccomp_notif_sizes>::zeroed();
    let argument = sizes.as_mut_ptr().cast();
    // SAFETY: the kernel writes one seccomp_notif_sizes, which is plain integers, zeroed at least.
    let sizes = unsafe {
        seccomp(SECCOMP_GET_NOTIF_SIZES, 0, argument).map_err(LaunchError::Refused)?;
        sizes.assume_init()
    };
    let known = [size_of::<seccomp_notif>(), size_of::<seccomp_notif_resp>()];
    match [sizes.seccomp_notif, sizes.seccomp_notif_resp].map(usize::from) == known {
        true => Ok(()),
        // A later kernel's structs, larger than ours: none has them yet.
        false => Err(LaunchError::Refused(Errno::PROTONOSUPPORT)),
    }
}

/// In the child. Allocates nothing.
fn prepare(code: &[sock_filter], supervisor: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let failed = |step, errno| {
        let _ = send(socket, Err((step, errno)));
        io::Error::from(errno)
    };
    clear_signals();
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| failed(Step::DeathSignal, errno))?;
    if getppid().map_or(0, |pid| pid.as_raw_nonzero().get()) as u32 != supervisor {
        // It ended before the line above.
        return Err(failed(Step::DeathSignal, Errno::SRCH));
    }
    rustix::thread::set_no_new_privs(true).map_err(|errno| failed(Step::NoNewPrivileges, errno))?;
    let program = sock_fprog {
        len: code.len() as u16,
        filter: code.as_ptr().cast_mut(),
    };
    let argument = (&raw const program).cast_mut().cast();
    // SAFETY: `argument` is a sock_fprog, whose instructions are only read; the fd is a new one, ours
    // and close-on-exec.
    let listener = unsafe {
        let listener = seccomp(SECCOMP_SET_MODE_FILTER, FLAGS, argument);
        OwnedFd::from_raw_fd(listener.map_err(|errno| failed(Step::Filter, errno))?)
    };
    send(socket, Ok(listener.as_fd()))?;
    Ok(())
}

/// As a program expects to begin: Python ignores some signals, and a mask is inherited.
fn clear_signals() {
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set that sigprocmask reads; SIG_DFL is no function of ours.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
    }
}

/// seccomp(2), which libc has no function for.
///
/// # Safety
/// `argument` is null, or points to what the operation reads or writes.
unsafe fn seccomp(operation: u32, flags: c_ulong, argument: *mut c_void) -> Result<i32, Errno> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, argument) };
    let result = i32::try_from(result).ok().filter(|fd| *fd >= 0);
    result.ok_or_else(last_errno)
}

/// The child's one message: its listener, or the step that failed and its errno.
fn send(socket: BorrowedFd<'_>, outcome: Outcome<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let (step, errno, fds) = match &outcome {
        Err((step, errno)) => (*step as i32, errno.raw_os_error(), &[][..]),
        Ok(listener) => (0, 0, slice::from_ref(listener)),
    };
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let (step, errno) = (step.to_ne_bytes(), errno.to_ne_bytes());
    let packet = [&step, &errno].map(|word| IoSlice::new(word));
    retry_on_intr(|| sendmsg(socket, &packet, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// The message; `None`: the child has ended without one.
fn receive(socket: &OwnedFd) -> Result<Option<Outcome<OwnedFd>>, Errno> {
    let mut words = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let mut packet = [IoSliceMut::new(&mut words)];
        recvmsg(socket, &mut packet, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let word = |at: usize| i32::from_ne_bytes(std::array::from_fn(|byte| words[at + byte]));
    match (fds.next(), word(4)) {
        (Some(listener), _) => Ok(Some(Ok(listener))),
        // No fd and no errno: it could not be received.
        (None, 0) => Err(Errno::MFILE),
        (None, errno) => {
            let step = STEPS.get(word(0) as usize).copied().unwrap_or(Step::Filter);
            Ok(Some(Err((step, Errno::from_raw_os_error(errno)))))
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
