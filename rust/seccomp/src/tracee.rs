//! A thread that waits in a call: its memory, and what /proc says of it.
//!
//! Everything here may be about another thread if the caller was killed and its id was given
//! away: whoever acts on it asks [`Listener::waits`](crate::listener::Listener::waits) first.

use crate::listener::last_errno;
use crate::path::PATH_MAX;
use rustix::fs::{Mode, OFlags, open, readlink};
use rustix::io::{Errno, pread, pwrite, read};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::ffi::{c_ulong, c_void};
use std::os::fd::OwnedFd;

/// Memory is taken in pieces that end here at the latest: it may end there too, and a piece is
/// read whole or not.
const PAGE: u64 = 4096;
/// Pieces of one transfer.
const MAX_PIECES: usize = 8;
/// `PIDFD_THREAD` of linux/pidfd.h (Linux 6.9): of a thread that leads no process, too.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// A thread, by its id. Errors of all methods: `SRCH`, it is gone; `PERM` or `ACCES`, this process
/// may not look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracee(pub(crate) u32);

impl Tracee {
    /// Reads memory; how many bytes there were. `FAULT`: none.
    pub(crate) fn read(self, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let (remote, count) = pieces(address, buffer.len())?;
        let local = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: `local` is `buffer`; the other addresses are checked by the kernel.
        let done =
            unsafe { libc::process_vm_readv(self.0 as i32, &local, 1, remote.as_ptr(), count, 0) };
        match usize::try_from(done).map_err(|_| last_errno()) {
            Err(Errno::PERM | Errno::NOSYS) => {
                let memory = self.memory(OFlags::RDONLY)?;
                pread(memory, buffer, address).map_err(no_memory)
            }
            done => done,
        }
        .and_then(|done| {
            if done == 0 {
                Err(Errno::FAULT)
            } else {
                Ok(done)
            }
        })
    }

    /// Reads `length` bytes. `FAULT`: some are not there.
    pub(crate) fn read_exactly(self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        match length == 0 || self.read(address, &mut bytes)? == length {
            true => Ok(bytes),
            false => Err(Errno::FAULT),
        }
    }

    /// Reads a path. `FAULT`: memory ends before its NUL; `NAMETOOLONG`.
    pub(crate) fn read_path(self, address: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = [0; PATH_MAX];
        let there = self.read(address, &mut bytes)?;
        match bytes[..there].iter().position(|byte| *byte == 0) {
            Some(end) => Ok(bytes[..end].to_vec()),
            None if there == PATH_MAX => Err(Errno::NAMETOOLONG),
            None => Err(Errno::FAULT),
        }
    }

