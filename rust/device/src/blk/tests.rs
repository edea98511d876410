//! virtio 1.3, section 5.2.6: what a request may look like, and what it is answered.

use super::wire::{
    F_DISCARD, F_FLUSH, F_RO, F_SEG_MAX, F_SIZE_MAX, F_WRITE_ZEROES, T_DISCARD, T_FLUSH, T_GET_ID,
    T_IN, T_OUT, T_WRITE_ZEROES,
};
use super::{Execution, Limits, Parsed, Progress, Rules, parse};
use crate::backend::{Backend, Engine, Info, Local, Memory, Token};
use crate::mailbox::{Completer, Mailbox};
use crate::testing::{Guest, Random};
use std::cell::RefCell;
use std::sync::Arc;
use vduse_mem::Fault;
use vduse_ring::{Chain, Segment};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What the status byte holds before the device writes it.
const UNTOUCHED: u8 = 0x5a;
const SECTORS: u64 = 64;
const ALL: u64 = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
const SERIAL: &[u8; 20] = b"serial-number-20-byt";

/// A device of one request at a time.
struct Rig {
    guest: Arc<Guest>,
    engine: Box<dyn Engine>,
    info: Info,
    rules: Rules,
}

/// Where the device-writable bytes of [`Rig::ask`] lie in the guest.
const WRITABLE: u64 = 0x10000;
const GUEST: u64 = 0x20000;

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: u8,
    used: u32,
    data: Vec<u8>,
}

impl Rig {
    fn new() -> Rig {
        let backend = Memory::new(SECTORS * 512).unwrap();
        let local = Local {
            spawner: Default::default(),
            completer: Completer::new(Mailbox::new()),
            uring: RefCell::new(None),
        };
        Rig {
            guest: Guest::new(GUEST),
            engine: backend.attach(&local).unwrap(),
            info: backend.info(),
            rules: Rules {
                limits: Limits {
                    size_max: 4096,
                    seg_max: 4,
                    max_discard_sectors: 16,
                    max_discard_seg: 2,
                    max_write_zeroes_sectors: 8,
                    max_write_zeroes_seg: 2,
                    write_zeroes_may_unmap: true,
                    read_only: false,
                },
                features: ALL,
                capacity: SECTORS,
                read_only: false,
            },
        }
    }

    fn run(&mut self, chain: &Chain) -> Result<Option<u32>, Fault> {
        let mut view = self.guest.view();
        Ok(match parse(chain, &mut view, &self.rules)? {
            Parsed::Short => None,
            Parsed::Refuse(finish, status) => Some(finish.refuse(status).written),
            Parsed::Run(request) => {
                let engine = self.engine.as_mut();
                let (execution, progress) =
                    Execution::start(request, SERIAL, &self.info, engine, Token(7));
                assert_eq!(progress, Progress::Over);
                Some(execution.finish().0.written)
            }
        })
    }

    /// Sends `readable`, cut at `cuts`, with `room` writable bytes cut at `writable_cuts`.
    fn ask_split(
        &mut self,
        readable: &[u8],
        cuts: &[usize],
        room: usize,
        writable_cuts: &[usize],
    ) -> Reply {
        let mut chain = Chain {
            id: 3,
            slots: 1,
            ..Chain::default()
        };
        // Parts lie apart, so that bytes past a part are never taken for the next.
        let (mut at, mut offset) = (0, 16);
        for part in parts(readable.len(), cuts) {
            self.guest.write(offset, &readable[at..at + part]);
            chain.readable.push(Guest::segment(offset, part as u32));
            at += part;
            offset += part as u64 + 3;
        }
        let mut places = Vec::new();
        let mut offset = WRITABLE;
        for part in parts(room, writable_cuts) {
            self.guest.write(offset, &vec![UNTOUCHED; part]);
            chain.writable.push(Guest::segment(offset, part as u32));
            places.push((offset, part as u64));
            offset += part as u64 + 5;
        }
        let used = self.run(&chain).unwrap().unwrap();
        let mut data: Vec<u8> = places
            .iter()
            .flat_map(|&(offset, len)| self.guest.read(offset, len))
            .collect();
        let status = data.pop().unwrap();
        Reply { status, used, data }
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> Reply {
        self.ask_split(&message(kind, sector, data), &[], room, &[])
    }

    /// Status and used length.
    fn answer(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, u32) {
        let reply = self.ask(kind, sector, data, room);
        (reply.status, reply.used)
    }
}

fn message(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xff; 4]); // reserved: not looked at
    bytes.extend(sector.to_le_bytes());
    bytes.extend(data);
    bytes
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn parts(len: usize, cuts: &[usize]) -> Vec<usize> {
    let ends = cuts.iter().copied().chain([len]);
    let mut before = 0;
    ends.map(|end| end - std::mem::replace(&mut before, end))
        .filter(|&part| part > 0)
        .collect()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed)
        .collect()
}

