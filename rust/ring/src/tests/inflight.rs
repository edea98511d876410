//! The in-flight record: its exact layout, and records that do not fit.

use crate::testing::{DEVICE, Memory, RECORD, segment};
use crate::{Chain, DeviceQueue, Layout, QueueState, RingError};

fn ring(packed: bool) -> Memory {
    Memory::new(Layout {
        size: 4,
        packed,
        event_idx: false,
        indirect: false,
    })
}

/// A record with requests 0 and 1 taken, and 0 (if `publish`) completed.
fn written(packed: bool, publish: bool) -> Memory {
    let memory = ring(packed);
    let (mut view, mut chain) = (memory.view(), Chain::default());
    let mut driver = memory.driver();
    let mut device = memory.device_with_record().unwrap();
    driver
        .add(&[segment(0xaaaa, 1)], &[segment(0xbbbb, 2)], 0)
        .unwrap();
    driver.add(&[segment(0xcccc, 3)], &[], 1).unwrap();
    driver.publish();
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    let (id, slots) = (chain.id, chain.slots);
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    if publish {
        device.complete(id, slots, 2);
        assert!(device.publish());
    }
    memory
}

#[track_caller]
fn refused(memory: &Memory, why: &'static str) {
    let error = memory.device_with_record().unwrap_err();
    assert_eq!(error, RingError::Inflight(why));
}

#[test]
fn sizes() {
    for (packed, size, bytes) in [
        (false, 1, 64),
        (false, 256, 4160),
        (true, 1, 64),
        (true, 3, 128),
    ] {
        let layout = Layout {
            size,
            packed,
            event_idx: false,
            indirect: false,
        };
        assert_eq!(DeviceQueue::inflight_size(&layout), bytes);
    }
}

/// `QueueRegionSplit` and `DescStateSplit`.
#[test]
fn split_layout() {
    let memory = written(false, true);
    let head: [u8; 16] = memory.peek(RECORD, 0);
    // features, version, desc_num, last_batch_head, used_idx
    assert_eq!(head, [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 1, 0]);
    // inflight, padding, next, counter
    assert_eq!(memory.peek::<16>(RECORD, 16)[0], 0);
    let third = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(memory.peek::<16>(RECORD, 16 + 2 * 16), third);
}

/// `QueueRegionPacked` and `DescStatePacked`.
#[test]
fn packed_layout() {
    let memory = written(true, true);
    let head: [u8; 32] = memory.peek(RECORD, 0);
    // features, version, desc_num
    assert_eq!(head[..12], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0]);
    // free_head, old_free_head, used_idx, old_used_idx, used_wrap, old_used_wrap, padding
    assert_eq!(
        head[12..],
        [0, 0, 0, 0, 2, 0, 2, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    let third: [u8; 32] = memory.peek(RECORD, 32 + 2 * 32);
    // inflight, padding, next, last, num, counter
    assert_eq!(
        third[..16],
        [1, 0, 3, 0, 2, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    );
    // id, flags (AVAIL), len, addr
    assert_eq!(
        third[16..],
        [1, 0, 0x80, 0, 3, 0, 0, 0, 0xcc, 0xcc, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn recovered_requests_come_first_and_count_as_in_flight() {
    for packed in [false, true] {
        let memory = written(packed, false);
        let mut device = memory.device_with_record().unwrap();
        assert_eq!((device.in_flight(), device.recovered()), (2, 2));
        assert!(device.enable_kicks());
        let (mut view, mut chain) = (memory.view(), Chain::default());
        assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
        assert_eq!(chain.readable.as_slice(), [segment(0xaaaa, 1)]);
        assert_eq!(chain.writable.as_slice(), [segment(0xbbbb, 2)]);
        assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
        assert_eq!(chain.readable.as_slice(), [segment(0xcccc, 3)]);
        assert_eq!(device.pop(&mut view, &mut chain), Ok(false));
        assert_eq!((device.in_flight(), device.recovered()), (2, 0));
    }
}

/// The state that the kernel reports to a new daemon (avail index 0) does not count.
#[test]
fn positions_come_from_record_and_ring() {
    for packed in [false, true] {
        let memory = written(packed, true);
        let expected = if packed {
            QueueState::Packed {
                avail_index: 3,
                avail_wrap: true,
                used_index: 2,
                used_wrap: true,
            }
        } else {
            QueueState::Split { avail_index: 2 }
        };
        assert_eq!(memory.device_with_record().unwrap().state(), expected);
    }
}

#[test]
fn head_of_the_record() {
    for packed in [false, true] {
        let memory = written(packed, true);
        memory.poke(RECORD, 8, &[2]);
        refused(&memory, "unknown version");
        memory.poke(RECORD, 8, &[1]);
        memory.poke(RECORD, 0, &[1]);
        refused(&memory, "unknown features");
        memory.poke(RECORD, 0, &[0]);
        memory.poke(RECORD, 10, &[8]);
        refused(&memory, "not of this queue's size");
        let short = memory.record().part(0, 32).unwrap();
        let state = QueueState::initial(packed);
        let queue = DeviceQueue::with_inflight(memory.layout, memory.areas(), state, short);
        let error = RingError::Inflight("too short or unaligned");
        assert_eq!(queue.unwrap_err(), error);
    }
}

#[test]
fn split_last_batch() {
    let memory = written(false, true);
    // Two published since used_idx was written: the list from head 0 is 0, 0.
    memory.poke(DEVICE, 2, &[3]);
    refused(&memory, "last batch loops");
    memory.poke(RECORD, 16 + 6, &[4]);
    refused(&memory, "index out of range");
    memory.poke(DEVICE, 2, &[6]);
    refused(&memory, "last batch is longer than the queue");
}

#[test]
fn packed_lists() {
    let entry = |index: usize, field: usize| 32 + 32 * index + field;
    let spoiled = |offset: usize, value: u8| {
        let memory = written(true, true);
        memory.poke(RECORD, offset, &[value]);
        memory
    };
    refused(&spoiled(16, 4), "used index out of range");
    refused(&spoiled(20, 2), "used index out of range");
    refused(&spoiled(14, 5), "index out of range");
    refused(&spoiled(entry(3, 2), 5), "index out of range");
    refused(&spoiled(entry(3, 2), 0), "free list loops");
    refused(&spoiled(entry(2, 6), 0), "chain of an impossible length");
    refused(&spoiled(entry(2, 6), 5), "chain of an impossible length");
    refused(&spoiled(entry(2, 6), 2), "chains loop or meet");
    refused(&spoiled(entry(2, 4), 3), "chain does not end where it says");
    refused(
        &spoiled(entry(2, 0), 0),
        "entries neither free nor in flight",
    );
    let memory = written(true, false);
    memory.poke(RECORD, entry(2, 16), &[0]);
    refused(&memory, "buffer id in flight twice");
    memory.poke(RECORD, entry(0, 2), &[9]);
    refused(&memory, "index out of range");
}
