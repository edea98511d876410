//! Rings that are left alone for a while, and a device that is reset with requests in flight.

use super::super::Hold;
use super::*;

const FROZEN: Hold = Hold {
    submissions: true,
    completions: true,
};
const DEAF: Hold = Hold {
    submissions: false,
    completions: true,
};
const DRAINING: Hold = Hold {
    submissions: true,
    completions: false,
};
const BLOCKS: usize = 100;

fn formats() -> [Shape; 4] {
    [
        0,
        feature::INDIRECT_DESC,
        feature::RING_PACKED,
        feature::RING_PACKED | feature::INDIRECT_DESC | feature::EVENT_IDX,
    ]
    .map(|format| Shape {
        features: feature::SIZE_MAX | feature::SEG_MAX | format,
        ..SHAPE
    })
}

/// Waits until the device has seen as many requests.
fn wait_seen(rig: &Rig, requests: usize) {
    while rig.behaviour().seen.len() < requests {
        std::thread::yield_now();
    }
}

fn reset(rig: &mut Rig) {
    rig.driver.hold(FROZEN);
    rig.reset_device();
    rig.driver.renew().unwrap();
    rig.set_up_device();
    rig.driver.hold(Hold::default());
}

#[test]
fn requests_in_flight_at_a_reset_are_asked_for_again() {
    for shape in formats() {
        let mut rig = Rig::new(Memory::domain(MIB), shape);
        rig.behaviour().hold = true;
        let queue = rig.driver.queue(0).unwrap();
        let mut blocks = vec![vec![0u8; 4096]; BLOCKS];
        for (token, block) in blocks.iter_mut().enumerate() {
            block.fill(1 + token as u8);
            queue
                .submit(write(8 * token as u64, block), token as u64)
                .unwrap();
        }
        queue.kick();
        assert!(rig.driver.in_flight() > 0);
        for _ in 0..3 {
            reset(&mut rig);
            assert!(rig.driver.in_flight() > 0);
        }
        rig.behaviour().hold = false;
        rig.prod();
        let mut ended = Vec::new();
        while ended.len() < BLOCKS {
            assert!(queue.wait(None));
            queue.reap(&mut ended);
        }
        assert!(ended.iter().all(|(_, outcome)| *outcome == Ok(4096)));
        for (token, block) in blocks.iter().enumerate() {
            assert_eq!(rig.behaviour().disk[token * 4096..][..4096], block[..]);
        }
        assert_eq!(rig.memory.bounce_in_use(), 0);
        assert_eq!(rig.driver.in_flight(), 0);
    }
}

/// A request larger than the limits is many on the ring; some are answered before the reset.
#[test]
fn a_request_in_parts_comes_through_a_reset_whole() {
    for shape in formats() {
        let mut rig = Rig::new(Memory::domain(MIB), shape);
        let mut data = pattern(4 << 20);
        let driver = Arc::clone(&rig.driver);
        let writer = std::thread::spawn(move || {
            let outcome = driver.run(write(0, &mut data), &mut || true);
            (outcome, data)
        });
        for seen in [1, 4, 9] {
            wait_seen(&rig, seen);
            reset(&mut rig);
        }
        let (outcome, data) = writer.join().unwrap();
        assert_eq!(outcome, Ok(4 << 20));
        assert!(rig.behaviour().disk[..data.len()] == data);
        assert_eq!(rig.memory.bounce_in_use(), 0);
    }
}

#[test]
fn what_was_used_before_the_reset_is_not_asked_for_again() {
    let mut rig = Rig::new(Memory::domain(MIB), SHAPE);
    rig.driver.hold(DEAF);
    let queue = rig.driver.queue(0).unwrap();
    let mut block = vec![7; 512];
    queue.submit(write(0, &mut block), 1).unwrap();
    queue.kick();
    wait_seen(&rig, 1);
    reset(&mut rig);
    let mut ended = Vec::new();
    assert!(queue.wait(None));
    queue.reap(&mut ended);
    assert_eq!(ended, [(1, Ok(512))]);
    assert_eq!(rig.behaviour().seen.len(), 1);
}

