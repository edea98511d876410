//! Requests of several operations through a stack of layers, on engines that answer later, with
//! resets in between.

use super::*;
use crate::layers::{
    Delay, ErrorLayer, Faults, Layer, Layered, OpKind, OpKinds, Overlay, Pause, Rate, Rule, Split,
    Throttle, ThrottleLayer,
};
use crate::testing::Random;
use std::sync::mpsc::{Sender, channel};

/// An operation on its way: its token, what it writes where that is copied, who is answered.
type Asked = (Token, Op, Option<Vec<u8>>, Completer);

/// Bytes in a thread of their own, which answers in an order that chance gives.
struct Elsewhere {
    kind: Kind,
    thread: Mutex<Sender<Asked>>,
}

impl Elsewhere {
    fn new(kind: Kind) -> Arc<Elsewhere> {
        let (thread, asked) = channel::<Asked>();
        std::thread::spawn(move || {
            let (mut bytes, mut random) = (vec![0; DISK as usize], Random::new(3));
            while let Ok(first) = asked.recv() {
                let mut open = Vec::new();
                for (token, op, written, completer) in
                    std::iter::once(first).chain(asked.try_iter())
                {
                    let data = carry_out(kind, op, written, &mut bytes);
                    open.push((token, data, completer));
                }
                while !open.is_empty() {
                    let next = random.below(open.len() as u64) as usize;
                    let (token, data, completer) = open.swap_remove(next);
                    completer.complete(Completion {
                        token,
                        result: Ok(()),
                        data,
                    });
                }
            }
        });
        Arc::new(Elsewhere {
            kind,
            thread: Mutex::new(thread),
        })
    }
}

fn carry_out(kind: Kind, op: Op, written: Option<Vec<u8>>, bytes: &mut [u8]) -> Option<Vec<u8>> {
    let range = |extent: crate::Extent| extent.offset().0 as usize..extent.end().0 as usize;
    match op {
        Op::Read { extent, buffer } => {
            let found = bytes[range(extent)].to_vec();
            if kind == Kind::Detachable {
                return Some(found);
            }
            buffer.write(&found);
        }
        Op::Write { extent, buffer } => {
            let written = written.unwrap_or_else(|| buffer.to_vec());
            bytes[range(extent)].copy_from_slice(&written);
        }
        Op::Discard { extent } | Op::WriteZeroes { extent, .. } => bytes[range(extent)].fill(0),
        Op::Flush => {}
    }
    None
}

impl Backend for Elsewhere {
    fn info(&self) -> Info {
        Info {
            can_discard: true,
            ..disk(self.kind)
        }
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        let thread = self.thread.lock().unwrap().clone();
        Ok(Box::new(ElsewhereEngine(
            self.kind,
            thread,
            local.completer.clone(),
        )))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct ElsewhereEngine(Kind, Sender<Asked>, Completer);

impl Engine for ElsewhereEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let written = match &op {
            Op::Write { buffer, .. } if self.0 == Kind::Detachable => Some(buffer.to_vec()),
            _ => None,
        };
        self.1.send((token, op, written, self.2.clone())).unwrap();
        Submitted::Pending
    }
}

fn on(below: Arc<dyn Backend>, layer: impl Layer + 'static) -> Arc<dyn Backend> {
    Arc::new(Layered::new(below, layer))
}

/// Layers that hold back, fail and mix on `below`; a write's flush after it (the driver has
/// turned FLUSH down) fails one time in ten.
fn stack(below: Arc<dyn Backend>, with_overlay: bool) -> Arc<dyn Backend> {
    let pause = Pause {
        least: Duration::ZERO,
        most: Duration::from_micros(200),
    };
    let faults = Arc::new(Faults::new(1));
    faults.add(Rule {
        kinds: [OpKind::Flush].into_iter().collect::<OpKinds>(),
        range: None,
        errno: rustix::io::Errno::IO,
        after: 0,
        rate: 0.1,
        count: None,
    });
    let rate = Some(Rate {
        per_second: 20_000.0,
        burst: Some(10.0),
    });
    let throttle = Throttle::new(crate::layers::Limits {
        iops: Split {
            total: rate,
            ..Split::default()
        },
        ..Default::default()
    });
    let delayed = on(below, Delay::new([pause; OpKind::ALL.len()], 5));
    let mixed = match with_overlay {
        true => on(delayed, Overlay::default()),
        false => delayed,
    };
    let faulty = on(mixed, ErrorLayer::new(faults));
    on(faulty, ThrottleLayer::new(throttle))
}