#[test]
fn s2_7_4_any_cut_of_a_write_means_the_same() {
    let data = pattern(1024, 1);
    let whole = message(T_OUT, 5, &data);
    let random = &mut Random::new(1);
    let single = (0..=whole.len()).map(|cut| vec![cut]);
    let many = (0..500).map(|_| random.cuts(1040, 1, 12));
    for cuts in single.chain(many) {
        let mut rig = Rig::new();
        let reply = rig.ask_split(&whole, &cuts, 1, &[]);
        assert_eq!((reply.status, reply.used), (OK, 1), "{cuts:?}");
        assert_eq!(rig.ask(T_IN, 5, &[], 1025).data, data, "{cuts:?}");
    }
}

#[test]
fn s2_7_4_any_cut_of_a_read_means_the_same() {
    let mut rig = Rig::new();
    let data = pattern(1024, 2);
    rig.ask(T_OUT, 9, &data, 1);
    let random = &mut Random::new(2);
    let single = (0..=1025).map(|cut| vec![cut]);
    let many: Vec<Vec<usize>> = (0..500).map(|_| random.cuts(1025, 1, 12)).collect();
    for cuts in single.chain(many) {
        let header_cuts = random.cuts(16, 1, 4);
        let reply = rig.ask_split(&message(T_IN, 9, &[]), &header_cuts, 1025, &cuts);
        let expected = Reply {
            status: OK,
            used: 1025,
            data: data.clone(),
        };
        assert_eq!(reply, expected, "{header_cuts:?} {cuts:?}");
    }
}

#[test]
fn s2_7_4_any_cut_of_ranges_means_the_same() {
    let ranges = [range(0, 1, 0), range(3, 2, 1)].concat();
    let whole = message(T_WRITE_ZEROES, 0, &ranges);
    for cut in 0..=whole.len() {
        let mut rig = Rig::new();
        rig.ask(T_OUT, 0, &pattern(8 * 512, 3), 1);
        let reply = rig.ask_split(&whole, &[cut], 1, &[]);
        assert_eq!((reply.status, reply.used), (OK, 1), "cut at {cut}");
        let mut expected = pattern(8 * 512, 3);
        expected[..512].fill(0);
        expected[3 * 512..5 * 512].fill(0);
        assert_eq!(rig.ask(T_IN, 0, &[], 8 * 512 + 1).data, expected);
    }
}

