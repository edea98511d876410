//! The driver against a small device, and against one that does not keep the rules.

mod events;
mod hold;

use super::config::feature;
use super::testing::{MAX_RANGE, Memory, Rig, SHAPE, Shape, buffer, config_space};
use super::{Request, Sectors, SetupError};
use crate::{Arena, Domain, VqLine};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vduse_mem::Iova;

const MIB: u64 = 1 << 20;

fn read(sector: u64, bytes: &mut [u8]) -> Request {
    Request::Read {
        sector: Sectors(sector),
        buffer: buffer(bytes),
    }
}

fn write(sector: u64, bytes: &mut [u8]) -> Request {
    Request::Write {
        sector: Sectors(sector),
        buffer: buffer(bytes),
    }
}

fn run(rig: &Rig, request: Request) -> Result<u64, Errno> {
    rig.driver.run(request, &mut || true)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 + at / 4096) as u8).collect()
}

#[test]
fn what_was_written_is_read_in_every_ring_format() {
    let formats = [0, feature::RING_PACKED]
        .map(|packed| [0, feature::EVENT_IDX].map(|event| packed | event))
        .concat();
    let formats = formats
        .into_iter()
        .flat_map(|format| [format, format | feature::INDIRECT_DESC]);
    for format in formats {
        let base = feature::SIZE_MAX | feature::SEG_MAX;
        let shape = Shape {
            features: base | format,
            ..SHAPE
        };
        let rig = Rig::new(Memory::domain(MIB), shape);
        // Larger than the bounce region: split, and in turns.
        let mut data = pattern(3 << 20);
        assert_eq!(run(&rig, write(8, &mut data)), Ok(3 << 20));
        assert_eq!(rig.behaviour().disk[8 * 512..][..data.len()], data);
        let mut back = vec![0; 3 << 20];
        assert_eq!(run(&rig, read(8, &mut back)), Ok(3 << 20));
        assert!(back == data, "format {format:#x}");
        let most = rig.behaviour().seen.iter().map(|seen| seen.2).max();
        assert_eq!(most, Some(252 << 10), "a quarter of the bounce region");
        assert_eq!(rig.memory.bounce_in_use(), 0);
    }
}

/// A chain is no longer than its queue, in an indirect table too (virtio 1.3, section
/// 2.7.5.3.1): on a short queue requests are split further.
#[test]
fn a_request_of_many_segments_is_split_to_fit_a_short_queue() {
    let base = feature::SIZE_MAX | feature::SEG_MAX;
    for features in [0, feature::INDIRECT_DESC] {
        for format in [0, feature::RING_PACKED] {
            let shape = Shape {
                features: base | features | format,
                queue_size: 4,
                size_max: 4096,
                seg_max: 14,
                ..SHAPE
            };
            let rig = Rig::new(Memory::domain(MIB), shape);
            let mut data = pattern(14 * 4096);
            assert_eq!(run(&rig, write(0, &mut data)), Ok(14 * 4096));
            assert_eq!(rig.behaviour().disk[..data.len()], data);
            let mut back = vec![0; data.len()];
            assert_eq!(run(&rig, read(0, &mut back)), Ok(14 * 4096));
            assert_eq!(back, data);
        }
    }
}

#[test]
fn an_arena_is_reached_without_a_copy_and_carries_foreign_buffers_too() {
    let arena = Arena::new(MIB, Iova(1 << 32)).unwrap();
    let rig = Rig::new(Memory::Arena(Arc::clone(&arena)), SHAPE);
    let at = arena.alloc(8192).unwrap();
    let data = pattern(8192);
    assert!(arena.write(at, &data));
    let direct = Request::Write {
        sector: Sectors(3),
        buffer: arena.buffer(at, 8192).unwrap(),
    };
    assert_eq!(run(&rig, direct), Ok(8192));
    let mut back = vec![0; 8192];
    assert_eq!(run(&rig, read(3, &mut back)), Ok(8192));
    assert_eq!(back, data);
}

