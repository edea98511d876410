//! The split device side against crate `virtio-queue` on the same rings: the same chains, the
//! same used ring to the byte, the same wish to be kicked, the same irqs.

use crate::testing::{BASE, Memory, Random, segment};
use crate::{Chain, Layout, Segment};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A second device on a copy of the ring.
struct Oracle {
    memory: GuestMemoryMmap,
    queue: Queue,
}

impl Oracle {
    fn new(ours: &Memory) -> Oracle {
        let length = (ours.end() - BASE) as usize;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), length)]).unwrap();
        let mut queue = Queue::new(ours.layout.size).unwrap();
        let [desc, driver, device] = ours.area_addresses();
        queue
            .try_set_desc_table_address(GuestAddress(desc))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(driver))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(device))
            .unwrap();
        queue.set_event_idx(ours.layout.event_idx);
        queue.set_ready(true);
        Oracle { memory, queue }
    }

    /// Copies what the driver wrote.
    fn follow(&self, ours: &Memory) {
        let [_, _, device] = ours.area_addresses();
        let device = (device - BASE) as usize;
        let bytes = ours.snapshot();
        let after = device + 4096;
        self.memory
            .write_slice(&bytes[..device], GuestAddress(BASE))
            .unwrap();
        self.memory
            .write_slice(&bytes[after..], GuestAddress(BASE + after as u64))
            .unwrap();
    }

    fn pop(&mut self) -> Option<(u16, Vec<Segment>, Vec<Segment>)> {
        let chain = self.queue.iter(&self.memory).unwrap().next()?;
        let head = chain.head_index();
        let all: Vec<_> = chain.collect();
        let part = |writable| {
            all.iter()
                .filter(|desc| desc.is_write_only() == writable)
                .map(|desc| segment(desc.addr().0, desc.len()))
                .collect()
        };
        Some((head, part(false), part(true)))
    }

    fn used(&self, ours: &Memory) -> Vec<u8> {
        let [_, _, device] = ours.area_addresses();
        let mut bytes = vec![0; ours.layout.area_sizes()[2] as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(device))
            .unwrap();
        bytes
    }
}

fn run(layout: Layout, requests: u32) {
    let ours = Memory::new(layout);
    let mut oracle = Oracle::new(&ours);
    let (mut driver, mut device) = (ours.driver(), ours.device());
    let mut view = ours.view();
    let mut random = Random(11);
    let mut chain = Chain::default();
    let mut open = Vec::new();
    let mut sent = 0;
    while sent < requests {
        for _ in 0..random.below(u64::from(layout.size)) {
            let count = 1 + random.below(u64::from(layout.size).min(20));
            let all: Vec<_> = (0..count)
                .map(|k| segment(k << 12, 1 + random.below(4096) as u32))
                .collect();
            let (readable, writable) = all.split_at(random.below(count + 1) as usize);
            if driver.add(readable, writable, sent).is_ok() {
                sent += 1;
            }
        }
        driver.publish();
        oracle.follow(&ours);
        while device.pop(&mut view, &mut chain).unwrap() {
            let (head, readable, writable) = oracle.pop().expect("both see the request");
            assert_eq!((chain.id, chain.readable.as_slice()), (head, &*readable));
            assert_eq!(chain.writable.as_slice(), writable);
            open.push((chain.id, chain.slots));
        }
        assert!(oracle.pop().is_none());
        let enables = random.below(2) == 0;
        if enables {
            assert_eq!(
                device.enable_kicks(),
                oracle.queue.enable_notification(&oracle.memory).unwrap()
            );
        } else {
            device.suppress_kicks();
            oracle.queue.disable_notification(&oracle.memory).unwrap();
        }
        let batch = random.below(open.len() as u64 + 1);
        for _ in 0..batch {
            let (id, slots) = open.swap_remove(random.below(open.len() as u64) as usize);
            // A length that fits any request: the driver checks it.
            device.complete(id, slots, 0);
            oracle.queue.add_used(&oracle.memory, id, 0).unwrap();
        }
        let irq = device.publish();
        // Without event indices it always asks for an irq.
        if batch > 0 && layout.event_idx {
            let expected = oracle.queue.needs_notification(&oracle.memory).unwrap();
            assert_eq!(irq, expected);
        }
        let mut used = oracle.used(&ours);
        if layout.event_idx && !enables {
            // Its avail_event stays where it was, which costs one kick; ours goes behind.
            used.truncate(used.len() - 2);
        }
        let [_, _, at] = ours.area_addresses().map(|at| (at - BASE) as usize);
        assert_eq!(ours.snapshot()[at..at + used.len()], used);
        while driver.pop_used().unwrap().is_some() {}
        match random.below(3) {
            0 => driver.suppress_irqs(),
            1 => assert!(!driver.enable_irqs()),
            _ => {}
        }
    }
}

#[test]
fn split_device_agrees_with_virtio_queue() {
    for (event_idx, indirect) in [(false, false), (false, true), (true, false), (true, true)] {
        let layout = |size| Layout {
            size,
            packed: false,
            event_idx,
            indirect,
        };
        run(layout(4), 20_000);
        run(layout(64), 70_000);
    }
}
