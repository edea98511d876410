//! The fake librbd, built and loaded, and a worker's side of an image on it.

use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};
use vduse_device::backend::{
    Backend, Completion, Connection, Engine, Error, Inbox, Local, Notice, Observer, Op, Submitted,
    Token,
};
use vduse_device::{Buffer, Extent, Length, Offset};
use vduse_mem::Piece;
use vduse_rbd::{Library, Options, Rbd};

/// Bytes of a test's disk.
pub const SIZE: u64 = 1 << 20;
/// `RBD_FEATURE_EXCLUSIVE_LOCK`.
pub const EXCLUSIVE_LOCK: u64 = 4;

/// A file of this name that goes with the build directory.
pub fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rbd-{}-{name}", std::process::id()))
}

/// The fake, as the backend sees it, and its handle of dlopen(3).
static FAKE: LazyLock<(Library, usize)> = LazyLock::new(|| {
    let object = scratch("fake.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/librbd.rs");
    let built = Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "cdylib",
            "-C",
            "opt-level=2",
            "-o",
        ])
        .args([&object, &source])
        .status();
    assert!(built.unwrap().success());
    let path = object.to_str().unwrap();
    let library = Library::load(path, path).unwrap();
    let name = CString::new(path).unwrap();
    // SAFETY: a string that ends in 0; the object is loaded, and stays.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    std::fs::remove_file(&object).unwrap();
    (library, handle as usize)
});

/// The fake's functions.
pub fn library() -> &'static Library {
    &FAKE.0
}

/// A function of the fake's own.
fn control(name: &str) -> NonNull<c_void> {
    let name = CString::new(name).unwrap();
    // SAFETY: a handle that dlopen gave, a string that ends in 0.
    let symbol = unsafe { libc::dlsym(FAKE.1 as *mut c_void, name.as_ptr()) };
    NonNull::new(symbol).unwrap()
}

macro_rules! call {
    ($name:literal, ($($type:ty),*) $(-> $ret:ty)?, $($arg:expr),*) => {{
        let function = control($name);
        // SAFETY: the signature is that in tests/fake/control.rs; strings end in 0.
        unsafe {
            let function: unsafe extern "C" fn($($type),*) $(-> $ret)? =
                std::mem::transmute(function);
            function($($arg),*)
        }
    }};
}

/// An image in the fake cluster.
pub struct Image(CString);

impl Image {
    /// `POOL/[NAMESPACE/]IMAGE`, with an exclusive lock.
    pub fn new(path: &str) -> Image {
        Image::with_features(path, EXCLUSIVE_LOCK)
    }

    pub fn with_features(path: &str, features: u64) -> Image {
        let image = Image(CString::new(path).unwrap());
        call!(
            "fake_create",
            (*const c_char, u64, u64),
            image.path(),
            SIZE,
            features
        );
        image
    }

    fn path(&self) -> *const c_char {
        self.0.as_ptr()
    }

    pub fn snapshot(&self, name: &str) {
        let name = CString::new(name).unwrap();
        call!(
            "fake_snapshot",
            (*const c_char, *const c_char),
            self.path(),
            name.as_ptr()
        );
    }

    pub fn hold(&self, holds: bool) {
        call!("fake_hold", (*const c_char, bool), self.path(), holds);
    }

    /// What the cluster says of its objects: flags, how many are striped, bytes of a parent.
    pub fn layout(&self, flags: u64, stripes: u64, overlap: u64) {
        call!(
            "fake_layout",
            (*const c_char, u64, u64, u64),
            self.path(),
            flags,
            stripes,
            overlap
        );
    }

    /// Waits until somebody asks the cluster which objects there are.
    pub fn wait_asked(&self) {
        call!("fake_wait_asked", (*const c_char), self.path());
    }

    /// One operation ends, also while they are held.
    pub fn pass(&self) {
        call!("fake_pass", (*const c_char), self.path());
    }

    pub fn hold_open(&self, holds: bool) {
        call!("fake_hold_open", (*const c_char, bool), self.path(), holds);
    }

    pub fn fail(&self, errno: Errno) {
        let outcome = -errno.raw_os_error();
        call!("fake_fail", (*const c_char, c_int), self.path(), outcome);
    }

    pub fn refuse(&self, errno: Errno) {
        let outcome = -errno.raw_os_error();
        call!("fake_refuse", (*const c_char, c_int), self.path(), outcome);
    }

    pub fn short_read(&self) {
        call!("fake_short_read", (*const c_char), self.path());
    }

    pub fn resize(&self, size: u64) {
        call!("fake_resize", (*const c_char, u64), self.path(), size);
    }

    pub fn owner(&self, address: &str, is_alive: bool) {
        let address = CString::new(address).unwrap();
        call!(
            "fake_owner",
            (*const c_char, *const c_char, bool),
            self.path(),
            address.as_ptr(),
            is_alive
        );
    }

    pub fn is_locked(&self) -> bool {
        call!("fake_is_locked", (*const c_char) -> bool, self.path())
    }

    pub fn wait_pending(&self, count: usize) {
        call!(
            "fake_wait_pending",
            (*const c_char, usize),
            self.path(),
            count
        );
    }

    pub fn wait_open(&self, count: usize) {
        call!("fake_wait_open", (*const c_char, usize), self.path(), count);
    }

    /// How many operations have ended, by kind: r w d z f.
    pub fn ended(&self, kind: u8) -> usize {
        call!("fake_ended", (*const c_char, c_char) -> usize, self.path(), kind as c_char)
    }