#[test]
fn more_requests_than_the_ring_holds_wait_their_turn() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let queue = rig.driver.queue(0).unwrap();
    let mut blocks = vec![vec![0u8; 512]; 500];
    for (token, block) in blocks.iter_mut().enumerate() {
        block.fill(token as u8);
        queue
            .submit(write(token as u64, block), token as u64)
            .unwrap();
    }
    queue.kick();
    let mut ended = Vec::new();
    while queue.outstanding() > 0 {
        assert!(queue.wait(None));
        queue.reap(&mut ended);
    }
    ended.sort_unstable_by_key(|&(token, _)| token);
    let expected: Vec<_> = (0..500).map(|token| (token, Ok(512))).collect();
    assert_eq!(ended, expected);
    assert_eq!(rig.behaviour().disk[499 * 512], 499u64 as u8);
    assert!(queue.wait(None), "nothing is outstanding");
}

#[test]
fn requests_are_refused_that_no_device_should_see() {
    let rig = Rig::unstarted(Memory::domain(MIB), SHAPE);
    let mut sector = vec![0; 512];
    assert_eq!(run(&rig, read(0, &mut sector)), Err(Errno::NODEV));
    rig.driver.start();
    assert_eq!(run(&rig, read(0, &mut sector[..511])), Err(Errno::INVAL));
    assert_eq!(run(&rig, read(16384, &mut sector)), Err(Errno::INVAL));
    assert_eq!(run(&rig, read(u64::MAX, &mut sector)), Err(Errno::INVAL));
    assert_eq!(run(&rig, read(16383, &mut sector)), Ok(512));
    assert_eq!(run(&rig, read(0, &mut [])), Ok(0));
    assert_eq!(rig.behaviour().seen.len(), 1);
}

#[test]
fn features_that_were_not_negotiated_are_not_used() {
    let shape = Shape {
        features: feature::RO,
        ..SHAPE
    };
    let rig = Rig::new(Memory::domain(MIB), shape);
    let (sector, count) = (Sectors(0), Sectors(1));
    assert_eq!(run(&rig, write(0, &mut [0; 512])), Err(Errno::ROFS));
    assert_eq!(
        run(&rig, Request::Discard { sector, count }),
        Err(Errno::ROFS)
    );
    assert_eq!(run(&rig, Request::Flush), Ok(0));
    let rig = Rig::new(
        Memory::domain(MIB),
        Shape {
            features: 0,
            ..SHAPE
        },
    );
    let zeroes = Request::WriteZeroes {
        sector,
        count,
        unmap: false,
    };
    assert_eq!(run(&rig, zeroes), Err(Errno::OPNOTSUPP));
    assert!(rig.behaviour().seen.is_empty());
}

#[test]
fn discard_and_write_zeroes_are_split_at_the_devices_limits() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let (sector, count) = (Sectors(10), Sectors(250));
    assert_eq!(run(&rig, Request::Discard { sector, count }), Ok(250 * 512));
    let zeroes = Request::WriteZeroes {
        sector,
        count: Sectors(101),
        unmap: true,
    };
    assert_eq!(run(&rig, zeroes), Ok(101 * 512));
    let full = u64::from(MAX_RANGE) * 512;
    let expected = [
        (11, 10, full),
        (11, 110, full),
        (11, 210, 50 * 512),
        (13, 10, full),
        (13, 110, 512),
    ];
    assert_eq!(rig.behaviour().seen[..], expected);
}

#[test]
fn flush_and_serial_reach_the_device() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    assert_eq!(run(&rig, Request::Flush), Ok(0));
    let mut serial = [0; 20];
    let buffer = buffer(&mut serial);
    assert_eq!(run(&rig, Request::GetId { buffer }), Ok(0));
    assert_eq!(&serial, b"serial-of-20-bytes!!");
    assert_eq!(rig.behaviour().seen[0].0, 4);
}

#[test]
fn every_status_byte_has_its_errno() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let cases = [
        (1, Errno::IO),
        (2, Errno::OPNOTSUPP),
        (77, Errno::IO),
        (0xff, Errno::IO),
    ];
    for (status, errno) in cases {
        rig.behaviour().status = Some(status);
        let mut bytes = vec![9; 4096];
        assert_eq!(run(&rig, read(0, &mut bytes)), Err(errno));
        assert_eq!(
            bytes,
            vec![9; 4096],
            "a failed read leaves the buffer alone"
        );
    }
    assert_eq!(rig.driver.stats().errors, 4);
    assert_eq!(rig.driver.failure(), None);
}

