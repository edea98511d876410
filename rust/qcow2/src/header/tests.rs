//! Headers made here, byte by byte, and what is said of them.

use super::*;

const CLUSTER: u64 = 65536;

/// A plain header of version 3: 1 GiB, clusters of 64 KiB.
pub(crate) fn plain() -> Vec<u8> {
    let mut bytes = vec![0; LOOKED_AT];
    put32(&mut bytes, 0, MAGIC);
    put32(&mut bytes, 4, 3);
    put32(&mut bytes, 20, 16);
    put64(&mut bytes, 24, 1 << 30);
    put32(&mut bytes, 36, 2);
    put64(&mut bytes, 40, 3 * CLUSTER);
    put64(&mut bytes, 48, CLUSTER);
    put32(&mut bytes, 56, 1);
    put32(&mut bytes, 96, 4);
    put32(&mut bytes, 100, 104);
    bytes
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn extension(bytes: &mut [u8], at: usize, kind: u32, data: &[u8]) -> usize {
    put32(bytes, at, kind);
    put32(bytes, at + 4, data.len() as u32);
    bytes[at + 8..at + 8 + data.len()].copy_from_slice(data);
    at + 8 + data.len().next_multiple_of(8)
}

fn parse(bytes: &[u8]) -> Result<Header, Refusal> {
    Header::parse(bytes, 4 * CLUSTER)
}

fn refused(change: impl FnOnce(&mut Vec<u8>)) -> Refusal {
    let mut bytes = plain();
    change(&mut bytes);
    parse(&bytes).unwrap_err()
}

#[test]
fn a_plain_header_is_read() {
    let expected = Header {
        version: 3,
        size: 1 << 30,
        cluster_size: CLUSTER,
        backing: None,
        data_file: None,
        has_bitmaps: false,
    };
    assert_eq!(parse(&plain()), Ok(expected));
}

#[test]
fn a_header_of_version_2_has_no_features_and_may_name_a_backing_format() {
    let mut bytes = plain();
    put32(&mut bytes, 4, 2);
    // Where version 3 has its features.
    let end = extension(&mut bytes, 72, EXT_BACKING_FORMAT, b"raw");
    put64(&mut bytes, 8, end as u64 + 8);
    put32(&mut bytes, 16, 8);
    bytes[end + 8..end + 16].copy_from_slice(b"base.img");
    let backing = parse(&bytes).unwrap().backing.unwrap();
    assert_eq!(backing.name, "base.img");
    assert_eq!(backing.format.as_deref(), Some("raw"));
}

#[test]
fn encryption_is_refused_by_its_name() {
    assert_eq!(
        refused(|it| put32(it, 32, 1)).to_string(),
        "encrypted (AES): not supported; decrypt it: qemu-img convert"
    );
    assert_eq!(refused(|it| put32(it, 32, 2)), Refusal::Encrypted(2));
}

#[test]
fn every_incompatible_feature_but_the_data_file_is_refused_by_name() {
    for bit in 0..64 {
        let mut bytes = plain();
        put64(&mut bytes, 72, 1 << bit);
        let refusal = match bit {
            0 => Refusal::Dirty,
            1 => Refusal::Corrupt,
            2 => {
                assert!(parse(&bytes).unwrap().data_file.is_some());
                continue;
            }
            3 => Refusal::CompressionType,
            4 => Refusal::ExtendedL2,
            bit => Refusal::Feature {
                bit,
                name: "unknown".into(),
            },
        };
        assert_eq!(parse(&bytes), Err(refusal));
    }
}

#[test]
fn an_unknown_feature_is_called_what_the_image_calls_it_in_printable_letters() {
    let mut entry = [0; FEATURE_NAME_ENTRY];
    entry[1] = 9;
    entry[2..10].copy_from_slice(b"warp\x1b[2m");
    let refusal = refused(|it| {
        put64(it, 72, 1 << 9);
        extension(it, 104, EXT_FEATURE_NAMES, &entry);
    });
    assert_eq!(
        refusal.to_string(),
        "incompatible feature bit 9 (warp?[2m): not supported"
    );
}

#[test]
fn a_data_file_is_named_and_raw_where_the_image_says_so() {
    let mut bytes = plain();
    put64(&mut bytes, 72, 1 << DATA_FILE);
    put64(&mut bytes, 88, AUTOCLEAR_RAW_DATA | AUTOCLEAR_BITMAPS);
    extension(&mut bytes, 104, EXT_DATA_FILE, b"data.raw");
    let header = parse(&bytes).unwrap();
    let expected = DataFile {
        name: Some("data.raw".into()),
        is_raw: true,
    };
    assert_eq!(header.data_file, Some(expected));
    assert!(header.has_bitmaps);
}

#[test]
fn tables_that_the_driver_would_allocate_are_bounded() {
    let l1 = Refusal::Malformed("length of the L1 table");
    assert_eq!(refused(|it| put32(it, 36, u32::MAX)), l1);
    let short = Refusal::Malformed("L1 table, shorter than the disk");
    assert_eq!(refused(|it| put32(it, 36, 1)), short);
    let refcounts = Refusal::Malformed("length of the refcount table");
    assert_eq!(refused(|it| put32(it, 56, u32::MAX)), refcounts);
    assert_eq!(refused(|it| put32(it, 56, 0)), refcounts);
    let snapshots = Refusal::Malformed("number of snapshots");
    assert_eq!(refused(|it| put32(it, 60, 65537)), snapshots);
    let width = Refusal::Malformed("refcount width");
    assert_eq!(refused(|it| put32(it, 96, 7)), width);
}

#[test]
fn tables_lie_within_the_file_on_whole_clusters_and_not_on_the_header() {
    for (at, what) in [
        (40, "place of the L1 table"),
        (48, "place of the refcount table"),
    ] {
        for offset in [0, 512, 4 * CLUSTER, u64::MAX - CLUSTER + 1] {
            let refusal = refused(|it| put64(it, at, offset));
            assert_eq!(refusal, Refusal::Malformed(what), "{offset:#x}");
        }
    }
}

#[test]
fn cluster_sizes_are_qemus() {
    for bits in [0, 8, 22, 64, u32::MAX] {
        let refusal = refused(|it| put32(it, 20, bits));
        assert_eq!(refusal, Refusal::Malformed("cluster size"));
    }
}

#[test]
fn a_disk_has_whole_sectors_and_is_not_empty() {
    for size in [0, 1, 513, u64::MAX, (1 << 62) + 512] {
        assert_eq!(refused(|it| put64(it, 24, size)), Refusal::Size(size));
    }
}

#[test]
fn names_lie_within_the_first_cluster_and_are_text() {
    let name = Refusal::Malformed("name of the backing file");
    for (offset, length) in [
        (u64::MAX, 1),
        (CLUSTER, 1),
        (CLUSTER - 1, 2),
        (512, 0),
        (512, 1024),
        (512, u32::MAX),
    ] {
        let refusal = refused(|it| {
            put64(it, 8, offset);
            put32(it, 16, length);
        });
        assert_eq!(refusal, name, "{offset:#x} {length}");
    }
    let refusal = refused(|it| {
        put64(it, 8, 512);
        put32(it, 16, 2);
        it[512..514].copy_from_slice(b"a\n");
    });
    assert_eq!(refusal, name);
}

#[test]
fn an_extension_past_the_first_cluster_is_refused() {
    let refusal = refused(|it| {
        put32(it, 104, 0x1234_5678);
        put32(it, 108, u32::MAX);
    });
    assert_eq!(refusal, Refusal::Malformed("header extension"));
}

#[test]
fn a_header_cut_short_anywhere_is_an_error() {
    let bytes = plain();
    for len in 0..104 {
        let refusal = Header::parse(&bytes[..len], len as u64).unwrap_err();
        let expected = match len {
            0..4 => Refusal::NotQcow2,
            _ => Refusal::Short,
        };
        assert_eq!(refusal, expected, "{len}");
    }
}