    /// How it is opened.
    pub fn options(&self) -> Options {
        let path = self.0.to_str().unwrap();
        let (pool, image) = path.split_once('/').unwrap();
        let mut options = match image.split_once('/') {
            Some((namespace, image)) => Options {
                namespace: Some(namespace.into()),
                ..Options::new(pool, image)
            },
            None => Options::new(pool, image),
        };
        let conf = scratch("ceph.conf");
        std::fs::write(&conf, "").unwrap();
        options.conf = Some(conf.to_str().unwrap().into());
        options
    }

    pub fn open(&self) -> Rbd {
        Rbd::open(library(), self.options()).unwrap()
    }
}

/// A user of the fake cluster who needs this key.
pub fn user(id: &str, key: &str) {
    let (id, key) = (CString::new(id).unwrap(), CString::new(key).unwrap());
    call!(
        "fake_user",
        (*const c_char, *const c_char),
        id.as_ptr(),
        key.as_ptr()
    );
}

/// The error of what must not open.
pub fn refused(options: Options) -> Error {
    match Rbd::open(library(), options) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

/// An engine, and what a worker is to it.
pub struct Queue {
    pub engine: Box<dyn Engine>,
    pub inbox: Inbox,
    _local: Local,
    ended: HashMap<u64, Vec<Completion>>,
}

impl Queue {
    pub fn new(backend: &dyn Backend) -> Queue {
        let (inbox, local) = Inbox::new();
        Queue {
            engine: backend.attach(&local).unwrap(),
            inbox,
            _local: local,
            ended: HashMap::new(),
        }
    }

    pub fn submit(&mut self, token: u64, op: Op) -> Submitted {
        self.engine.submit(Token(token), op)
    }

    /// Waits for the next completion under `token`.
    pub fn wait(&mut self, token: u64) -> Completion {
        loop {
            if let Some(completion) = self.ended.get_mut(&token).and_then(Vec::pop) {
                return completion;
            }
            for mut completion in self.inbox.wait() {
                self.engine.completed(&mut completion);
                self.ended
                    .entry(completion.token.0)
                    .or_default()
                    .push(completion);
            }
        }
    }

    /// What a worker does until something has ended: it takes what has come, and lets the engine go
    /// on at its deadline. At most a minute.
    pub fn serve(&mut self) -> Vec<Completion> {
        let end = Instant::now() + Duration::from_secs(60);
        let mut ended = Vec::new();
        while ended.is_empty() {
            let now = Instant::now();
            assert!(now < end, "nothing has ended");
            ended = self.inbox.take();
            for completion in &mut ended {
                self.engine.completed(completion);
            }
            if self.engine.deadline().is_some_and(|at| at <= now) {
                self.engine.expire(now, &mut ended);
            }
            std::thread::yield_now();
        }
        ended
    }

    /// Submits and waits.
    pub fn run(&mut self, op: Op) -> Result<Option<Vec<u8>>, Errno> {
        match self.submit(u64::MAX, op) {
            Submitted::Done(result) => result.map(|()| None),
            Submitted::Pending => {
                let completion = self.wait(u64::MAX);
                completion.result.map(|()| completion.data)
            }
        }
    }

    /// What was read, of one operation.
    pub fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        self.run(read(offset, len)).unwrap().unwrap()
    }

    /// Time passes for the engine: what has ended by that, by token.
    pub fn expire(&mut self, after: Duration) -> Vec<(u64, Result<(), Errno>)> {
        let mut ended = Vec::new();
        self.engine.expire(Instant::now() + after, &mut ended);
        let mut ended: Vec<_> = ended.iter().map(|end| (end.token.0, end.result)).collect();
        ended.sort_by_key(|(token, _)| *token);
        ended
    }
}

pub fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(Offset(offset), Length(len)).unwrap()
}

/// Guest memory, in pieces of these lengths. It is leaked: a test's process ends soon.
pub fn guest(content: &[u8], pieces: &[usize]) -> (Buffer, &'static [u8]) {
    let memory = Vec::leak(content.to_vec());
    let base = memory.as_mut_ptr();
    let mut offset = 0;
    let pieces = pieces.iter().map(|&len| {
        // SAFETY: inside of the memory, checked below.
        let ptr = NonNull::new(unsafe { base.add(offset) }).unwrap();
        offset += len;
        assert!(offset <= content.len());
        Piece { ptr, len }
    });
    let pieces = pieces.collect();
    // SAFETY: the memory is never freed.
    let buffer = unsafe { Buffer::borrowed(pieces) };
    // SAFETY: as above; tests look at it while nothing writes.
    (buffer, unsafe {
        std::slice::from_raw_parts(base, content.len())
    })
}

pub fn read(offset: u64, len: u64) -> Op {
    let len_of_piece = len as usize;
    Op::Read {
        extent: extent(offset, len),
        buffer: guest(&vec![0x77; len_of_piece], &[len_of_piece]).0,
    }
}

pub fn write(offset: u64, content: &[u8]) -> Op {
    Op::Write {
        extent: extent(offset, content.len() as u64),
        buffer: guest(content, &[content.len()]).0,
    }
}

/// Takes notices.
#[derive(Default)]
pub struct Log {
    notices: Mutex<Vec<Notice>>,
    changed: std::sync::Condvar,
}

impl Observer for Log {
    fn notice(&self, notice: &Notice) {
        self.notices.lock().unwrap().push(notice.clone());
        self.changed.notify_all();
    }
}

impl Log {
    /// Waits for the next one.
    pub fn wait(&self) -> Notice {
        let notices = self.notices.lock().unwrap();
        let mut notices = self
            .changed
            .wait_while(notices, |it| it.is_empty())
            .unwrap();
        notices.remove(0)
    }

    pub fn is_empty(&self) -> bool {
        self.notices.lock().unwrap().is_empty()
    }
}

pub fn lost(why: &str) -> Notice {
    Notice::Connection(Connection::Lost(why.into()))
}
