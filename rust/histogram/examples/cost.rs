//! What counting costs a request: `cargo run --release -p vduse-histogram --example cost`.
//! docs/operating.md has the figures.

use std::hint::black_box;
use std::time::Instant;
use vduse_histogram::Histogram;

const VALUES: u64 = 20_000_000;
const ROUNDS: usize = 5;

fn main() {
    let histogram = Histogram::<3>::default();
    for (what, run) in [
        ("one value at a time", 1),
        ("four at once", 4),
        ("32 at once", 32),
    ] {
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let begin = Instant::now();
                for value in 0..VALUES / run {
                    // Latencies that vary: 4 us to 1 ms.
                    let spread = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44;
                    histogram.record(black_box(4096 + spread), run);
                }
                begin.elapsed().as_nanos() as f64 / VALUES as f64
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!("{what}: {:.2} ns a request", rounds[ROUNDS / 2]);
    }
    let begin = Instant::now();
    for _ in 0..VALUES {
        black_box(Instant::now());
    }
    let clock = begin.elapsed().as_nanos() as f64 / VALUES as f64;
    println!("a look at the clock: {clock:.2} ns, two a batch");
    black_box(histogram.counts());
}
