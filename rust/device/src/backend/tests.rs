//! Every backend against a model, and QEMU's locks against QEMU.

use super::{
    Backend, Completion, Engine, EngineChoice, Error, File, Local, Locking, Memory, Notice,
    Observer, Op, OpenOptions, Submitted, Token, check, io_uring_allowed,
};
use crate::mailbox::{Completer, Mail, Mailbox};
use crate::testing::{Random, buffer};
use crate::{Buffer, Extent, Length, Offset};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use vduse_mem::{Access, Backing, Entry, Iotlb, Iova, Perm, Pieces, Region, Resolver, View};

/// A file that goes with the test, in a directory on disk (a memory file system may not have
/// O_DIRECT).
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, size: u64) -> Scratch {
        let dir = std::env::var_os("TMPDIR").unwrap_or("/var/tmp".into());
        let name = format!("vduse-{}-{name}", std::process::id());
        let path = PathBuf::from(dir).join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(size).unwrap();
        Scratch(path)
    }

    fn open(&self, options: OpenOptions) -> Result<File, Error> {
        File::open(&self.0, options)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const PLAIN: OpenOptions = OpenOptions {
    read_only: false,
    direct: false,
    engine: EngineChoice::Auto,
    locking: Locking::Open,
};

/// A worker's part, played by the test.
struct Bench {
    mailbox: Arc<Mailbox>,
    bell: Arc<OwnedFd>,
    local: Local,
    engine: Box<dyn Engine>,
    completions: Vec<Completion>,
}

impl Bench {
    fn new(backend: &dyn Backend) -> Bench {
        let mailbox = Mailbox::new();
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        let rung = bell.clone();
        mailbox.set_bell(move || assert_eq!(rustix::io::write(&rung, &1u64.to_ne_bytes()), Ok(8)));
        let local = Local {
            spawner: Default::default(),
            completer: Completer::new(mailbox.clone()),
            uring: RefCell::new(None),
        };
        Bench {
            mailbox,
            bell,
            engine: backend.attach(&local).unwrap(),
            local,
            completions: Vec::new(),
        }
    }

    fn collect(&mut self) {
        let uring = self.local.uring.borrow().clone();
        if let Some(uring) = uring {
            uring.borrow_mut().turn(&mut self.completions);
        }
        let mut mail = Mail::default();
        self.mailbox.take(&mut mail);
        self.completions.append(&mut mail.completions);
    }

    /// Waits until `count` completions are there.
    fn wait(&mut self, count: usize) {
        self.engine.flush();
        loop {
            self.collect();
            if self.completions.len() >= count {
                return;
            }
            let uring = self.local.uring.borrow().clone();
            let uring = uring.as_ref().map(|uring| uring.borrow());
            let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN)];
            if let Some(uring) = &uring {
                fds.push(PollFd::from_borrowed_fd(uring.event_fd(), PollFlags::IN));
            }
            poll(&mut fds, None).unwrap();
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            if let Some(uring) = &uring {
                let _ = rustix::io::read(uring.event_fd(), &mut [0; 8]);
            }
        }
    }

    fn run(&mut self, op: Op) -> Result<(), Errno> {
        match self.engine.submit(Token(1), op) {
            Submitted::Done(result) => result,
            Submitted::Pending => {
                self.wait(1);
                self.completions.pop().unwrap().result
            }
        }
    }

    fn write(&mut self, offset: u64, mut bytes: Vec<u8>, cuts: &[usize]) -> Result<(), Errno> {
        let extent = extent(offset, bytes.len() as u64);
        // SAFETY: `run` waits for the end; the bytes live longer.
        let buffer = unsafe { buffer(&mut bytes, cuts) };
        self.run(Op::Write { extent, buffer })
    }

    fn read(&mut self, offset: u64, len: usize, cuts: &[usize]) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0x77; len];
        let extent = extent(offset, len as u64);
        // SAFETY: as above.
        let buffer = unsafe { buffer(&mut bytes, cuts) };
        self.run(Op::Read { extent, buffer })?;
        Ok(bytes)
    }
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(Offset(offset), Length(len)).unwrap()
}

const SIZE: u64 = 1 << 20;

