//! Requests on an image of the fake cluster.

use crate::support::{Image, Queue, SIZE, extent, guest, library, read, write};
use rustix::io::Errno;
use std::collections::BTreeSet;
use vduse_device::backend::{Backend, Kind, Op, Submitted, Token};

#[test]
fn what_was_written_is_read_and_discarded_and_zeroed() {
    let image = Image::new("basic/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    assert_eq!(queue.run(write(4096, &[7; 8192])), Ok(None));
    assert_eq!(queue.read(4096, 8192), [7; 8192]);
    assert_eq!(queue.read(3584, 1024), [[0; 512], [7; 512]].concat());
    let zeroes = |may_unmap| Op::WriteZeroes {
        extent: extent(4096, 512),
        may_unmap,
    };
    assert_eq!(queue.run(zeroes(true)), Ok(None));
    assert_eq!(queue.run(zeroes(false)), Ok(None));
    assert_eq!(queue.read(4096, 1024), [[0; 512], [7; 512]].concat());
    let extent = extent(8192, 4096);
    assert_eq!(queue.run(Op::Discard { extent }), Ok(None));
    assert_eq!(queue.run(Op::Flush), Ok(None));
    assert_eq!(
        [b'w', b'z', b'd', b'f'].map(|kind| image.ended(kind)),
        [1, 2, 1, 1]
    );
}

#[test]
fn a_request_in_pieces_is_one_operation() {
    let image = Image::new("pieces/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    let content: Vec<u8> = (0..2048u32).map(|byte| byte as u8).collect();
    let (buffer, _) = guest(&content, &[1, 511, 1536]);
    let extent = extent(512, 2048);
    assert_eq!(queue.run(Op::Write { extent, buffer }), Ok(None));
    assert_eq!(queue.read(512, 2048), content);
    assert_eq!(image.ended(b'w'), 1);
}

#[test]
fn guest_memory_is_left_alone_once_a_request_is_submitted() {
    let image = Image::new("memory/disk");
    let disk = image.open();
    assert_eq!(disk.info().kind, Kind::Detachable);
    let mut queue = Queue::new(&disk);
    image.hold(true);
    let (buffer, memory) = guest(&[0x55; 4096], &[4096]);
    let extent = extent(0, 4096);
    let into = buffer.share();
    assert_eq!(
        queue.submit(1, Op::Read { extent, buffer }),
        Submitted::Pending
    );
    // The driver changes it meanwhile: what was read comes with the completion.
    into.write(&[0x66; 4096]);
    image.hold(false);
    let completion = queue.wait(1);
    assert_eq!(completion.data, Some(vec![0; 4096]));
    assert_eq!(memory, [0x66; 4096]);
}

#[test]
fn answers_that_come_in_another_order_reach_their_requests() {
    let image = Image::new("order/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    for sector in 0..32 {
        let op = write(sector * 512, &[sector as u8; 512]);
        assert_eq!(queue.submit(sector, op), Submitted::Pending);
    }
    for sector in 0..32 {
        assert_eq!(queue.wait(sector).result, Ok(()));
    }
    image.hold(true);
    for sector in 0..32 {
        assert_eq!(
            queue.submit(sector, read(sector * 512, 512)),
            Submitted::Pending
        );
    }
    image.wait_pending(32);
    image.hold(false);
    for sector in 0..32 {
        assert_eq!(queue.wait(sector).data, Some(vec![sector as u8; 512]));
    }
}

#[test]
fn no_answer_waits_for_another_that_does_not_come() {
    let image = Image::new("rare/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    image.hold(true);
    for token in 0..64 {
        assert_eq!(
            queue.submit(token, read(token * 512, 512)),
            Submitted::Pending
        );
    }
    let mut left: BTreeSet<u64> = (0..64).collect();
    while !left.is_empty() {
        // The next one only once this one has ended.
        image.pass();
        for completion in queue.serve() {
            assert_eq!(completion.data, Some(vec![0; 512]));
            assert!(left.remove(&completion.token.0));
        }
    }
    image.hold(false);
    assert_eq!(queue.engine.deadline(), None);
}

#[test]
fn several_operations_under_one_token_end_each() {
    let image = Image::new("ranges/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    image.fail(Errno::NOSPC);
    for range in 0..3 {
        let extent = extent(range * 4096, 4096);
        assert_eq!(queue.submit(9, Op::Discard { extent }), Submitted::Pending);
    }
    let mut results = [(); 3].map(|()| queue.wait(9).result);
    results.sort_by_key(Result::is_ok);
    assert_eq!(results, [Err(Errno::NOSPC), Ok(()), Ok(())]);
    assert_eq!(queue.engine.deadline(), None);
}

#[test]
fn an_operation_that_fails_ends_with_its_errno() {
    let image = Image::new("fails/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    image.fail(Errno::DQUOT);
    assert_eq!(queue.run(write(0, &[1; 512])), Err(Errno::DQUOT));
    image.refuse(Errno::NOMEM);
    assert_eq!(queue.run(read(0, 512)), Err(Errno::NOMEM));
    assert_eq!(queue.read(0, 512), [0; 512]);
}

#[test]
fn a_read_that_is_not_whole_is_an_error() {
    let image = Image::new("short/disk");
    let disk = image.open();
    image.short_read();
    assert_eq!(Queue::new(&disk).run(read(0, 4096)), Err(Errno::IO));
}

#[test]
fn a_cancelled_request_ends_at_once_and_only_once() {
    let image = Image::new("cancel/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    image.hold(true);
    queue.submit(1, read(0, 4096));
    queue.submit(2, write(0, &[3; 512]));
    queue.engine.cancel(Token(1));
    queue.engine.cancel(Token(1));
    queue.engine.cancel(Token(5));
    assert_eq!(queue.wait(1).result, Err(Errno::CANCELED));
    // The token is the next request's.
    queue.submit(1, read(512, 512));
    image.hold(false);
    assert_eq!(queue.wait(2).result, Ok(()));
    assert_eq!(queue.wait(1).data, Some(vec![0; 512]));
    image.wait_pending(0);
    assert!(queue.inbox.take().is_empty());
}

#[test]
fn engines_that_go_leave_their_requests_to_librbd() {
    let image = Image::new("gone/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    image.hold(true);
    queue.submit(1, write(0, &[3; 512]));
    drop(queue);
    drop(disk);
    image.hold(false);
    image.wait_open(0);
    assert_eq!(image.ended(b'w'), 1);
}

#[test]
fn nothing_is_written_to_a_snapshot() {
    let image = Image::new("snapshots/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    assert_eq!(queue.run(write(0, &[1; 512])), Ok(None));
    image.snapshot("monday");
    assert_eq!(queue.run(write(0, &[2; 512])), Ok(None));
    let mut options = image.options();
    options.snapshot = Some("monday".into());
    let snapshot = vduse_rbd::Rbd::open(library(), options).unwrap();
    assert!(snapshot.info().read_only);
    let mut at_snapshot = Queue::new(&snapshot);
    assert_eq!(at_snapshot.read(0, 512), [1; 512]);
    assert_eq!(at_snapshot.run(Op::Flush), Ok(None));
    assert_eq!(at_snapshot.run(write(0, &[3; 512])), Err(Errno::ROFS));
    assert_eq!(queue.read(0, 512), [2; 512]);
    assert_eq!(snapshot.info().size.0, SIZE);
}
