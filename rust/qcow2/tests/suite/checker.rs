//! What `qemu-img check` calls a corruption, found in an image's bytes: clusters that are referred
//! to more often than they are counted, and entries whose COPIED flag is wrong.

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An image's bytes; what lies past their end is zero.
struct Image<'a> {
    bytes: &'a [u8],
    cluster_bits: u32,
    /// References by cluster.
    references: Vec<u64>,
    found: Vec<String>,
}

impl Image<'_> {
    fn number(&self, at: u64, len: usize) -> u64 {
        let bytes = self.bytes.get(at as usize..at as usize + len);
        let mut number = [0; 8];
        number[8 - len..].copy_from_slice(bytes.unwrap_or(&[0; 8][..len]));
        u64::from_be_bytes(number)
    }

    fn refer(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let first = offset >> self.cluster_bits;
        let last = (offset + len - 1) >> self.cluster_bits;
        for cluster in first as usize..=last as usize {
            if cluster >= self.references.len() {
                self.references.resize(cluster + 1, 0);
            }
            self.references[cluster] += 1;
        }
    }

    /// Counters are of 16 bits.
    fn refcount(&self, cluster: u64) -> u64 {
        let per_block = (1 << self.cluster_bits) / 2;
        let table = self.number(48, 8);
        match self.number(table + cluster / per_block * 8, 8) & !511 {
            0 => 0,
            block => self.number(block + cluster % per_block * 2, 2),
        }
    }

    fn compare_flag(&mut self, what: &str, entry: u64) {
        let count = self.refcount((entry & OFFSET) >> self.cluster_bits);
        if (entry & COPIED != 0) != (count == 1) {
            self.found
                .push(format!("COPIED of {what} {entry:#x}: counted {count}"));
        }
    }

    /// The tables and clusters of one L1 table.
    fn walk(&mut self, l1: u64, entries: u64, is_active: bool) {
        let cluster = 1 << self.cluster_bits;
        self.refer(l1, entries * 8);
        for index in 0..entries {
            let entry = self.number(l1 + index * 8, 8);
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            if is_active {
                self.compare_flag("L2 table", entry);
            }
            self.refer(table, cluster);
            for index in 0..cluster / 8 {
                let entry = self.number(table + index * 8, 8);
                if entry & COMPRESSED != 0 {
                    let bits = 62 - (self.cluster_bits - 8);
                    let sectors = (entry >> bits & ((1 << (self.cluster_bits - 8)) - 1)) + 1;
                    let at = entry & ((1 << bits) - 1) & !511;
                    self.refer(at, sectors * 512);
                } else if entry & OFFSET != 0 {
                    if is_active {
                        self.compare_flag("cluster", entry);
                    }
                    self.refer(entry & OFFSET, cluster);
                }
            }
        }
    }

    fn snapshots(&mut self) {
        let (count, first) = (self.number(60, 4), self.number(64, 8));
        let mut at = first;
        for _ in 0..count {
            let (l1, entries) = (self.number(at, 8), self.number(at + 8, 4));
            let names = self.number(at + 12, 2) + self.number(at + 14, 2);
            self.walk(l1, entries, false);
            at += (40 + self.number(at + 36, 4) + names).next_multiple_of(8);
        }
        self.refer(first, at - first);
    }
}

/// The corruptions of an image whose refcounts have 16 bits and whose guest data is in it.
pub fn corruptions(bytes: &[u8]) -> Vec<String> {
    let mut image = Image {
        bytes,
        cluster_bits: 0,
        references: Vec::new(),
        found: Vec::new(),
    };
    image.cluster_bits = image.number(20, 4) as u32;
    let cluster = 1 << image.cluster_bits;
    image.refer(0, cluster);
    image.walk(image.number(40, 8), image.number(36, 4), true);
    image.snapshots();
    let (table, len) = (image.number(48, 8), image.number(56, 4) * cluster);
    image.refer(table, len);
    for index in 0..len / 8 {
        match image.number(table + index * 8, 8) & !511 {
            0 => {}
            block => image.refer(block, cluster),
        }
    }
    for (cluster, &references) in image.references.clone().iter().enumerate() {
        let count = image.refcount(cluster as u64);
        if count < references {
            image.found.push(format!(
                "cluster {cluster}: counted {count}, referred to {references}"
            ));
        }
    }
    image.found
}
