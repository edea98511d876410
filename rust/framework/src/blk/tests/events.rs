//! Handles for event loops, and batches.

use super::{MIB, read, run};
use crate::blk::config::feature;
use crate::blk::testing::{Memory, Rig, SHAPE, Shape};
use crate::blk::{Armed, BlkQueue, Request};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

// --- event loops ---------------------------------------------------------------------------

/// A handle for an event loop, and how often it was woken.
fn event_queue(rig: &Rig) -> (BlkQueue, Arc<AtomicU32>) {
    let wakes = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&wakes);
    let wake = move || {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let queue = rig.driver.queue_for_events(0, Arc::new(wake)).unwrap();
    (queue, wakes)
}

fn irq_came(queue: &BlkQueue) {
    let fd = queue.irq_fd();
    assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], None), Ok(1));
}

#[test]
fn an_armed_client_gets_an_irq() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let (queue, wakes) = event_queue(&rig);
    assert_eq!(queue.arm(), Armed::Waiting);
    rig.behaviour().hold = true;
    let mut bytes = [0; 512];
    queue.submit_all([(read(0, &mut bytes), 7)]);
    assert_eq!(queue.arm(), Armed::Waiting);
    rig.behaviour().hold = false;
    rig.prod();
    irq_came(&queue);
    let mut ended = Vec::new();
    queue.reap(&mut ended);
    assert_eq!(ended, [(7, Ok(512))]);
    assert_eq!(wakes.load(Ordering::Relaxed), 0);
}

#[test]
fn an_armed_client_is_woken_where_another_takes_its_completions() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let (queue, wakes) = event_queue(&rig);
    rig.behaviour().hold = true;
    let mut bytes = [0; 512];
    queue.submit_all([(read(0, &mut bytes), 7)]);
    assert_eq!(queue.arm(), Armed::Waiting);
    rig.behaviour().hold = false;
    // Its thread leads, and takes what is there of both.
    assert_eq!(run(&rig, Request::Flush), Ok(0));
    assert_eq!(wakes.load(Ordering::Relaxed), 1);
    let mut ended = Vec::new();
    assert_eq!(queue.reap(&mut ended), 1);
}

/// The leader's irq requests do not end those of an event loop, nor the other way round.
#[test]
fn event_loops_and_waiting_threads_share_a_queue() {
    for format in [0, feature::RING_PACKED] {
        let shape = Shape {
            features: SHAPE.features | format,
            ..SHAPE
        };
        let rig = Rig::new(Memory::domain(MIB), shape);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        assert_eq!(run(&rig, read(0, &mut [0; 4096])), Ok(4096));
                    }
                });
            }
            scope.spawn(|| {
                let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
                let waker = bell.try_clone().unwrap();
                let wake = move || {
                    let _ = rustix::io::write(&waker, &1u64.to_ne_bytes());
                };
                let queue = rig.driver.queue_for_events(0, Arc::new(wake)).unwrap();
                let mut ended = Vec::new();
                let mut bytes = [0; 4096];
                for token in 0..500 {
                    queue.submit_all([(read(8, &mut bytes), token)]);
                    while queue.reap(&mut ended) == 0 {
                        match queue.arm() {
                            Armed::Ready | Armed::Stalled => {}
                            Armed::Waiting => {
                                let irq = queue.irq_fd();
                                let mut fds = [
                                    PollFd::new(&irq, PollFlags::IN),
                                    PollFd::new(&bell, PollFlags::IN),
                                ];
                                poll(&mut fds, None).unwrap();
                                let _ = rustix::io::read(&bell, &mut [0; 8]);
                            }
                        }
                    }
                    assert_eq!(ended.pop(), Some((token, Ok(4096))));
                }
            });
        });
    }
}

#[test]
fn the_end_of_the_driver_wakes_event_loops() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let (queue, wakes) = event_queue(&rig);
    assert_eq!(queue.arm(), Armed::Waiting);
    rig.driver.stop(Errno::NODEV);
    assert_eq!(wakes.load(Ordering::Relaxed), 1);
    assert_eq!(rig.driver.ended(), Some(Errno::NODEV));
}

#[test]
fn what_is_refused_in_a_batch_ends_by_its_token() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let queue = rig.driver.queue(0).unwrap();
    let (mut a, mut b) = ([0; 512], [0; 512]);
    queue.submit_all([(read(1 << 40, &mut a), 1), (read(0, &mut b), 2)]);
    let mut ended = Vec::new();
    while queue.outstanding() > 0 {
        queue.wait(None);
        queue.reap(&mut ended);
    }
    ended.sort_unstable_by_key(|(token, _)| *token);
    assert_eq!(ended, [(1, Err(Errno::INVAL)), (2, Ok(512))]);
}
