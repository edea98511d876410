//! SIGBUS: truncated regions are poisoned, everything else goes its old way.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use vduse_mem::{Perm, Piece, Pinned, Region};

const PAGE: usize = 4096;

fn memfd(bytes: usize) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes as u64).unwrap();
    fd
}

fn piece(region: &Arc<Region>, offset: usize) -> Piece {
    Pinned::whole(region.clone())
        .piece()
        .part(offset, 8)
        .unwrap()
}

fn load(region: &Arc<Region>, offset: usize) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: `region` is alive and readable.
    unsafe { piece(region, offset).read_into(&mut bytes) };
    u64::from_ne_bytes(bytes)
}

fn store(region: &Arc<Region>, offset: usize, value: u64) {
    // SAFETY: `region` is alive; the tests store where it is writable.
    unsafe { piece(region, offset).write_from(&value.to_ne_bytes()) };
}

#[test]
fn truncated_region_is_poisoned_and_others_are_not() {
    let (lost, kept) = (memfd(4 * PAGE), memfd(PAGE));
    let whole = Region::map(lost.as_fd(), 0, 4 * PAGE, Perm::Rw).unwrap();
    let twin = Region::map(lost.as_fd(), 0, PAGE, Perm::Ro).unwrap();
    let other = Region::map(kept.as_fd(), 0, PAGE, Perm::Rw).unwrap();
    store(&other, 8, 7);
    assert!(!whole.is_poisoned());

    ftruncate(&lost, PAGE as u64).unwrap();
    assert_eq!(load(&whole, 2 * PAGE), 0);
    assert!(whole.is_poisoned());
    assert!(!twin.is_poisoned());
    assert!(!other.is_poisoned());
    assert_eq!(load(&other, 8), 7);

    // The whole region is anonymous now: nothing is shared, nothing faults any more.
    store(&whole, 0, 9);
    assert_eq!(load(&twin, 0), 0);
    assert_eq!(load(&whole, 3 * PAGE), 0);
}

#[test]
fn bulk_copy_out_of_a_truncated_region_survives() {
    let fd = memfd(64 * PAGE);
    let region = Region::map(fd.as_fd(), 0, 64 * PAGE, Perm::Rw).unwrap();
    let piece = Pinned::whole(region.clone()).piece();
    ftruncate(&fd, (3 * PAGE) as u64).unwrap();
    let mut buffer = vec![1; 64 * PAGE];
    // SAFETY: `region` is alive and readable.
    assert_eq!(unsafe { piece.read_into(&mut buffer) }, 64 * PAGE);
    assert!(region.is_poisoned());
    assert_eq!(buffer.last(), Some(&0));
}

#[test]
fn a_new_region_in_a_used_slot_is_not_poisoned() {
    let fd = memfd(PAGE);
    for _ in 0..3 {
        let region = Region::map(fd.as_fd(), 0, 2 * PAGE, Perm::Rw).unwrap();
        assert!(!region.is_poisoned());
        load(&region, PAGE);
        assert!(region.is_poisoned());
    }
}

#[test]
fn thousands_of_regions_are_guarded() {
    let fd = memfd(PAGE);
    let map = |_| Region::map(fd.as_fd(), 0, 2 * PAGE, Perm::Ro).unwrap();
    let regions: Vec<_> = (0..4000).map(map).collect();
    load(&regions[1777], PAGE);
    let poisoned: Vec<_> = (0..regions.len())
        .filter(|&index| regions[index].is_poisoned())
        .collect();
    assert_eq!(poisoned, [1777]);
}

/// Regions come and go while others fault: the handler always finds the right one.
#[test]
fn faults_beside_regions_that_come_and_go() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let fd = memfd(PAGE);
                for _ in 0..300 {
                    let kept = Region::map(fd.as_fd(), 0, PAGE, Perm::Rw).unwrap();
                    let lost = Region::map(fd.as_fd(), 0, 2 * PAGE, Perm::Rw).unwrap();
                    load(&lost, PAGE);
                    assert!(lost.is_poisoned());
                    assert!(!kept.is_poisoned());
                }
            });
        }
    });
}

