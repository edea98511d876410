//! The driver's side against a device that breaks the rules: exact errors, and no index that
//! the device wrote is ever used unchecked.

use crate::layout::{DESC_F_AVAIL, DESC_F_USED};
use crate::testing::{DESC, DEVICE, DRIVER, Memory, segment};
use crate::{AddError, Areas, DriverError, DriverQueue, Layout, LayoutError, RingError};

fn ring(packed: bool) -> Memory {
    Memory::new(Layout {
        size: 4,
        packed,
        event_idx: false,
        indirect: false,
    })
}

/// A driver with request 7 in flight (id 0, room for 8 bytes).
fn one_in_flight(memory: &Memory) -> DriverQueue {
    let mut driver = memory.driver();
    driver
        .add(&[segment(0x1000, 4)], &[segment(0x2000, 8)], 7)
        .unwrap();
    assert!(driver.publish());
    driver
}

/// The device marks (`id`, `written`) used as the next in a split ring.
fn use_split(memory: &Memory, index: u16, id: u32, written: u32) {
    memory.poke(DEVICE, 4 + 8 * usize::from(index), &id.to_le_bytes());
    memory.poke(DEVICE, 8 + 8 * usize::from(index), &written.to_le_bytes());
    memory.poke(DEVICE, 2, &(index + 1).to_le_bytes());
}

fn use_packed(memory: &Memory, slot: usize, id: u16, written: u32) {
    memory.poke(DESC, 16 * slot + 8, &written.to_le_bytes());
    memory.poke(DESC, 16 * slot + 12, &id.to_le_bytes());
    let flags = DESC_F_AVAIL | DESC_F_USED;
    memory.poke(DESC, 16 * slot + 14, &flags.to_le_bytes());
}

#[track_caller]
fn refused(mut driver: DriverQueue, error: DriverError) {
    assert_eq!(driver.pop_used(), Err(error));
    assert_eq!(driver.pop_used(), Err(error), "the error stays");
    assert_eq!(driver.outstanding(), [7]);
}

#[test]
fn split_used_index_ahead() {
    let memory = ring(false);
    let driver = one_in_flight(&memory);
    memory.poke(DEVICE, 2, &2u16.to_le_bytes());
    refused(driver, DriverError::UsedIndex(2));
}

#[test]
fn split_used_before_published() {
    let memory = ring(false);
    let mut driver = memory.driver();
    driver.add(&[segment(0x1000, 4)], &[], 7).unwrap();
    use_split(&memory, 0, 0, 0);
    refused(driver, DriverError::UsedIndex(1));
}

#[test]
fn split_unknown_id() {
    for id in [1, 2, 3, 4, 0x1_0000, u32::MAX] {
        let memory = ring(false);
        let driver = one_in_flight(&memory);
        use_split(&memory, 0, id, 0);
        refused(driver, DriverError::UnknownId(id));
    }
}

#[test]
fn split_used_twice() {
    let memory = ring(false);
    let mut driver = one_in_flight(&memory);
    driver.add(&[segment(0x1000, 4)], &[], 8).unwrap();
    driver.publish();
    use_split(&memory, 0, 2, 0);
    use_split(&memory, 1, 2, 0);
    assert_eq!(driver.pop_used(), Ok(Some((8, 0))));
    refused(driver, DriverError::UnknownId(2));
}

/// A request that is staged was not handed out yet: the device cannot have used it, not even
/// in the place of one that was.
#[test]
fn staged_id_used() {
    for packed in [false, true] {
        let memory = ring(packed);
        let mut driver = one_in_flight(&memory);
        driver.add(&[segment(0x1000, 4)], &[], 8).unwrap();
        let id: u16 = if packed { 1 } else { 2 };
        if packed {
            use_packed(&memory, 0, id, 0);
        } else {
            use_split(&memory, 0, id.into(), 0);
        }
        let error = DriverError::UnknownId(id.into());
        assert_eq!(driver.pop_used(), Err(error));
        assert_eq!(driver.outstanding().len(), 2);
    }
}

