//! What only this room sees of a file.

use super::File;
use super::image::{Contents, Image};
use super::lock::Locking;
use super::transfer::{Alignment, Direction, Transfer};
use crate::backend::uring::{Uring, io_uring_allowed};
use crate::backend::{Op, Piece, Token};
use crate::testing::{buffer, status_of};
use crate::{Buffer, Extent, Length, Offset};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use std::path::PathBuf;
use std::sync::Arc;

/// A file of `size` bytes that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, size: u64) -> Scratch {
        let name = format!("vduse-file-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        Scratch(path)
    }

    fn open(&self) -> Image {
        Image::open(&self.0, false, false, Locking::Never, Contents::Disk).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(Offset(offset), Length(len)).unwrap()
}

#[test]
fn a_file_is_not_non_blocking() {
    let image = Scratch::new("flags", 4096).open();
    let flags = fcntl_getfl(image.fd()).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK));
}

#[test]
fn a_write_of_part_of_a_block_leaves_zeroes_beside_it_zero() {
    let mut image = Scratch::new("zeroes", 4096).open();
    // As if opened with O_DIRECT on a disk with blocks of 4096 bytes.
    image.alignment = Some(Alignment {
        memory: 1,
        file: 4096,
    });
    let write = |sector: u64, byte| {
        let mut bytes = [byte; 512];
        // SAFETY: the bytes outlive the operation, which is over when `run` returns.
        let buffer = unsafe { buffer(&mut bytes, &[]) };
        let extent = extent(sector * 512, 512);
        image.run(Op::Write { extent, buffer }).unwrap();
    };
    let zero_beside_writes = || {
        for round in 0..2000 {
            write(1, 1);
            let may_unmap = round % 2 == 0;
            let extent = extent(512, 512);
            image.run(Op::WriteZeroes { extent, may_unmap }).unwrap();
            let mut bytes = [9; 512];
            // SAFETY: as above.
            let buffer = unsafe { buffer(&mut bytes, &[]) };
            image.run(Op::Read { extent, buffer }).unwrap();
            assert_eq!(bytes, [0; 512], "round {round}");
        }
    };
    std::thread::scope(|scope| {
        let zeroes = scope.spawn(zero_beside_writes);
        while !zeroes.is_finished() {
            write(0, 2);
        }
    });
}

#[test]
fn a_size_that_o_direct_cannot_reach_is_not_taken_over() {
    let scratch = Scratch::new("grown", 4096);
    let mut image = scratch.open();
    image.alignment = Some(Alignment {
        memory: 1,
        file: 4096,
    });
    let file = std::fs::File::options().write(true).open(&scratch.0);
    let file = file.unwrap();
    file.set_len(4096 + 512).unwrap();
    assert_eq!(image.refresh_size().err().unwrap().errno, Errno::INVAL);
    assert_eq!(image.size(), Length(4096));
    file.set_len(8192).unwrap();
    assert_eq!(image.refresh_size(), Ok(Some(Length(8192))));
}

#[test]
fn a_driver_does_not_choose_how_much_is_copied() {
    let mut page = vec![0; 4097];
    // SAFETY: nothing is done with the buffer; `pieces` are of the page.
    let once = unsafe { buffer(&mut page[1..], &[]) };
    let pieces = std::iter::repeat_n(once.pieces()[0], 1 << 18).collect();
    // SAFETY: as above.
    let buffer = unsafe { Buffer::borrowed(pieces) };
    let alignment = Alignment {
        memory: 4096,
        file: 4096,
    };
    for way in [Direction::Read, Direction::Write] {
        let plan = |len| {
            let part = buffer.part(0, len);
            Transfer::plan(way, extent(0, len), part, Some(alignment)).is_ok()
        };
        assert!(plan(128 << 10));
        assert!(!plan(132 << 10));
        assert!(!plan(1 << 30));
    }
}

#[test]
fn a_cancelled_operation_that_came_half_way_is_not_taken_up_again() {
    if let Err(errno) = io_uring_allowed() {
        return eprintln!("skipped: io_uring is not allowed here ({errno})");
    }
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut uring = Uring::new().unwrap();
    let mut memory = vec![0; 1024];
    // SAFETY: the memory lives until the operation has ended.
    let buffer = unsafe { buffer(&mut memory, &[]) };
    let Ok(transfer) = Transfer::plan(Direction::Read, extent(0, 1024), buffer, None) else {
        unreachable!("without an alignment every transfer is planned");
    };
    uring.submit(
        Token(7),
        Arc::new(Image::of_pipe(reader)),
        Some(transfer),
        None,
    );
    let mut ends = Vec::new();
    uring.turn(&mut ends);
    rustix::io::write(&writer, &[1; 512]).unwrap();
    // Half of it has come, and nobody has looked, when it is cancelled.
    uring.enter().unwrap();
    uring.cancel(Token(7));
    uring.turn(&mut ends);
    let ends: Vec<_> = ends.iter().map(|end| (end.token, end.result)).collect();
    // Otherwise the kernel would go on writing into memory that is given up here.
    std::mem::forget(memory);
    assert_eq!(ends, [(Token(7), Err(Errno::CANCELED))]);
}