/// Random operations; what is read is what was written last. A discarded range is undefined
/// until it is written again.
fn follows_the_model(backend: &dyn Backend, seed: u64) {
    let mut bench = Bench::new(backend);
    let mut model: Vec<Option<u8>> = vec![Some(0); SIZE as usize];
    let random = &mut Random::new(seed);
    for step in 0..600 {
        let offset = random.below(SIZE / 512) * 512;
        let most = (SIZE - offset).min(if random.below(8) == 0 {
            256 << 10
        } else {
            16384
        });
        let len = (random.below(most / 512) + 1) * 512;
        let range = offset as usize..(offset + len) as usize;
        let unit = [1, 4, 512][random.below(3) as usize];
        let cuts = random.cuts(len as usize, unit, 5);
        match random.below(10) {
            0..4 => {
                let bytes: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
                for (model, byte) in model[range].iter_mut().zip(&bytes) {
                    *model = Some(*byte);
                }
                bench.write(offset, bytes, &cuts).unwrap();
            }
            4..8 => {
                let bytes = bench.read(offset, len as usize, &cuts).unwrap();
                for (at, (model, byte)) in model[range].iter().zip(&bytes).enumerate() {
                    if let Some(model) = model {
                        assert_eq!(model, byte, "step {step}: byte {at} of {offset}+{len}");
                    }
                }
            }
            8 => {
                let may_unmap = random.below(2) == 0;
                model[range].fill(Some(0));
                let extent = extent(offset, len);
                bench.run(Op::WriteZeroes { extent, may_unmap }).unwrap();
            }
            _ => {
                model[range].fill(None);
                let extent = extent(offset, len);
                bench.run(Op::Discard { extent }).unwrap();
                bench.run(Op::Flush).unwrap();
            }
        }
    }
}

#[test]
fn memory_follows_the_model() {
    follows_the_model(&Memory::new(SIZE).unwrap(), 1);
}

#[test]
fn a_file_with_threads_follows_the_model() {
    let scratch = Scratch::new("threads", SIZE);
    let engine = EngineChoice::Threads;
    let backend = scratch.open(OpenOptions { engine, ..PLAIN }).unwrap();
    assert_eq!(backend.engine_name(), "threads");
    follows_the_model(&backend, 2);
}

#[test]
fn a_file_with_io_uring_follows_the_model() {
    if let Err(errno) = io_uring_allowed() {
        eprintln!("skipped: io_uring is not allowed here ({errno})");
        return;
    }
    let scratch = Scratch::new("uring", SIZE);
    let engine = EngineChoice::IoUring;
    let backend = scratch.open(OpenOptions { engine, ..PLAIN }).unwrap();
    assert_eq!(backend.engine_name(), "io_uring");
    follows_the_model(&backend, 3);
}

