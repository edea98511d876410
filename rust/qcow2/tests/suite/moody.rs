//! Images on backends that stall, or panic within the format driver.

use crate::support::{Disk, Scratch, WRITE, Want};
use rustix::io::Errno;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vduse_device::Length;
use vduse_device::backend::{
    Backend, Completion, Engine, Error, File, Info, Local, Op, OpenOptions, Submitted, Token,
};
use vduse_qcow2::Beneath;

/// A file whose nature nobody may ask for once it panics: the format driver does with each write.
struct Moody {
    file: File,
    panics: Arc<AtomicBool>,
}

impl Backend for Moody {
    fn info(&self) -> Info {
        assert!(!self.panics.load(Ordering::Relaxed), "a test's panic");
        self.file.info()
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        self.file.attach(local)
    }

    fn length(&self) -> Length {
        self.file.length()
    }

    fn grows(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), Error> {
        self.file.flush()
    }

    fn close(&self) -> Result<(), Error> {
        self.file.close()
    }
}

#[test]
fn a_panic_within_the_format_driver_breaks_that_image_alone() {
    let scratch = Scratch::new("panic");
    scratch.qemu_img(&["create", "-q", "-f", "qcow2", "image", "4M"]);
    scratch.qemu_img(&["create", "-q", "-f", "qcow2", "other", "4M"]);
    let panics = Arc::new(AtomicBool::new(false));
    let file = container(&scratch.path("image"));
    let moody = Arc::new(Moody {
        file,
        panics: panics.clone(),
    });
    let disk = Disk::open_on(moody, Path::new("image"), Beneath::AsNamed).unwrap();
    let other = Disk::open(&scratch.path("other"), WRITE).unwrap();
    disk.run(Want::Write(0, vec![1; 4096])).unwrap();
    panics.store(true, Ordering::Relaxed);
    let write = || disk.run(Want::Write(1 << 20, vec![1; 4096]));
    assert_eq!(write(), Err(Errno::IO));
    panics.store(false, Ordering::Relaxed);
    assert_eq!(write(), Err(Errno::IO));
    assert_eq!(disk.run(Want::Read(0, 4096)), Err(Errno::IO));
    other.run(Want::Write(0, vec![2; 4096])).unwrap();
    assert_eq!(other.run(Want::Read(0, 4096)), Ok(vec![2; 4096]));
    assert_eq!(disk.backend.close().unwrap_err().errno, Errno::IO);
    other.close();
}

/// A file whose operations wait while it is stalled.
struct Stalling {
    file: File,
    is_stalled: Arc<AtomicBool>,
}

impl Backend for Stalling {
    fn info(&self) -> Info {
        self.file.info()
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(StallingEngine {
            engine: self.file.attach(local)?,
            is_stalled: self.is_stalled.clone(),
            held: Vec::new(),
        }))
    }

    fn length(&self) -> Length {
        self.file.length()
    }

    fn grows(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), Error> {
        self.file.flush()
    }

    fn close(&self) -> Result<(), Error> {
        self.file.close()
    }
}

struct StallingEngine {
    engine: Box<dyn Engine>,
    is_stalled: Arc<AtomicBool>,
    held: Vec<(Token, Op)>,
}

impl Engine for StallingEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        if self.is_stalled.load(Ordering::Relaxed) {
            self.held.push((token, op));
            return Submitted::Pending;
        }
        self.engine.submit(token, op)
    }

    fn flush(&mut self) {
        self.engine.flush();
    }

    /// It looks again whether it is still stalled.
    fn deadline(&self) -> Option<Instant> {
        let pause = Duration::from_millis(5);
        (!self.held.is_empty()).then(|| Instant::now() + pause)
    }

    fn expire(&mut self, _now: Instant, _ended: &mut Vec<Completion>) {
        if !self.is_stalled.load(Ordering::Relaxed) {
            for (token, op) in std::mem::take(&mut self.held) {
                assert_eq!(self.engine.submit(token, op), Submitted::Pending);
            }
        }
    }
}

#[test]
fn what_has_not_begun_is_cancelled_while_the_file_stalls() {
    let scratch = Scratch::new("cancel");
    scratch.qemu_img(&["create", "-q", "-f", "qcow2", "image", "16M"]);
    let is_stalled = Arc::new(AtomicBool::new(false));
    let stalling = Arc::new(Stalling {
        file: container(&scratch.path("image")),
        is_stalled: is_stalled.clone(),
    });
    let disk = Disk::open_on(stalling, Path::new("image"), Beneath::AsNamed).unwrap();
    is_stalled.store(true, Ordering::Relaxed);
    // 64 of them are begun.
    let writes: Vec<_> = (0..72)
        .map(|cluster| disk.start(Want::Write(cluster << 16, vec![1; 4096])))
        .collect();
    for token in 64..72 {
        disk.cancel(Token(token));
    }
    let (begun, waiting) = writes.split_at(64);
    for write in waiting {
        assert_eq!(write.recv().unwrap(), Err(Errno::CANCELED));
    }
    assert!(begun.iter().all(|write| write.try_recv().is_err()));
    is_stalled.store(false, Ordering::Relaxed);
    for write in begun {
        assert!(write.recv().unwrap().is_ok());
    }
    assert_eq!(disk.run(Want::Read(64 << 16, 4096)), Ok(vec![0; 4096]));
    disk.close();
    scratch.qemu_img(&["check", "image"]);
}

fn container(path: &Path) -> File {
    let options = OpenOptions {
        read_only: WRITE.read_only,
        direct: WRITE.direct,
        engine: WRITE.engine,
        locking: WRITE.locking,
    };
    File::open_container(path, options).unwrap()
}
