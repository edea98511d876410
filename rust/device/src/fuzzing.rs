//! Entry function of the fuzz target: bytes are what was negotiated and then what a driver of
//! any kind writes. It panics where its invariant is broken.

use crate::Limits;
use crate::backend::{Backend, Engine, Info, Local, Memory, Op, Submitted, Token};
use crate::blk::{Execution, Parsed, Progress, Rules, Used, parse};
use crate::mailbox::{Completer, Mailbox};
use crate::testing::{BASE, Guest, buffer};
use crate::{Extent, Length, Offset};
use std::cell::RefCell;
use std::sync::Arc;
use vduse_mem::{Access, Iova, View};
use vduse_ring::fuzzing::Input;
use vduse_ring::{Areas, Chain, DeviceQueue, Layout, QueueState};

/// Steps of an input; the corpus is written with them.
pub(crate) mod step {
    /// Index, offset (2 bytes), length (2), flags, next or id: a descriptor.
    pub(crate) const DESC: u8 = 0;
    /// Offset (2 bytes), count, bytes: into the part of the memory that holds no ring.
    pub(crate) const BYTES: u8 = 1;
    /// Head: offers it. A packed ring's lap is in the descriptors' flags.
    pub(crate) const OFFER: u8 = 2;
    /// The device serves what there is; so does every other value.
    #[cfg(test)]
    pub(crate) const SERVE: u8 = 3;
}

/// Bits of an input's first byte.
pub(crate) mod config {
    pub(crate) const PACKED: u8 = 1;
    pub(crate) const READ_ONLY: u8 = 2;
    pub(crate) const NO_INDIRECT: u8 = 4;
    pub(crate) const NO_DISCARD: u8 = 8;
    pub(crate) const NO_LIMITS: u8 = 16;
}

const SIZE: u16 = 16;
const SECTORS: u64 = 16;
/// Offsets in the guest's memory: the ring's areas, and where the rest starts and ends.
const AREAS: [u64; 3] = [0, 0x400, 0x600];
pub(crate) const FREE: u64 = 0x1000;
const MAPPED: u64 = 0x8000;
/// Behind the mapped part lies memory that nobody may touch.
const WHOLE: u64 = 0x9000;
const GUARD: u8 = 0xA5;

/// VIRTIO_BLK_F_: SIZE_MAX and SEG_MAX; FLUSH, DISCARD, WRITE_ZEROES.
const LIMITED: u64 = 1 << 1 | 1 << 2;
const FLUSHES: u64 = 1 << 9;
const DISCARDS: u64 = 1 << 13 | 1 << 14;

struct Disk {
    guest: Arc<Guest>,
    view: View,
    ring: DeviceQueue,
    rules: Rules,
    info: Info,
    engine: Box<dyn Engine>,
    layout: Layout,
    /// avail.idx of a split ring.
    offered: u16,
}

impl Disk {
    fn new(bits: u8) -> Disk {
        let has = |bit| bits & bit != 0;
        let guest = Guest::new(WHOLE);
        guest.map_only(MAPPED);
        guest.write(MAPPED, &[GUARD; (WHOLE - MAPPED) as usize]);
        let layout = Layout {
            size: SIZE,
            packed: has(config::PACKED),
            event_idx: false,
            indirect: !has(config::NO_INDIRECT),
        };
        let mut view = guest.view();
        let sizes = layout.area_sizes();
        let mut area = |index: usize, access| {
            view.pinned(Iova(BASE + AREAS[index]), sizes[index], access)
                .expect("a ring in mapped memory")
        };
        let areas = Areas {
            desc: area(0, Access::Write),
            driver: area(1, Access::Read),
            device: area(2, Access::Write),
        };
        let state = QueueState::initial(layout.packed);
        let backend = Memory::new(SECTORS * 512).expect("a small disk");
        let local = Local {
            spawner: Default::default(),
            completer: Completer::new(Mailbox::new()),
            uring: RefCell::new(None),
        };
        let discards = if has(config::NO_DISCARD) { 0 } else { DISCARDS };
        let limited = if has(config::NO_LIMITS) { 0 } else { LIMITED };
        Disk {
            ring: DeviceQueue::new(layout, areas, state).expect("a legal ring"),
            rules: Rules {
                limits: Limits {
                    size_max: 4096,
                    seg_max: 8,
                    max_discard_sectors: 8,
                    max_discard_seg: 2,
                    max_write_zeroes_sectors: 8,
                    max_write_zeroes_seg: 2,
                    write_zeroes_may_unmap: true,
                    read_only: has(config::READ_ONLY),
                },
                features: FLUSHES | discards | limited,
                capacity: SECTORS,
                read_only: has(config::READ_ONLY),
            },
            info: backend.info(),
            engine: backend.attach(&local).expect("an engine"),
            layout,
            offered: 0,
            guest,
            view,
        }
    }