#[test]
fn s5_2_6_2_ranges_and_lengths() {
    let end = SECTORS;
    let table: &[(u32, u64, usize, usize, u8, u32)] = &[
        // type, sector, bytes out, bytes of room in (with status), status, used length
        (T_IN, 0, 0, 513, OK, 513),
        (T_IN, 0, 0, 1, OK, 1),
        (T_IN, 0, 0, 512, IOERR, 1),
        (T_IN, 0, 0, 512 + 2, IOERR, 1),
        (T_IN, end - 1, 0, 513, OK, 513),
        (T_IN, end, 0, 513, IOERR, 1),
        (T_IN, end - 1, 0, 1025, IOERR, 1),
        (T_IN, u64::MAX, 0, 513, IOERR, 1),
        (T_IN, u64::MAX / 512, 0, 513, IOERR, 1),
        (T_OUT, 0, 512, 1, OK, 1),
        (T_OUT, 0, 512, 9, OK, 1),
        (T_OUT, 0, 511, 1, IOERR, 1),
        (T_OUT, end - 1, 512, 1, OK, 1),
        (T_OUT, end, 512, 1, IOERR, 1),
        (T_OUT, 1 << 55, 512, 1, IOERR, 1),
        (T_FLUSH, 0, 0, 1, OK, 1),
        (T_FLUSH, 99, 0, 1, OK, 1),
        (T_GET_ID, 0, 0, 21, OK, 21),
        (T_GET_ID, 0, 0, 513, OK, 21),
        (T_GET_ID, 0, 0, 20, IOERR, 1),
        (2, 0, 0, 1, UNSUPP, 1),
        (10, 0, 0, 1, UNSUPP, 1),
        (14, 0, 16, 1, UNSUPP, 1),
        (u32::MAX, 0, 0, 1, UNSUPP, 1),
    ];
    for &(kind, sector, out, room, status, used) in table {
        let answer = Rig::new().answer(kind, sector, &pattern(out, 4), room);
        assert_eq!(answer, (status, used), "{kind} {sector} {out} {room}");
    }
}

#[test]
fn s5_2_6_2_discard_and_write_zeroes_limits() {
    /// Sector, sectors, flags.
    type Ranges = &'static [(u64, u32, u32)];
    let table: &[(u32, Ranges, u8)] = &[
        (T_DISCARD, &[(0, 16, 0)], OK),
        (T_DISCARD, &[(0, 0, 0)], OK),
        (T_DISCARD, &[(0, 16, 0), (20, 1, 0)], OK),
        (T_DISCARD, &[(0, 1, 0), (1, 1, 0), (2, 1, 0)], IOERR),
        (T_DISCARD, &[(0, 17, 0)], IOERR),
        (T_DISCARD, &[(SECTORS - 1, 2, 0)], IOERR),
        (T_DISCARD, &[(u64::MAX, 1, 0)], IOERR),
        (T_DISCARD, &[(0, 1, 1)], UNSUPP),
        (T_DISCARD, &[(0, 1, 2)], UNSUPP),
        (T_DISCARD, &[(0, 1, 0), (1, 1, 1)], UNSUPP),
        (T_DISCARD, &[], IOERR),
        (T_WRITE_ZEROES, &[(0, 8, 0)], OK),
        (T_WRITE_ZEROES, &[(0, 8, 1)], OK),
        (T_WRITE_ZEROES, &[(0, 9, 0)], IOERR),
        (T_WRITE_ZEROES, &[(0, 8, 2)], UNSUPP),
        (T_WRITE_ZEROES, &[(SECTORS, 1, 0)], IOERR),
        (T_WRITE_ZEROES, &[(0, 1, 0), (1, 1, 0), (2, 1, 0)], IOERR),
    ];
    for (kind, ranges, status) in table {
        let data: Vec<u8> = ranges
            .iter()
            .flat_map(|&(sector, sectors, flags)| range(sector, sectors, flags))
            .collect();
        let answer = Rig::new().answer(*kind, 0, &data, 1);
        assert_eq!(answer, (*status, 1), "{kind} {ranges:?}");
    }
    let answer = Rig::new().answer(T_DISCARD, 0, &range(0, 1, 0)[..15], 1);
    assert_eq!(answer, (IOERR, 1), "half a range");
}

#[test]
fn s5_2_6_2_what_was_not_negotiated_is_unsupported() {
    let mut rig = Rig::new();
    rig.rules.features = F_FLUSH;
    assert_eq!(rig.answer(T_DISCARD, 0, &range(0, 1, 0), 1), (UNSUPP, 1));
    assert_eq!(
        rig.answer(T_WRITE_ZEROES, 0, &range(0, 1, 0), 1),
        (UNSUPP, 1)
    );
}

