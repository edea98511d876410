//! Our driver against our device, in every combination of what can be negotiated. Either side
//! works only when woken, so that a lost notification shows as a standstill.

use crate::testing::{Memory, Random, segment};
use crate::{AddError, Chain, Layout, Segment};
use std::collections::HashMap;

fn layouts(sizes: &[u16], packed: bool) -> impl Iterator<Item = Layout> + '_ {
    sizes.iter().flat_map(move |&size| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(event_idx, indirect)| {
            Layout {
                size,
                packed,
                event_idx,
                indirect,
            }
        })
    })
}

/// A request's segments; the first address carries the token.
fn request(random: &mut Random, token: u32, most: usize) -> (Vec<Segment>, Vec<Segment>) {
    let count = 1 + random.below(most as u64) as usize;
    let readable = random.below(count as u64 + 1) as usize;
    let mut all = (0..count).map(|k| {
        let len = 1 + random.below(1 << 20) as u32;
        segment(u64::from(token) << 16 | k as u64, len)
    });
    let first: Vec<_> = all.by_ref().take(readable).collect();
    (first, all.collect())
}

/// Sends `total` requests through a queue of `layout`, in batches, completed out of order.
fn run(layout: Layout, total: u32, seed: u64) {
    let memory = Memory::new(layout);
    let mut driver = memory.driver();
    let mut device = memory.device();
    let mut view = memory.view();
    let mut random = Random(seed);
    let mut chain = Chain::default();
    let most = usize::from(layout.size).min(6);
    let mut sent = HashMap::new();
    let mut taken: Vec<(u16, u16, u32)> = Vec::new();
    let (mut next, mut done) = (0, 0);
    let (mut device_awake, mut driver_awake) = (true, true);
    let mut due: HashMap<u32, u32> = HashMap::new();
    let mut retry = None;
    while done < total {
        assert!(
            device_awake || driver_awake || !taken.is_empty(),
            "standstill at {done}: {layout:?}"
        );
        if driver_awake {
            driver.suppress_irqs();
            loop {
                while let Some((token, written)) = driver.pop_used().expect("honest device") {
                    assert_eq!(due.remove(&token), Some(written));
                    done += 1;
                }
                for _ in 0..1 + random.below(u64::from(layout.size)) {
                    if next == total {
                        break;
                    }
                    let (readable, writable) = retry
                        .take()
                        .unwrap_or_else(|| request(&mut random, next, most));
                    match driver.add(&readable, &writable, next) {
                        Ok(()) => {
                            sent.insert(next, (readable, writable));
                            next += 1;
                        }
                        Err(AddError::Full) => {
                            assert!(!driver.has_room(readable.len() + writable.len()));
                            retry = Some((readable, writable));
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                device_awake |= driver.publish();
                if !driver.enable_irqs() {
                    driver_awake = false;
                    break;
                }
            }
            assert_eq!(driver.outstanding().len(), usize::from(driver.in_flight()));
        }
        if device_awake {
            device.suppress_kicks();
            loop {
                while device.pop(&mut view, &mut chain).expect("honest driver") {
                    let first = chain.readable.first().or(chain.writable.first()).unwrap();
                    let token = (first.iova.0 >> 16) as u32;
                    let (readable, writable) = sent.remove(&token).expect("sent once");
                    assert_eq!(chain.readable.as_slice(), readable);
                    assert_eq!(chain.writable.as_slice(), writable);
                    taken.push((chain.id, chain.slots, token));
                    let room: u32 = writable.iter().map(|s| s.len).sum();
                    due.insert(token, random.below(u64::from(room) + 1) as u32);
                }
                if !device.enable_kicks() {
                    device_awake = false;
                    break;
                }
            }
            assert_eq!(usize::from(device.in_flight()), taken.len());
        }
        for _ in 0..random.below(taken.len() as u64 + 1) {
            let (id, slots, token) = taken.swap_remove(random.below(taken.len() as u64) as usize);
            device.complete(id, slots, due[&token]);
        }
        driver_awake |= device.publish();
        assert!(!device.publish(), "nothing staged, no irq");
    }
    assert_eq!((driver.in_flight(), device.in_flight()), (0, 0));
}

#[test]
fn split_every_combination() {
    for layout in layouts(&[1, 2, 4, 8, 64, 256], false) {
        run(layout, 2_000, 1 + u64::from(layout.size));
    }
}

#[test]
fn packed_every_combination() {
    for layout in layouts(&[1, 2, 3, 5, 7, 8, 64, 100, 255, 256], true) {
        run(layout, 2_000, 1 + u64::from(layout.size));
    }
}

/// Indices are free-running 16-bit numbers (sections 2.7.6 and 2.7.8).
#[test]
fn split_indices_wrap_at_65536() {
    for layout in layouts(&[1, 128], false) {
        run(layout, 140_000, 3);
    }
}

/// Wrap counters flip at the end of a ring of any size (section 2.8.1).
#[test]
fn packed_wrap_counters_flip() {
    for layout in layouts(&[1, 7, 128], true) {
        run(layout, 140_000, 3);
    }
}

#[test]
fn largest_queue() {
    for packed in [false, true] {
        for layout in layouts(&[32768], packed) {
            run(layout, 100_000, 5);
        }
    }
}

#[test]
fn nobody_is_notified_who_asked_for_silence() {
    for layout in layouts(&[4], false).chain(layouts(&[4], true)) {
        let memory = Memory::new(layout);
        let (mut driver, mut device) = (memory.driver(), memory.device());
        let (mut view, mut chain) = (memory.view(), Chain::default());
        for quiet in [false, false, true, true, true] {
            // From a wish that is still to be fulfilled, too.
            assert!(!device.enable_kicks() && !driver.enable_irqs());
            if quiet {
                device.suppress_kicks();
                driver.suppress_irqs();
            }
            driver.add(&[segment(0x1000, 4)], &[], 1).unwrap();
            let kick = driver.publish();
            assert!(device.has_available());
            assert!(device.pop(&mut view, &mut chain).unwrap());
            assert!(!device.has_available());
            device.complete(chain.id, chain.slots, 0);
            let irq = device.publish();
            assert_eq!((kick, irq), (!quiet, !quiet), "{layout:?}");
            assert!(driver.pop_used().unwrap().is_some());
        }
    }
}
