//! Every way a split ring can be wrong (virtio 1.3, section 2.7), and the exact answer.

use crate::layout::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use crate::testing::{DESC, DRIVER, Memory, SCRATCH, segment};
use crate::{Areas, Chain, DeviceQueue, Layout, LayoutError, Malformed, QueueState, RingError};
use vduse_mem::{Fault, Iova};

const NEXT: u16 = DESC_F_NEXT;
const WRITE: u16 = DESC_F_WRITE;
const INDIRECT: u16 = DESC_F_INDIRECT;

fn ring(size: u16) -> Memory {
    Memory::new(Layout {
        size,
        packed: false,
        event_idx: false,
        indirect: true,
    })
}

/// Writes a descriptor into the ring's table or the scratch page's.
fn desc(memory: &Memory, part: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    memory.poke(part, usize::from(index) * 16, &bytes);
}

/// Makes `heads` available from index 0 on.
fn offer(memory: &Memory, heads: &[u16]) {
    for (k, head) in heads.iter().enumerate() {
        memory.poke(DRIVER, 4 + 2 * k, &head.to_le_bytes());
    }
    memory.poke(DRIVER, 2, &(heads.len() as u16).to_le_bytes());
}

/// Pops the one request that `memory` holds.
fn pop(memory: &Memory) -> Result<Chain, RingError> {
    let mut chain = Chain::default();
    let taken = memory.device().pop(&mut memory.view(), &mut chain)?;
    assert!(taken);
    Ok(chain)
}

/// The descriptor at head 0 is an indirect table of `len` bytes on the scratch page.
fn offer_table(memory: &Memory, len: u32) {
    desc(memory, DESC, 0, memory.scratch().1.0, len, INDIRECT, 0);
    offer(memory, &[0]);
}

#[track_caller]
fn refused(memory: &Memory, malformed: Malformed) {
    assert_eq!(pop(memory).unwrap_err(), RingError::Malformed(malformed));
}

#[test]
fn avail_index_jumps() {
    let memory = ring(4);
    memory.poke(DRIVER, 2, &5u16.to_le_bytes());
    let error = Malformed::AvailIndex {
        avail: 5,
        taken: 0,
        size: 4,
    };
    refused(&memory, error);
}

#[test]
fn avail_index_goes_back() {
    let memory = ring(4);
    let state = QueueState::Split { avail_index: 10 };
    let mut device = DeviceQueue::new(memory.layout, memory.areas(), state).unwrap();
    memory.poke(DRIVER, 2, &9u16.to_le_bytes());
    let error = Malformed::AvailIndex {
        avail: 9,
        taken: 10,
        size: 4,
    };
    let popped = device.pop(&mut memory.view(), &mut Chain::default());
    assert_eq!(popped, Err(error.into()));
}

#[test]
fn head_out_of_range() {
    let memory = ring(4);
    offer(&memory, &[4]);
    refused(&memory, Malformed::Index(4));
}

#[test]
fn next_out_of_range() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, 1, NEXT, 0xffff);
    offer(&memory, &[0]);
    refused(&memory, Malformed::Index(0xffff));
}

#[test]
fn chain_loops() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, 1, NEXT, 1);
    desc(&memory, DESC, 1, 0x1000, 1, NEXT, 0);
    offer(&memory, &[0]);
    refused(&memory, Malformed::TooLong);
}

#[test]
fn descriptor_of_no_bytes() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, 1, NEXT, 3);
    desc(&memory, DESC, 3, 0x1000, 0, WRITE, 0);
    offer(&memory, &[0]);
    refused(&memory, Malformed::ZeroLength(3));
}

#[test]
fn more_than_4_gib() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, u32::MAX, NEXT, 1);
    desc(&memory, DESC, 1, 0x1000, 1, WRITE, 0);
    offer(&memory, &[0]);
    assert_eq!(pop(&memory).unwrap().writable[0], segment(0x1000, 1));
    desc(&memory, DESC, 1, 0x1000, 2, WRITE, 0);
    refused(&memory, Malformed::TooManyBytes);
}

/// Section 2.7.4.2.
#[test]
fn readable_after_writable() {
    let memory = ring(4);
    desc(&memory, DESC, 0, 0x1000, 1, WRITE | NEXT, 1);
    desc(&memory, DESC, 1, 0x1000, 1, 0, 0);
    offer(&memory, &[0]);
    refused(&memory, Malformed::Order);
}

#[test]
fn head_in_flight_twice() {
    let memory = ring(4);
    let mut device = memory.device();
    let (mut view, mut chain) = (memory.view(), Chain::default());
    desc(&memory, DESC, 2, 0x1000, 1, 0, 0);
    offer(&memory, &[2, 2]);
    assert_eq!(device.pop(&mut view, &mut chain), Ok(true));
    let error = Err(RingError::Malformed(Malformed::Busy(2)));
    assert_eq!(device.pop(&mut view, &mut chain), error);
    // The queue takes nothing more, but what it has taken is still completed.
    offer(&memory, &[2, 1, 3]);
    assert_eq!(device.pop(&mut view, &mut chain), error);
    assert!(!device.enable_kicks());
    device.complete(2, 1, 0);
    assert!(device.publish());
    assert_eq!(device.pop(&mut view, &mut chain), error);
}

#[test]
fn indirect_not_negotiated() {
    let mut memory = ring(4);
    memory.layout.indirect = false;
    desc(&memory, SCRATCH, 0, 0x1000, 1, 0, 0);
    offer_table(&memory, 16);
    refused(&memory, Malformed::Indirect);
}

