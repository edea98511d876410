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
