//! SIGBUS: a region whose file shrank below it is replaced by anonymous pages and poisoned.
//!
//! The handler runs in the middle of any instruction of any thread, so it only loads and
//! stores atomics and calls mmap and sigaction. What it does not know goes to the handler
//! that was there before. Whoever installs another one later (Python's faulthandler, a
//! sanitizer) is found when the next region is mapped, and put behind ours as well.

use crate::slot::Slot;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{
    AtomicPtr, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::sync::{Mutex, PoisonError};

const CHUNK: usize = 256;
/// Together with CHUNK as many regions as Linux lets a process map (vm.max_map_count).
const CHUNKS: usize = 256;

type Chunk = [Slot; CHUNK];

/// The table that the handler walks: chunks are added at the end and stay for ever.
static TABLE: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];
/// Slots of the table that guard nothing now.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
/// Regions lost so far, in the whole process.
static LOST: AtomicUsize = AtomicUsize::new(0);
/// Who is next to handle what is not ours; set before our handler is installed. None is freed:
/// the handler may be reading it.
static PREVIOUS: AtomicPtr<Previous> = AtomicPtr::new(ptr::null_mut());

/// A handler that ours has replaced.
struct Previous {
    action: libc::sigaction,
    /// Found before this one; null: this was the first.
    older: *mut Previous,
}

/// A registration: guards an address range until dropped.
#[derive(Debug)]
pub(crate) struct Guard(&'static Slot);

impl Guard {
    /// Guards `len` bytes at address `base`, which must be a mapping of whole pages.
    /// `ENOMEM` when the table is full.
    pub(crate) fn new(base: usize, len: usize) -> io::Result<Guard> {
        install()?;
        let slot = take().ok_or(io::Error::from_raw_os_error(libc::ENOMEM))?;
        slot.occupy(base, len);
        Ok(Guard(slot))
    }

    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        any_lost() && self.0.is_poisoned()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.vacate();
        FREE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.0);
    }
}

/// Regions lost so far: a cheap way to see that nothing happened.
#[inline]
pub(crate) fn lost() -> usize {
    LOST.load(Acquire)
}

/// Whether any region of this process was ever lost.
#[inline]
pub(crate) fn any_lost() -> bool {
    lost() != 0
}

fn take() -> Option<&'static Slot> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if free.is_empty() {
        let place = TABLE.iter().find(|chunk| chunk.load(Relaxed).is_null())?;
        let chunk: &'static Chunk = Box::leak(Box::new(std::array::from_fn(|_| Slot::new())));
        place.store(ptr::from_ref(chunk).cast_mut(), Release);
        free.extend(chunk);
    }
    free.pop()
}

/// Installs the handler, unless it is the present one.
fn install() -> io::Result<()> {
    static INSTALL: Mutex<()> = Mutex::new(());
    let _alone = INSTALL.lock().unwrap_or_else(PoisonError::into_inner);
    let entry: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    let entry = entry as libc::sighandler_t;
    let mut present = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks for the present action only; `present` has room for it.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), present.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction succeeded and filled it in.
    let mut action = unsafe { present.assume_init() };
    if action.sa_sigaction == entry {
        return Ok(());
    }
    remember(action);
    action.sa_sigaction = entry;
    // No SA_NODEFER: this handler touches no guarded memory. SA_ONSTACK: the thread's own
    // stack may be a small one.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `action` is a complete sigaction and `on_sigbus` is async-signal-safe.
    unsafe {
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Puts a handler in front of those found before. Called under the lock of `install`.
fn remember(action: libc::sigaction) {
    let mut older = PREVIOUS.load(Acquire);
    loop {
        // SAFETY: null, or a leaked box.
        if unsafe { older.as_ref() }.is_some_and(|it| it.action.sa_sigaction == action.sa_sigaction)
        {
            return; // it went and came back
        }
        let found = Box::leak(Box::new(Previous { action, older }));
        match PREVIOUS.compare_exchange(older, found, AcqRel, Acquire) {
            Ok(_) => return,
            Err(now) => older = now,
        }
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: errno's address is the calling thread's own; SA_SIGINFO gives a valid `info`.
    let (errno, code, address) = unsafe {
        let errno = libc::__errno_location();
        (errno, (*info).si_code, (*info).si_addr() as usize)
    };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // Codes above 0 come from the kernel: only then is there a faulting address.
    let rescued = code > 0 && rescue(address);
    if !rescued {
        // SAFETY: called on the signal's own stack with what the kernel handed us.
        unsafe { chain(signal, info, context) };
    }
    // SAFETY: as above; the interrupted code must not see our errno.
    unsafe { *errno = saved };
}

/// If `address` is guarded: anonymous pages take the place of the whole range.
fn rescue(address: usize) -> bool {
    for chunk in &TABLE {
        let chunk = chunk.load(Acquire);
        if chunk.is_null() {
            return false;
        }
        // SAFETY: chunks are leaked boxes, published with Release: valid for ever.
        for slot in unsafe { &*chunk } {
            let Some((base, len)) = slot.find(address) else {
                continue;
            };
            // First the mark: who reads the new pages must find it.
            slot.poison();
            LOST.fetch_add(1, Release);
            // SAFETY: the range is a mapping of ours that the faulting thread keeps alive;
            // nobody holds Rust references into it. mmap is a bare system call.
            let mapped = unsafe {
                libc::mmap(
                    base as *mut libc::c_void,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            return mapped != libc::MAP_FAILED;
        }
    }
    false
}

/// Hands the signal to whoever handled it before us.
///
/// # Safety
/// Only from the handler, with the handler's own arguments.
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: null, or a leaked box.
    let Some(found) = (unsafe { PREVIOUS.load(Acquire).as_ref() }) else {
        return; // never: it is set before the handler is installed
    };
    if !found.older.is_null() {
        // It came after us and may hand the signal back to us, as faulthandler does: then the
        // next one has its turn. Who loses the race has seen another thread do this.
        let this = ptr::from_ref(found).cast_mut();
        let _ = PREVIOUS.compare_exchange(this, found.older, AcqRel, Relaxed);
    }
    let previous = &found.action;
    // SAFETY: SA_SIGINFO gives a valid `info`.
    let from_kernel = unsafe { (*info).si_code } > 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if !from_kernel => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: puts the old action back: a fault then happens again, unhandled, and
            // a signal that was sent is sent again.
            unsafe {
                libc::sigaction(signal, previous, ptr::null_mut());
                if !from_kernel {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: sigaction said that this is a function of three arguments.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO it is a function of one argument.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
