//! Questions about what lies where, to servers on sockets.

use super::drawn;
use crate::facts::Facts;
use crate::{Control, Nbd, OnError, Options};
use rustix::io::Errno;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use vduse_device::backend::{Backend, StatusRequest};
use vduse_device::{Extent, Length, Offset};
use vduse_nbdsocket::Socket;
use vduse_nbdwire::{Head, Header, allocation};
use vduse_worker::Pool;

const FACTS: Facts = Facts {
    size: 1 << 20,
    flags: 1,
    is_structured: true,
    allocation: Some(allocation::ID),
    minimum_block: 1,
    maximum_payload: 4096,
};
const LONG: Duration = Duration::from_secs(60);

type Answer = Receiver<Result<Vec<u8>, Errno>>;

/// A disk with a connection that a worker serves.
struct Disk {
    nbd: Nbd,
    control: Control,
    _pool: Pool,
}

/// And its server's end.
fn disk(reconnect_delay: Duration) -> (Disk, UnixStream) {
    let (ours, server) = pair();
    let options = Options {
        reconnect_delay,
        on_error: OnError::Report,
    };
    let (nbd, control) = Nbd::new(ours, FACTS, options).unwrap();
    let pool = Pool::new(Some(1)).unwrap();
    let (shared, (tell, told)) = (nbd.0.clone(), channel());
    pool.handle().spawn(0, move |place| {
        tell.send(shared.links(&place.spawner()).is_ok()).unwrap();
        None
    });
    assert!(told.recv().unwrap());
    let disk = Disk {
        nbd,
        control,
        _pool: pool,
    };
    (disk, server)
}

fn pair() -> (Socket, UnixStream) {
    let (ours, server) = UnixStream::pair().unwrap();
    (Socket::new(ours.into(), None).unwrap(), server)
}

impl Disk {
    /// What lies in the first 4 sectors.
    fn ask(&self) -> Answer {
        let (tell, told) = channel();
        let extent = Extent::new(Offset(0), Length(2048)).unwrap();
        self.nbd
            .block_status(StatusRequest::new(extent, 9, move |answer| {
                let _ = tell.send(answer.map(|pieces| drawn(&pieces)));
            }));
        told
    }

    /// The connection is made again, once it is wanted.
    fn reconnect(&self, facts: Facts) -> UnixStream {
        let mut wanted = Vec::new();
        while wanted.is_empty() {
            let event = rustix::event::PollFd::from_borrowed_fd(
                self.control.event_fd(),
                rustix::event::PollFlags::IN,
            );
            rustix::event::poll(&mut [event], None).unwrap();
            wanted = self.control.wants();
        }
        let (ours, server) = pair();
        assert_eq!(self.control.connected(wanted[0], ours, facts), Ok(true));
        server
    }
}

/// The cookie of a question.
fn asked(server: &mut UnixStream) -> u64 {
    let mut header = [0; Header::BYTES];
    server.read_exact(&mut header).unwrap();
    let header = Header::parse(&header).unwrap();
    assert_eq!((header.command, header.offset, header.length), (7, 0, 2048));
    header.cookie
}

/// Tells of a hole, and data behind it.
fn answer(server: &mut UnixStream, cookie: u64) {
    let mut reply = Head::block_status(cookie, 2).bytes().to_vec();
    for (length, flags) in [(1024u32, 3u32), (1024, 0)] {
        reply.extend(length.to_be_bytes());
        reply.extend(flags.to_be_bytes());
    }
    server.write_all(&reply).unwrap();
}

#[test]
fn a_question_from_any_thread_is_answered_by_the_server() {
    let (disk, mut server) = disk(LONG);
    let told = disk.ask();
    let cookie = asked(&mut server);
    answer(&mut server, cookie);
    assert_eq!(told.recv(), Ok(Ok(b"hhdd".to_vec())));
}

#[test]
fn a_question_is_put_again_to_a_server_that_comes_back() {
    let (disk, mut server) = disk(LONG);
    let told = disk.ask();
    let cookie = asked(&mut server);
    // It dies in the middle of its answer.
    let head = Head::block_status(cookie, 2);
    server.write_all(&head.bytes()[..24]).unwrap();
    drop(server);
    let mut server = disk.reconnect(FACTS);
    let cookie = asked(&mut server);
    answer(&mut server, cookie);
    assert_eq!(told.recv(), Ok(Ok(b"hhdd".to_vec())));
}

#[test]
fn a_question_fails_as_reads_do_when_the_server_stays_away() {
    let (disk, mut server) = disk(Duration::ZERO);
    let told = disk.ask();
    asked(&mut server);
    drop(server);
    assert_eq!(told.recv(), Ok(Err(Errno::IO)));
    assert_eq!(disk.ask().recv(), Ok(Err(Errno::IO)), "and at once");
}

#[test]
fn a_question_to_a_silent_server_ends_when_the_disk_is_closed() {
    let (disk, mut server) = disk(LONG);
    let told = disk.ask();
    asked(&mut server);
    disk.nbd.close().unwrap();
    assert_eq!(told.recv(), Ok(Err(Errno::SHUTDOWN)));
}

#[test]
fn all_is_data_on_a_server_that_comes_back_without_an_answer() {
    let (disk, mut server) = disk(LONG);
    let told = disk.ask();
    asked(&mut server);
    drop(server);
    let _server = disk.reconnect(Facts {
        allocation: None,
        ..FACTS
    });
    assert_eq!(told.recv(), Ok(Ok(b"dddd".to_vec())));
}

#[test]
fn all_is_data_on_a_disk_that_nobody_uses_yet() {
    let (ours, _server) = pair();
    let options = Options {
        reconnect_delay: LONG,
        on_error: OnError::Report,
    };
    let (nbd, _control) = Nbd::new(ours, FACTS, options).unwrap();
    let (tell, told) = channel();
    let extent = Extent::new(Offset(0), Length(512)).unwrap();
    nbd.block_status(StatusRequest::new(extent, 9, move |answer| {
        tell.send(answer.map(|pieces| drawn(&pieces))).unwrap();
    }));
    assert_eq!(told.recv(), Ok(Ok(b"d".to_vec())));
}
