//! What only this room sees of a file.

use super::image::Image;
use super::lock::Locking;
use super::transfer::{Alignment, Direction, Transfer};
use crate::backend::uring::{Uring, io_uring_allowed};
use crate::backend::{Op, Token};
use crate::testing::buffer;
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
        Image::open(&self.0, false, false, Locking::Never).unwrap()
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
