//! Every way a packed ring can be wrong (virtio 1.3, section 2.8), and the exact answer.

use crate::layout::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE};
use crate::testing::{DESC, Memory, SCRATCH, segment};
use crate::{Chain, DeviceQueue, Layout, LayoutError, Malformed, QueueState, RingError};

const NEXT: u16 = DESC_F_NEXT;
const WRITE: u16 = DESC_F_WRITE;
const INDIRECT: u16 = DESC_F_INDIRECT;
/// Made available in the first lap, and in the second.
const LAP1: u16 = DESC_F_AVAIL;
const LAP2: u16 = DESC_F_USED;

fn ring(size: u16) -> Memory {
    Memory::new(Layout {
        size,
        packed: true,
        event_idx: false,
        indirect: true,
    })
}

/// Writes a descriptor into the ring or the table on the scratch page.
fn desc(memory: &Memory, part: usize, slot: u16, addr: u64, len: u32, flags: u16, id: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&flags.to_le_bytes());
    memory.poke(part, usize::from(slot) * 16, &bytes);
}

/// Pops the one request that `memory` holds.
fn pop(memory: &Memory) -> Result<Chain, RingError> {
    let mut chain = Chain::default();
    let taken = memory.device().pop(&mut memory.view(), &mut chain)?;
    assert!(taken);
    Ok(chain)
}

#[track_caller]
fn refused(memory: &Memory, malformed: Malformed) {
    assert_eq!(pop(memory).unwrap_err(), RingError::Malformed(malformed));
}

/// The flags of every descriptor of a list are to be set (section 2.8.6).
#[test]
fn chain_goes_on_in_a_slot_not_available() {
    for flags in [0, LAP2, DESC_F_AVAIL | DESC_F_USED] {
        let memory = ring(4);
        desc(&memory, DESC, 0, 0x1000, 1, LAP1 | NEXT, 0);
        desc(&memory, DESC, 1, 0x1000, 1, flags, 0);
        refused(&memory, Malformed::NotAvailable(1));
    }
}

/// A chain round the end of the ring has the next lap's flags there (section 2.8.1).
#[test]
fn chain_round_the_end() {
    let memory = ring(3);
    let state = QueueState::Packed {
        avail_index: 2,
        avail_wrap: true,
        used_index: 2,
        used_wrap: true,
    };
    desc(&memory, DESC, 2, 0x1000, 1, LAP1 | NEXT, 9);
    desc(&memory, DESC, 0, 0x2000, 2, LAP2, 7);
    let mut device = DeviceQueue::new(memory.layout, memory.areas(), state).unwrap();
    let mut chain = Chain::default();
    assert_eq!(device.pop(&mut memory.view(), &mut chain), Ok(true));
    // The buffer id is the last descriptor's (section 2.8.6).
    assert_eq!((chain.id, chain.slots), (7, 2));
    desc(&memory, DESC, 0, 0x2000, 2, LAP1, 7);
    let mut device = DeviceQueue::new(memory.layout, memory.areas(), state).unwrap();
    let error = Err(Malformed::NotAvailable(0).into());
    assert_eq!(device.pop(&mut memory.view(), &mut chain), error);
}

#[test]
fn chain_longer_than_the_ring() {
    let memory = ring(1);
    desc(&memory, DESC, 0, 0x1000, 1, LAP1 | NEXT, 0);
    refused(&memory, Malformed::NotAvailable(0));

    // The driver flips the flags behind the device: a chain over slots still in flight.
    let memory = ring(2);
    let mut device = memory.device();
    let (mut view, mut chain) = (memory.view(), Chain::default());
    desc(&memory, DESC, 0, 0x1000, 1, LAP1, 0);
    desc(&memory, DESC, 1, 0x1000, 1, LAP1, 1);
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    assert_eq!(device.pop(&mut view, &mut chain), Ok(false));
    desc(&memory, DESC, 0, 0x1000, 1, LAP2, 2);
    let error = Err(Malformed::TooLong.into());
    assert_eq!(device.pop(&mut view, &mut chain), error);
    assert_eq!(device.pop(&mut view, &mut chain), error);
    assert!(!device.enable_kicks());
}

#[test]
fn descriptor_of_no_bytes() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, 1, LAP1 | NEXT, 0);
    desc(&memory, DESC, 1, 0x1000, 0, LAP1, 0);
    refused(&memory, Malformed::ZeroLength(1));
}

#[test]
fn more_than_4_gib() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, u32::MAX, LAP1 | NEXT, 0);
    desc(&memory, DESC, 1, 0x1000, 1, LAP1 | WRITE, 0);
    assert_eq!(pop(&memory).unwrap().writable[0], segment(0x1000, 1));
    desc(&memory, DESC, 1, 0x1000, 2, LAP1 | WRITE, 0);
    refused(&memory, Malformed::TooManyBytes);
}

#[test]
fn readable_after_writable() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, 1, LAP1 | WRITE | NEXT, 0);
    desc(&memory, DESC, 1, 0x1000, 1, LAP1, 0);
    refused(&memory, Malformed::Order);
}

#[test]
fn buffer_id_in_flight_twice() {
    let memory = ring(4);
    let mut device = memory.device();
    let (mut view, mut chain) = (memory.view(), Chain::default());
    desc(&memory, DESC, 0, 0x1000, 1, LAP1, 0xffff);
    desc(&memory, DESC, 1, 0x1000, 1, LAP1, 0xffff);
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    let error = Err(Malformed::Busy(0xffff).into());
    assert_eq!(device.pop(&mut view, &mut chain), error);
    device.complete(0xffff, 1, 0);
    assert!(device.publish());
    assert_eq!(device.pop(&mut view, &mut chain), error);
}