/// `None`, with the reason told, where the directory has no O_DIRECT.
fn open_direct(scratch: &Scratch, engine: EngineChoice) -> Option<File> {
    let direct = OpenOptions {
        direct: true,
        engine,
        ..PLAIN
    };
    match scratch.open(direct) {
        Ok(backend) => Some(backend),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

#[test]
fn o_direct_follows_the_model_with_both_engines() {
    for engine in [EngineChoice::Threads, EngineChoice::Auto] {
        let scratch = Scratch::new("direct", SIZE);
        let Some(backend) = open_direct(&scratch, engine) else {
            return;
        };
        follows_the_model(&backend, 4);
    }
}

#[test]
fn writers_of_one_o_direct_block_do_not_undo_each_other() {
    let scratch = Scratch::new("blocks", SIZE);
    // As on a disk with blocks of 4096 bytes, whatever this one has.
    let backend = match File::open_with_blocks(&scratch.0, 4096) {
        Ok(backend) => backend,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    assert_eq!(backend.info().block_size, 4096);
    let mut bench = Bench::new(&backend);
    let mut sectors: Vec<Vec<u8>> = (1..=64).map(|n| vec![n; 512]).collect();
    for (n, bytes) in (0..).zip(&mut sectors) {
        let extent = extent(n * 512, 512);
        // SAFETY: the sectors live until all have ended.
        let buffer = unsafe { buffer(bytes, &[]) };
        let submitted = bench.engine.submit(Token(n), Op::Write { extent, buffer });
        assert_eq!(submitted, Submitted::Pending);
    }
    bench.wait(64);
    assert!(bench.completions.drain(..).all(|end| end.result.is_ok()));
    assert_eq!(bench.read(0, 64 * 512, &[]).unwrap(), sectors.concat());
    let may_unmap = false;
    let extent = extent(0, SIZE);
    bench.run(Op::WriteZeroes { extent, may_unmap }).unwrap();
    follows_the_model(&backend, 5);
}

#[test]
fn more_operations_than_the_io_uring_holds_all_end() {
    let scratch = Scratch::new("many", SIZE);
    let backend = scratch.open(PLAIN).unwrap();
    let mut bench = Bench::new(&backend);
    let mut memory = vec![0; 5000 * 512];
    for (n, bytes) in (0..).zip(memory.chunks_mut(512)) {
        let extent = extent(n % 2048 * 512, 512);
        // SAFETY: the memory lives until all have ended.
        let buffer = unsafe { buffer(bytes, &[]) };
        bench.engine.submit(Token(n), Op::Read { extent, buffer });
    }
    bench.wait(5000);
    let mut tokens: Vec<u64> = bench.completions.iter().map(|end| end.token.0).collect();
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..5000));
    assert!(bench.completions.iter().all(|end| end.result.is_ok()));
}

#[test]
fn what_a_cancelled_operation_leaves_is_one_completion() {
    for engine in [EngineChoice::Threads, EngineChoice::Auto] {
        let scratch = Scratch::new("cancel", SIZE);
        let backend = scratch.open(OpenOptions { engine, ..PLAIN }).unwrap();
        let mut bench = Bench::new(&backend);
        let mut memory = vec![0; 100 * 4096];
        for (n, bytes) in (0..).zip(memory.chunks_mut(4096)) {
            let extent = extent(n * 4096, 4096);
            // SAFETY: the memory lives until all have ended.
            let buffer = unsafe { buffer(bytes, &[]) };
            bench.engine.submit(Token(n), Op::Read { extent, buffer });
        }
        (0..100).for_each(|n| bench.engine.cancel(Token(n)));
        bench.wait(100);
        bench.collect();
        assert_eq!(bench.completions.len(), 100);
        for end in bench.completions {
            assert!(matches!(end.result, Ok(()) | Err(Errno::CANCELED)));
        }
    }
}

#[test]
fn a_file_that_shrank_is_an_error_not_silence() {
    for engine in [EngineChoice::Threads, EngineChoice::Auto] {
        let scratch = Scratch::new("shrunk", SIZE);
        let backend = scratch.open(OpenOptions { engine, ..PLAIN }).unwrap();
        let mut bench = Bench::new(&backend);
        std::fs::File::options()
            .write(true)
            .open(&scratch.0)
            .unwrap()
            .set_len(4096)
            .unwrap();
        assert_eq!(bench.read(0, 4096, &[]), Ok(vec![0; 4096]));
        assert_eq!(bench.read(2048, 4096, &[]), Err(Errno::IO));
    }
}

#[test]
fn discarding_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new("holes", SIZE);
    let backend = scratch.open(PLAIN).unwrap();
    if !backend.info().can_discard {
        eprintln!("skipped: this file system has no holes");
        return;
    }
    let mut bench = Bench::new(&backend);
    bench.write(0, vec![1; SIZE as usize], &[]).unwrap();
    bench.run(Op::Flush).unwrap();
    assert!(std::fs::metadata(&scratch.0).unwrap().blocks() >= SIZE / 512);
    let extent = extent(0, SIZE);
    bench.run(Op::Discard { extent }).unwrap();
    assert!(std::fs::metadata(&scratch.0).unwrap().blocks() < SIZE / 512 / 2);
    assert_eq!(std::fs::metadata(&scratch.0).unwrap().len(), SIZE);
}

#[test]
fn a_size_that_is_no_multiple_of_512_is_refused() {
    let scratch = Scratch::new("odd", 1000);
    let error = scratch.open(PLAIN).err().unwrap();
    assert_eq!(error.errno, Errno::INVAL);
    assert!(error.message.contains("1000 bytes"), "{error}");
    assert!(Memory::new(0).is_err() && Memory::new(513).is_err());
}

#[test]
fn what_is_not_a_file_is_refused() {
    let open = |path: &str| File::open(Path::new(path), PLAIN).err().unwrap().errno;
    assert_eq!(open("/nowhere/image"), Errno::NOENT);
    assert_eq!(open("/dev/null"), Errno::INVAL);
}

