//! What is counted of a queue: docs/statistics.md.

use super::*;
use vduse_histogram::Counts;

#[test]
fn reads_writes_and_failures_have_latencies_of_their_own() {
    let pool = pool();
    let (gate, mut rig) = gate(&pool, Kind::Detachable, false);
    let begin = std::time::Instant::now();
    rig.send(1, None, 1);
    rig.send(2, Some(7), 2);
    rig.send(3, Some(7), u64::MAX / 512); // past the end
    gate.wait_held(2);
    std::thread::sleep(Duration::from_millis(2));
    gate.release();
    for _ in 0..3 {
        rig.wait();
    }
    let longest = begin.elapsed().as_nanos() as u64;
    let (all, queues) = rig.path.stats();
    let found = &queues[&0].distributions;
    let totals = [&found.read, &found.write, &found.other].map(Counts::total);
    assert_eq!(totals, [1, 1, 1]);
    for held in [&found.read, &found.write] {
        assert!(held.max >= 2_000_000 && held.max <= longest, "{}", held.max);
    }
    assert_eq!((all.counts.requests, all.counts.errors), (3, 1));
    let batches = &found.batch_requests.buckets;
    assert_eq!(
        batches
            .iter()
            .map(|(size, count)| size * count)
            .sum::<u64>(),
        3
    );
    assert_eq!(all.distributions, *found);
}

/// Answers at once, after two milliseconds.
struct Slow;

impl Backend for Slow {
    fn info(&self) -> Info {
        disk(Kind::Direct)
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(Slow))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl Engine for Slow {
    fn submit(&mut self, _token: Token, _op: Op) -> Submitted {
        std::thread::sleep(Duration::from_millis(2));
        Submitted::Done(Ok(()))
    }
}

#[test]
fn what_a_backend_does_during_submit_counts_as_latency() {
    let pool = pool();
    let mut rig = Rig::new(&pool, Arc::new(Slow), false);
    rig.send(1, None, 1);
    rig.wait();
    let (all, _) = rig.path.stats();
    assert!(all.distributions.read.max >= 2_000_000, "{all:?}");
}

#[test]
fn the_oldest_request_in_flight_has_an_age_until_it_ends() {
    let pool = pool();
    let (gate, mut rig) = gate(&pool, Kind::Detachable, false);
    let oldest = |rig: &Rig| rig.path.stats().0.oldest;
    assert_eq!(oldest(&rig), Duration::ZERO);
    rig.send(1, None, 1);
    gate.wait_held(1);
    let deadline = std::time::Instant::now() + LONG;
    while oldest(&rig) < Duration::from_millis(10) {
        assert!(std::time::Instant::now() < deadline, "no age");
        std::thread::sleep(Duration::from_millis(1));
    }
    gate.release();
    rig.wait();
    while oldest(&rig) > Duration::ZERO {
        assert!(std::time::Instant::now() < deadline, "it has ended");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_oldest_is_looked_for_once_a_second() {
    use crate::stats::{Batch, Counters};
    let (counters, mut batch) = (Counters::default(), Batch::default());
    let mut age = Default::default();
    let begin = batch.taken();
    let at = |seconds| Some(begin + Duration::from_secs(seconds));
    let mut looks = 0;
    let mut look = |in_flight, seconds| {
        counters.set_in_flight(in_flight, &mut age, at(seconds), || {
            looks += 1;
            at(1)
        });
        looks
    };
    // Empty; the first; later ones within a second; the next look; empty; the first again.
    let states = [(0, 0), (3, 1), (3, 1), (2, 2), (2, 2), (0, 2), (1, 3)];
    let found: Vec<u32> = states.iter().map(|&(n, at)| look(n, at)).collect();
    assert_eq!(found, [0, 0, 0, 1, 1, 1, 1]);
    counters.end_in_flight();
    assert_eq!(counters.read().oldest, Duration::ZERO);
}

#[test]
fn the_clock_is_read_once_a_publication_within_a_turn() {
    use crate::stats::{Batch, Counters};
    let (counters, mut batch) = (Counters::default(), Batch::default());
    batch.begin();
    let first = batch.taken();
    batch.end_now(Ok(crate::blk::Traffic::Read(512)));
    counters.end(&mut batch);
    let published = batch.clock().unwrap();
    batch.go_on();
    assert!(published >= first);
    assert_eq!((batch.taken(), batch.clock()), (published, Some(published)));
    batch.begin();
    assert!(batch.taken() >= published);
    assert_eq!(Some(batch.taken()), batch.clock());
}