/// Section 2.8.19: an indirect descriptor is not part of a list.
#[test]
fn indirect_in_a_chain() {
    for (first, second) in [(INDIRECT | NEXT, 0), (NEXT, INDIRECT)] {
        let memory = ring(4);
        let table = memory.scratch().1.0;
        desc(&memory, SCRATCH, 0, 0x1000, 1, 0, 0);
        desc(&memory, DESC, 0, table, 16, LAP1 | first, 0);
        desc(&memory, DESC, 1, table, 16, LAP1 | second, 0);
        refused(&memory, Malformed::Indirect);
    }
}

#[test]
fn indirect_not_negotiated() {
    let mut memory = ring(4);
    memory.layout.indirect = false;
    desc(
        &memory,
        DESC,
        0,
        memory.scratch().1.0,
        16,
        LAP1 | INDIRECT,
        0,
    );
    refused(&memory, Malformed::Indirect);
}

#[test]
fn indirect_inside_indirect() {
    let memory = ring(4);
    desc(&memory, SCRATCH, 0, 0x1000, 16, INDIRECT, 0);
    desc(
        &memory,
        DESC,
        0,
        memory.scratch().1.0,
        16,
        LAP1 | INDIRECT,
        0,
    );
    refused(&memory, Malformed::Indirect);
}

#[test]
fn indirect_table_sizes() {
    let memory = ring(4);
    for len in [0, 1, 15, 17, 40, 16 * 1025, u32::MAX] {
        desc(
            &memory,
            DESC,
            0,
            memory.scratch().1.0,
            len,
            LAP1 | INDIRECT,
            0,
        );
        refused(&memory, Malformed::IndirectSize(len));
    }
}

/// Section 2.8.7: a table is taken in order; only WRITE has a meaning there, and none outside.
#[test]
fn indirect_table_in_order() {
    let memory = ring(4);
    let flags = LAP1 | INDIRECT | WRITE;
    desc(&memory, DESC, 0, memory.scratch().1.0, 48, flags, 3);
    desc(&memory, SCRATCH, 0, 0x1000, 1, NEXT, 0);
    desc(&memory, SCRATCH, 1, 0x2000, 2, 0, 7);
    desc(&memory, SCRATCH, 2, 0x3000, 3, WRITE | NEXT, 7);
    let chain = pop(&memory).unwrap();
    assert_eq!((chain.id, chain.slots), (3, 1));
    assert_eq!(
        chain.readable.as_slice(),
        [segment(0x1000, 1), segment(0x2000, 2)]
    );
    assert_eq!(chain.writable.as_slice(), [segment(0x3000, 3)]);
}

/// Linux sizes its tables by the device's SEG_MAX, whatever size of queue the VMM chose.
#[test]
fn indirect_table_longer_than_the_queue_is_taken() {
    let memory = ring(4);
    let flags = LAP1 | INDIRECT;
    desc(&memory, DESC, 0, memory.scratch().1.0, 8 * 16, flags, 3);
    for index in 0..8 {
        let flags = if index == 7 { WRITE } else { 0 };
        desc(&memory, SCRATCH, index, 0x1000, 1, flags, 0);
    }
    let chain = pop(&memory).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (7, 1));
}

#[test]
fn states_that_do_not_fit() {
    let memory = ring(4);
    for (avail_index, avail_wrap, used_index, used_wrap) in [
        (4, true, 0, true),
        (0, true, 4, true),
        (1, true, 2, true),
        (2, false, 1, true),
    ] {
        let state = QueueState::Packed {
            avail_index,
            avail_wrap,
            used_index,
            used_wrap,
        };
        let queue = DeviceQueue::new(memory.layout, memory.areas(), state);
        assert_eq!(queue.unwrap_err(), RingError::Layout(LayoutError::State));
    }
}

/// Section 2.8.4: WRITE in a used descriptor says that the length counts. A batch is written
/// in ring order, each request behind the slots of the one before.
#[test]
fn used_descriptors_skip_slots() {
    let memory = ring(4);
    let mut device = memory.device();
    let (mut view, mut chain) = (memory.view(), Chain::default());
    desc(&memory, DESC, 0, 0x1000, 1, LAP1 | NEXT, 0);
    desc(&memory, DESC, 1, 0x1000, 8, LAP1 | WRITE, 5);
    desc(&memory, DESC, 2, 0x1000, 8, LAP1, 6);
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    device.complete(6, 1, 0);
    device.complete(5, 2, 8);
    assert_eq!(memory.peek(DESC, 14), (LAP1 | NEXT).to_le_bytes());
    assert!(device.publish());
    let both = DESC_F_AVAIL | DESC_F_USED;
    assert_eq!(memory.peek(DESC, 12), 6u16.to_le_bytes());
    assert_eq!(memory.peek(DESC, 14), both.to_le_bytes());
    assert_eq!(memory.peek(DESC, 16 + 8), 8u32.to_le_bytes());
    assert_eq!(memory.peek(DESC, 16 + 12), 5u16.to_le_bytes());
    assert_eq!(memory.peek(DESC, 16 + 14), (both | WRITE).to_le_bytes());
    let state = QueueState::Packed {
        avail_index: 3,
        avail_wrap: true,
        used_index: 3,
        used_wrap: true,
    };
    assert_eq!(device.state(), state);
}