// --- what lies where -----------------------------------------------------------------------

fn data(len: u64) -> Piece {
    Piece::data(Length(len))
}

fn hole(len: u64) -> Piece {
    Piece::hole(Length(len))
}

/// Of 1 MiB, with bytes at 64 KiB and a last part that is no whole sector.
fn with_an_island(name: &str, tail: u64) -> (Scratch, File) {
    use std::os::unix::fs::FileExt;
    let scratch = Scratch::new(name, (1 << 20) + tail);
    let file = std::fs::File::options()
        .write(true)
        .open(&scratch.0)
        .unwrap();
    file.write_all_at(&[1; 4096], 65536).unwrap();
    file.write_all_at(&[1], (1 << 20) + tail - 1).unwrap();
    let contents = match tail {
        0 => Contents::Disk,
        _ => Contents::Container,
    };
    let image = Image::open(&scratch.0, false, false, Locking::Never, contents).unwrap();
    (scratch, File::of(image, false))
}

#[test]
fn a_file_tells_its_holes() {
    let (_scratch, file) = with_an_island("holes", 0);
    let end = (1 << 20) - 4096;
    let all = [
        hole(65536),
        data(4096),
        hole(end - 65536 - 4096),
        data(4096),
    ];
    assert_eq!(status_of(&file, extent(0, 1 << 20), 9), Ok(all.to_vec()));
    assert_eq!(
        status_of(&file, extent(0, 1 << 20), 2),
        Ok(all[..2].to_vec())
    );
    let within = [data(512), hole(512)];
    assert_eq!(
        status_of(&file, extent(65536 + 3584, 1024), 9),
        Ok(within.to_vec())
    );
}

#[test]
fn a_sector_that_is_partly_data_is_data() {
    let (_scratch, file) = with_an_island("odd", 700);
    let last = status_of(&file, extent((1 << 20) - 512, 1024), 9);
    assert_eq!(last, Ok(vec![hole(512), data(512)]));
    // The file ends within this one.
    let last = status_of(&file, extent(1 << 20, 1024), 9);
    assert_eq!(last, Ok(vec![data(1024)]));
}

#[test]
fn what_lies_past_the_end_of_a_file_that_shrank_is_a_hole() {
    let (scratch, file) = with_an_island("shrunk", 0);
    let shrunk = std::fs::File::options().write(true).open(&scratch.0);
    shrunk.unwrap().set_len(65536 + 512).unwrap();
    let all = [hole(65536), data(512), hole(1536)];
    let told = status_of(&file, extent(0, 65536 + 2048), 9);
    assert_eq!(told, Ok(all.to_vec()));
}

#[test]
fn what_cannot_be_told_is_an_error() {
    let (read, _write) = rustix::pipe::pipe().unwrap();
    let pipe = File::of(Image::of_pipe(read), false);
    assert_eq!(status_of(&pipe, extent(0, 4096), 9), Err(Errno::SPIPE));
}

/// Reads the last of two sectors.
fn read_second_sector(image: &Image) -> Result<[u8; 512], Errno> {
    let mut bytes = [9; 512];
    // SAFETY: the bytes outlive the operation, which is over when `run` returns.
    let buffer = unsafe { buffer(&mut bytes, &[]) };
    let extent = extent(512, 512);
    image.run(Op::Read { extent, buffer }).map(|()| bytes)
}

#[test]
fn a_container_that_ends_within_a_sector_is_read_and_written_to_the_sectors_end() {
    let file = Scratch::new("odd", 0);
    std::fs::write(&file.0, [1; 1000]).unwrap();
    let image = Image::open(&file.0, false, false, Locking::Never, Contents::Container).unwrap();
    assert_eq!(
        (image.size(), image.sectors()),
        (Length(1000), Length(1024))
    );
    let mut tail = [1; 512];
    tail[488..].fill(0);
    assert_eq!(read_second_sector(&image), Ok(tail));
    let mut bytes = [2; 512];
    // SAFETY: the bytes outlive the operation, which is over when `run` returns.
    let buffer = unsafe { buffer(&mut bytes, &[]) };
    let extent = extent(512, 512);
    assert_eq!(image.run(Op::Write { extent, buffer }), Ok(()));
    assert_eq!(read_second_sector(&image), Ok([2; 512]));
    assert_eq!(
        std::fs::read(&file.0).unwrap(),
        [[1; 512], [2; 512]].concat()
    );
    std::fs::write(&file.0, [1; 512]).unwrap();
    assert_eq!(
        read_second_sector(&image),
        Err(Errno::IO),
        "it is gone as a whole"
    );
}

#[test]
fn a_disk_that_somebody_cut_short_within_a_sector_is_not_filled_up() {
    let file = Scratch::new("cut", 1024);
    let image = file.open();
    std::fs::write(&file.0, [1; 1000]).unwrap();
    assert_eq!(read_second_sector(&image), Err(Errno::IO));
}
