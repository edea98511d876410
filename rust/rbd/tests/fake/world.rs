//! What the fake cluster holds, and the thread that ends operations.

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

pub type Handle = *mut c_void;
pub type Callback = extern "C" fn(Handle, *mut c_void);
pub type UpdateCallback = extern "C" fn(*mut c_void);

pub const ENOENT: c_int = -2;
pub const EBADF: c_int = -9;
pub const EACCES: c_int = -13;
pub const EINVAL: c_int = -22;
pub const EROFS: c_int = -30;
pub const ERANGE: c_int = -34;
pub const ENAMETOOLONG: c_int = -36;
pub const ESHUTDOWN: c_int = -108;

/// A mistake of the program under test: it ends here.
pub fn die(what: &str) -> ! {
    eprintln!("fake librbd: {what}");
    std::process::abort();
}

#[derive(Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Iov {
    pub base: *mut u8,
    pub len: usize,
}

pub enum Kind {
    Read,
    Write,
    Discard,
    WriteZeroes,
    Flush,
}

/// An operation under way.
pub struct Op {
    pub kind: Kind,
    pub handle: usize,
    pub offset: u64,
    pub len: u64,
    /// The caller's array, and what was in it.
    pub iov: *const Iov,
    pub pieces: Vec<Iov>,
    /// Of the data to be written.
    pub sum: u64,
    pub completion: usize,
    pub fails: c_int,
    pub is_short: bool,
}

/// A disk of the cluster.
#[derive(Default)]
pub struct Disk {
    pub data: Vec<u8>,
    pub features: u64,
    pub flags: u64,
    pub stripes: u64,
    /// Bytes of a parent that show through.
    pub overlap: u64,
    pub snapshots: HashMap<String, Vec<u8>>,
    /// The address of who has the lock.
    pub owner: Option<String>,
    /// Addresses of watchers that are no handles here.
    pub strangers: HashSet<String>,
    pub fenced: HashSet<String>,
    pub holds: bool,
    /// So many operations end all the same.
    pub passes: usize,
    pub holds_open: bool,
    /// How the next operations end.
    pub failures: VecDeque<c_int>,
    /// How the next operations are refused when they are started.
    pub refusals: VecDeque<c_int>,
    pub short_reads: usize,
    pub pending: Vec<Op>,
    /// Kinds of what has ended: r w d z Z f.
    pub log: String,
}

impl Disk {
    /// How many operations may end now, the newest.
    fn ready(&self) -> usize {
        match self.holds {
            true => self.passes.min(self.pending.len()),
            false => self.pending.len(),
        }
    }
}

pub struct Client {
    pub user: String,
    pub conf: HashMap<String, String>,
    pub has_read_conf: bool,
    pub is_connected: bool,
    pub pools: usize,
}

pub struct Pool {
    pub client: usize,
    pub name: String,
    pub namespace: String,
    pub images: usize,
}

pub struct Watch {
    pub handle: u64,
    pub heard: UpdateCallback,
    pub arg: usize,
}

pub struct Image {
    pub pool: usize,
    pub path: String,
    pub address: String,
    pub snapshot: Option<String>,
    pub is_read_only: bool,
    pub watch: Option<Watch>,
    /// Somebody asks which objects there are.
    pub is_asked: bool,
}

pub struct Completion {
    pub arg: usize,
    pub callback: Callback,
    /// Of the image that it was given to.
    pub is_started: bool,
    pub value: Option<isize>,
}

#[derive(Default)]
pub struct World {
    next: usize,
    pub disks: HashMap<String, Disk>,
    pub keys: HashMap<String, String>,
    pub clients: HashMap<usize, Client>,
    pub pools: HashMap<usize, Pool>,
    pub images: HashMap<usize, Image>,
    pub completions: HashMap<usize, Completion>,
    pub updates: Vec<String>,
    /// The watch whose callback runs now.
    pub calling: Option<u64>,
}

// SAFETY: the pointers in it are the program's under test, which promises librbd that they may be
// used from any thread.
unsafe impl Send for World {}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| {
    std::thread::spawn(finish);
    Mutex::default()
});
pub static CHANGED: Condvar = Condvar::new();

