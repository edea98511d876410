//! Reads that mix, on direct and detachable engines, and a model.

use super::*;
use crate::SECTOR_SIZE;
use crate::backend::{Backend, Kind, Memory};
use crate::layers::testing::{Bench, extent};
use crate::layers::{Delay, Layered, OpKind, Pause};
use crate::testing::{Random, buffer, status_of};
use std::time::Duration;

const SIZE: usize = 1 << 20;

fn write(bench: &mut Bench, offset: usize, mut bytes: Vec<u8>, cuts: &[usize]) {
    let extent = extent(offset as u64, bytes.len() as u64);
    // SAFETY: a write to an overlay has ended when `submit` returns.
    let buffer = unsafe { buffer(&mut bytes, cuts) };
    let op = Op::Write { extent, buffer };
    assert_eq!(bench.engine.submit(Token(1), op), Submitted::Done(Ok(())));
}

/// A read of `bytes`, which outlive it.
unsafe fn read(offset: usize, bytes: &mut [u8], cuts: &[usize]) -> Op {
    Op::Read {
        extent: extent(offset as u64, bytes.len() as u64),
        // SAFETY: the caller's promise.
        buffer: unsafe { buffer(bytes, cuts) },
    }
}

fn completion(data: Option<Vec<u8>>, result: Result<(), Errno>) -> Completion {
    Completion {
        token: Token(2),
        result,
        data,
    }
}

/// Sectors 0 to 3: base, overlay, zeroes, base; `base` says what the base has.
fn mixed(base: u8) -> Vec<u8> {
    [base, 7, 0, base].iter().flat_map(|&b| [b; 512]).collect()
}

fn bench(kind: Kind) -> Bench {
    let mut bench = Bench::new(Overlay::default(), kind);
    write(&mut bench, 512, vec![7; 1024], &[100, 600]);
    let extent = extent(1024, 512);
    let op = Op::Discard { extent };
    assert_eq!(bench.engine.submit(Token(1), op), Submitted::Done(Ok(())));
    assert_eq!(
        bench.engine.submit(Token(1), Op::Flush),
        Submitted::Done(Ok(()))
    );
    assert_eq!(bench.reached(), [""; 0]);
    bench
}

#[test]
fn a_mixed_read_of_a_direct_base_is_put_together_in_guest_memory() {
    let mut bench = bench(Kind::Direct);
    let mut bytes = vec![0; 2048];
    // SAFETY: the bytes outlive the bench's use of them.
    let op = unsafe { read(0, &mut bytes, &[3, 700, 1500]) };
    assert_eq!(bench.engine.submit(Token(2), op), Submitted::Pending);
    assert_eq!(bench.reached(), ["2 read 0"]);
    bytes.fill(9); // the engine beneath
    bench.engine.completed(&mut completion(None, Ok(())));
    assert_eq!(bytes, mixed(9));
    assert_eq!(bench.reached(), ["completed 2"]);
}

#[test]
fn a_mixed_read_of_a_detachable_base_is_put_together_in_its_data() {
    let mut bench = bench(Kind::Detachable);
    let mut bytes = vec![0; 2048];
    // SAFETY: the bytes outlive the bench's use of them.
    let op = unsafe { read(0, &mut bytes, &[]) };
    assert_eq!(bench.engine.submit(Token(2), op), Submitted::Pending);
    let mut end = completion(Some(vec![9; 2048]), Ok(()));
    bench.engine.completed(&mut end);
    assert_eq!(end.data, Some(mixed(9)));
    assert_eq!(bytes, [0; 2048]);
}

#[test]
fn nothing_is_put_into_a_read_that_failed_or_was_given_up() {
    for (is_cancelled, result) in [(false, Err(Errno::IO)), (true, Ok(()))] {
        let mut bench = bench(Kind::Direct);
        let mut bytes = vec![1; 2048];
        // SAFETY: the bytes outlive the bench's use of them.
        let op = unsafe { read(0, &mut bytes, &[]) };
        bench.engine.submit(Token(2), op);
        if is_cancelled {
            bench.engine.cancel(Token(2));
            assert_eq!(bench.reached(), ["2 read 0", "cancel 2"]);
        }
        let mut end = completion(None, result);
        bench.engine.completed(&mut end);
        assert_eq!((end.result, bytes), (result, vec![1; 2048]));
    }
}

#[test]
fn data_that_is_too_short_is_an_error() {
    let mut bench = bench(Kind::Detachable);
    let mut bytes = vec![1; 2048];
    // SAFETY: the bytes outlive the bench's use of them.
    let op = unsafe { read(0, &mut bytes, &[]) };
    bench.engine.submit(Token(2), op);
    let mut end = completion(Some(vec![9; 600]), Ok(()));
    bench.engine.completed(&mut end);
    assert_eq!(end.result, Err(Errno::IO));
}