#[test]
fn check_refuses_what_a_disk_cannot_do() {
    let mut info = Memory::new(4096).unwrap().info();
    let op = |offset, len| Op::Discard {
        extent: extent(offset, len),
    };
    assert_eq!(check(&info, &op(0, 4096)), Ok(()));
    assert_eq!(check(&info, &op(512, 4096)), Err(Errno::NOSPC));
    info.read_only = true;
    assert_eq!(check(&info, &op(0, 512)), Err(Errno::ROFS));
    assert_eq!(check(&info, &Op::Flush), Ok(()));
}

#[derive(Default)]
struct Notes(Mutex<Vec<Notice>>);

impl Observer for Notes {
    fn notice(&self, notice: &Notice) {
        self.0.lock().unwrap().push(notice.clone());
    }
}

#[test]
fn a_resize_is_told_to_observers() {
    let scratch = Scratch::new("resize", SIZE);
    let backend = scratch.open(PLAIN).unwrap();
    let notes = Arc::new(Notes::default());
    let weak: std::sync::Weak<Notes> = Arc::downgrade(&notes);
    backend.observe(weak);
    assert_eq!(backend.refresh_size(), Ok(SIZE));
    let file = std::fs::File::options().write(true).open(&scratch.0);
    file.unwrap().set_len(2 * SIZE).unwrap();
    assert_eq!(backend.refresh_size(), Ok(2 * SIZE));
    assert_eq!(backend.info().size, Length(2 * SIZE));
    let told = notes.0.lock().unwrap().clone();
    assert_eq!(told, [Notice::Resized(Length(2 * SIZE))]);
}

#[test]
fn one_writer_or_many_readers() {
    let scratch = Scratch::new("locks", SIZE);
    let reader = OpenOptions {
        read_only: true,
        ..PLAIN
    };
    let refused = |options| scratch.open(options).err().map(|error| error.errno);
    let writer = scratch.open(PLAIN).unwrap();
    assert_eq!(refused(PLAIN), Some(Errno::AGAIN));
    assert_eq!(refused(reader), Some(Errno::AGAIN));
    writer.close().unwrap();
    let one = scratch.open(reader).unwrap();
    let another = scratch.open(reader).unwrap();
    assert_eq!(refused(PLAIN), Some(Errno::AGAIN));
    drop((one, another));
    assert_eq!(refused(PLAIN), None);
}

/// An IOTLB that is one region of our own.
struct Own(Arc<Region>);

impl Resolver for Own {
    fn resolve(&self, _: Iova, _: Iova) -> Result<(Backing, Entry), Errno> {
        let entry = Entry {
            start: Iova(0),
            last: Iova(self.0.len() as u64 - 1),
            offset: 0,
            perm: Perm::Rw,
        };
        Ok((Backing::Own(self.0.clone()), entry))
    }
}

/// Kilobytes of this process that are pinned.
fn pinned() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPin:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse().unwrap()
}

#[test]
fn pages_of_our_own_are_pinned_once_and_for_as_long_as_a_queue_is_there() {
    // No other test has anything pinned.
    const KIB: u64 = 1024;
    if let Err(errno) = io_uring_allowed() {
        return eprintln!("skipped: io_uring is not allowed here ({errno})");
    }
    let scratch = Scratch::new("fixed", SIZE);
    let direct = OpenOptions {
        direct: true,
        ..PLAIN
    };
    let backend = match scratch.open(direct) {
        Ok(backend) => backend,
        Err(error) => return eprintln!("skipped: no O_DIRECT here ({error})"),
    };
    let region = Region::own(KIB as usize * 1024).unwrap();
    let mut view = View::new(Iotlb::new(Arc::new(Own(region.clone()))));
    let mut bench = Bench::new(&backend);
    let mut buffer = |at: &[u64], len: u32| {
        let mut pieces = Pieces::new();
        for &at in at {
            let access = Access::Write;
            view.translate(Iova(at), len, access, &mut pieces).unwrap();
        }
        // SAFETY: translated by the view just now, for the stricter access.
        unsafe { Buffer::pinned(pieces, view.pin()) }
    };
    let (from, to) = (buffer(&[0], 8192), buffer(&[131_072, 65536], 4096));
    from.write(&[0x5a; 8192]);
    assert!(Arc::ptr_eq(from.own_region().unwrap(), &region));
    let extent = extent(4096, 8192);
    let write = Op::Write {
        extent,
        buffer: from,
    };
    bench.run(write).unwrap();
    if pinned() == 0 {
        return eprintln!("skipped: refused (RLIMIT_MEMLOCK), or this kernel does not count it");
    }
    assert_eq!(pinned(), KIB);
    let buffer = to.share();
    bench.run(Op::Read { extent, buffer }).unwrap();
    assert_eq!(to.to_vec(), [0x5a; 8192], "in two pieces");
    assert_eq!(pinned(), KIB, "once");
    // The other queue of a device shares the place.
    let other = backend.attach(&bench.local).unwrap();
    bench.engine = other;
    bench.run(Op::Read { extent, buffer: to }).unwrap();
    assert_eq!(pinned(), KIB);
    bench.engine = Memory::new(512).unwrap().attach(&bench.local).unwrap();
    assert_eq!(pinned(), 0);
}