#[test]
fn s5_2_6_2_a_read_only_disk_takes_no_write() {
    for by_feature in [true, false] {
        let mut rig = Rig::new();
        rig.ask(T_OUT, 0, &pattern(512, 5), 1);
        if by_feature {
            rig.rules.features |= F_RO;
        } else {
            rig.rules.read_only = true;
        }
        assert_eq!(rig.answer(T_OUT, 0, &[0; 512], 1), (IOERR, 1));
        assert_eq!(rig.answer(T_DISCARD, 0, &range(0, 1, 0), 1), (IOERR, 1));
        assert_eq!(
            rig.answer(T_WRITE_ZEROES, 0, &range(0, 1, 0), 1),
            (IOERR, 1)
        );
        assert_eq!(rig.ask(T_IN, 0, &[], 513).data, pattern(512, 5));
    }
}

#[test]
fn s5_2_4_seg_max_and_size_max_hold_when_negotiated() {
    let five = [1024, 2048, 3072, 4096];
    let whole = message(T_IN, 0, &[]);
    let mut rig = Rig::new();
    assert_eq!(rig.ask_split(&whole, &[], 5121, &five).status, OK);
    assert_eq!(rig.answer(T_IN, 0, &[], 8193), (OK, 8193));
    rig.rules.features |= F_SEG_MAX | F_SIZE_MAX;
    assert_eq!(rig.ask_split(&whole, &[], 5121, &five).status, IOERR);
    assert_eq!(rig.ask_split(&whole, &[], 4097, &five[..3]).status, OK);
    // The status byte is no data segment.
    assert_eq!(rig.ask_split(&whole, &[], 4097, &five).status, OK);
    assert_eq!(rig.answer(T_IN, 0, &[], 4097), (OK, 4097));
    assert_eq!(rig.answer(T_IN, 0, &[], 4609), (IOERR, 1));
}

#[test]
fn s5_2_6_get_id_answers_the_serial() {
    let reply = Rig::new().ask(T_GET_ID, 0, &[], 21);
    assert_eq!(reply.data, SERIAL);
}

#[test]
fn s5_2_6_a_short_header_is_an_error_with_a_status() {
    for len in 0..16 {
        let reply = Rig::new().ask_split(&message(T_IN, 0, &[])[..len], &[], 513, &[]);
        assert_eq!((reply.status, reply.used), (IOERR, 1), "{len} bytes");
    }
}

#[test]
fn a_chain_without_room_for_a_status_is_used_with_length_0() {
    let mut rig = Rig::new();
    rig.guest.write(0, &message(T_FLUSH, 0, &[]));
    let mut chain = Chain::default();
    chain.readable.push(Guest::segment(0, 16));
    assert_eq!(rig.run(&chain), Ok(None));
}

fn read_chain(header: Segment, data: Segment, status: Segment) -> Chain {
    let mut chain = Chain::default();
    chain.readable.push(header);
    chain.writable.push(data);
    chain.writable.push(status);
    chain
}

#[test]
fn data_or_header_outside_the_iotlb_is_an_error_with_a_status() {
    let mut rig = Rig::new();
    rig.guest.write(0, &message(T_IN, 0, &[]));
    let (header, data, status) = (
        Guest::segment(0, 16),
        Guest::segment(512, 512),
        Guest::segment(2048, 1),
    );
    let outside = Guest::segment(GUEST, 512);
    for chain in [
        read_chain(header, outside, status),
        read_chain(outside, data, status),
    ] {
        rig.guest.write(2048, &[UNTOUCHED]);
        assert_eq!(rig.run(&chain), Ok(Some(1)));
        assert_eq!(rig.guest.read(2048, 1), [IOERR]);
    }
    let chain = read_chain(header, data, outside);
    assert!(matches!(rig.run(&chain), Err(Fault::Unmapped(_))));
}
