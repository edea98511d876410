//! A cluster that does not answer.

use crate::support::{Image, Log, Queue, library, lost, read, write};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vduse_device::backend::{Backend, Connection, Notice, Observer, Submitted, Token};
use vduse_rbd::Rbd;

const SECOND: Duration = Duration::from_secs(1);

fn observed(disk: &Rbd) -> (Arc<Log>, Arc<dyn Observer>) {
    let log = Arc::new(Log::default());
    let observer: Arc<dyn Observer> = log.clone();
    disk.observe(Arc::downgrade(&observer));
    (log, observer)
}

/// With `reconnect_delay`.
fn impatient(image: &Image, delay: Duration) -> Rbd {
    let mut options = image.options();
    options.reconnect_delay = Some(delay);
    Rbd::open(library(), options).unwrap()
}

#[test]
fn requests_wait_and_the_connection_is_lost_and_back() {
    let image = Image::new("waits/disk");
    let disk = image.open();
    let (log, _observer) = observed(&disk);
    let mut queue = Queue::new(&disk);
    assert_eq!(queue.engine.deadline(), None);
    image.hold(true);
    queue.submit(1, write(0, &[1; 512]));
    let deadline = queue.engine.deadline().unwrap();
    assert!(deadline > Instant::now() + 3 * SECOND);
    // Early: nothing happens.
    assert_eq!(queue.expire(Duration::ZERO), []);
    assert!(log.is_empty());
    assert_eq!(queue.expire(6 * SECOND), []);
    assert_eq!(log.wait(), lost("the cluster has not answered for 6 s"));
    // It is said once, and the request waits on.
    assert_eq!(queue.engine.deadline(), None);
    assert_eq!(queue.submit(2, read(0, 512)), Submitted::Pending);
    image.hold(false);
    assert_eq!(queue.wait(1).result, Ok(()));
    assert_eq!(queue.wait(2).result, Ok(()));
    assert_eq!(log.wait(), Notice::Connection(Connection::Connected));
    assert_eq!(disk.connection(), Connection::Connected);
    assert_eq!(queue.engine.deadline(), None);
    assert!(log.is_empty());
}

#[test]
fn requests_fail_after_the_delay_and_go_through_once_the_cluster_answers() {
    let image = Image::new("gives-up/disk");
    let disk = impatient(&image, 2 * SECOND);
    let (log, _observer) = observed(&disk);
    let mut queue = Queue::new(&disk);
    image.hold(true);
    queue.submit(1, write(0, &[1; 512]));
    queue.submit(2, read(0, 512));
    assert!(queue.engine.deadline().unwrap() < Instant::now() + 3 * SECOND);
    let failed = [(1, Err(Errno::IO)), (2, Err(Errno::IO))];
    assert_eq!(queue.expire(3 * SECOND), failed);
    assert_eq!(log.wait(), lost("the cluster has not answered for 3 s"));
    assert_eq!(queue.engine.deadline(), None);
    // Others need not wait for it.
    assert_eq!(
        queue.submit(3, read(0, 512)),
        Submitted::Done(Err(Errno::IO))
    );
    image.hold(false);
    assert_eq!(log.wait(), Notice::Connection(Connection::Connected));
    assert_eq!(queue.read(0, 512).len(), 512);
    // The late answers are nobody's.
    assert!(queue.inbox.take().is_empty());
}

#[test]
fn the_delay_counts_from_the_last_answer() {
    let image = Image::new("counts/disk");
    let disk = impatient(&image, 60 * SECOND);
    let mut queue = Queue::new(&disk);
    image.hold(true);
    queue.submit(1, read(0, 512));
    let first = queue.engine.deadline().unwrap();
    image.hold(false);
    assert_eq!(queue.wait(1).result, Ok(()));
    image.hold(true);
    queue.submit(2, read(0, 512));
    assert!(queue.engine.deadline().unwrap() > first);
    image.hold(false);
    assert_eq!(queue.wait(2).result, Ok(()));
}

#[test]
fn one_image_that_stalls_leaves_others_alone() {
    let (stalled, other) = (Image::new("one/disk"), Image::new("two/disk"));
    let (first, second) = (stalled.open(), other.open());
    let (mut waits, mut goes_on) = (Queue::new(&first), Queue::new(&second));
    stalled.hold(true);
    waits.submit(1, read(0, 512));
    assert_eq!(goes_on.read(0, 512), [0; 512]);
    assert_eq!(second.flush(), Ok(()));
    assert_eq!(second.close(), Ok(()));
    stalled.hold(false);
    assert_eq!(waits.wait(1).result, Ok(()));
}

#[test]
fn resets_do_not_pile_up_memory_while_nothing_is_answered() {
    let image = Image::new("piles/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    image.hold(true);
    let big = 512 << 10;
    let mut taken = 0;
    while queue.submit(1, read(0, big)) == Submitted::Pending {
        queue.engine.cancel(Token(1));
        assert_eq!(queue.wait(1).result, Err(Errno::CANCELED));
        taken += big;
        assert!(taken <= 300 << 20);
    }
    assert!(taken >= 250 << 20);
    image.hold(false);
    image.wait_pending(0);
}
