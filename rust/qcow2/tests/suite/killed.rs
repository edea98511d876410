//! What a program that is killed leaves: an image's file in memory, whose operations are carried
//! out in any order. After each of them the bytes are what a kill at that moment would have left,
//! with whatever was still under way not done.

use crate::checker::corruptions;
use crate::support::{Disk, Random, Scratch, Want};
use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vduse_device::Length;
use vduse_device::backend::{
    Backend, Completion, Engine, Error, Info, Kind, Local, Op, Submitted, Token,
};
use vduse_qcow2::Beneath;

/// Of all choices; any will do.
const SEED: u64 = 1;
/// Changes between two states that QEMU is asked about, too.
const CHANGES: usize = 400;

/// The file's bytes, and what was wrong with them first.
struct Bytes {
    bytes: Vec<u8>,
    random: Random,
    changes: usize,
    wrong: Option<String>,
    kept: Vec<Vec<u8>>,
}

impl Bytes {
    /// Carries an operation out.
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Read { extent, buffer } => {
                buffer.write(&self.bytes[extent.offset().0 as usize..extent.end().0 as usize]);
            }
            Op::Write { extent, buffer } => {
                let end = extent.end().0 as usize;
                self.bytes.resize(self.bytes.len().max(end), 0);
                self.bytes[extent.offset().0 as usize..end].copy_from_slice(&buffer.to_vec());
            }
            Op::Discard { extent } | Op::WriteZeroes { extent, .. } => {
                self.bytes[extent.offset().0 as usize..extent.end().0 as usize].fill(0);
            }
            Op::Flush => {}
        }
        if matches!(op, Op::Read { .. } | Op::Flush) || self.wrong.is_some() {
            return;
        }
        self.changes += 1;
        if self.changes.is_multiple_of(CHANGES) {
            self.kept.push(self.bytes.clone());
        }
        let found = corruptions(&self.bytes);
        if !found.is_empty() {
            self.wrong = Some(format!("after change {}: {found:?}", self.changes));
        }
    }
}

/// A file of such bytes.
#[derive(Clone)]
struct Unordered(Arc<Mutex<Bytes>>);

impl Backend for Unordered {
    fn info(&self) -> Info {
        Info {
            size: self.length(),
            block_size: 512,
            read_only: false,
            can_discard: true,
            kind: Kind::Direct,
        }
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(UnorderedEngine {
            file: self.clone(),
            pending: Vec::new(),
        }))
    }

    fn length(&self) -> Length {
        Length(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn grows(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct UnorderedEngine {
    file: Unordered,
    pending: Vec<(Token, Op)>,
}

impl Engine for UnorderedEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        self.pending.push((token, op));
        Submitted::Pending
    }

    fn deadline(&self) -> Option<Instant> {
        (!self.pending.is_empty()).then(Instant::now)
    }

    /// One of them ends.
    fn expire(&mut self, _now: Instant, ended: &mut Vec<Completion>) {
        if self.pending.is_empty() {
            return;
        }
        let mut bytes = self.file.0.lock().unwrap();
        let choice = bytes.random.below(self.pending.len() as u64) as usize;
        let (token, op) = self.pending.swap_remove(choice);
        bytes.apply(&op);
        ended.push(Completion {
            token,
            result: Ok(()),
            data: None,
        });
    }
}

/// An image, and what is done to it.
struct Scenario {
    /// Options of `qemu-img create`.
    options: &'static str,
    /// Bytes.
    size: u64,
    operations: u64,
    /// Part of it is written and kept by a snapshot first, part is compressed.
    is_old: bool,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario {
        options: "cluster_size=512",
        size: 1 << 20,
        operations: 600,
        is_old: false,
    },
    Scenario {
        options: "cluster_size=4096",
        size: 16 << 20,
        operations: 600,
        is_old: false,
    },
    // More tables than the driver keeps, and a refcount table that becomes too short.
    Scenario {
        options: "cluster_size=512",
        size: 9 << 20,
        operations: 500,
        is_old: false,
    },
    Scenario {
        options: "cluster_size=512",
        size: 1 << 20,
        operations: 600,
        is_old: true,
    },
    Scenario {
        options: "compat=0.10,cluster_size=1024",
        size: 2 << 20,
        operations: 600,
        is_old: true,
    },
];

/// Requests of random kinds, 32 at a time, and now and then another size; whoever kills it at any
/// time finds no corruption.
fn churn(scenario: &Scenario, seed: u64) {
    let scratch = Scratch::new(&format!("killed-{seed}-{}", scenario.size));
    let size = scenario.size;
    create(&scratch, scenario);
    let file = Unordered(Arc::new(Mutex::new(Bytes {
        bytes: std::fs::read(scratch.path("image")).unwrap(),
        random: Random::new(seed ^ 0x5555),
        changes: 0,
        wrong: None,
        kept: Vec::new(),
    })));
    let disk = Disk::open_on(Arc::new(file.clone()), Path::new("image"), Beneath::AsNamed);
    let disk = disk.unwrap();
    let mut random = Random::new(seed);
    let mut under_way = VecDeque::new();
    for number in 0..scenario.operations {
        let at = random.below(size / 512 - 64) * 512;
        let len = (1 + random.below(64)) * 512;
        under_way.push_back(disk.start(match random.below(20) {
            0..12 => Want::Write(at, random.bytes(len as usize)),
            12..14 => Want::Read(at, len as usize),
            14..16 => Want::Flush,
            16..18 => Want::Discard(at, len),
            18 => Want::Zero(at, len, true),
            _ => Want::Zero(at, len, false),
        }));
        if under_way.len() == 32 {
            under_way.pop_front().unwrap().recv().unwrap().unwrap();
        }
        if number % 200 == 199 {
            let longer = size + random.below(2 * size / 512) * 512;
            disk.resize(longer as usize).unwrap();
        }
    }
    for answer in under_way {
        answer.recv().unwrap().unwrap();
    }
    disk.close();
    let bytes = file.0.lock().unwrap();
    if let Some(wrong) = &bytes.wrong {
        panic!("seed {seed}: {wrong}");
    }
    // QEMU agrees with the checker.
    for state in bytes.kept.iter().chain([&bytes.bytes]) {
        std::fs::write(scratch.path("image"), state).unwrap();
        let mut check = Command::new("qemu-img");
        let check = check.args(["check", "-q"]).arg(scratch.path("image"));
        let check = check.output().unwrap();
        // 3: leaks, which are allowed.
        assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
    }
}

fn create(scratch: &Scratch, scenario: &Scenario) {
    let (size, options) = (scenario.size.to_string(), scenario.options);
    if scenario.is_old {
        scratch.qemu_img(&["create", "-q", "-f", "raw", "raw", &size]);
        let half = (scenario.size / 2).to_string();
        let write = format!("write -P 7 0 {half}");
        scratch.run("qemu-io", &["-f", "raw", "-c", &write, "raw"]);
        scratch.qemu_img(&[
            "convert", "-c", "-O", "qcow2", "-o", options, "raw", "image",
        ]);
        let write = format!("write -P 9 {half} {}", scenario.size / 4);
        scratch.run("qemu-io", &["-c", &write, "image"]);
        scratch.qemu_img(&["snapshot", "-c", "then", "image"]);
        let write = format!("write -P 5 {half} {}", scenario.size / 8);
        scratch.run("qemu-io", &["-c", &write, "image"]);
    } else {
        scratch.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "image", &size]);
    }
}

#[test]
fn a_kill_at_any_time_leaves_no_corruption() {
    for scenario in &SCENARIOS {
        churn(scenario, SEED);
    }
}
