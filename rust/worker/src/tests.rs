//! Tasks on real threads. The only times in here are limits on waiting.

use crate::{Next, Place, Pool, PoolError, Settings, Task, Turn, Waker};
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// What the worker did with a task.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Event(u64),
    Ran,
    Armed,
    Dropped,
}

/// Tells what is done with it. `work`: rounds that bring something, for whoever adds to it.
struct Probe {
    seen: Sender<Seen>,
    work: Arc<AtomicU64>,
    next: Next,
    needs_events: Arc<AtomicBool>,
    panics_at: Option<u64>,
    _place: Place,
    _fd: Option<Arc<OwnedFd>>,
}

impl Task for Probe {
    fn event(&mut self, key: u64) {
        let _ = self.seen.send(Seen::Event(key));
        assert_ne!(Some(key), self.panics_at, "the panic that a test wants");
    }

    fn run(&mut self) -> Turn {
        if self.work.load(SeqCst) == 0 {
            return Turn::Idle;
        }
        self.work.fetch_sub(1, SeqCst);
        let _ = self.seen.send(Seen::Ran);
        Turn::Worked
    }

    fn arm(&mut self) -> Next {
        let _ = self.seen.send(Seen::Armed);
        self.next
    }

    fn needs_events(&self) -> bool {
        self.needs_events.load(SeqCst)
    }

    fn is_over(&self) -> bool {
        self.work.load(SeqCst) == u64::MAX - 1
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.seen.send(Seen::Dropped);
    }
}

struct Seat {
    seen: Receiver<Seen>,
    work: Arc<AtomicU64>,
    needs_events: Arc<AtomicBool>,
    waker: Waker,
}

impl Seat {
    fn sees(&self, expected: Seen) {
        loop {
            let seen = self.seen.recv_timeout(LONG).unwrap();
            if seen == expected {
                return;
            }
        }
    }
}

fn event() -> Arc<OwnedFd> {
    Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
}

fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

fn put(pool: &Pool, worker: usize, next: Next, fd: Option<&Arc<OwnedFd>>) -> Seat {
    let (send, seen) = channel();
    let (answer, waker) = channel();
    let work = Arc::new(AtomicU64::new(0));
    let needs_events = Arc::new(AtomicBool::new(true));
    let (its_work, its_needs, fd) = (work.clone(), needs_events.clone(), fd.cloned());
    pool.handle().spawn(worker, move |place| {
        answer.send(place.waker()).unwrap();
        if let Some(fd) = &fd {
            place.watch(fd.as_fd(), 7, false).unwrap();
        }
        Some(Box::new(Probe {
            seen: send,
            work: its_work,
            next,
            needs_events: its_needs,
            panics_at: fd.is_none().then_some(7),
            _place: place,
            _fd: fd,
        }))
    });
    let waker = waker.recv_timeout(LONG).unwrap();
    Seat {
        seen,
        work,
        needs_events,
        waker,
    }
}

#[test]
fn a_new_task_runs_is_armed_and_sleeps_until_it_is_woken() {
    let pool = Pool::new(Some(2)).unwrap();
    for worker in 0..2 {
        let seat = put(&pool, worker, Next::Event, None);
        seat.sees(Seen::Armed);
        for _ in 0..100 {
            seat.work.fetch_add(1, SeqCst);
            seat.waker.wake();
            seat.sees(Seen::Ran);
        }
        seat.sees(Seen::Armed);
    }
    assert_eq!(pool.workers(), pool.handle().count());
}

#[test]
fn an_edge_on_a_watched_fd_comes_under_its_key_though_nobody_reads_it() {
    let pool = Pool::new(Some(1)).unwrap();
    let fd = event();
    let seat = put(&pool, 0, Next::Event, Some(&fd));
    for _ in 0..3 {
        seat.sees(Seen::Armed);
        signal(&fd);
        seat.sees(Seen::Event(7));
    }
}

#[test]
fn who_finds_all_by_itself_is_told_of_events_too() {
    let pool = Pool::new(Some(1)).unwrap();
    let fd = event();
    let seat = put(&pool, 0, Next::Event, Some(&fd));
    seat.needs_events.store(false, SeqCst);
    seat.work.store(u64::MAX / 2, SeqCst);
    seat.waker.wake();
    seat.sees(Seen::Ran);
    signal(&fd);
    seat.sees(Seen::Event(7));
}

#[test]
fn a_task_without_an_event_is_not_run_while_another_is() {
    let pool = Pool::new(Some(1)).unwrap();
    let idle = put(&pool, 0, Next::Event, None);
    idle.sees(Seen::Armed);
    let busy = put(&pool, 0, Next::Event, None);
    busy.work.store(1000, SeqCst);
    busy.waker.wake();
    busy.sees(Seen::Ran);
    busy.sees(Seen::Armed);
    assert!(idle.seen.try_recv().is_err());
}

#[test]
fn a_hot_task_without_work_is_armed_while_another_works_on() {
    let pool = Pool::new(Some(1)).unwrap();
    let busy = put(&pool, 0, Next::Event, None);
    busy.work.store(u64::MAX / 2, SeqCst);
    busy.waker.wake();
    busy.sees(Seen::Ran);
    // It never gets a chance but for the other's rounds.
    let idle = put(&pool, 0, Next::Event, None);
    idle.sees(Seen::Armed);
    assert!(busy.work.load(SeqCst) > 0);
}