thread_local! {
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is librbd's own thread, which must not wait for itself.
pub fn is_ours() -> bool {
    IS_OURS.get()
}

pub fn world() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `ready` says so.
pub fn wait(mut ready: impl FnMut(&mut World) -> bool) -> MutexGuard<'static, World> {
    if is_ours() {
        die("a call that waits, on librbd's own thread");
    }
    CHANGED
        .wait_while(world(), |world| !ready(world))
        .unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A handle that no memory is at.
    pub fn number(&mut self) -> usize {
        self.next += 1;
        0x10 * self.next + 1
    }

    pub fn client(&mut self, handle: Handle) -> &mut Client {
        match self.clients.get_mut(&(handle as usize)) {
            Some(client) => client,
            None => die("a cluster that is none, or shut down"),
        }
    }

    pub fn pool(&mut self, handle: Handle) -> &mut Pool {
        match self.pools.get_mut(&(handle as usize)) {
            Some(pool) => pool,
            None => die("an I/O context that is none, or destroyed"),
        }
    }

    pub fn image(&mut self, handle: Handle) -> &mut Image {
        match self.images.get_mut(&(handle as usize)) {
            Some(image) => image,
            None => die("an image that is none, or closed"),
        }
    }

    pub fn disk_of(&mut self, handle: Handle) -> &mut Disk {
        let path = self.image(handle).path.clone();
        self.disk(&path)
    }

    pub fn disk(&mut self, path: &str) -> &mut Disk {
        match self.disks.get_mut(path) {
            Some(disk) => disk,
            None => die("a disk that no test has made"),
        }
    }

    pub fn completion(&mut self, handle: usize) -> &mut Completion {
        match self.completions.get_mut(&handle) {
            Some(completion) => completion,
            None => die("a completion that is none, or released"),
        }
    }

    /// Carries an operation out; its value.
    fn run(&mut self, path: &str, op: &Op) -> isize {
        let (is_fenced, snapshot) = {
            let image = self.image(op.handle as Handle);
            let (address, snapshot) = (image.address.clone(), image.snapshot.clone());
            (self.disk(path).fenced.contains(&address), snapshot)
        };
        if is_fenced {
            return ESHUTDOWN as isize;
        }
        if op.fails != 0 {
            return op.fails as isize;
        }
        let disk = self.disk(path);
        let source = match &snapshot {
            Some(name) => disk.snapshots.get_mut(name).unwrap_or(&mut disk.data),
            None => &mut disk.data,
        };
        let start = op.offset.min(source.len() as u64) as usize;
        let end = (op.offset + op.len).min(source.len() as u64) as usize;
        let range = &mut source[start..end];
        match op.kind {
            Kind::Read => {
                let whole = range.len() / if op.is_short { 2 } else { 1 };
                copy_out(&op.pieces, &range[..whole]);
                disk.log.push('r');
                return whole as isize;
            }
            Kind::Write if range.len() as u64 != op.len => return EINVAL as isize,
            Kind::Write => {
                range.copy_from_slice(&copy_in(&op.pieces));
                disk.log.push('w');
            }
            // What is read there afterwards is not said.
            Kind::Discard => {
                range.fill(0xDD);
                disk.log.push('d');
            }
            Kind::WriteZeroes => {
                range.fill(0);
                disk.log.push('z');
            }
            Kind::Flush => disk.log.push('f'),
        }
        0
    }
}

/// The memory behind pieces.
pub fn copy_in(pieces: &[Iov]) -> Vec<u8> {
    let slices = pieces.iter().map(|piece| {
        // SAFETY: the program under test says that it is valid while the operation is under way.
        unsafe { std::slice::from_raw_parts(piece.base, piece.len) }
    });
    slices.flatten().copied().collect()
}

pub fn copy_out(pieces: &[Iov], mut from: &[u8]) {
    for piece in pieces {
        let len = piece.len.min(from.len());
        // SAFETY: as above.
        unsafe { piece.base.copy_from_nonoverlapping(from.as_ptr(), len) };
        from = &from[len..];
    }
}

pub fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Whether the caller has kept its hands off the operation's memory.
fn check(op: &Op) {
    if op.pieces.is_empty() {
        return;
    }
    // SAFETY: as above.
    let now = unsafe { std::slice::from_raw_parts(op.iov, op.pieces.len()) };
    if now != op.pieces {
        die("the array of pieces has changed before the operation ended");
    }
    if sum(&copy_in(&op.pieces)) != op.sum {
        die("the memory of an operation has changed before it ended");
    }
}

/// librbd's thread: ends operations, the newest first, and tells watchers.
fn finish() {
    IS_OURS.set(true);
    loop {
        let mut world = CHANGED
            .wait_while(world(), |world| {
                let mut disks = world.disks.values();
                world.updates.is_empty() && !disks.any(|disk| disk.ready() > 0)
            })
            .unwrap_or_else(PoisonError::into_inner);
        let updates = std::mem::take(&mut world.updates);
        let ready: Vec<(String, Op)> = world
            .disks
            .iter_mut()
            .flat_map(|(path, disk)| {
                let ready = disk.ready();
                disk.passes = disk.passes.saturating_sub(ready);
                let ops = disk.pending.drain(disk.pending.len() - ready..).rev();
                ops.map(|op| (path.clone(), op)).collect::<Vec<_>>()
            })
            .collect();
        let mut calls = Vec::new();
        for (path, op) in ready {
            check(&op);
            let value = world.run(&path, &op);
            let completion = world.completion(op.completion);
            completion.value = Some(value);
            calls.push((completion.callback, op.completion, completion.arg));
        }
        drop(world);
        for (callback, completion, arg) in calls {
            callback(completion as Handle, arg as *mut c_void);
        }
        for path in updates {
            tell(&path);
        }
        CHANGED.notify_all();
    }
}

/// Tells the watchers of a disk that it has changed.
fn tell(path: &str) {
    let mut told = HashSet::new();
    loop {
        let mut now = world();
        let next = now.images.values().find_map(|image| {
            let watch = image.watch.as_ref()?;
            let is_next = image.path == path && !told.contains(&watch.handle);
            is_next.then_some((watch.handle, watch.heard, watch.arg))
        });
        let Some((handle, heard, arg)) = next else {
            return;
        };
        now.calling = Some(handle);
        drop(now);
        heard(arg as *mut c_void);
        told.insert(handle);
        world().calling = None;
        CHANGED.notify_all();
    }
}

/// A C string; null is none.
///
/// # Safety
/// Null, or a string that ends in 0.
pub unsafe fn text(string: *const c_char) -> Option<String> {
    if string.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let string = unsafe { std::ffi::CStr::from_ptr(string) };
    Some(string.to_string_lossy().into_owned())
}