/// Section 2.7.5.3.1.
#[test]
fn indirect_with_next() {
    let memory = ring(4);
    desc(&memory, SCRATCH, 0, 0x1000, 1, 0, 0);
    desc(
        &memory,
        DESC,
        0,
        memory.scratch().1.0,
        16,
        INDIRECT | NEXT,
        1,
    );
    offer(&memory, &[0]);
    refused(&memory, Malformed::Indirect);
}

#[test]
fn indirect_inside_indirect() {
    let memory = ring(4);
    desc(&memory, SCRATCH, 0, memory.scratch().1.0, 16, INDIRECT, 0);
    offer_table(&memory, 16);
    refused(&memory, Malformed::Indirect);
}

#[test]
fn indirect_table_sizes() {
    let memory = ring(4);
    for len in [0, 1, 15, 17, 40, 16 * 1025, u32::MAX, u32::MAX - 15] {
        offer_table(&memory, len);
        refused(&memory, Malformed::IndirectSize(len));
    }
}

#[test]
fn indirect_next_out_of_range() {
    let memory = ring(8);
    desc(&memory, SCRATCH, 0, 0x1000, 1, NEXT, 2);
    offer_table(&memory, 32);
    refused(&memory, Malformed::Index(2));
}

#[test]
fn indirect_table_loops() {
    let memory = ring(8);
    desc(&memory, SCRATCH, 0, 0x1000, 1, NEXT, 1);
    desc(&memory, SCRATCH, 1, 0x1000, 1, NEXT, 0);
    offer_table(&memory, 32);
    refused(&memory, Malformed::TooLong);
}

#[test]
fn indirect_table_not_mapped() {
    let memory = ring(4);
    let end = memory.end();
    for (addr, fault) in [
        (end, Fault::Unmapped(Iova(end))),
        (end - 16, Fault::Unmapped(Iova(end))),
        (u64::MAX - 15, Fault::Range(Iova(u64::MAX - 15), 32)),
    ] {
        desc(&memory, DESC, 0, addr, 32, INDIRECT, 0);
        offer(&memory, &[0]);
        assert_eq!(pop(&memory).unwrap_err(), RingError::Fault(fault));
    }
}

/// Section 2.7.5.3.2: zero or more descriptors, then one indirect.
#[test]
fn indirect_after_direct_is_legal() {
    let memory = ring(8);
    desc(&memory, DESC, 0, 0x1000, 1, NEXT, 5);
    desc(&memory, DESC, 5, memory.scratch().1.0, 48, INDIRECT, 0);
    desc(&memory, SCRATCH, 0, 0x2000, 2, NEXT, 2);
    desc(&memory, SCRATCH, 2, 0x3000, 3, WRITE, 0);
    offer(&memory, &[0]);
    let chain = pop(&memory).unwrap();
    assert_eq!((chain.id, chain.slots), (0, 2));
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
    for index in 0..8 {
        let flags = if index == 7 { WRITE } else { NEXT };
        desc(&memory, SCRATCH, index, 0x1000, 1, flags, index + 1);
    }
    offer_table(&memory, 8 * 16);
    let chain = pop(&memory).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (7, 1));
}

/// An indirect table may lie at any address.
#[test]
fn unaligned_indirect_table() {
    let memory = ring(4);
    desc(&memory, DESC, 0, memory.scratch().1.0 + 3, 16, INDIRECT, 0);
    memory.poke(SCRATCH, 3, &0x1234_5678_9abc_def0u64.to_le_bytes());
    memory.poke(SCRATCH, 11, &7u32.to_le_bytes());
    offer(&memory, &[0]);
    let expected = segment(0x1234_5678_9abc_def0, 7);
    assert_eq!(pop(&memory).unwrap().readable.as_slice(), [expected]);
}

#[test]
fn layouts_that_are_not_allowed() {
    for (size, packed) in [
        (0, false),
        (3, false),
        (32769, false),
        (0, true),
        (32769, true),
    ] {
        let layout = Layout {
            size,
            packed,
            event_idx: false,
            indirect: false,
        };
        assert_eq!(layout.check(), Err(LayoutError::Size(size)));
    }
}

#[test]
fn areas_that_do_not_fit() {
    let memory = ring(4);
    let good = memory.areas();
    let short = |pinned: &vduse_mem::Pinned| pinned.part(0, pinned.len - 1).unwrap();
    let odd = |pinned: &vduse_mem::Pinned| {
        let mut pinned = pinned.clone();
        // SAFETY: one byte on is inside the mapping.
        pinned.ptr = unsafe { pinned.ptr.add(1) };
        pinned
    };
    for spoil in [&short as &dyn Fn(&_) -> _, &odd] {
        let desc = spoil(&good.desc);
        let driver = spoil(&good.driver);
        let device = spoil(&good.device);
        for (areas, name) in [
            (
                Areas {
                    desc,
                    ..good.clone()
                },
                "descriptor",
            ),
            (
                Areas {
                    driver,
                    ..good.clone()
                },
                "driver",
            ),
            (
                Areas {
                    device,
                    ..good.clone()
                },
                "device",
            ),
        ] {
            let queue = DeviceQueue::new(memory.layout, areas, QueueState::initial(false));
            let error = RingError::Layout(LayoutError::Area(name));
            assert_eq!(queue.unwrap_err(), error);
        }
    }
}

#[test]
fn state_of_the_other_format() {
    let memory = ring(4);
    let queue = DeviceQueue::new(memory.layout, memory.areas(), QueueState::initial(true));
    assert_eq!(queue.unwrap_err(), RingError::Layout(LayoutError::State));
}