    fn describe(&self, input: &mut Input<'_>) {
        let index = u64::from(u16::from(input.byte()) % SIZE);
        let (offset, len) = (u64::from(input.word()), u32::from(input.word()));
        let (flags, tag) = (input.byte(), input.byte());
        // Bits 0 to 2 are NEXT, WRITE, INDIRECT; bit 3: an address at the end of all.
        let addr = if flags & 8 == 0 {
            BASE + offset
        } else {
            u64::MAX - offset
        };
        let flags = u16::from(flags & 7) | u16::from(flags & 16) << 3 | u16::from(flags & 32) << 10;
        let (third, fourth) = if self.layout.packed {
            (u16::from(tag), flags)
        } else {
            (flags, u16::from(tag))
        };
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(third.to_le_bytes());
        bytes.extend(fourth.to_le_bytes());
        self.guest.write(AREAS[0] + index * 16, &bytes);
    }

    fn poke(&self, input: &mut Input<'_>) {
        let offset = u64::from(input.word()) % (MAPPED - FREE);
        let count = usize::from(input.byte()).min((MAPPED - FREE - offset) as usize);
        self.guest.write(FREE + offset, input.bytes(count));
    }

    fn offer(&mut self, head: u8) {
        if !self.layout.packed {
            let entry = AREAS[1] + 4 + 2 * u64::from(self.offered % SIZE);
            self.guest.write(entry, &u16::from(head).to_le_bytes());
            self.offered = self.offered.wrapping_add(1);
            self.guest.write(AREAS[1] + 2, &self.offered.to_le_bytes());
        }
    }

    /// Serves one batch; false where the device stops.
    fn serve(&mut self) -> bool {
        let mut chain = Chain::default();
        for _ in 0..SIZE {
            match self.ring.pop(&mut self.view, &mut chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return false,
            }
            let room: u64 = chain.writable.iter().map(|at| u64::from(at.len)).sum();
            let Ok(used) = self.answer(&chain) else {
                return false;
            };
            assert!(u64::from(used.written) <= room, "more than there is room");
            self.ring.complete(used.id, used.slots, used.written);
        }
        self.ring.publish();
        assert_eq!(self.ring.in_flight(), 0);
        true
    }

    fn answer(&mut self, chain: &Chain) -> Result<Used, vduse_mem::Fault> {
        Ok(match parse(chain, &mut self.view, &self.rules)? {
            Parsed::Short => Used {
                id: chain.id,
                slots: chain.slots,
                written: 0,
            },
            Parsed::Refuse(finish, status) => finish.refuse(status),
            Parsed::Run(request) => {
                let engine = self.engine.as_mut();
                let (execution, progress) =
                    Execution::start(request, &[b'x'; 20], &self.info, engine, Token(1));
                assert_eq!(progress, Progress::Over);
                execution.finish().0
            }
        })
    }

    fn contents(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; (SECTORS * 512) as usize];
        let extent = Extent::new(Offset(0), Length(SECTORS * 512)).expect("the disk");
        // SAFETY: the engine is done with `bytes` when `submit` returns.
        let buffer = unsafe { buffer(&mut bytes, &[]) };
        match self.engine.submit(Token(2), Op::Read { extent, buffer }) {
            Submitted::Done(Ok(())) => bytes,
            _ => panic!("a memory disk reads at once"),
        }
    }
}