/// However often the device "uses" what was never published, nothing overflows.
#[test]
fn packed_used_before_published() {
    let memory = Memory::new(Layout {
        size: 32768,
        packed: true,
        event_idx: false,
        indirect: false,
    });
    let mut driver = memory.driver();
    for slot in 0..2 * 32768 {
        let wrap = slot < 32768;
        if driver.add(&[], &[segment(0x1000, 4)], 7).is_err() {
            break;
        }
        let flags = if wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
        memory.poke(DESC, 16 * (slot % 32768) + 14, &flags.to_le_bytes());
        if driver.pop_used().is_err() {
            return;
        }
    }
    panic!("the device used requests that were never published");
}

#[test]
fn more_written_than_there_is_room() {
    let error = DriverError::Length {
        written: 9,
        room: 8,
    };
    let memory = ring(false);
    let driver = one_in_flight(&memory);
    use_split(&memory, 0, 0, 9);
    refused(driver, error);
    let memory = ring(true);
    let driver = one_in_flight(&memory);
    use_packed(&memory, 0, 0, 9);
    refused(driver, error);
}

#[test]
fn packed_unknown_id() {
    for id in [1, 3, 4, u16::MAX] {
        let memory = ring(true);
        let driver = one_in_flight(&memory);
        use_packed(&memory, 0, id, 0);
        refused(driver, DriverError::UnknownId(id.into()));
    }
}

#[test]
fn requests_that_do_not_fit() {
    for packed in [false, true] {
        let memory = ring(packed);
        let mut driver = memory.driver();
        let at = segment(0x1000, 1);
        assert_eq!(driver.add(&[], &[], 0), Err(AddError::TooLarge(0)));
        assert_eq!(driver.add(&[at; 5], &[], 0), Err(AddError::TooLarge(5)));
        assert_eq!(driver.add(&[at; 3], &[], 0), Ok(()));
        assert_eq!(driver.add(&[at], &[at], 1), Err(AddError::Full));
        assert!(!driver.has_room(2) && driver.has_room(1));
        assert_eq!(driver.add(&[at], &[], 2), Ok(()));
        assert_eq!(driver.add(&[at], &[], 3), Err(AddError::Full));
        assert_eq!(driver.outstanding().len(), 2);
    }
}

/// Nothing that is staged can be seen before the publish.
#[test]
fn staged_requests_are_not_available() {
    for packed in [false, true] {
        let memory = ring(packed);
        let mut driver = memory.driver();
        let mut device = memory.device();
        let mut chain = crate::Chain::default();
        driver.add(&[segment(0x1000, 1)], &[], 0).unwrap();
        driver.add(&[segment(0x1000, 1)], &[], 1).unwrap();
        assert_eq!(device.pop(&mut memory.view(), &mut chain), Ok(false));
        assert!(driver.publish());
        assert!(!driver.publish());
        assert_eq!(device.pop(&mut memory.view(), &mut chain), Ok(true));
        assert_eq!(device.pop(&mut memory.view(), &mut chain), Ok(true));
        assert_eq!(device.pop(&mut memory.view(), &mut chain), Ok(false));
    }
}

/// Reserved event flags, and DESC without VIRTIO_F_EVENT_IDX, mean: notify (section 2.8.10).
#[test]
fn packed_event_flags_that_are_not_allowed() {
    for flags in [2u16, 3] {
        let memory = ring(true);
        let mut driver = memory.driver();
        memory.poke(DEVICE, 2, &flags.to_le_bytes());
        driver.add(&[segment(0x1000, 1)], &[], 0).unwrap();
        assert!(driver.publish());
        memory.poke(DRIVER, 2, &flags.to_le_bytes());
        let (mut device, mut chain) = (memory.device(), crate::Chain::default());
        assert_eq!(device.pop(&mut memory.view(), &mut chain), Ok(true));
        device.complete(chain.id, chain.slots, 0);
        assert!(device.publish());
    }
}

#[test]
fn indirect_memory_too_short() {
    let mut memory = ring(false);
    memory.layout.indirect = true;
    let (tables, iova) = memory.tables();
    let tables = tables.part(0, tables.len - 1).unwrap();
    let areas: Areas = memory.areas();
    let queue = DriverQueue::new(memory.layout, areas, Some((tables, iova)));
    let error = RingError::Layout(LayoutError::Area("indirect"));
    assert_eq!(queue.unwrap_err(), error);
}