#[test]
fn a_client_that_leaves_in_a_reset_takes_its_requests_along() {
    let mut rig = Rig::new(Memory::domain(MIB), SHAPE);
    rig.behaviour().hold = true;
    let queue = rig.driver.queue(0).unwrap();
    let mut block = vec![7; 512];
    queue.submit(write(0, &mut block), 1).unwrap();
    queue.kick();
    wait_in_flight(&rig, 1);
    rig.driver.hold(FROZEN);
    rig.reset_device();
    drop(queue);
    rig.driver.renew().unwrap();
    rig.set_up_device();
    rig.behaviour().hold = false;
    rig.driver.hold(Hold::default());
    assert_eq!(run(&rig, read(0, &mut [0; 512])), Ok(512));
    assert_eq!(rig.memory.bounce_in_use(), 0);
    assert_eq!(rig.behaviour().disk[..512], [0; 512]);
}

#[test]
fn a_stop_in_a_reset_ends_what_was_in_flight() {
    let mut rig = Rig::new(Memory::domain(MIB), SHAPE);
    rig.behaviour().hold = true;
    let queue = rig.driver.queue(0).unwrap();
    let mut block = vec![7; 512];
    queue.submit(write(0, &mut block), 1).unwrap();
    queue.kick();
    rig.driver.hold(FROZEN);
    rig.reset_device();
    rig.driver.renew().unwrap();
    rig.driver.stop(Errno::IO);
    let mut ended = Vec::new();
    assert!(queue.wait(None));
    queue.reap(&mut ended);
    assert_eq!(ended, [(1, Err(Errno::IO))]);
    assert_eq!(rig.memory.bounce_in_use(), 0);
}

#[test]
fn a_deaf_driver_fills_its_ring_and_hears_all_of_it_later() {
    for shape in formats() {
        let rig = Rig::new(Memory::domain(MIB), shape);
        rig.driver.hold(DEAF);
        let queue = rig.driver.queue(0).unwrap();
        let mut blocks = vec![vec![0u8; 512]; BLOCKS];
        for (token, block) in blocks.iter_mut().enumerate() {
            queue
                .submit(write(token as u64, block), token as u64)
                .unwrap();
        }
        queue.kick();
        let most = rig.driver.in_flight();
        assert!(most > 0 && most < BLOCKS, "{most}");
        wait_seen(&rig, most);
        assert!(!queue.wait(Some(Duration::from_millis(1))));
        rig.driver.hold(Hold::default());
        let mut ended = Vec::new();
        while ended.len() < BLOCKS {
            assert!(queue.wait(None));
            queue.reap(&mut ended);
        }
        assert!(ended.iter().all(|(_, outcome)| *outcome == Ok(512)));
    }
}

#[test]
fn a_thread_that_sleeps_is_woken_by_the_end_of_a_hold() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    for hold in [DEAF, DRAINING, FROZEN] {
        rig.driver.hold(hold);
        let driver = Arc::clone(&rig.driver);
        let reader = std::thread::spawn(move || driver.run(read(0, &mut [0; 512]), &mut || true));
        while !rig.driver.shared(0).core().is_led() {
            std::thread::yield_now();
        }
        rig.driver.hold(Hold::default());
        assert_eq!(reader.join().unwrap(), Ok(512));
    }
}

#[test]
fn a_draining_driver_comes_to_rest_and_goes_on() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let queue = rig.driver.queue(0).unwrap();
    let mut blocks = vec![vec![0u8; 512]; BLOCKS];
    for (token, block) in blocks.iter_mut().enumerate() {
        queue
            .submit(write(token as u64, block), token as u64)
            .unwrap();
    }
    // Not kicked: the hold makes it known.
    rig.driver.hold(DRAINING);
    while rig.driver.in_flight() > 0 {
        std::thread::yield_now();
    }
    let seen = rig.behaviour().seen.len();
    assert!(seen < BLOCKS);
    assert_eq!(rig.memory.bounce_in_use(), 0);
    rig.driver.hold(Hold::default());
    let mut ended = Vec::new();
    while ended.len() < BLOCKS {
        assert!(queue.wait(None));
        queue.reap(&mut ended);
    }
    assert_eq!(rig.behaviour().seen.len(), BLOCKS);
}

/// The requests have reached the ring; a device that holds shows them to nobody.
fn wait_in_flight(rig: &Rig, requests: usize) {
    while rig.driver.in_flight() < requests {
        std::thread::yield_now();
    }
}
