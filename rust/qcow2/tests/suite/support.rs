//! What the tests of this crate share: images made by qemu-img, and a user of a backend's engine
//! on a worker of its own.

use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vduse_device::backend::{
    Backend, Completion, Engine, EngineChoice, Error, Lane, Locking, Op, Submitted, Token,
};
use vduse_device::{Buffer, Extent, Length, Offset};
use vduse_mem::Piece;
use vduse_qcow2::{Beneath, Options, Qcow2};
use vduse_worker::{Next, Place, Pool, Task, Turn, Waker};

/// How most tests open an image.
pub const WRITE: Options = Options {
    read_only: false,
    direct: false,
    engine: EngineChoice::Auto,
    locking: Locking::Open,
};

pub const READ: Options = Options {
    read_only: true,
    ..WRITE
};

/// A directory that goes with its test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let name = format!("vduse-qcow2-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs qemu-img in the directory; what it says. A failure is the test's.
    pub fn qemu_img(&self, words: &[&str]) -> String {
        self.run("qemu-img", words)
    }

    pub fn run(&self, program: &str, words: &[&str]) -> String {
        let done = Command::new(program)
            .args(words)
            .current_dir(&self.0)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {words:?}: {said}{error}");
        said
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An operation, with data to write; a read has its length.
pub enum Want {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Flush,
    Discard(u64, u64),
    Zero(u64, u64, bool),
}

type Answer = Result<Vec<u8>, Errno>;

enum Ask {
    Start(Want, Sender<Answer>),
    Cancel(Token),
}

#[derive(Default)]
struct Inbox {
    asks: Mutex<Vec<Ask>>,
    waker: Mutex<Option<Waker>>,
}

struct User {
    lane: Lane,
    engine: Box<dyn Engine>,
    inbox: Arc<Inbox>,
    /// By token; memory that an operation uses lives as long.
    pending: Vec<Option<(Sender<Answer>, Vec<u8>)>>,
}

impl User {
    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Start(want, answer) => self.submit(want, answer),
            Ask::Cancel(token) => self.engine.cancel(token),
        }
    }

    fn submit(&mut self, want: Want, answer: Sender<Answer>) {
        let extent = |at, len| Extent::new(Offset(at), Length(len)).unwrap();
        let mut memory = match &want {
            Want::Read(_, len) => vec![0xee; *len],
            Want::Write(_, data) => data.clone(),
            _ => Vec::new(),
        };
        let piece = Piece {
            ptr: std::ptr::NonNull::from(memory.as_mut_slice()).cast(),
            len: memory.len(),
        };
        // SAFETY: `pending` keeps the memory until the operation has ended.
        let buffer = unsafe { Buffer::borrowed(smallvec::smallvec![piece]) };
        let len = memory.len() as u64;
        let op = match want {
            Want::Read(at, _) => Op::Read {
                extent: extent(at, len),
                buffer,
            },
            Want::Write(at, _) => Op::Write {
                extent: extent(at, len),
                buffer,
            },
            Want::Flush => Op::Flush,
            Want::Discard(at, len) => Op::Discard {
                extent: extent(at, len),
            },
            Want::Zero(at, len, may_unmap) => Op::WriteZeroes {
                extent: extent(at, len),
                may_unmap,
            },
        };
        let token = Token(self.pending.len() as u64);
        self.pending.push(Some((answer, memory)));
        if let Submitted::Done(result) = self.engine.submit(token, op) {
            self.end(token, result, None);
        }
    }

    fn end(&mut self, token: Token, result: Result<(), Errno>, data: Option<Vec<u8>>) {
        let (answer, memory) = self.pending[token.0 as usize].take().expect("ends once");
        let _ = answer.send(result.map(|()| data.unwrap_or(memory)));
    }
}

impl Task for User {
    fn event(&mut self, _key: u64) {}

    fn run(&mut self) -> Turn {
        let asks = std::mem::take(&mut *self.inbox.asks.lock().unwrap());
        let mut worked = !asks.is_empty();
        asks.into_iter().for_each(|ask| self.take(ask));
        self.engine.flush();
        let mut ended: Vec<Completion> = Vec::new();
        self.engine.expire(Instant::now(), &mut ended);
        worked |= !ended.is_empty();
        for completion in ended {
            self.end(completion.token, completion.result, completion.data);
        }
        let mut out: Vec<Completion> = Vec::new();
        self.lane.collect(&mut out);
        worked |= !out.is_empty();
        for mut completion in out {
            self.engine.completed(&mut completion);
            self.end(completion.token, completion.result, completion.data);
        }
        match worked {
            true => Turn::Worked,
            false => Turn::Idle,
        }
    }

    fn arm(&mut self) -> Next {
        match (self.lane.has_news(), self.engine.deadline()) {
            (true, _) => Next::Now,
            (false, Some(when)) => Next::At(when),
            (false, None) => Next::Event,
        }
    }
}