#[test]
fn a_task_runs_again_at_the_time_it_has_named() {
    let pool = Pool::new(Some(1)).unwrap();
    let seat = put(&pool, 0, Next::At(Instant::now()), None);
    for _ in 0..10 {
        seat.sees(Seen::Armed);
    }
    let late = put(
        &pool,
        0,
        Next::At(Instant::now() + Duration::from_millis(1)),
        None,
    );
    late.sees(Seen::Armed);
    late.sees(Seen::Armed);
}

#[test]
fn a_task_that_finds_work_while_it_is_armed_goes_on() {
    let pool = Pool::new(Some(1)).unwrap();
    let seat = put(&pool, 0, Next::Now, None);
    for _ in 0..10 {
        seat.sees(Seen::Armed);
    }
}

#[test]
fn a_panic_ends_its_task_alone() {
    let pool = Pool::new(Some(1)).unwrap();
    let good = put(&pool, 0, Next::Event, None);
    let fd = event();
    let (send, seen) = channel();
    let its_fd = fd.clone();
    pool.handle().spawn(0, move |place| {
        place.watch(its_fd.as_fd(), 7, false).unwrap();
        Some(Box::new(Probe {
            seen: send,
            work: Arc::default(),
            next: Next::Event,
            needs_events: Arc::new(AtomicBool::new(true)),
            panics_at: Some(7),
            _place: place,
            _fd: None,
        }))
    });
    pool.handle().spawn(0, |_| panic!("in its making"));
    signal(&fd);
    assert!(seen.iter().any(|seen| seen == Seen::Dropped));
    signal(&fd);
    good.work.store(1, SeqCst);
    good.waker.wake();
    good.sees(Seen::Ran);
}

#[test]
fn a_task_that_is_over_is_dropped_and_its_waker_wakes_nobody() {
    let pool = Pool::new(Some(1)).unwrap();
    let seat = put(&pool, 0, Next::Event, None);
    seat.work.store(u64::MAX, SeqCst);
    seat.waker.wake();
    seat.sees(Seen::Dropped);
    // Takes the place of the one before.
    let next = put(&pool, 0, Next::Event, None);
    next.sees(Seen::Armed);
    next.work.store(1, SeqCst);
    seat.waker.wake();
    let third = put(&pool, 0, Next::Event, None);
    third.sees(Seen::Armed);
    assert_eq!(next.work.load(SeqCst), 1, "an old waker woke it");
}

#[test]
fn no_wake_up_is_lost_between_many_threads() {
    let pool = Pool::new(Some(1)).unwrap();
    let seat = put(&pool, 0, Next::Event, None);
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..2000 {
                    seat.work.fetch_add(1, SeqCst);
                    seat.waker.wake();
                }
            });
        }
    });
    for _ in 0..8000 {
        seat.sees(Seen::Ran);
    }
}

#[test]
fn close_drops_the_tasks_and_what_is_sent_later() {
    let pool = Pool::new(Some(2)).unwrap();
    let seat = put(&pool, 1, Next::Event, None);
    pool.close();
    pool.close();
    seat.sees(Seen::Dropped);
    let (send, seen) = channel::<()>();
    pool.handle().spawn(1, move |_| {
        drop(send);
        None
    });
    assert!(seen.recv().is_err());
    seat.waker.wake();
}

#[test]
fn workers_are_pinned_one_a_cpu_named() {
    let allowed = sched_getaffinity(None).unwrap();
    let cpu = (0..CpuSet::MAX_CPU)
        .find(|&cpu| allowed.is_set(cpu))
        .unwrap();
    let settings = Settings {
        cpus: vec![cpu, cpu],
        ..Settings::default()
    };
    let pool = Pool::start(&settings).unwrap();
    assert_eq!(pool.workers(), 2);
    let (tell, told) = channel();
    for worker in 0..2 {
        let tell = tell.clone();
        pool.handle().spawn(worker, move |_| {
            let _ = tell.send(sched_getaffinity(None).unwrap());
            None
        });
        let seen = told.recv_timeout(LONG).unwrap();
        assert_eq!((seen.count(), seen.is_set(cpu)), (1, true));
    }
    assert_eq!(sched_getaffinity(None).unwrap().count(), allowed.count());
}

#[test]
fn a_cpu_that_is_not_there_is_named() {
    for cpu in [CpuSet::MAX_CPU - 1, usize::MAX] {
        let settings = Settings {
            cpus: vec![cpu],
            ..Settings::default()
        };
        assert_eq!(Pool::start(&settings).err(), Some(PoolError::Cpu(cpu)));
    }
}

#[test]
fn a_worker_that_may_not_poll_serves_all_the_same() {
    let settings = Settings {
        workers: Some(1),
        polls: false,
        ..Settings::default()
    };
    let pool = Pool::start(&settings).unwrap();
    let seat = put(&pool, 0, Next::Event, None);
    for _ in 0..100 {
        seat.work.fetch_add(1, SeqCst);
        seat.waker.wake();
        seat.sees(Seen::Ran);
        seat.sees(Seen::Armed);
    }
    let [stats] = pool.stats()[..] else {
        panic!("one worker");
    };
    assert_eq!((stats.found_ns, stats.vain_ns), (0, 0));
    assert!(stats.sleeps > 0);
}