    /// Writes memory, all of it. `FAULT`.
    pub(crate) fn write(self, address: u64, data: &[u8]) -> Result<(), Errno> {
        let (remote, count) = pieces(address, data.len())?;
        let local = libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        };
        // SAFETY: `local` is `data`, which is only read; the other addresses are checked by the
        // kernel.
        let done =
            unsafe { libc::process_vm_writev(self.0 as i32, &local, 1, remote.as_ptr(), count, 0) };
        let done = match usize::try_from(done).map_err(|_| last_errno()) {
            Err(Errno::PERM | Errno::NOSYS) => {
                let memory = self.memory(OFlags::WRONLY)?;
                pwrite(memory, data, address).map_err(no_memory)?
            }
            done => done?,
        };
        if done == data.len() {
            Ok(())
        } else {
            Err(Errno::FAULT)
        }
    }

    /// Where the system refuses the calls for it, memory is a file.
    fn memory(self, access: OFlags) -> Result<OwnedFd, Errno> {
        open(self.proc("mem"), access | OFlags::CLOEXEC, Mode::empty()).map_err(gone)
    }

    fn proc(self, what: &str) -> String {
        format!("/proc/{}/{what}", self.0)
    }

    fn link(self, what: &str) -> Result<Vec<u8>, Errno> {
        let target = readlink(self.proc(what), Vec::with_capacity(64)).map_err(gone)?;
        Ok(target.into_bytes())
    }

    /// The folder that relative paths begin at.
    pub(crate) fn folder(self, dirfd: i32) -> Result<Vec<u8>, Errno> {
        match dirfd {
            libc::AT_FDCWD => self.link("cwd"),
            fd => self.fd(fd),
        }
    }

    /// What an fd is, as /proc calls it. `BADF`.
    pub(crate) fn fd(self, number: i32) -> Result<Vec<u8>, Errno> {
        match self.link(&format!("fd/{number}")) {
            Err(Errno::SRCH) if self.lives() => Err(Errno::BADF),
            link => link,
        }
    }

    /// The inode of an fd that is a socket.
    pub(crate) fn socket(self, number: i32) -> Option<u64> {
        let link = self.link(&format!("fd/{number}")).ok()?;
        let inode = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
        str::from_utf8(inode).ok()?.parse().ok()
    }

    /// What /proc says of an fd: `field: value` lines.
    pub(crate) fn fd_info(self, number: i32) -> Result<String, Errno> {
        self.text(&format!("fdinfo/{number}"))
    }

    /// The process that the thread is of; the thread itself where it is gone.
    pub(crate) fn process(self) -> u32 {
        let status = self.text("status").unwrap_or_default();
        let id = field(&status, "Tgid:").and_then(|id| id.parse().ok());
        id.unwrap_or(self.0)
    }

    /// A dup of its fd. `PERM` or `NOSYS`: the system refuses.
    pub(crate) fn dup(self, number: i32) -> Result<OwnedFd, Errno> {
        let by_id = |id: u32, flags| {
            let id = i32::try_from(id).ok().and_then(Pid::from_raw);
            pidfd_open(id.ok_or(Errno::SRCH)?, flags)
        };
        // A thread may have fds of its own; kernels before 6.9 have its process's only.
        let thread = PidfdFlags::from_bits_retain(PIDFD_THREAD);
        let pidfd = match by_id(self.0, thread) {
            Err(Errno::INVAL) => by_id(self.process(), PidfdFlags::empty()),
            pidfd => pidfd,
        };
        pidfd_getfd(pidfd?, number, PidfdGetfdFlags::empty())
    }

    fn lives(self) -> bool {
        self.link("cwd").is_ok()
    }

    fn text(self, what: &str) -> Result<String, Errno> {
        let file = open(
            self.proc(what),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let file = file.map_err(gone)?;
        let mut bytes = vec![0; PAGE as usize];
        let length = read(file, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

/// The value of a line of /proc that begins with `name`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// A range of another process, cut at its pages. `FAULT`: it leaves the address space, or is
/// longer than anything that is read or written at once.
fn pieces(address: u64, length: usize) -> Result<([libc::iovec; MAX_PIECES], c_ulong), Errno> {
    let end = address.checked_add(length as u64).ok_or(Errno::FAULT)?;
    let mut pieces = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; MAX_PIECES];
    let (mut at, mut count) = (address, 0);
    while at < end {
        // `at` is below `end`: the page after it may be beyond the last address.
        let next = end.min((at & !(PAGE - 1)).saturating_add(PAGE));
        let piece = pieces.get_mut(count).ok_or(Errno::FAULT)?;
        piece.iov_base = at as usize as *mut c_void;
        piece.iov_len = (next - at) as usize;
        (at, count) = (next, count + 1);
    }
    Ok((pieces, count as c_ulong))
}

/// A file of /proc that is not there is a thread that is gone.
fn gone(errno: Errno) -> Errno {
    if errno == Errno::NOENT {
        Errno::SRCH
    } else {
        errno
    }
}

/// Of /proc/PID/mem, a read where nothing is mapped.
fn no_memory(errno: Errno) -> Errno {
    if matches!(errno, Errno::IO | Errno::INVAL) {
        Errno::FAULT
    } else {
        errno
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    use rustix::thread::gettid;
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::fs::MetadataExt;

    fn this() -> Tracee {
        Tracee(gettid().as_raw_nonzero().get() as u32)
    }

    /// Two pages, the second of which is gone.
    fn at_the_end(test: impl FnOnce(*mut u8, u64)) {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: new memory; its second page is given back here, the first at the end.
        unsafe {
            let page = mmap_anonymous(std::ptr::null_mut(), 8192, prot, flags).unwrap();
            munmap(page.add(4096), 4096).unwrap();
            test(page.cast(), page as u64);
            munmap(page, 4096).unwrap();
        }
    }

    #[test]
    fn memory_ends_at_a_page() {
        at_the_end(|page, address| {
            let mut buffer = [1; 32];
            assert_eq!(this().read(address + 4096 - 16, &mut buffer), Ok(16));
            assert_eq!(this().read(address + 4096, &mut buffer), Err(Errno::FAULT));
            assert_eq!(this().read_exactly(address + 4080, 16), Ok(vec![0; 16]));
            assert_eq!(this().read_exactly(address + 4080, 17), Err(Errno::FAULT));
            assert_eq!(this().write(address + 4080, &[7; 16]), Ok(()));
            // SAFETY: within the page that is mapped.
            assert_eq!(unsafe { page.add(4095).read_volatile() }, 7);
            assert_eq!(this().write(address + 4080, &[8; 17]), Err(Errno::FAULT));
        });
    }

    #[test]
    fn addresses_from_nowhere_are_efault() {
        let mut buffer = [0; 8];
        for address in [0, 8, u64::MAX - 2, u64::MAX, 1 << 63] {
            assert_eq!(
                this().read(address, &mut buffer),
                Err(Errno::FAULT),
                "{address:#x}"
            );
            assert_eq!(
                this().write(address, &buffer),
                Err(Errno::FAULT),
                "{address:#x}"
            );
        }
        assert_eq!(this().read_exactly(8, 1 << 20), Err(Errno::FAULT));
        assert_eq!(this().read_exactly(8, 0), Ok(vec![]));
    }

    #[test]
    fn a_path_ends_with_its_nul() {
        at_the_end(|page, address| {
            // SAFETY: the last bytes of the page that is mapped.
            unsafe { page.add(4092).copy_from(c"/ab".as_ptr().cast(), 4) };
            assert_eq!(this().read_path(address + 4092), Ok(b"/ab".to_vec()));
            // SAFETY: as above.
            unsafe { page.add(4095).write(b'c') };
            assert_eq!(this().read_path(address + 4092), Err(Errno::FAULT));
        });
        let long = [b'x'; 5000];
        assert_eq!(
            this().read_path(long.as_ptr() as u64),
            Err(Errno::NAMETOOLONG)
        );
    }

    #[test]
    fn memory_is_read_and_written_as_a_file_too() {
        let bytes = [1_u8, 2, 3];
        let memory = this().memory(OFlags::RDWR).unwrap();
        let mut buffer = [0; 3];
        assert_eq!(pread(&memory, &mut buffer, bytes.as_ptr() as u64), Ok(3));
        assert_eq!(buffer, bytes);
        assert_eq!(
            pread(&memory, &mut buffer, 8).map_err(no_memory),
            Err(Errno::FAULT)
        );
        let high = pread(&memory, &mut buffer, 1 << 63).map_err(no_memory);
        assert!(matches!(high, Err(Errno::FAULT) | Ok(0)));
    }

    #[test]
    fn fds_by_their_number() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", one.as_raw_fd()))
            .unwrap()
            .ino();
        assert_eq!(this().socket(one.as_raw_fd()), Some(inode));
        let event = eventfd(5, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(this().socket(event.as_raw_fd()), None);
        assert_eq!(
            this().fd(event.as_raw_fd()),
            Ok(b"anon_inode:[eventfd]".to_vec())
        );
        let info = this().fd_info(event.as_raw_fd()).unwrap();
        assert_eq!(field(&info, "eventfd-count:"), Some("5"));
        for closed in [-1, i32::MAX] {
            assert_eq!(this().fd(closed), Err(Errno::BADF));
            assert_eq!(this().socket(closed), None);
        }
    }

    #[test]
    fn a_dup_is_the_same_file() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let dup = this().dup(event.as_raw_fd()).unwrap();
        rustix::io::write(dup.as_fd(), &3u64.to_ne_bytes()).unwrap();
        let info = this().fd_info(event.as_raw_fd()).unwrap();
        assert_eq!(field(&info, "eventfd-count:"), Some("3"));
    }

    #[test]
    fn a_thread_knows_its_process() {
        let pid = std::process::id();
        assert_eq!(std::thread::spawn(|| this().process()).join().unwrap(), pid);
        assert_eq!(Tracee(pid).process(), pid);
    }

    #[test]
    fn of_a_thread_that_is_gone_nothing_is_known() {
        let id = std::thread::spawn(this).join().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(
            id.read(buffer.as_ptr() as u64, &mut buffer),
            Err(Errno::SRCH)
        );
        assert_eq!(id.fd(0), Err(Errno::SRCH));
        assert_eq!(id.folder(libc::AT_FDCWD), Err(Errno::SRCH));
        assert_eq!(id.process(), id.0);
        assert_eq!(id.dup(0).unwrap_err(), Errno::SRCH);
    }
}
