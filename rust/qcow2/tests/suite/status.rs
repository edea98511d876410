//! What lies where, as `qemu-img map` says it of the same image.

use crate::support::{Disk, READ, Scratch, WRITE, Want};
use rustix::io::Errno;
use std::sync::mpsc::channel;
use vduse_device::backend::{Backend, Piece, StatusRequest};
use vduse_device::{Extent, Length, Offset};

const SECTOR: usize = 512;
const SIZE: usize = 8 << 20;

type Answer = Result<Vec<Piece>, Errno>;

fn ask(disk: &Disk, at: usize, len: usize, most: usize) -> Answer {
    let (tell, told) = channel();
    let extent = Extent::new(Offset(at as u64), Length(len as u64)).unwrap();
    let request = StatusRequest::new(extent, most, move |answer| tell.send(answer).unwrap());
    disk.backend.block_status(request);
    told.recv().unwrap()
}

/// Whether each sector takes no room, and reads as zeroes.
fn told(disk: &Disk, most: usize) -> Vec<(bool, bool)> {
    let mut all = Vec::new();
    while all.len() * SECTOR < disk.size() {
        let at = all.len() * SECTOR;
        let pieces = ask(disk, at, disk.size() - at, most).unwrap();
        assert!((1..=most).contains(&pieces.len()));
        for piece in pieces {
            let sectors = piece.len.0 as usize / SECTOR;
            all.extend(std::iter::repeat_n((piece.is_hole, piece.is_zero), sectors));
        }
    }
    all
}

/// The same by QEMU.
fn mapped(scratch: &Scratch, name: &str) -> Vec<(bool, bool)> {
    let map = scratch.qemu_img(&["map", "--output=json", "-f", "qcow2", name]);
    let field = |entry: &str, field: &str| {
        let value = entry.split(&format!("\"{field}\": ")).nth(1).unwrap();
        value.split([',', '}']).next().unwrap().trim().to_owned()
    };
    let entries = map.split('{').skip(1).flat_map(|entry| {
        let sectors = field(entry, "length").parse::<usize>().unwrap() / SECTOR;
        let state = (
            field(entry, "data") == "false",
            field(entry, "zero") == "true",
        );
        std::iter::repeat_n(state, sectors)
    });
    entries.collect()
}

fn compare(scratch: &Scratch, name: &str, what: &str) {
    let expected = mapped(scratch, name);
    let disk = Disk::open(&scratch.path(name), READ).unwrap();
    for most in [1, 7, 10_000] {
        let all = told(&disk, most);
        let first = all
            .iter()
            .zip(&expected)
            .position(|(ours, qemu)| ours != qemu);
        assert_eq!(first, None, "{what}: sector, by {most}");
        assert_eq!(all.len(), expected.len(), "{what}");
    }
    disk.close();
}

/// Data, with holes between.
fn write(scratch: &Scratch, name: &str) {
    for command in [
        "write -P 7 0 64k",
        "write -P 8 192k 256k",
        "write -P 9 5M 1M",
    ] {
        scratch.run("qemu-io", &["-c", command, name]);
    }
}

#[test]
fn images_of_all_options_are_told_as_qemu_tells_them() {
    let scratch = Scratch::new("status");
    let size = SIZE.to_string();
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "data_file=data",
    ] {
        scratch.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "image", &size]);
        write(&scratch, "image");
        compare(&scratch, "image", options);
        if !options.contains("0.10") {
            scratch.run("qemu-io", &["-c", "write -z 256k 64k", "image"]);
            scratch.run("qemu-io", &["-c", "write -z -u 4M 1088k", "image"]);
            compare(&scratch, "image", options);
        }
        scratch.run("rm", &["image"]);
    }
}

#[test]
fn compressed_clusters_and_what_lies_beneath_are_told_as_qemu_tells_them() {
    let scratch = Scratch::new("status-beneath");
    let size = SIZE.to_string();
    scratch.qemu_img(&["create", "-q", "-f", "qcow2", "first", &size]);
    write(&scratch, "first");
    scratch.qemu_img(&["convert", "-c", "-O", "qcow2", "first", "base"]);
    compare(&scratch, "base", "compressed");
    let longer = (SIZE + (1 << 20)).to_string();
    let on = ["-b", "base", "-F", "qcow2", "image", &longer];
    scratch.qemu_img(&[&["create", "-q", "-f", "qcow2"][..], &on].concat());
    scratch.run("qemu-io", &["-c", "write -P 5 3M 64k", "image"]);
    scratch.run("qemu-io", &["-c", "write -z 192k 64k", "image"]);
    compare(&scratch, "image", "on another");
}

#[test]
fn what_is_written_and_discarded_is_told_at_once_and_nothing_after_the_end() {
    let scratch = Scratch::new("status-now");
    let size = SIZE.to_string();
    scratch.qemu_img(&["create", "-q", "-f", "qcow2", "image", &size]);
    let disk = Disk::open(&scratch.path("image"), WRITE).unwrap();
    let (data, hole) = (Piece::data(Length(65536)), Piece::hole(Length(65536)));
    assert_eq!(ask(&disk, 65536, 65536, 4), Ok(vec![hole]));
    disk.run(Want::Write(65536, vec![1; 65536])).unwrap();
    assert_eq!(ask(&disk, 0, 2 * 65536, 4), Ok(vec![hole, data]));
    disk.run(Want::Discard(65536, 65536)).unwrap();
    assert_eq!(ask(&disk, 65536, 65536, 4), Ok(vec![hole]));
    disk.backend.close().unwrap();
    assert_eq!(ask(&disk, 0, 65536, 4), Err(Errno::BADF));
}
