//! What a streaming mapping costs: nanoseconds for one map and unmap, by size, copy and threads.
//! `cargo bench -p vduse-framework`

use std::ptr::NonNull;
use std::sync::Barrier;
use std::time::Instant;
use vduse_framework::{Buffer, Direction, Dma, Domain};

/// Mappings that each thread keeps open, as a queue of this depth does.
const DEPTH: usize = 32;

fn main() {
    println!("bytes      copy  threads  ns a map and unmap");
    for (bytes, rounds) in [(4096, 2_000_000), (65536, 200_000), (1 << 20, 10_000)] {
        for copy in [false, true] {
            for threads in [1, 2] {
                let ns = measure(bytes, copy, threads, rounds / if copy { 4 } else { 1 });
                println!("{bytes:<9}  {copy:<5} {threads:<7}  {ns:.0}");
            }
        }
    }
}

fn measure(bytes: usize, copy: bool, threads: usize, rounds: usize) -> f64 {
    let domain = Domain::new(256 << 20).expect("domain");
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut memory = vec![1u8; bytes];
                    let mut open = std::collections::VecDeque::new();
                    start.wait();
                    let began = Instant::now();
                    for _ in 0..rounds {
                        let ptr = NonNull::from(&mut memory[..]).cast();
                        // SAFETY: `memory` outlives the mappings, which this thread alone uses.
                        let buffer = unsafe { Buffer::new(ptr, bytes) };
                        let mapped = domain.map(buffer, Direction::FromDevice);
                        open.push_back(mapped.expect("room"));
                        if open.len() == DEPTH {
                            let oldest = open.pop_front().expect("not empty");
                            domain.unmap(oldest, copy).expect("unmap");
                        }
                    }
                    began.elapsed().as_nanos() as f64 / rounds as f64
                })
            })
            .collect();
        let times = threads
            .into_iter()
            .map(|thread| thread.join().expect("thread"));
        times.fold(0.0, f64::max)
    })
}