#[test]
fn many_threads_share_one_queue() {
    for features in [SHAPE.features, SHAPE.features | feature::RING_PACKED] {
        let rig = Rig::new(Memory::domain(MIB), Shape { features, ..SHAPE });
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let rig = &rig;
                scope.spawn(move || {
                    for round in 0..200u64 {
                        let sector = thread * 200 + round;
                        let mut data = vec![(sector % 251) as u8; 512];
                        assert_eq!(run(rig, write(sector, &mut data)), Ok(512));
                        let mut back = vec![0; 512];
                        assert_eq!(run(rig, read(sector, &mut back)), Ok(512));
                        assert_eq!(back, data);
                    }
                });
            }
        });
        let stats = rig.driver.stats();
        assert_eq!((stats.requests, stats.errors), (3200, 0));
        assert_eq!(
            (stats.bytes_read, stats.bytes_written),
            (1600 * 512, 1600 * 512)
        );
    }
}

#[test]
fn a_full_address_space_held_by_a_queue_nobody_reaps_is_no_deadlock() {
    let shape = Shape {
        queues: 2,
        size_max: 1 << 20,
        ..SHAPE
    };
    let rig = Rig::new(Memory::domain(MIB), shape);
    rig.behaviour().hold = true;
    let hoarder = rig.driver.queue(0).unwrap();
    let mut hoard = vec![vec![1u8; 252 << 10]; 4];
    for (token, bytes) in hoard.iter_mut().enumerate() {
        hoarder.submit(write(0, bytes), token as u64).unwrap();
    }
    hoarder.kick();
    // Three pages are left: the other queue's request does not fit, and has nothing to wait for
    // on its own queue.
    assert!(rig.memory.bounce_in_use() >= 4 * (252 << 10));
    let other = rig.driver.queue(1).unwrap();
    let mut bytes = vec![2u8; 128 << 10];
    other.submit(write(600, &mut bytes), 9).unwrap();
    other.kick();
    rig.behaviour().hold = false;
    rig.prod();
    assert!(other.wait(None));
    let mut ended = Vec::new();
    other.reap(&mut ended);
    assert_eq!(ended, [(9, Ok(128 << 10))]);
    assert_eq!(hoarder.reap(&mut Vec::new()), 4);
}

#[test]
fn stop_ends_every_request_and_gives_its_bounce_pages_back() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    rig.behaviour().hold = true;
    let queue = rig.driver.queue(0).unwrap();
    let mut blocks = vec![vec![3u8; 4096]; 40];
    for (token, block) in blocks.iter_mut().enumerate() {
        queue.submit(read(0, block), token as u64).unwrap();
    }
    queue.kick();
    let waiting = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let mut bytes = vec![0; 512];
            let request = read(0, &mut bytes);
            waiting.store(true, Ordering::Release);
            run(&rig, request)
        });
        while !waiting.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        rig.driver.stop(Errno::SHUTDOWN);
        assert_eq!(waiter.join().unwrap(), Err(Errno::SHUTDOWN));
    });
    assert_eq!(rig.memory.bounce_in_use(), 0);
    let mut ended = Vec::new();
    assert!(queue.wait(Some(Duration::ZERO)));
    queue.reap(&mut ended);
    assert_eq!(ended.len(), 40);
    assert!(
        ended
            .iter()
            .all(|&(_, outcome)| outcome == Err(Errno::SHUTDOWN))
    );
    assert!(blocks.iter().all(|block| *block == vec![3; 4096]));
    assert_eq!(run(&rig, Request::Flush), Err(Errno::SHUTDOWN));
}

#[test]
fn a_driver_that_was_stopped_gives_its_rings_back() {
    let domain = Domain::new(MIB).unwrap();
    let rig = Rig::new(Memory::Domain(Arc::clone(&domain)), SHAPE);
    assert!(domain.stats().unwrap().coherent > 0);
    rig.driver.stop(Errno::NODEV);
    drop(rig);
    assert_eq!(domain.stats().unwrap().coherent, 0);
}

