//! Entry functions of the fuzz targets: bytes are a queue's configuration and then a series of
//! steps of both sides. Each panics where its invariant is broken.

use crate::device::chain::MAX_SEGMENTS;
use crate::testing::{DESC, DEVICE, DRIVER, Memory, RECORD, Random, segment};
use crate::{Chain, DeviceQueue, Layout, QueueState, RingError};
use std::path::Path;

/// Mutated inputs a target, in each test run.
const MUTATIONS: u64 = 4_000;

/// Runs a target's seeds, and what comes of them by small random changes. With
/// VDUSE_WRITE_CORPUS=DIR each seed is written to DIR/TARGET/NAME.
pub fn corpus(target: &str, run: fn(&[u8]), seeds: Vec<(&str, Vec<u8>)>) {
    if let Some(directory) = std::env::var_os("VDUSE_WRITE_CORPUS") {
        let directory = Path::new(&directory).join(target);
        std::fs::create_dir_all(&directory).expect("corpus directory");
        for (name, bytes) in &seeds {
            std::fs::write(directory.join(name), bytes).expect("seed");
        }
    }
    for (_, bytes) in &seeds {
        run(bytes);
    }
    let mut random = Random(99);
    let mut pick = |limit: usize| random.below(limit as u64) as usize;
    for _ in 0..MUTATIONS {
        let mut bytes = seeds[pick(seeds.len())].1.clone();
        for _ in 0..1 + pick(6) {
            let at = pick(bytes.len());
            match pick(5) {
                0 => bytes[at] = pick(256) as u8,
                1 => bytes[at] ^= 1 << pick(8),
                2 => bytes.insert(at, pick(256) as u8),
                3 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {
                    let other = &seeds[pick(seeds.len())].1;
                    bytes.extend(&other[pick(other.len())..]);
                }
            }
        }
        run(&bytes);
    }
}

/// The bytes of an input, one after the other; zeros at its end.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// Whether all bytes were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next one.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// The next two, little-endian.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// The next `count`, or as many as there are.
    pub fn bytes(&mut self, count: usize) -> &[u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// Bit 0: VIRTIO_F_EVENT_IDX, bit 1: VIRTIO_F_INDIRECT_DESC, bits 4 to 7: the size.
    fn layout(&mut self, packed: bool) -> Layout {
        let config = self.byte();
        let size = u16::from(config >> 4);
        Layout {
            size: if packed { size + 1 } else { 1 << (size % 6) },
            packed,
            event_idx: config & 1 != 0,
            indirect: config & 2 != 0,
        }
    }

    /// Writes some bytes anywhere in a part of the memory.
    fn poke(&mut self, memory: &Memory, part: usize) {
        let offset = usize::from(self.word());
        let count = usize::from(self.byte() % 65);
        let bytes = self.bytes(count);
        let length = memory.length(part);
        let offset = offset % length;
        let count = bytes.len().min(length - offset);
        memory.poke(part, offset, &bytes[..count]);
    }
}

/// Steps of an input, by number; the corpora are written with them.
pub(crate) mod step {
    pub(crate) const POKE: u8 = 0;
    pub(crate) const POP: u8 = 1;
    pub(crate) const COMPLETE: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const ENABLE: u8 = 4;
    pub(crate) const SUPPRESS: u8 = 5;
    pub(crate) const OFFER: u8 = 6;
    pub(crate) const ADD: u8 = 7;
}

/// The driver offers more without a care: avail.idx moves, or a slot's lap is flipped.
fn offer(memory: &Memory, amount: u8) {
    if memory.layout.packed {
        let at = usize::from(u16::from(amount) % memory.layout.size) * 16 + 14;
        let flags = u16::from_le_bytes(memory.peek(DESC, at)) ^ 0x8080;
        memory.poke(DESC, at, &flags.to_le_bytes());
    } else {
        let index = u16::from_le_bytes(memory.peek(DRIVER, 2));
        let index = index.wrapping_add((amount % 4).into());
        memory.poke(DRIVER, 2, &index.to_le_bytes());
    }
}

fn check_chain(chain: &Chain, size: u16, open: &[(u16, u16)]) {
    let segments = || chain.readable.iter().chain(&chain.writable);
    let most = usize::from(size.max(MAX_SEGMENTS));
    assert!((1..=most).contains(&segments().count()));
    assert!(segments().all(|segment| segment.len > 0));
    assert!(
        segments()
            .map(|segment| u64::from(segment.len))
            .sum::<u64>()
            <= 1 << 32
    );
    assert!((1..=size).contains(&chain.slots));
    assert!(open.iter().all(|(id, _)| *id != chain.id));
}