#[test]
fn what_the_layer_beneath_held_back_is_put_together_too() {
    let hour = Duration::from_secs(3600);
    let mut pauses = [Pause::default(); OpKind::ALL.len()];
    pauses[OpKind::Read as usize] = Pause {
        least: hour,
        most: hour,
    };
    let memory = Arc::new(Memory::new(SIZE as u64).unwrap());
    let delayed = Arc::new(Layered::new(memory, Delay::new(pauses, 0)));
    let mut bench = Bench::on(delayed, Overlay::default());
    write(&mut bench, 512, vec![7; 512], &[]);
    let mut bytes = vec![9; 2048];
    // SAFETY: the bytes outlive the bench's use of them.
    let op = unsafe { read(0, &mut bytes, &[]) };
    assert_eq!(bench.engine.submit(Token(2), op), Submitted::Pending);
    let due = bench.engine.deadline().unwrap();
    assert_eq!(bench.expire(due), [(2, Ok(()))]);
    assert_eq!(bytes, mixed(0));
}

#[test]
fn random_operations_leave_what_a_model_says() {
    let mut random = Random::new(11);
    let memory = Arc::new(Memory::new(SIZE as u64).unwrap());
    let mut base = Bench::on(memory.clone(), Overlay::default());
    let mut model = vec![0; SIZE];
    for round in 0..2_000 {
        let count = 1 + random.below(700);
        let sector = random.below(SIZE as u64 / SECTOR_SIZE - count);
        let (offset, len) = (sector as usize * 512, count as usize * 512);
        let cuts = random.cuts(len, 1, 3);
        match random.below(5) {
            0 | 1 => {
                let bytes = vec![(round % 251) as u8 + 1; len];
                model[offset..offset + len].copy_from_slice(&bytes);
                write(&mut base, offset, bytes, &cuts);
            }
            2 => {
                let extent = extent(offset as u64, len as u64);
                model[offset..offset + len].fill(0);
                let op = Op::WriteZeroes {
                    extent,
                    may_unmap: true,
                };
                assert_eq!(base.engine.submit(Token(1), op), Submitted::Done(Ok(())));
            }
            _ => {
                let mut bytes = vec![0xee; len];
                // SAFETY: the memory backend answers at once.
                let op = unsafe { read(offset, &mut bytes, &cuts) };
                assert_eq!(base.engine.submit(Token(1), op), Submitted::Done(Ok(())));
                assert!(bytes == model[offset..offset + len], "{offset} {len}");
            }
        }
    }
    let local = &base.local;
    let mut bytes = vec![1; SIZE];
    // SAFETY: the memory backend answers at once.
    let op = unsafe { read(0, &mut bytes, &[]) };
    memory.attach(local).unwrap().submit(Token(1), op);
    assert_eq!(bytes, vec![0; SIZE]);
}

#[test]
fn what_it_holds_lies_over_what_is_beneath() {
    let memory = Arc::new(Memory::new(SIZE as u64).unwrap());
    let below = Layered::new(memory.clone(), Overlay::default());
    let mut base = Bench::on(memory, crate::layers::ReadOnly);
    write(&mut base, 8192, vec![1; 8192], &[]);
    let (data, hole) = (
        |len| Piece::data(Length(len)),
        |len| Piece::hole(Length(len)),
    );
    let all = extent(0, SIZE as u64);
    let rest = SIZE as u64 - 16384;
    let beneath = vec![hole(8192), data(8192), hole(rest)];
    assert_eq!(status_of(&below, all, 9), Ok(beneath));
    let mut engine = below.attach(&base.local).unwrap();
    let mut submit = |op| assert_eq!(engine.submit(Token(1), op), Submitted::Done(Ok(())));
    let mut bytes = vec![7; 1024];
    submit(Op::Write {
        extent: extent(512, 1024),
        // SAFETY: a write to an overlay has ended when `submit` returns.
        buffer: unsafe { buffer(&mut bytes, &[]) },
    });
    submit(Op::Discard {
        extent: extent(8192, 4096),
    });
    submit(Op::Discard {
        extent: extent(SIZE as u64 / 2, SIZE as u64 / 4),
    });
    let told = vec![
        hole(512),
        data(1024),
        hole(12288 - 1536),
        data(4096),
        hole(rest),
    ];
    assert_eq!(status_of(&below, all, 9), Ok(told.clone()));
    assert_eq!(status_of(&below, all, 2), Ok(told[..2].to_vec()));
    let within = extent(1024, 1024);
    assert_eq!(status_of(&below, within, 9), Ok(vec![data(512), hole(512)]));
}
