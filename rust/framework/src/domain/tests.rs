//! Properties of the domain, by a small deterministic random model, and its spec rows.

use super::*;
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;

/// xorshift64*: the same sequence in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

fn buffer(bytes: &mut [u8]) -> Buffer {
    // SAFETY: the tests keep `bytes` longer than the mapping, and do not touch it meanwhile.
    unsafe { Buffer::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len()) }
}

/// What a device would see.
fn device_read(domain: &Domain, iova: Iova, len: usize) -> Vec<u8> {
    let mut seen = vec![0; len];
    rustix::io::pread(domain, &mut seen, iova.0).unwrap();
    seen
}

fn device_write(domain: &Domain, iova: Iova, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(domain, bytes, iova.0), Ok(bytes.len()));
}

#[test]
fn bounce_size_is_whole_pages_from_1_mib_to_1_gib() {
    for size in [0, MIB - 4096, MIB + 1, (1 << 30) + 4096] {
        assert_eq!(
            Domain::new(size).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
    assert_eq!(Domain::new(MIB).unwrap().bounce_size(), MIB);
}

#[test]
fn the_bounce_entry_appears_with_the_first_map_and_goes_at_reset() {
    let domain = Domain::new(MIB).unwrap();
    let rings = domain.alloc_coherent(5000).unwrap();
    let coherent = Entry {
        start: Iova(MIB),
        last: Iova(MIB + 8191),
        offset: MIB,
        perm: Perm::Rw,
    };
    assert_eq!(domain.entries(), [coherent]);
    let mut bytes = vec![0; 10];
    let mapping = domain.map(buffer(&mut bytes), Direction::ToDevice).unwrap();
    let bounce = Entry {
        start: Iova(0),
        last: Iova(MIB - 1),
        offset: 0,
        perm: Perm::Rw,
    };
    assert_eq!(domain.entries(), [bounce, coherent]);
    domain.unmap(mapping, false).unwrap();
    domain.reset_bounce_map();
    assert_eq!(domain.entries(), [coherent]);
    domain.free_coherent(rings);
    assert_eq!(domain.entries(), []);
}

#[test]
fn coherent_memory_has_real_pages_and_comes_back_zeroed() {
    let domain = Domain::new(MIB).unwrap();
    let memory = domain.alloc_coherent(4096).unwrap();
    assert_eq!(domain.stats().unwrap().coherent, 4096);
    device_write(&domain, memory.iova, &[1; 4096]);
    domain.free_coherent(memory);
    let again = domain.alloc_coherent(4096).unwrap();
    assert_eq!(device_read(&domain, again.iova, 4096), vec![0; 4096]);
    assert_eq!(domain.stats().unwrap().bounce_allocated, 0);
}

#[test]
fn data_is_copied_at_map_and_unmap_by_direction() {
    let domain = Domain::new(MIB).unwrap();
    let cases = [
        (Direction::ToDevice, 1, 1),
        (Direction::FromDevice, 0, 2),
        (Direction::Bidirectional, 1, 2),
    ];
    for (direction, device_sees, driver_gets) in cases {
        domain.reclaim(None).unwrap();
        let mut bytes = vec![1u8; 5000];
        let mapping = domain.map(buffer(&mut bytes), direction).unwrap();
        let iova = mapping.iova;
        assert_eq!(device_read(&domain, iova, 5000), vec![device_sees; 5000]);
        device_write(&domain, iova, &[2; 5000]);
        domain.unmap(mapping, true).unwrap();
        assert_eq!(bytes, vec![driver_gets; 5000]);
    }
}

#[test]
fn an_unmap_without_copy_leaves_the_buffer_alone() {
    let domain = Domain::new(MIB).unwrap();
    let mut bytes = vec![1u8; 512];
    let mapping = domain
        .map(buffer(&mut bytes), Direction::FromDevice)
        .unwrap();
    device_write(&domain, mapping.iova, &[2; 512]);
    domain.unmap(mapping, false).unwrap();
    assert_eq!(bytes, vec![1; 512]);
}

#[test]
fn lengths_that_never_fit_are_refused() {
    let domain = Domain::new(MIB).unwrap();
    let mut bytes = vec![0u8; domain.max_mapping() + 1];
    for len in [0, bytes.len()] {
        let refused = domain.map(buffer(&mut bytes[..len]), Direction::ToDevice);
        assert_eq!(refused.unwrap_err(), DmaError::Length(len));
    }
}

#[test]
fn random_maps_never_overlap_and_reclaim_never_frees_live_data() {
    let domain = Domain::new(2 * MIB).unwrap();
    let mut random = Random(0x5eed);
    let mut live: BTreeMap<u64, (Mapping, Vec<u8>)> = BTreeMap::new();
    let mut refused = 0;
    for round in 0..4000u64 {
        match random.below(16) {
            0..9 => {
                let most = 1 << random.below(19);
                let len = 1 + random.below(most) as usize;
                let mut bytes = vec![round as u8 | 1; len.min(domain.max_mapping())];
                match domain.map(buffer(&mut bytes), Direction::Bidirectional) {
                    Ok(mapping) => {
                        let (start, end) = (mapping.iova.0, mapping.iova.0 + bytes.len() as u64);
                        assert!(start >= 4096 && start % 4096 == 0 && end <= 2 * MIB);
                        if let Some((&below, (_, other))) = live.range(..end).next_back() {
                            assert!(below + other.len() as u64 <= start, "overlap");
                        }
                        live.insert(start, (mapping, bytes));
                    }
                    Err(error) => {
                        assert_eq!(error, DmaError::NoSpace);
                        refused += 1;
                    }
                }
            }
            9..15 if !live.is_empty() => {
                let nth = random.below(live.len() as u64) as usize;
                let start = *live.keys().nth(nth).unwrap();
                let (mapping, bytes) = live.remove(&start).unwrap();
                let expected = bytes[0];
                domain.unmap(mapping, true).unwrap();
                assert!(bytes.iter().all(|&byte| byte == expected), "live data lost");
            }
            _ => {
                domain.reclaim(Some(random.below(MIB))).unwrap();
            }
        }
        let taken = live
            .values()
            .map(|(_, bytes)| streaming::granules(bytes.len()));
        let taken: u64 = taken.map(u64::from).sum();
        assert_eq!(
            domain.stats().unwrap().bounce_in_use,
            taken * GRANULE as u64
        );
    }
    assert!(refused > 0, "the space was never exhausted");
}

#[test]
fn reclaim_gives_idle_pages_back_and_they_read_as_zeroes() {
    let domain = Domain::new(8 * MIB).unwrap();
    let mut bytes = vec![5u8; 1 << 20];
    let held = domain
        .map(buffer(&mut bytes[..4096]), Direction::ToDevice)
        .unwrap();
    let mut other = vec![6u8; 1 << 20];
    let idle = domain.map(buffer(&mut other), Direction::ToDevice).unwrap();
    let iova = idle.iova;
    domain.unmap(idle, false).unwrap();
    let before = domain.stats().unwrap();
    assert_eq!(before.bounce_allocated, (1 << 20) + 4096);

    let freed = domain.reclaim(None).unwrap();
    let after = domain.stats().unwrap();
    // The idle mapping begins in the chunk of the live one, which stays whole.
    assert_eq!(freed, (1 << 20) + 4096 - CHUNK as u64 + 4096);
    assert_eq!(after.bounce_allocated, before.bounce_allocated - freed);
    assert_eq!(
        (after.bounce_peak, after.bounce_reclaimed),
        (before.bounce_allocated, freed)
    );
    assert_eq!(device_read(&domain, held.iova, 4096), vec![5; 4096]);
    let past_chunk = Iova(CHUNK as u64);
    assert!(iova < past_chunk);
    assert_eq!(device_read(&domain, past_chunk, 4096), vec![0; 4096]);
    domain.unmap(held, false).unwrap();
}

#[test]
fn reclaim_takes_from_the_top_and_stops_at_the_limit() {
    let domain = Domain::new(4 * MIB).unwrap();
    let mut buffers = vec![vec![1u8; domain.max_mapping()]; 3];
    let mappings: Vec<_> = buffers
        .iter_mut()
        .map(|bytes| domain.map(buffer(bytes), Direction::ToDevice).unwrap())
        .collect();
    for mapping in mappings {
        domain.unmap(mapping, false).unwrap();
    }
    assert_eq!(domain.reclaim(Some(1)).unwrap() % 4096, 0);
    assert_eq!(device_read(&domain, Iova(4096), 4), [1; 4]);
    let top = Iova(4096 + 3 * domain.max_mapping() as u64 - 4);
    assert_eq!(device_read(&domain, top, 4), [0; 4]);
}

#[test]
fn threads_map_while_another_reclaims() {
    let domain = Domain::new(4 * MIB).unwrap();
    std::thread::scope(|scope| {
        for seed in 1..4u64 {
            let domain = &domain;
            scope.spawn(move || {
                let mut random = Random(seed);
                for round in 0..2000u64 {
                    let len = 1 + random.below(200_000) as usize;
                    let mark = (round * 4 + seed) as u8;
                    let mut bytes = vec![mark; len];
                    if let Ok(mapping) = domain.map(buffer(&mut bytes), Direction::Bidirectional) {
                        std::thread::yield_now();
                        domain.unmap(mapping, true).unwrap();
                        assert!(bytes.iter().all(|&byte| byte == mark));
                    }
                }
            });
        }
        for _ in 0..500 {
            domain.reclaim(None).unwrap();
        }
    });
    assert_eq!(domain.stats().unwrap().bounce_in_use, 0);
}

#[test]
fn umem_takes_the_place_of_the_bounce_pages_and_back() {
    let domain = Domain::new(MIB).unwrap();
    let own = std::process::id();
    let mut umem = vec![0u8; MIB as usize];
    let base = umem.as_mut_ptr();
    let uaddr = base as u64;
    let seen = |iova: Iova| {
        // SAFETY: the bytes are in `umem`; another view writes them, hence the volatile read.
        unsafe { base.add(iova.0 as usize).read_volatile() }
    };
    assert_eq!(domain.reg_umem(own, uaddr), Err(Errno::INVAL));

    let mut before = vec![3u8; 4096];
    let live = domain
        .map(buffer(&mut before), Direction::Bidirectional)
        .unwrap();
    domain.reg_umem(own, uaddr).unwrap();
    assert_eq!(domain.reg_umem(own, uaddr), Err(Errno::EXIST));
    assert_eq!(seen(live.iova), 3);

    let mut bytes = vec![4u8; 4096];
    let mapping = domain
        .map(buffer(&mut bytes), Direction::Bidirectional)
        .unwrap();
    assert_eq!(seen(mapping.iova), 4);
    // SAFETY: in `umem`, which is only read through raw pointers.
    unsafe { base.add(mapping.iova.0 as usize).write_volatile(9) };
    domain.unmap(mapping, true).unwrap();
    assert_eq!(bytes[0], 9);

    // SAFETY: as above.
    unsafe { base.add(live.iova.0 as usize).write_volatile(8) };
    domain.dereg_umem().unwrap();
    assert_eq!(domain.dereg_umem(), Err(Errno::NOENT));
    assert_eq!(device_read(&domain, live.iova, 2), [8, 3]);
    domain.unmap(live, true).unwrap();
    assert_eq!(before[0], 8);
}

#[test]
fn what_goes_to_the_device_outlives_a_daemon_that_dies_with_its_umem() {
    let domain = Domain::new(MIB).unwrap();
    let mut bytes = vec![6u8; 4096];
    let mut daemon = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    domain
        .map(buffer(&mut bytes), Direction::ToDevice)
        .and_then(|mapping| domain.unmap(mapping, false))
        .unwrap();
    domain.reg_umem(daemon.id(), 1 << 40).unwrap();
    let refused = domain.map(buffer(&mut bytes), Direction::ToDevice);
    assert_eq!(refused.unwrap_err(), DmaError::Memory(Errno::FAULT));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    // Its number is free, and there is nobody to ask.
    let mapping = domain.map(buffer(&mut bytes), Direction::ToDevice).unwrap();
    domain.dereg_umem().unwrap();
    assert_eq!(device_read(&domain, mapping.iova, 4), [6; 4]);
    domain.unmap(mapping, false).unwrap();
}
