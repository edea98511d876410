//! Hot queues, deadlines of engines, and which worker serves what.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

/// An engine that holds reads back until its deadline, and marks what it sees completed.
struct Patient(Arc<Promise>);

#[derive(Default)]
struct Promise {
    /// It has a deadline once this is set.
    is_due: AtomicBool,
    completer: Mutex<Option<Completer>>,
    cancelled: AtomicBool,
    held: Condvar,
    tokens: Mutex<Vec<Token>>,
}

impl Promise {
    /// What waits has waited long enough.
    fn fulfil(&self) {
        let tokens = self.tokens.lock().unwrap();
        drop(self.held.wait_while(tokens, |tokens| tokens.is_empty()));
        self.is_due.store(true, SeqCst);
        self.completer.lock().unwrap().as_ref().unwrap().wake();
    }
}

impl Backend for Patient {
    fn info(&self) -> Info {
        disk(Kind::Direct)
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        *self.0.completer.lock().unwrap() = Some(local.completer.clone());
        Ok(Box::new(PatientEngine(self.0.clone())))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct PatientEngine(Arc<Promise>);

impl Engine for PatientEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        if let Op::Write { .. } = op {
            // By the completer, which `completed` sees.
            let completer = self.0.completer.lock().unwrap().clone().unwrap();
            completer.complete(Completion {
                token,
                result: Ok(()),
                data: None,
            });
        } else {
            self.0.tokens.lock().unwrap().push(token);
            self.0.held.notify_all();
        }
        Submitted::Pending
    }

    fn cancel(&mut self, _token: Token) {
        self.0.cancelled.store(true, SeqCst);
    }

    fn completed(&mut self, completion: &mut Completion) {
        completion.result = Err(rustix::io::Errno::IO);
    }

    fn deadline(&self) -> Option<Instant> {
        let is_due = self.0.is_due.load(SeqCst) || self.0.cancelled.load(SeqCst);
        let waits = !self.0.tokens.lock().unwrap().is_empty();
        (is_due && waits).then(Instant::now)
    }

    fn expire(&mut self, _now: Instant, ended: &mut Vec<Completion>) {
        for token in self.0.tokens.lock().unwrap().drain(..) {
            ended.push(Completion {
                token,
                result: Ok(()),
                data: None,
            });
        }
    }
}

#[test]
fn an_engine_that_is_woken_lets_what_it_held_go_on_when_its_deadline_has_passed() {
    let pool = pool();
    let promise = Arc::new(Promise::default());
    let mut rig = Rig::new(&pool, Arc::new(Patient(promise.clone())), false);
    rig.send(1, None, 1);
    promise.fulfil();
    assert_eq!(rig.wait(), (1, 0), "`completed` does not see it");
}

#[test]
fn an_engine_sees_what_the_completer_brings_before_the_request_does() {
    let pool = pool();
    let promise = Arc::new(Promise::default());
    let mut rig = Rig::new(&pool, Arc::new(Patient(promise)), true);
    rig.send(1, Some(1), 1);
    assert_eq!(rig.wait(), (1, 1), "its error has become the request's");
}

#[test]
fn what_a_direct_engine_holds_ends_by_its_deadline_when_it_is_cancelled() {
    let pool = pool();
    let promise = Arc::new(Promise::default());
    let mut rig = Rig::new(&pool, Arc::new(Patient(promise.clone())), false);
    rig.send(1, None, 1);
    let tokens = promise.tokens.lock().unwrap();
    drop(promise.held.wait_while(tokens, |tokens| tokens.is_empty()));
    assert!(rig.path.reset(LONG));
    assert!(promise.cancelled.load(SeqCst));
    assert_eq!(rig.status(1), 0xff);
}

#[test]
fn a_queue_that_nobody_kicks_is_seen_while_it_is_hot_and_kicked_while_it_is_not() {
    let pool = pool();
    for packed in [false, true] {
        let mut rig = Rig::new(&pool, memory(), packed);
        for round in 0..2000 {
            // As the device asks for kicks or not: a lost one is a standstill.
            rig.send(round % 8, Some(1), 1);
            assert_eq!(rig.wait(), (round % 8, 0));
        }
        rig.path.stop_queue(0, LONG).unwrap();
        let stats = rig.path.stats().0.counts;
        assert!(stats.kicks <= stats.batches, "{stats:?}");
    }
}

#[test]
fn a_queue_that_was_stopped_asks_for_kicks() {
    let pool = pool();
    for packed in [false, true] {
        let mut rig = Rig::new(&pool, memory(), packed);
        rig.send(1, Some(1), 1);
        rig.wait();
        rig.path.stop_queue(0, LONG).unwrap();
        let at = BUFFERS + 2 * SLOT;
        let status = [Guest::segment(at, 1)];
        rig.driver.add(&[], &status, 2).unwrap();
        assert!(rig.driver.publish(), "for whoever goes on with it");
    }
}