const PER_SLOT: u64 = 8;

impl Rig {
    /// Discards sectors 0, 1 and 4, 5 of a slot's part of the disk, by two ranges.
    fn discard(&mut self, slot: u32) {
        let at = BUFFERS + u64::from(slot) * SLOT;
        let mut bytes = 11_u32.to_le_bytes().to_vec();
        bytes.extend([0; 12]);
        for sector in [0, 4] {
            bytes.extend((u64::from(slot) * PER_SLOT + sector).to_le_bytes());
            bytes.extend(2_u32.to_le_bytes());
            bytes.extend([0; 4]);
        }
        self.guest.write(at + 512, &bytes);
        self.guest.write(at + 16, &[0xff]);
        let ranges = Guest::segment(at + 512, bytes.len() as u32);
        let status = Guest::segment(at + 16, 1);
        self.driver.add(&[ranges], &[status], slot).unwrap();
        if self.driver.publish() {
            self.kick();
        }
    }
}

fn run(kind: Kind, with_overlay: bool, packed: bool) {
    let what = format!("{kind:?}, overlay: {with_overlay}, packed: {packed}");
    let pool = TestPool::new(1);
    let limits = Limits {
        max_discard_sectors: 1024,
        max_discard_seg: 2,
        ..Limits::default()
    };
    let backend = stack(Elsewhere::new(kind), with_overlay);
    let disk = Disk::new(backend, DISK / 512, limits, b"");
    let mut rig = Rig::on(packed, |hookup| {
        DataPath::blk(&pool, hookup, Arc::new(disk)).unwrap()
    });
    let setup = |rig: &Rig| QueueSetup {
        features: 1 << 13, // DISCARD, and no FLUSH
        ..rig.setup()
    };
    rig.path.start_queue(0, setup(&rig)).unwrap();
    let mut random = Random::new(9);
    // What sector 0 of each slot's part of the disk reads as, where it is known.
    let mut model = [Some(0_u8); SIZE as usize];
    for round in 0..150_u32 {
        let half = SIZE as u32 / 2;
        let slots = (round % 2 * half)..(round % 2 * half + 4);
        let other = BUFFERS + u64::from((round + 1) % 2 * half) * SLOT;
        rig.guest
            .write(other, &vec![0x55; (half as usize) * SLOT as usize]);
        let mut kinds = Vec::new();
        for slot in slots.clone() {
            let sector = u64::from(slot) * PER_SLOT;
            let kind = random.below(3);
            match kind {
                0 => rig.send(slot, None, sector),
                1 => rig.send(slot, Some(round as u8), sector),
                _ => rig.discard(slot),
            }
            kinds.push(kind);
        }
        if random.below(3) == 0 {
            assert!(rig.path.reset(LONG), "{what}: round {round}");
            for (slot, kind) in slots.zip(kinds) {
                if kind > 0 {
                    model[slot as usize] = None;
                }
            }
            rig.driver = fresh_driver(&rig.guest, packed);
            rig.path.start_queue(0, setup(&rig)).unwrap();
        } else {
            for _ in 0..4 {
                let (slot, status) = rig.wait();
                let known = &mut model[slot as usize];
                match kinds[(slot - slots.start) as usize] {
                    0 => {
                        assert_eq!(status, 0, "{what}: round {round}");
                        let found = rig.data(slot);
                        if let Some(byte) = *known {
                            assert_eq!(found, [byte; 512], "{what}: round {round}");
                        }
                    }
                    1 => *known = Some(round as u8),
                    _ => {
                        assert_eq!(status, 0, "{what}: round {round}");
                        *known = Some(0);
                    }
                }
            }
        }
        let untouched = rig.guest.read(other, u64::from(half) * SLOT);
        assert!(
            untouched.iter().all(|&byte| byte == 0x55),
            "{what}: {round}"
        );
    }
    assert!(rig.path.stop_queue(0, LONG).unwrap().is_some(), "{what}");
}

#[test]
fn a_stack_of_layers_ends_every_request_once_and_lets_go_at_a_reset() {
    for kind in [Kind::Direct, Kind::Detachable] {
        for (with_overlay, packed) in [(false, false), (true, true)] {
            run(kind, with_overlay, packed);
        }
    }
}
