//! What lies where in an image of the fake cluster, whose objects are 64 KiB.

use crate::support::{EXCLUSIVE_LOCK, Image, Queue, SIZE, extent, library, read, write};
use rustix::io::Errno;
use std::sync::mpsc::{Receiver, channel};
use vduse_device::Length;
use vduse_device::backend::{Backend, Piece, StatusRequest};
use vduse_rbd::Rbd;

const KIB: u64 = 1 << 10;
/// `RBD_FEATURE_OBJECT_MAP`, `RBD_FEATURE_FAST_DIFF`.
const MAPPED: u64 = EXCLUSIVE_LOCK | 1 << 3 | 1 << 4;

type Answer = Result<Vec<Piece>, Errno>;

fn ask(disk: &dyn Backend, offset: u64, len: u64) -> Receiver<Answer> {
    let (sender, receiver) = channel();
    let tell = move |answer| sender.send(answer).unwrap();
    disk.block_status(StatusRequest::new(extent(offset, len), 100, tell));
    receiver
}

fn answer(disk: &dyn Backend, offset: u64, len: u64) -> Answer {
    ask(disk, offset, len).recv().unwrap()
}

fn data(kib: u64) -> Piece {
    Piece::data(Length(kib * KIB))
}

fn hole(kib: u64) -> Piece {
    Piece::hole(Length(kib * KIB))
}

/// Something is in the second object, and in the fifth.
fn written(image: &Image) -> Rbd {
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    for offset in [100 * KIB, 300 * KIB] {
        assert_eq!(queue.run(write(offset, &[1; 512])), Ok(None));
    }
    disk
}

#[test]
fn objects_are_data_and_the_rest_are_holes() {
    let image = Image::with_features("objects/disk", MAPPED);
    let disk = written(&image);
    let expected = [hole(64), data(64), hole(128), data(64), hole(704)];
    assert_eq!(answer(&disk, 0, SIZE), Ok(expected.into()));
    // From the middle of one object into another.
    let expected = [data(28), hole(128), data(34)];
    assert_eq!(answer(&disk, 100 * KIB, 190 * KIB), Ok(expected.into()));
    assert_eq!(answer(&disk, 0, 512), Ok(vec![Piece::hole(Length(512))]));
}

#[test]
fn without_a_map_that_is_valid_everything_is_data() {
    let plain = Image::new("objects/plain");
    assert_eq!(answer(&written(&plain), 0, SIZE), Ok(vec![data(1024)]));
    let image = Image::with_features("objects/strange", MAPPED);
    let disk = written(&image);
    for (flags, stripes, overlap) in [(1, 1, 0), (2, 1, 0), (0, 4, 0), (0, 1, SIZE)] {
        image.layout(flags, stripes, overlap);
        assert_eq!(answer(&disk, 0, SIZE), Ok(vec![data(1024)]));
    }
    image.layout(0, 1, 0);
    assert_eq!(answer(&disk, 0, 64 * KIB), Ok(vec![hole(64)]));
}

#[test]
fn a_snapshot_is_as_it_was() {
    let image = Image::with_features("objects/snapshots", MAPPED);
    image.snapshot("empty");
    let disk = written(&image);
    let mut options = image.options();
    options.snapshot = Some("empty".into());
    let snapshot = Rbd::open(library(), options).unwrap();
    assert_eq!(answer(&snapshot, 0, SIZE), Ok(vec![hole(1024)]));
    assert_eq!(answer(&disk, 64 * KIB, 64 * KIB), Ok(vec![data(64)]));
}

#[test]
fn a_cluster_that_stalls_holds_up_the_questions_alone() {
    let image = Image::with_features("objects/stalled", MAPPED);
    let other = Image::with_features("objects/other", MAPPED);
    let (disk, second) = (written(&image), written(&other));
    image.hold(true);
    let first = ask(&disk, 0, 64 * KIB);
    image.wait_asked();
    let later: Vec<_> = (0..9).map(|_| ask(&disk, 64 * KIB, 64 * KIB)).collect();
    assert_eq!(answer(&second, 0, 64 * KIB), Ok(vec![hole(64)]));
    assert_eq!(Queue::new(&second).read(0, 512), [0; 512]);
    assert!(first.try_recv().is_err());
    // The fake ends the process where two are asked at once.
    image.hold(false);
    assert_eq!(first.recv(), Ok(Ok(vec![hole(64)])));
    for each in later {
        assert_eq!(each.recv(), Ok(Ok(vec![data(64)])));
    }
}

#[test]
fn who_lets_go_of_an_image_does_not_wait_for_its_questions() {
    let image = Image::with_features("objects/dropped", MAPPED);
    let disk = written(&image);
    image.hold(true);
    let first = ask(&disk, 0, 64 * KIB);
    image.wait_asked();
    let second = ask(&disk, 0, 64 * KIB);
    drop(disk);
    image.hold(false);
    assert_eq!(first.recv(), Ok(Ok(vec![hole(64)])));
    assert!(second.recv().is_ok());
    image.wait_open(0);
}

#[test]
fn a_closed_image_answers_nothing_and_its_lock_is_free() {
    let image = Image::with_features("objects/closed", MAPPED);
    let disk = written(&image);
    let asked: Vec<_> = (0..9).map(|_| ask(&disk, 0, 64 * KIB)).collect();
    assert_eq!(disk.close(), Ok(()));
    assert!(!image.is_locked());
    for each in asked {
        assert!(each.recv().is_ok());
    }
    assert_eq!(answer(&disk, 0, 64 * KIB), Err(Errno::IO));
    // Requests of another one on the image are not concerned.
    assert_eq!(
        Queue::new(&image.open()).run(read(0, 512)).map(|_| ()),
        Ok(())
    );
}
