//! Chains in a handler's hands.

use super::*;
use crate::chains::{Ended, Exported, Handler, HeldChain, Memory};
use std::sync::mpsc::{Receiver, Sender, channel};
use vduse_mem::Access;

/// What a handler was called with.
enum Call {
    Chains(Vec<Arc<HeldChain>>),
    Drain,
    Forgotten(usize),
}

/// Hands everything to the test.
struct Recorder(Mutex<Sender<Call>>);

impl Recorder {
    fn tell(&self, call: Call) {
        self.0.lock().unwrap().send(call).unwrap();
    }
}

impl Handler for Recorder {
    fn handle(&self, _queue: u32, chains: Vec<Arc<HeldChain>>) {
        assert!(chains.iter().all(|chain| chain.readable_len() != 666));
        self.tell(Call::Chains(chains));
    }

    fn drain(&self, _queue: u32) {
        self.tell(Call::Drain);
    }

    fn forgotten(&self, _queue: u32, count: usize) {
        self.tell(Call::Forgotten(count));
    }
}

struct Chains {
    rig: Rig,
    calls: Receiver<Call>,
}

impl Chains {
    fn new(pool: &Pool, packed: bool) -> Chains {
        let (sender, calls) = channel();
        let handler = Arc::new(Recorder(Mutex::new(sender)));
        let rig = Rig::on(packed, |hookup| {
            DataPath::chains(pool, hookup, handler).unwrap()
        });
        rig.start().unwrap();
        Chains { rig, calls }
    }

    /// Offers a chain of `readable` bytes and 8 to write; what the handler gets of it.
    fn send(&mut self, token: u32, readable: u32) -> Arc<HeldChain> {
        self.offer(token, readable);
        let Call::Chains(mut chains) = self.call() else {
            panic!("no chains");
        };
        assert_eq!(chains.len(), 1);
        chains.pop().unwrap()
    }

    fn offer(&mut self, token: u32, readable: u32) {
        let at = BUFFERS + u64::from(token) * SLOT;
        self.rig.guest.write(at, b"01234567");
        let (read, write) = (Guest::segment(at, readable), Guest::segment(at + 0x1000, 8));
        self.rig.driver.add(&[read], &[write], token).unwrap();
        if self.rig.driver.publish() {
            self.rig.kick();
        }
    }

    fn call(&self) -> Call {
        self.calls.recv_timeout(LONG).unwrap()
    }

    fn used(&mut self) -> (u32, u32) {
        loop {
            if let Some(used) = self.rig.driver.pop_used().unwrap() {
                return used;
            }
            if !self.rig.driver.enable_irqs() {
                wait_readable(&self.rig.call);
                let _ = rustix::io::read(&self.rig.call, &mut [0; 8]);
            }
        }
    }
}

/// Holds the memory until the test lets go.
struct Holder(Sender<Arc<Memory>>, Arc<Memory>);

impl Exported for Holder {
    fn release(self: Box<Self>) {
        self.0.send(self.1).unwrap();
    }
}

#[test]
fn a_chain_is_read_written_and_completed_once() {
    let pool = pool();
    for packed in [false, true] {
        let mut chains = Chains::new(&pool, packed);
        let chain = chains.send(1, 4);
        assert_eq!((chain.readable_len(), chain.writable_len()), (4, 8));
        assert_eq!(chain.read(), Ok(b"0123".to_vec()));
        assert_eq!(chain.write(2, b"abcdefgh"), Ok(6));
        assert_eq!(chain.write(9, b"x"), Ok(0));
        assert_eq!(chain.complete(8), Ok(()));
        assert_eq!(chain.complete(8), Err(Ended::Completed));
        assert_eq!(chain.read(), Err(Ended::Completed));
        assert_eq!(chains.used(), (1, 8));
        let written = chains.rig.guest.read(BUFFERS + SLOT + 0x1002, 6);
        assert_eq!(written, b"abcdef");
    }
}

#[test]
fn a_dropped_chain_is_completed_and_told_of() {
    let pool = pool();
    let mut chains = Chains::new(&pool, false);
    drop(chains.send(3, 4));
    assert_eq!(chains.used(), (3, 0));
    assert!(matches!(chains.call(), Call::Forgotten(1)));
    chains.rig.path.stop_queue(0, LONG).unwrap();
    let (total, _) = chains.rig.path.stats();
    let total = total.counts;
    assert_eq!((total.requests, total.errors, total.in_flight), (1, 1, 0));
}

#[test]
fn a_drain_tells_the_handler_and_waits() {
    let pool = pool();
    let mut chains = Chains::new(&pool, false);
    let chain = chains.send(1, 4);
    assert_eq!(chains.rig.path.stop_queue(0, Duration::ZERO), Ok(None));
    assert!(matches!(chains.call(), Call::Drain));
    chain.complete(0).unwrap();
    let stood = chains.rig.path.stop_queue(0, LONG);
    assert_eq!(stood, Ok(Some(QueueState::Split { avail_index: 1 })));
}

#[test]
fn a_reset_waits_for_who_has_the_memory() {
    let pool = pool();
    let mut chains = Chains::new(&pool, false);
    let chain = chains.send(1, 4);
    let (sender, released) = channel();
    let memory = chain.memory(Access::Write).unwrap();
    chain.exported(Box::new(Holder(sender, memory))).unwrap();
    assert!(!chains.rig.path.reset(Duration::ZERO));
    let memory = released.recv_timeout(LONG).unwrap();
    assert_eq!(chain.write(0, b"late"), Err(Ended::Reset));
    assert_eq!(chain.complete(4), Ok(()));
    assert!(!chains.rig.path.reset(Duration::ZERO));
    drop(memory);
    assert!(chains.rig.path.reset(LONG));
    assert_eq!(chains.rig.driver.pop_used(), Ok(None));
}

#[test]
fn what_is_exported_after_the_end_is_released_at_once() {
    let pool = pool();
    let mut chains = Chains::new(&pool, false);
    let chain = chains.send(1, 4);
    let memory = chain.memory(Access::Read).unwrap();
    chain.complete(0).unwrap();
    let (sender, released) = channel();
    let holder = Box::new(Holder(sender, memory));
    assert_eq!(chain.exported(holder), Err(Ended::Completed));
    assert!(released.try_recv().is_ok());
    assert!(chain.memory(Access::Read).is_err());
}

#[test]
fn a_handler_that_panics_ends_its_device_alone() {
    let pool = pool();
    let (mut bad, mut good) = (Chains::new(&pool, false), Chains::new(&pool, false));
    let kept = bad.send(1, 4);
    bad.offer(2, 666);
    assert!(bad.rig.wait_broken().contains("panicked"));
    assert!(bad.rig.path.reset(LONG));
    assert_eq!(kept.read(), Err(Ended::Reset));
    good.send(1, 4).complete(0).unwrap();
    assert_eq!(good.used(), (1, 0));
}

#[test]
fn all_that_a_holder_may_have_written_is_marked_in_the_dirty_log() {
    let pool = pool();
    for packed in [false, true] {
        let mut chains = Chains::new(&pool, packed);
        let chain = chains.send(1, 4);
        let log = log::Log::new();
        let path = &chains.rig.path;
        assert!(path.set_log(Some(log.map(log::BYTES)), LONG));
        let written = (BUFFERS + SLOT + 0x1000) / 4096;
        assert!(!log.take().contains(&written), "it is the holder's");
        chain.complete(0).unwrap();
        chains.used();
        assert!(log.take().contains(&written));
    }
}
