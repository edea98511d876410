//! The corpora of the fuzz targets, run here as they are and mutated.

use crate::fuzzing::{corpus, driver_used, inflight_recover, packed_device, split_device, step};
use crate::layout::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use crate::testing::{BASE, DESC, DEVICE, DRIVER, RECORD, SCRATCH};

/// Where the page for indirect tables lies with few descriptors: five pages in.
const TABLE: u64 = BASE + 5 * 4096;

fn poke(part: usize, offset: u16, bytes: &[u8]) -> Vec<u8> {
    let [low, high] = offset.to_le_bytes();
    let mut step = vec![step::POKE, part as u8, low, high, bytes.len() as u8];
    step.extend(bytes);
    step
}

/// A descriptor: `third` and `fourth` are flags and next (split) or id and flags (packed).
fn desc(part: usize, index: u16, addr: u64, len: u32, third: u16, fourth: u16) -> Vec<u8> {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(third.to_le_bytes());
    bytes.extend(fourth.to_le_bytes());
    poke(part, index * 16, &bytes)
}

/// Takes, completes and publishes twice, with kicks on and off between.
fn serve() -> Vec<u8> {
    use step::{COMPLETE, ENABLE, POP, PUBLISH, SUPPRESS};
    vec![
        SUPPRESS, POP, POP, POP, COMPLETE, 1, 4, 0, PUBLISH, ENABLE, POP, COMPLETE, 0, 0, 0,
        PUBLISH,
    ]
}

fn input(config: u8, steps: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![config];
    bytes.extend(steps.concat());
    bytes
}

#[test]
fn corpus_split_device() {
    let offer = |count: u8| {
        let heads = [0u16, 1, 2, 3].map(u16::to_le_bytes).concat();
        [poke(DRIVER, 4, &heads), vec![step::OFFER, count]].concat()
    };
    let (next, write, indirect) = (DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT);
    let chain = [
        desc(DESC, 0, 0x1000, 16, next, 2),
        desc(DESC, 1, 0x2000, 8, write, 0),
        desc(DESC, 2, 0x3000, 8, next | write, 3),
        desc(DESC, 3, 0x4000, 1, write, 0),
    ]
    .concat();
    let table = [
        desc(DESC, 0, TABLE, 48, indirect, 0),
        desc(SCRATCH, 0, 0x1000, 16, next, 1),
        desc(SCRATCH, 1, 0x1000, 16, next | write, 2),
        desc(SCRATCH, 2, 0x1000, 1, write, 0),
    ]
    .concat();
    let looped = [
        desc(DESC, 0, 0x1000, 16, next, 1),
        desc(DESC, 1, 0x1000, 16, next, 0),
    ]
    .concat();
    let seeds = vec![
        ("chains", input(0x20, &[chain.clone(), offer(2), serve()])),
        (
            "event_idx",
            input(0x21, &[chain.clone(), offer(2), serve(), offer(1), serve()]),
        ),
        ("indirect", input(0x32, &[table, offer(1), serve()])),
        ("loop", input(0x20, &[looped, offer(1), serve()])),
        (
            "index_jumps",
            input(0x20, &[chain, poke(DRIVER, 2, &[9, 0]), serve()]),
        ),
    ];
    corpus("split_device", split_device, seeds);
}

#[test]
fn corpus_packed_device() {
    let avail = DESC_F_AVAIL;
    let (next, write, indirect) = (DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT);
    let chain = [
        desc(DESC, 0, 0x1000, 16, 0, avail | next),
        desc(DESC, 1, 0x2000, 8, 5, avail | write),
        desc(DESC, 2, 0x3000, 8, 6, avail),
    ]
    .concat();
    let table = [
        desc(DESC, 0, TABLE, 32, 1, avail | indirect),
        desc(SCRATCH, 0, 0x1000, 16, 0, 0),
        desc(SCRATCH, 1, 0x1000, 16, 0, write),
    ]
    .concat();
    let lap = [vec![step::OFFER, 0], serve(), vec![step::OFFER, 1], serve()].concat();
    let seeds = vec![
        ("chains", input(0x30, &[chain.clone(), serve()])),
        (
            "event_idx",
            input(0x31, &[chain.clone(), serve(), lap.clone()]),
        ),
        ("indirect", input(0x32, &[table, serve()])),
        ("odd_size", input(0x20, &[chain, serve(), lap])),
    ];
    corpus("packed_device", packed_device, seeds);
}

#[test]
fn corpus_inflight_recover() {
    let in_part = |part: u8, offset: u16, bytes: &[u8]| {
        // The step's number is not part of this target's input.
        poke(part.into(), offset, bytes)[1..].to_vec()
    };
    let record = RECORD as u8;
    let head = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 2, 0, 1, 0];
    let open = [1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    let split = [
        vec![0, 0x20, 1, 4],
        in_part(record, 0, &head),
        in_part(record, 16, &open),
        in_part(DEVICE as u8, 2, &[2, 0]),
        in_part(DESC as u8, 0, &[0, 16, 0, 0, 0, 0, 0, 0, 8]),
        vec![1; 16],
    ];
    let entry = [1, 0, 1, 0, 0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    let copy = [1, 0, 0x80, 0, 8, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0];
    let packed = [
        vec![1, 0x30, 1, 3],
        in_part(record, 12, &[1, 0, 1, 0, 0, 0, 0, 0, 1, 1]),
        in_part(record, 32, &[entry, copy].concat()),
        in_part(DESC as u8, 14, &[0x80, 0x80]),
        vec![1; 16],
    ];
    let seeds = vec![
        ("split", split.concat()),
        ("split_fresh", vec![0, 0x20, 0, 0]),
        ("packed", packed.concat()),
        ("packed_fresh", vec![1, 0x30, 0, 0]),
    ];
    corpus("inflight_recover", inflight_recover, seeds);
}

#[test]
fn corpus_driver_used() {
    use step::{ADD, ENABLE, POKE, POP, PUBLISH, SUPPRESS};
    let requests = vec![ADD, 7, 1, 1, ADD, 15, 2, 1, ENABLE, PUBLISH];
    let reap = vec![POP, POP, SUPPRESS, POP, ENABLE, POP];
    // The second part of this target's pokes is the device area.
    let split = vec![
        POKE, 1, 2, 0, 18, 2, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0,
    ];
    let packed = vec![POKE, 0, 8, 0, 8, 8, 0, 0, 0, 0, 0, 0x82, 0x80];
    let one = |format: u8, config: u8, used: &Vec<u8>| {
        let steps = [requests.clone(), used.clone(), reap.clone()].concat();
        [vec![format, config], steps].concat()
    };
    let seeds = vec![
        ("split", one(0, 0x30, &split)),
        ("split_indirect", one(0, 0x33, &split)),
        ("packed", one(1, 0x50, &packed)),
        ("packed_indirect", one(1, 0x53, &packed)),
    ];
    corpus("driver_used", driver_used, seeds);
}