/// An open image and somebody who uses it.
pub struct Disk {
    inbox: Arc<Inbox>,
    pub backend: Arc<Qcow2>,
    pool: Pool,
}

impl Disk {
    pub fn open(path: &Path, options: Options) -> Result<Disk, Error> {
        let pool = Pool::new(Some(2)).unwrap();
        let backend = Qcow2::open(path, options, Beneath::AsNamed, &pool.handle())?;
        Ok(Disk::of(backend, pool))
    }

    /// An image in another backend.
    pub fn open_on(file: Arc<dyn Backend>, name: &Path, beneath: Beneath) -> Result<Disk, Error> {
        let pool = Pool::new(Some(2)).unwrap();
        let backend = Qcow2::on(file, name, false, beneath, &pool.handle())?;
        Ok(Disk::of(backend, pool))
    }

    fn of(backend: Qcow2, pool: Pool) -> Disk {
        let backend = Arc::new(backend);
        let inbox = Arc::new(Inbox::default());
        let (used, its_inbox, (tell, told)) = (backend.clone(), inbox.clone(), channel());
        pool.handle().spawn(1, move |place: Place| {
            let mut lane = Lane::new(&place);
            let engine = used.attach(lane.local()).unwrap();
            lane.watch(&place, 0).unwrap();
            *its_inbox.waker.lock().unwrap() = Some(place.waker());
            tell.send(()).unwrap();
            Some(Box::new(User {
                lane,
                engine,
                inbox: its_inbox,
                pending: Vec::new(),
            }))
        });
        told.recv().unwrap();
        Disk {
            inbox,
            backend,
            pool,
        }
    }

    /// Begins an operation.
    pub fn start(&self, want: Want) -> Receiver<Answer> {
        let (answer, answered) = channel();
        self.ask(Ask::Start(want, answer));
        answered
    }

    /// Cancels an operation: they are counted from 0, in the order of their beginnings.
    pub fn cancel(&self, token: Token) {
        self.ask(Ask::Cancel(token));
    }

    fn ask(&self, ask: Ask) {
        self.inbox.asks.lock().unwrap().push(ask);
        if let Some(waker) = &*self.inbox.waker.lock().unwrap() {
            waker.wake();
        }
    }

    /// Carries an operation out.
    pub fn run(&self, want: Want) -> Answer {
        self.start(want).recv().expect("every operation ends")
    }

    pub fn resize(&self, size: usize) -> Result<(), Error> {
        self.backend.resize(Length(size as u64))
    }

    pub fn size(&self) -> usize {
        self.backend.info().size.0 as usize
    }

    /// All of the disk.
    pub fn contents(&self) -> Vec<u8> {
        let size = self.size();
        let reads: Vec<_> = (0..size)
            .step_by(1 << 20)
            .map(|at| self.start(Want::Read(at as u64, (size - at).min(1 << 20))))
            .collect();
        let parts = reads.into_iter().map(|read| read.recv().unwrap().unwrap());
        parts.flatten().collect()
    }

    pub fn close(self) {
        self.backend.close().unwrap();
        self.pool.close();
    }
}

/// xorshift64*: the same sequence in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let seed = self.below(1 << 40) | 1;
        (0..len as u64)
            .map(|at| (at.wrapping_mul(seed) >> 7) as u8 | 1)
            .collect()
    }
}

/// Does `count` random operations, several at a time on ranges of their own, to the disk and to
/// `model`, which is what the disk holds.
pub fn churn(disk: &Disk, model: &mut [u8], random: &mut Random, count: usize) {
    let lanes = 16;
    let room = model.len() as u64 / lanes / 512;
    for _ in 0..count / lanes as usize {
        let mut begun = Vec::new();
        for lane in 0..lanes {
            let sectors = 1 + random.below(room.min(300));
            let first = lane * room + random.below(room - sectors + 1);
            let (at, len) = (first * 512, (sectors * 512) as usize);
            let place = at as usize..at as usize + len;
            let want = match random.below(10) {
                0..5 => {
                    let data = random.bytes(len);
                    model[place].copy_from_slice(&data);
                    Want::Write(at, data)
                }
                5..7 => {
                    model[place].fill(0);
                    Want::Zero(at, len as u64, random.below(2) == 0)
                }
                7 => Want::Flush,
                _ => {
                    let expected = model[place].to_vec();
                    begun.push((disk.start(Want::Read(at, len)), Some(expected)));
                    continue;
                }
            };
            begun.push((disk.start(want), None));
        }
        for (answer, expected) in begun {
            let read = answer.recv().unwrap().unwrap();
            if let Some(expected) = expected {
                assert!(read == expected, "a read returned something else");
            }
        }
    }
}