#[test]
fn a_closed_image_stays_locked_while_a_queue_works_on_it() {
    let scratch = Scratch::new("closed", SIZE);
    let writer = scratch.open(PLAIN).unwrap();
    let mut bench = Bench::new(&writer);
    writer.close().unwrap();
    let refused = || scratch.open(PLAIN).err().map(|error| error.errno);
    assert_eq!(refused(), Some(Errno::AGAIN));
    bench.write(0, vec![1; 512], &[]).unwrap();
    let late = writer.attach(&bench.local).err();
    assert_eq!(late.map(|error| error.errno), Some(Errno::BADF));
    drop(bench);
    assert_eq!(refused(), None);
}

#[test]
fn an_image_that_is_locked_while_it_is_served_goes_from_one_to_the_other() {
    let scratch = Scratch::new("handed-over", SIZE);
    let late = OpenOptions {
        locking: Locking::Serving,
        ..PLAIN
    };
    let (source, target) = (scratch.open(late).unwrap(), scratch.open(late).unwrap());
    let (mut first, mut second) = (Bench::new(&source), Bench::new(&source));
    first.write(0, vec![1; 512], &[]).unwrap();
    let local = &first.local;
    let refused = target.attach(local).err();
    assert_eq!(refused.map(|error| error.errno), Some(Errno::AGAIN));
    assert!(scratch.open(PLAIN).is_err());
    // Its last virtqueue gives it back.
    drop(first);
    second.write(512, vec![2; 512], &[]).unwrap();
    assert!(target.attach(&second.local).is_err());
    drop(second);
    let mut third = Bench::new(&target);
    assert_eq!(
        third.read(0, 1024, &[]).unwrap(),
        [vec![1; 512], vec![2; 512]].concat()
    );
    assert!(source.attach(&third.local).is_err());
    target.close().unwrap();
    assert!(
        source.attach(&third.local).is_err(),
        "a virtqueue works on it"
    );
    drop(third);
    drop(Bench::new(&source));
    scratch.open(PLAIN).unwrap();
}

#[test]
fn qemu_keeps_off_our_image_and_we_off_its() {
    let scratch = Scratch::new("qemu", SIZE);
    let ours = scratch.open(PLAIN).unwrap();
    let image = scratch.0.to_str().unwrap();
    for command in [
        ["qemu-img", "check", "-f", "qcow2", image].as_slice(),
        &["qemu-img", "resize", "-f", "raw", image, "2M"],
        &["qemu-io", "-f", "raw", "-c", "write 0 512", image],
    ] {
        let Ok(output) = Command::new(command[0]).args(&command[1..]).output() else {
            eprintln!(
                "skipped: {} is missing (apt-get install qemu-utils)",
                command[0]
            );
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("lock"),
            "{command:?}: {said}"
        );
    }
    drop(ours);

    let mut qemu_io = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(&scratch.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = qemu_io.stdin.take().unwrap();
    commands.write_all(b"length\n").unwrap();
    let mut said = String::new();
    let mut answers = BufReader::new(qemu_io.stdout.take().unwrap());
    while !said.contains("MiB") && answers.read_line(&mut said).unwrap() > 0 {}
    let refused = scratch.open(PLAIN).err();
    drop(commands);
    qemu_io.wait().unwrap();
    assert_eq!(refused.map(|error| error.errno), Some(Errno::AGAIN));
    scratch.open(PLAIN).unwrap();
}