#[test]
fn queues_are_spread_over_the_workers_from_the_first_one_on() {
    let pool = TestPool::new(3);
    let rigs: Vec<Rig> = (0..6).map(|_| Rig::idle(&pool, memory(), false)).collect();
    let mut firsts: Vec<usize> = rigs.iter().map(|rig| rig.path.first_worker()).collect();
    firsts.sort_unstable();
    assert_eq!(firsts, [0, 0, 1, 1, 2, 2], "before any queue runs");
    drop(rigs);
    let rig = Rig::idle(&pool, memory(), false);
    rig.start().unwrap();
    let other = Rig::idle(&pool, memory(), false);
    assert_ne!(rig.path.first_worker(), other.path.first_worker());
}

/// Counts the operations of each batch.
#[derive(Default)]
struct Batches(Arc<Mutex<Vec<usize>>>);

impl Backend for Batches {
    fn info(&self) -> Info {
        Info {
            size: Length(1 << 40),
            block_size: 512,
            read_only: false,
            can_discard: true,
            kind: Kind::Direct,
        }
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(Batches(self.0.clone())))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl Engine for Batches {
    fn submit(&mut self, _token: Token, _op: Op) -> Submitted {
        *self.0.lock().unwrap().last_mut().unwrap() += 1;
        Submitted::Done(Ok(()))
    }

    fn flush(&mut self) {
        self.0.lock().unwrap().push(0);
    }
}

#[test]
fn large_discards_leave_other_queues_their_turn() {
    let pool = pool();
    for (sectors, most) in [(1_u32 << 22, 1), (8, 8)] {
        let batches = Arc::new(Mutex::new(vec![0]));
        let limits = Limits {
            max_discard_sectors: 1 << 22,
            max_discard_seg: 1,
            ..Limits::default()
        };
        let backend = Arc::new(Batches(batches.clone()));
        let disk = Arc::new(Disk::new(backend, 1 << 31, limits, b""));
        let mut rig = Rig::on(false, |hookup| DataPath::blk(&pool, hookup, disk).unwrap());
        let mut request = [0; 32];
        request[0] = 11;
        request[24..28].copy_from_slice(&sectors.to_le_bytes());
        for token in 0..8 {
            let at = BUFFERS + u64::from(token) * SLOT;
            rig.guest.write(at + 512, &request);
            let (ranges, status) = (Guest::segment(at + 512, 32), Guest::segment(at + 16, 1));
            rig.driver.add(&[ranges], &[status], token).unwrap();
        }
        rig.driver.publish();
        let features = 1 << 13; // DISCARD
        let setup = rig.setup();
        rig.path
            .start_queue(0, QueueSetup { features, ..setup })
            .unwrap();
        for _ in 0..8 {
            assert_eq!(rig.wait().1, 0);
        }
        assert_eq!(*batches.lock().unwrap().iter().max().unwrap(), most);
    }
}

#[test]
fn a_queue_that_never_sleeps_keeps_no_other_from_its_commands() {
    let pool = TestPool::new(1);
    let mut busy = Rig::new(&pool, memory(), true);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let mut sent = 0_u64;
            (0..5).for_each(|token| busy.send(token, Some(1), 1));
            while !is_over.load(SeqCst) {
                // No pause: the next is there before the last is taken.
                while let Some((token, _)) = busy.driver.pop_used().unwrap() {
                    busy.send(token, Some(1), 1);
                    sent += 1;
                }
            }
            sent
        });
        for packed in [false, true].repeat(20) {
            let mut rig = Rig::new(&pool, memory(), packed);
            rig.send(1, Some(1), 1);
            assert_eq!(rig.wait(), (1, 0));
            assert!(rig.path.invalidate(Iova(0), Iova(u64::MAX), LONG));
            rig.send(2, None, 1);
            assert_eq!(rig.wait(), (2, 0));
            assert!(rig.path.stop_queue(0, LONG).unwrap().is_some());
            assert!(rig.path.reset(LONG));
        }
        is_over.store(true, SeqCst);
        assert!(sent.join().unwrap() > 0);
    });
}

#[test]
fn a_driver_sees_the_first_completions_while_the_batch_goes_on() {
    let pool = TestPool::new(1);
    for packed in [false, true] {
        let mut rig = Rig::idle(&pool, memory(), packed);
        for token in 0..5 {
            rig.send(token, None, 0);
        }
        rig.start().unwrap();
        for _ in 0..5 {
            assert_eq!(rig.wait().1, 0);
        }
        let (all, _) = rig.path.stats();
        let published = &all.distributions.batch_requests.buckets;
        assert_eq!(*published, [(1, 1), (4, 1)].into(), "packed: {packed}");
    }
}