#[test]
fn a_device_that_breaks_the_ring_is_given_up_and_keeps_its_pages_until_the_reset() {
    let shape = Shape { queues: 2, ..SHAPE };
    let memory = Memory::domain(MIB);
    let rig = Rig::new(memory.clone(), shape);
    rig.behaviour().hold = true;
    let queue = rig.driver.queue(0).unwrap();
    let other = rig.driver.queue(1).unwrap();
    let (mut a, mut b) = (vec![0; 512], vec![0; 512]);
    queue.submit(read(0, &mut a), 1).unwrap();
    other.submit(read(0, &mut b), 2).unwrap();
    queue.kick();
    other.kick();
    // The split ring's used index, far ahead.
    let Memory::Domain(domain) = &memory else {
        unreachable!()
    };
    let used_index = rig.driver.areas(0).unwrap()[2].0 + 2;
    rustix::io::pwrite(domain, &[0x34, 0x12], used_index).unwrap();
    rig.lines[0].inject();
    assert!(queue.wait(None));
    let mut ended = Vec::new();
    queue.reap(&mut ended);
    assert_eq!(ended, [(1, Err(Errno::IO))]);
    assert!(other.wait(None));
    other.reap(&mut ended);
    assert_eq!(ended[1], (2, Err(Errno::IO)));
    let why = rig.driver.failure().unwrap();
    assert!(why.contains("used index"), "{why}");
    assert_eq!(run(&rig, Request::Flush), Err(Errno::IO));
    assert_eq!(memory.bounce_in_use(), 8192);
    rig.driver.stop(Errno::NODEV);
    assert_eq!(memory.bounce_in_use(), 0);
}

#[test]
fn rings_whose_memory_was_taken_away_end_the_driver() {
    let arena = Arena::new(MIB, Iova(0)).unwrap();
    let rig = Rig::new(Memory::Arena(Arc::clone(&arena)), SHAPE);
    rig.behaviour().hold = true;
    let queue = rig.driver.queue(0).unwrap();
    let mut bytes = vec![0; 512];
    queue.submit(read(0, &mut bytes), 1).unwrap();
    arena.truncate(0).unwrap();
    assert!(queue.wait(None));
    let mut ended = Vec::new();
    queue.reap(&mut ended);
    assert_eq!(ended, [(1, Err(Errno::IO))]);
    assert!(rig.driver.failure().unwrap().contains("taken away"));
}

#[test]
fn an_interrupted_wait_frees_the_buffer_and_the_request_goes_on() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    rig.behaviour().hold = true;
    let mut bytes = vec![5; 4096];
    let interrupted = rig.driver.run(read(0, &mut bytes), &mut || false);
    assert_eq!(interrupted, Err(Errno::INTR));
    rig.behaviour().hold = false;
    rig.prod();
    assert_eq!(run(&rig, Request::Flush), Ok(0));
    assert_eq!(bytes, vec![5; 4096]);
    assert_eq!(rig.memory.bounce_in_use(), 0);
}

#[test]
fn a_wait_ends_at_its_timeout() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    rig.behaviour().hold = true;
    let queue = rig.driver.queue(0).unwrap();
    queue.submit(Request::Flush, 1).unwrap();
    queue.kick();
    assert!(!queue.wait(Some(Duration::from_millis(1))));
    assert_eq!(queue.outstanding(), 1);
}

#[test]
fn a_config_interrupt_changes_the_capacity() {
    let rig = Rig::new(Memory::domain(MIB), SHAPE);
    let larger = Shape {
        sectors: 20000,
        ..SHAPE
    };
    rig.driver.set_config(&config_space(&larger)).unwrap();
    assert_eq!(rig.driver.capacity(), Sectors(20000));
    let mut bytes = [0; 512];
    rig.behaviour().disk.resize(20000 * 512, 0);
    assert_eq!(run(&rig, read(19999, &mut bytes)), Ok(512));
    assert_eq!(
        rig.driver.set_config(&[0; 7]),
        Err(SetupError::ConfigSize(7))
    );
}

#[test]
fn a_driver_needs_a_line_for_each_queue() {
    let domain = Domain::new(MIB).unwrap();
    let line = Arc::new(VqLine::new().unwrap());
    let refused = |sizes: &[u16], lines: &[Arc<VqLine>]| {
        let space = config_space(&SHAPE);
        let dma = Arc::clone(&domain) as Arc<dyn crate::Dma>;
        super::BlkDriver::new(dma, 0, &space, sizes, lines).err()
    };
    assert_eq!(refused(&[], &[]), Some(SetupError::Queues(0, 0)));
    assert_eq!(
        refused(&[8, 8], std::slice::from_ref(&line)),
        Some(SetupError::Queues(2, 1))
    );
    assert_eq!(
        refused(&[2], std::slice::from_ref(&line)),
        Some(SetupError::QueueSize(2))
    );
    assert!(matches!(
        refused(&[12], std::slice::from_ref(&line)),
        Some(SetupError::Ring(_))
    ));
    assert_eq!(domain.stats().unwrap().coherent, 0);
}
