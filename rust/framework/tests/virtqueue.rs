//! A driver's plain virtqueue, against a device that writes its used ring by hand (virtio 1.3,
//! section 2.7.8).

use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;
use vduse_framework::{Arena, Dma, Domain, RequestError, Used, Virtqueue, VqLine};
use vduse_mem::Iova;
use vduse_ring::Layout;

const BASE: u64 = 0x1000_0000;
const SIZE: u16 = 4;
const LONG: Duration = Duration::from_secs(30);

const LAYOUT: Layout = Layout {
    size: SIZE,
    packed: false,
    event_idx: false,
    indirect: false,
};

struct Rig {
    arena: Arc<Arena>,
    line: Arc<VqLine>,
    queue: Virtqueue,
    used: u16,
}

impl Rig {
    fn new() -> Rig {
        let arena = Arena::new(1 << 20, Iova(BASE)).unwrap();
        let line = Arc::new(VqLine::new().unwrap());
        let dma: Arc<dyn Dma> = arena.clone();
        let queue = Virtqueue::new(dma, line.clone(), LAYOUT).unwrap();
        queue.start();
        Rig {
            arena,
            line,
            queue,
            used: 0,
        }
    }

    /// The device uses the chain `head`.
    fn use_chain(&mut self, head: u32, written: u32) {
        let device_area = (self.queue.areas()[2].0 - BASE) as usize;
        let element = device_area + 4 + 8 * usize::from(self.used % SIZE);
        let bytes = [head.to_le_bytes(), written.to_le_bytes()].concat();
        assert!(self.arena.write(element, &bytes));
        self.used += 1;
        let index = device_area + 2;
        assert!(self.arena.write(index, &self.used.to_le_bytes()));
        self.line.inject();
    }
}

#[test]
fn a_request_comes_back_with_what_was_written() {
    let mut rig = Rig::new();
    let first = rig.queue.add(vec![b"question".to_vec()], &[4, 4]).unwrap();
    rig.queue.kick();
    assert_eq!(rig.queue.outstanding(), 1);
    assert!(!rig.queue.wait(Duration::ZERO));
    rig.use_chain(0, 6);
    assert!(rig.queue.wait(LONG));
    let data = vec![0; 6];
    assert_eq!(rig.queue.reap(), Ok(vec![Used { token: first, data }]));
    assert_eq!(rig.queue.outstanding(), 0);
}

#[test]
fn what_has_no_room_now_is_told_from_what_never_fits() {
    let rig = Rig::new();
    let none: Vec<Vec<u8>> = Vec::new();
    assert_eq!(rig.queue.add(none, &[]), Err(RequestError::NeverFits));
    assert_eq!(rig.queue.add(vec![], &[0]), Err(RequestError::NeverFits));
    assert_eq!(rig.queue.add(vec![], &[1; 5]), Err(RequestError::NeverFits));
    assert_eq!(
        rig.queue.add(vec![], &[2 << 20]),
        Err(RequestError::NeverFits)
    );
    rig.queue.add(vec![], &[1; 3]).unwrap();
    assert_eq!(rig.queue.add(vec![], &[1; 2]), Err(RequestError::Full));
    rig.queue.add(vec![], &[1]).unwrap();
}

#[test]
fn a_device_that_breaks_the_rules_is_given_up() {
    for (head, written, why) in [(9, 0, "buffer 9"), (0, 100, "100 bytes written into 4")] {
        let mut rig = Rig::new();
        rig.queue.add(vec![], &[4]).unwrap();
        rig.queue.kick();
        rig.use_chain(head, written);
        assert_eq!(rig.queue.reap(), Err(Errno::IO));
        assert!(rig.queue.failure().unwrap().contains(why));
        assert_eq!(
            rig.queue.add(vec![], &[4]),
            Err(RequestError::Ended(Errno::IO))
        );
        assert!(rig.queue.wait(LONG));
    }
}

#[test]
fn a_stop_wakes_who_waits_and_gives_all_memory_back() {
    let domain = Domain::new(1 << 20).unwrap();
    let dma: Arc<dyn Dma> = domain.clone();
    let line = Arc::new(VqLine::new().unwrap());
    let queue = Virtqueue::new(dma, line, LAYOUT).unwrap();
    queue.start();
    queue.add(vec![vec![1; 10]], &[4096]).unwrap();
    queue.kick();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.wait(LONG));
        queue.stop(Errno::NODEV);
        assert!(waiting.join().unwrap());
    });
    assert_eq!(queue.reap(), Err(Errno::NODEV));
    assert_eq!(domain.stats().unwrap().bounce_in_use, 0);
    drop(queue);
    assert_eq!(domain.stats().unwrap().coherent, 0);
}
