//! A device killed between any two of its stores to shared memory, and its successor. What
//! the driver was told is never done again; what it was not told is always done.

use crate::testing::{Memory, Random, fuse, segment};
use crate::{Chain, DeviceQueue, DriverQueue, Layout};
use vduse_mem::View;

/// One life of a device: takes what is there and completes it in batches, until it is killed
/// or has nothing to do. Returns the requests it began, in order.
fn live(device: &mut DeviceQueue, view: &mut View, random: &mut Random) -> Vec<u32> {
    let mut chain = Chain::default();
    let (mut open, mut began) = (Vec::new(), Vec::new());
    loop {
        let most = random.below(4) + 1;
        for _ in 0..most {
            if !device.pop(view, &mut chain).expect("honest driver") {
                break;
            }
            let first = chain.readable.first().or(chain.writable.first()).unwrap();
            began.push(first.iova.0 as u32);
            open.push((chain.id, chain.slots));
        }
        if open.is_empty() {
            return began;
        }
        for _ in 0..=random.below(open.len() as u64) {
            let (id, slots) = open.swap_remove(random.below(open.len() as u64) as usize);
            device.complete(id, slots, 1);
            // Takes one more while completions are staged.
            if random.below(3) == 0 && device.pop(view, &mut chain).expect("honest driver") {
                let first = chain.readable.first().or(chain.writable.first()).unwrap();
                began.push(first.iova.0 as u32);
                open.push((chain.id, chain.slots));
            }
            if open.is_empty() {
                break;
            }
        }
        device.publish();
    }
}

/// The driver's view: requests sent, in order, and which are done.
struct Client {
    driver: DriverQueue,
    /// Most segments of a request.
    most: u64,
    sent: u32,
    done: Vec<bool>,
}

impl Client {
    fn send(&mut self, count: u32, random: &mut Random) {
        for _ in 0..count {
            let at = segment(self.sent.into(), 1);
            let segments = vec![at; 1 + random.below(self.most) as usize];
            let (readable, writable) = segments.split_at(segments.len() - 1);
            if self.driver.add(readable, writable, self.sent).is_err() {
                break;
            }
            self.sent += 1;
            self.done.push(false);
        }
        self.driver.publish();
    }

    fn reap(&mut self) {
        while let Some((token, _)) = self.driver.pop_used().expect("each request used once") {
            assert!(!std::mem::replace(&mut self.done[token as usize], true));
        }
    }

    fn open(&self) -> Vec<u32> {
        (0..self.sent)
            .filter(|&token| !self.done[token as usize])
            .collect()
    }
}

/// Kills the device after `stores` stores, and its successor after `again`; false once both
/// came to an end by themselves.
fn run(layout: Layout, warm: u32, stores: u64, again: u64) -> bool {
    let memory = Memory::new(layout);
    let mut view = memory.view();
    let mut random = Random(77);
    let mut client = Client {
        driver: memory.driver(),
        most: u64::from(layout.size).min(3),
        sent: 0,
        done: Vec::new(),
    };
    // Some laps first, so that positions are not at their start.
    let mut device = memory.device_with_record().expect("a fresh record");
    for _ in 0..warm {
        client.send(2, &mut random);
        live(&mut device, &mut view, &mut random);
        client.reap();
    }
    assert!(client.open().is_empty());

    client.send(layout.size.into(), &mut random);
    fuse::set(stores);
    live(&mut device, &mut view, &mut random);
    let mut killed = fuse::reset();
    drop(device);

    // Killed once more, while it recovers or later.
    if random.below(2) == 0 {
        client.reap();
        client.send(2, &mut random);
    }
    fuse::set(again);
    let mut device = memory.device_with_record().expect("an honest record");
    live(&mut device, &mut view, &mut random);
    killed |= fuse::reset();
    drop(device);

    client.reap();
    let open = client.open();
    let mut device = memory.device_with_record().expect("an honest record");
    assert!(device.publish(), "the last irq may be lost: one is owed");
    // Oldest first: in the order in which the driver made them available.
    let began = live(&mut device, &mut view, &mut random);
    assert_eq!(began, open, "{layout:?} {stores} {again}");
    client.reap();
    client.send(2, &mut random);
    live(&mut device, &mut view, &mut random);
    client.reap();
    assert!(client.open().is_empty());
    assert_eq!((client.driver.in_flight(), device.in_flight()), (0, 0));
    killed
}

fn every_store(packed: bool, size: u16) {
    for indirect in [false, true] {
        let layout = Layout {
            size,
            packed,
            event_idx: true,
            indirect,
        };
        for warm in [0, 1, 3, 5] {
            let mut stores = 0;
            while run(layout, warm, stores, u64::MAX) {
                for again in 0..40 {
                    run(layout, warm, stores, again);
                }
                stores += 1;
            }
            assert!(stores > 5, "the fuse never blew");
        }
    }
}

#[test]
fn split_killed_at_every_store() {
    for size in [1, 4, 8] {
        every_store(false, size);
    }
}

#[test]
fn packed_killed_at_every_store() {
    for size in [1, 3, 4, 7] {
        every_store(true, size);
    }
}