/// What the child process of the next test does: a fault in memory that is not ours.
#[test]
#[ignore = "run by sigbus_elsewhere_still_kills in a process of its own"]
fn child_faults_elsewhere() {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let fd = memfd(PAGE);
    let _guarded = Region::map(fd.as_fd(), 0, PAGE, Perm::Rw).unwrap();
    let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
    // SAFETY: a new mapping; the read past the file's end is meant to fault.
    unsafe {
        let foreign = mmap(std::ptr::null_mut(), 2 * PAGE, protection, flags, &fd, 0).unwrap();
        foreign.cast::<u8>().add(PAGE).read_volatile();
    }
    unreachable!("read past the end of a file");
}

#[test]
#[ignore = "run by a_sent_sigbus_still_kills in a process of its own"]
fn child_is_sent_a_signal() {
    // SAFETY: no handler is installed. The standard library's own swallows what is sent once.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    let fd = memfd(PAGE);
    let _guarded = Region::map(fd.as_fd(), 0, PAGE, Perm::Rw).unwrap();
    let me = rustix::process::getpid();
    rustix::process::kill_process(me, rustix::process::Signal::BUS).unwrap();
    // The signal may be delivered to any thread: the process ends, not this one.
    loop {
        std::thread::park();
    }
}

/// What faulthandler does: says so, puts back who was there before, and sends the signal again.
extern "C" fn reports_and_hands_back(signal: libc::c_int) {
    let words = b"reported\n";
    // SAFETY: bare system calls; FORMER was filled in before this was installed.
    unsafe {
        libc::write(1, words.as_ptr().cast(), words.len());
        libc::sigaction(signal, &raw const FORMER, std::ptr::null_mut());
        libc::raise(signal);
    }
}

// SAFETY: all zeroes are the default action.
static mut FORMER: libc::sigaction = unsafe { std::mem::zeroed() };

/// Installs it over whoever handles SIGBUS now.
fn report_sigbus() {
    let handler: extern "C" fn(libc::c_int) = reports_and_hands_back;
    // SAFETY: a complete sigaction; the child of the test has no other thread that uses FORMER.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, &raw mut FORMER), 0);
    }
}

#[test]
#[ignore = "run by a_later_handler_goes_behind_ours in a process of its own"]
fn child_installs_a_handler_later() {
    // SAFETY: no handler is installed. The standard library's own speaks when it is chained to.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    let fd = memfd(PAGE);
    let before = Region::map(fd.as_fd(), 0, 2 * PAGE, Perm::Rw).unwrap();
    report_sigbus();
    let after = Region::map(fd.as_fd(), 0, 2 * PAGE, Perm::Rw).unwrap();
    for region in [before, after] {
        load(&region, PAGE);
        assert!(region.is_poisoned());
    }
    println!("rescued");
    child_faults_elsewhere();
}

#[test]
fn a_later_handler_goes_behind_ours() {
    let output = child("child_installs_a_handler_later");
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("rescued\n"), "{out}");
    assert_eq!(out.matches("reported\n").count(), 1, "{out}");
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{out}");
}

fn child(test: &str) -> std::process::Output {
    let own = std::env::current_exe().unwrap();
    let arguments = ["--exact", test, "--ignored", "--nocapture"];
    let mut child = Command::new(own);
    child.args(arguments);
    child.env("ASAN_OPTIONS", "handle_sigbus=0"); // else AddressSanitizer's own handler exits
    child.output().unwrap()
}

fn run_child(test: &str) -> std::process::ExitStatus {
    child(test).status
}

#[test]
fn sigbus_elsewhere_still_kills() {
    let status = run_child("child_faults_elsewhere");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_sent_sigbus_still_kills() {
    let status = run_child("child_is_sent_a_signal");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