/// Any bytes from a driver: every request is answered within its room or the device stops; no
/// panic, no access outside the mapped memory, no change of a read-only disk.
pub fn blk_request(data: &[u8]) {
    let mut input = Input::new(data);
    let mut disk = Disk::new(input.byte());
    while !input.is_empty() {
        match input.byte() % 4 {
            step::DESC => disk.describe(&mut input),
            step::BYTES => disk.poke(&mut input),
            step::OFFER => disk.offer(input.byte()),
            _ if disk.serve() => {}
            _ => break,
        }
    }
    let guard = disk.guest.read(MAPPED, WHOLE - MAPPED);
    assert!(
        guard.iter().all(|byte| *byte == GUARD),
        "memory not mapped was written"
    );
    if disk.rules.read_only {
        assert!(
            disk.contents().iter().all(|byte| *byte == 0),
            "a read-only disk was written"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{FREE, blk_request, config, step};
    use vduse_ring::fuzzing::corpus;

    const NEXT: u8 = 1;
    const WRITE: u8 = 2;
    const INDIRECT: u8 = 4;
    const AVAIL: u8 = 16;

    /// Where headers, data and tables of the seeds lie.
    const HEAD: u16 = FREE as u16;
    const DATA: u16 = HEAD + 0x1000;
    const END: u16 = HEAD + 0x800;
    const TABLE: u16 = HEAD + 0x400;

    fn desc(index: u8, offset: u16, len: u16, flags: u8, tag: u8) -> Vec<u8> {
        let ([low, high], [short, long]) = (offset.to_le_bytes(), len.to_le_bytes());
        vec![step::DESC, index, low, high, short, long, flags, tag]
    }

    fn bytes(offset: u16, bytes: &[u8]) -> Vec<u8> {
        let [low, high] = (offset - HEAD).to_le_bytes();
        [&[step::BYTES, low, high, bytes.len() as u8], bytes].concat()
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        bytes(
            HEAD,
            &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
        )
    }

    fn serve(head: u8) -> Vec<u8> {
        vec![step::OFFER, head, step::SERVE]
    }

    fn seed(bits: u8, steps: &[Vec<u8>]) -> Vec<u8> {
        [vec![bits], steps.concat()].concat()
    }

    /// Header, data and status in a descriptor each; a lap of packed descriptors.
    fn chain(data_len: u16, data_flags: u8, lap: u8) -> Vec<u8> {
        [
            desc(0, HEAD, 16, NEXT | lap, 1),
            desc(1, DATA, data_len, NEXT | data_flags | lap, 2),
            desc(2, END, 1, WRITE | lap, 0),
        ]
        .concat()
    }

    fn range() -> Vec<u8> {
        bytes(DATA, &[2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0])
    }

    fn table() -> Vec<u8> {
        let entry = |offset: u16, len: u8, flags: u8, next: u8| {
            let mut entry = (super::BASE + u64::from(offset)).to_le_bytes().to_vec();
            entry.extend([len, 0, 0, 0, flags, 0, next, 0]);
            entry
        };
        bytes(
            TABLE,
            &[entry(HEAD, 16, NEXT, 1), entry(END, 1, WRITE, 0)].concat(),
        )
    }

    #[test]
    fn corpus_blk_request() {
        let read = [header(0, 3), chain(1024, WRITE, 0), serve(0)].concat();
        let write = [
            header(1, 5),
            bytes(DATA, &[7; 64]),
            chain(512, 0, 0),
            serve(0),
        ]
        .concat();
        let packed = [header(0, 1), chain(512, WRITE, AVAIL), vec![step::SERVE]].concat();
        let flush = [desc(0, HEAD, 16, NEXT, 1), desc(1, END, 1, WRITE, 0)].concat();
        let indirect = [
            header(4, 0),
            table(),
            desc(0, TABLE, 32, INDIRECT, 0),
            serve(0),
        ]
        .concat();
        let seeds = vec![
            ("read", seed(0, std::slice::from_ref(&read))),
            ("write_then_read", seed(0, &[write.clone(), read])),
            ("write_read_only", seed(config::READ_ONLY, &[write])),
            ("packed_read", seed(config::PACKED, &[packed])),
            ("flush", seed(0, &[header(4, 0), flush.clone(), serve(0)])),
            ("indirect_flush", seed(0, std::slice::from_ref(&indirect))),
            ("indirect_refused", seed(config::NO_INDIRECT, &[indirect])),
            (
                "get_id",
                seed(0, &[header(8, 0), chain(20, WRITE, 0), serve(0)]),
            ),
            (
                "discard",
                seed(0, &[header(11, 0), range(), chain(16, 0, 0), serve(0)]),
            ),
            (
                "write_zeroes",
                seed(
                    config::NO_LIMITS,
                    &[header(13, 0), range(), chain(16, 0, 0), serve(0)],
                ),
            ),
            (
                "unsupported",
                seed(
                    config::NO_DISCARD,
                    &[header(11, 0), range(), chain(16, 0, 0), serve(0)],
                ),
            ),
            (
                "address_at_the_end",
                seed(
                    0,
                    &[
                        header(0, 0),
                        desc(0, 8, 16, NEXT | 8, 1),
                        desc(1, END, 1, WRITE, 0),
                        serve(0),
                    ],
                ),
            ),
        ];
        corpus("blk_request", blk_request, seeds);
    }
}