fn device(data: &[u8], packed: bool) {
    let mut input = Input(data);
    let memory = Memory::new(input.layout(packed));
    let size = memory.layout.size;
    let mut device = memory.device();
    let mut view = memory.view();
    let mut chain = Chain::default();
    let mut open: Vec<(u16, u16)> = Vec::new();
    let mut failed = None;
    while !input.0.is_empty() {
        match input.byte() % 8 {
            step::POKE => {
                let part = usize::from(input.byte() % 6);
                input.poke(&memory, part);
            }
            step::POP => match device.pop(&mut view, &mut chain) {
                Ok(taken) => {
                    assert_eq!(failed, None, "the queue goes on after an error");
                    if taken {
                        check_chain(&chain, size, &open);
                        open.push((chain.id, chain.slots));
                    }
                }
                Err(error) => assert_eq!(*failed.get_or_insert(error), error),
            },
            step::COMPLETE if !open.is_empty() => {
                let at = usize::from(input.byte()) % open.len();
                let (id, slots) = open.swap_remove(at);
                device.complete(id, slots, input.word().into());
            }
            step::PUBLISH => {
                device.publish();
                assert_eq!(usize::from(device.in_flight()), open.len());
            }
            step::ENABLE => {
                let more = device.enable_kicks();
                assert!(
                    !more || failed.is_none(),
                    "asks to look again after an error"
                );
            }
            step::SUPPRESS => device.suppress_kicks(),
            step::OFFER => offer(&memory, input.byte()),
            _ => {}
        }
    }
}

/// Any bytes as a split ring: an error or chains within bounds, no panic, no access outside
/// the mapping.
pub fn split_device(data: &[u8]) {
    device(data, false);
}

/// Any bytes as a packed ring: an error or chains within bounds, no panic, no access outside
/// the mapping.
pub fn packed_device(data: &[u8]) {
    device(data, true);
}

fn recover(memory: &Memory) -> Result<DeviceQueue, RingError> {
    let state = QueueState::initial(memory.layout.packed);
    DeviceQueue::with_inflight(memory.layout, memory.areas(), state, memory.record())
}

/// Any bytes as an in-flight record: [`RingError::Inflight`], or a queue whose own record its
/// successor accepts, with as much in flight.
pub fn inflight_recover(data: &[u8]) {
    let mut input = Input(data);
    let packed = input.byte() % 2 == 1;
    let memory = Memory::new(input.layout(packed));
    if input.byte() % 2 == 1 {
        // A record that is whole, but for what is written over it.
        drop(recover(&memory).expect("a fresh record"));
    }
    for _ in 0..input.byte() % 16 {
        let part = [DESC, DRIVER, DEVICE, RECORD, RECORD, RECORD][usize::from(input.byte() % 6)];
        input.poke(&memory, part);
    }
    let mut device = match recover(&memory) {
        Ok(device) => device,
        Err(RingError::Inflight(_)) => return,
        Err(error) => panic!("not an error of the record: {error}"),
    };
    assert!(device.in_flight() <= memory.layout.size);
    let mut view = memory.view();
    let mut chain = Chain::default();
    let mut open = Vec::new();
    while let Ok(true) = device.pop(&mut view, &mut chain) {
        check_chain(&chain, memory.layout.size, &open);
        open.push((chain.id, chain.slots));
        if open.len() > usize::from(input.byte() % 8) {
            let (id, slots) = open.swap_remove(usize::from(input.byte()) % open.len());
            device.complete(id, slots, 0);
            device.publish();
        }
        if input.0.is_empty() {
            break;
        }
    }
    let left = device.in_flight();
    drop(device);
    assert_eq!(recover(&memory).expect("its own record").in_flight(), left);
}

/// Any bytes as what a device writes: an error or each request back once with a length that
/// fits, no panic, no access outside the mapping.
pub fn driver_used(data: &[u8]) {
    let mut input = Input(data);
    let packed = input.byte() % 2 == 1;
    let memory = Memory::new(input.layout(packed));
    let mut driver = memory.driver();
    let mut open: Vec<(u32, u32)> = Vec::new();
    let mut token = 0;
    let mut failed = None;
    while !input.0.is_empty() {
        match input.byte() % 8 {
            step::POKE => {
                let part = [DESC, DEVICE][usize::from(input.byte() % 2)];
                input.poke(&memory, part);
            }
            step::POP => match driver.pop_used() {
                Ok(used) => {
                    assert_eq!(failed, None, "the queue goes on after an error");
                    if let Some((token, written)) = used {
                        let at = open.iter().position(|(sent, _)| *sent == token);
                        let (_, room) = open.swap_remove(at.expect("handed out"));
                        assert!(written <= room);
                    }
                }
                Err(error) => assert_eq!(*failed.get_or_insert(error), error),
            },
            step::PUBLISH => {
                driver.publish();
            }
            step::ENABLE => {
                driver.enable_irqs();
            }
            step::SUPPRESS => driver.suppress_irqs(),
            step::ADD => {
                let length = u32::from(input.byte()) + 1;
                let readable = vec![segment(0x1000, 8); usize::from(input.byte() % 20)];
                let writable = vec![segment(0x1000, length); usize::from(input.byte() % 3)];
                if driver.add(&readable, &writable, token).is_ok() {
                    open.push((token, length * writable.len() as u32));
                    token += 1;
                }
            }
            _ => {}
        }
        assert_eq!(usize::from(driver.in_flight()), open.len());
    }
    let mut outstanding = driver.outstanding();
    outstanding.sort_unstable();
    open.sort_unstable();
    assert!(open.iter().map(|(token, _)| token).eq(&outstanding));
}
