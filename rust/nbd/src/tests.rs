//! Connections against a small device, stepped by hand.

use crate::allocation::{Allocation, Part, Question};
use crate::connection::{Connection, Failure, Options};
use crate::wire::{Header, command, flag};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use vduse_framework::blk::testing::{Memory, Rig, SHAPE};
use vduse_framework::blk::{Armed, Sectors};
use vduse_nbdsocket::Socket;

/// A client, its connection, and the disk.
struct Bench {
    // Before the rig: its requests are the driver's.
    connection: Connection,
    client: UnixStream,
    rig: Rig,
}

impl Bench {
    fn new(structured: bool) -> Bench {
        Bench::with(structured, None)
    }

    fn with(structured: bool, allocation: Option<Arc<dyn Allocation>>) -> Bench {
        let rig = Rig::new(Memory::domain(16 << 20), SHAPE);
        let (client, socket) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let socket = Socket::new(socket.into(), None).unwrap();
        let queue = rig.driver.queue_for_events(0, Arc::new(|| {})).unwrap();
        let options = Options {
            structured,
            base_allocation: structured,
        };
        Bench {
            connection: Connection::new(
                socket,
                rig.driver.clone(),
                queue,
                options,
                allocation,
                Arc::new(|| {}),
            ),
            client,
            rig,
        }
    }

    fn send(&mut self, parts: &[&[u8]]) {
        self.client.write_all(&parts.concat()).unwrap();
        self.connection.socket_event();
    }

    /// One step; waits for the device where there is nothing else to do.
    fn step(&mut self) {
        if self.connection.run() || self.connection.is_over() {
            return;
        }
        if self.connection.arm() == Armed::Waiting {
            let irq = self.connection.irq_fd();
            poll(&mut [PollFd::new(&irq, PollFlags::IN)], None).unwrap();
            self.rig.lines[0].take_irqs();
        }
    }

    /// Steps until `len` bytes have come.
    fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut at = 0;
        while at < len {
            match self.client.read(&mut bytes[at..]) {
                Ok(0) => panic!("the end after {at} of {len} bytes"),
                Ok(received) => {
                    at += received;
                    self.connection.socket_event();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.step(),
                Err(error) => panic!("{error}"),
            }
        }
        bytes
    }

    /// Error and cookie of a simple reply.
    fn reply(&mut self) -> (u32, u64) {
        let bytes = self.receive(16);
        assert_eq!(bytes[..4], 0x6744_6698u32.to_be_bytes());
        let error = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(bytes[8..].try_into().unwrap()))
    }

    fn run_until_over(&mut self) {
        while !self.connection.is_over() {
            self.step();
        }
    }
}

pub(crate) fn request(
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> [u8; Header::BYTES] {
    let mut bytes = [0; Header::BYTES];
    bytes[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[test]
fn what_was_written_is_read() {
    let mut bench = Bench::new(false);
    for len in [512, 4096, 200 << 10, 3 << 20] {
        let data: Vec<u8> = (0..len).map(|at| (at / 512 + at) as u8).collect();
        let mut left = &[&request(command::WRITE, 0, 1, 512, len as u32)[..], &data].concat()[..];
        while !left.is_empty() {
            match bench.client.write(left) {
                Ok(sent) => left = &left[sent..],
                Err(_) => {
                    bench.connection.socket_event();
                    bench.connection.run();
                }
            }
        }
        bench.connection.socket_event();
        assert_eq!(bench.reply(), (0, 1));
        bench.send(&[&request(command::READ, 0, 2, 512, len as u32)]);
        assert_eq!(bench.reply(), (0, 2));
        assert!(bench.receive(len) == data, "{len} bytes");
    }
}

#[test]
fn fua_is_a_write_and_then_a_flush() {
    let mut bench = Bench::new(false);
    bench.send(&[&request(command::WRITE, flag::FUA, 9, 0, 512), &[7; 512]]);
    assert_eq!(bench.reply(), (0, 9));
    let kinds: Vec<u32> = bench
        .rig
        .behaviour()
        .seen
        .iter()
        .map(|seen| seen.0)
        .collect();
    assert_eq!(kinds, [1, 4]);
}

#[test]
fn a_refused_write_has_its_payload_skipped() {
    let mut bench = Bench::new(false);
    let write = request(command::WRITE, 0, 1, 1, 1024);
    let read = request(command::READ, 0, 2, 0, 512);
    bench.send(&[&write, &read, &[0x25; 996], &read]);
    assert_eq!(bench.reply(), (22, 1));
    assert_eq!(bench.reply(), (0, 2));
    assert_eq!(bench.receive(512), [0; 512]);
    assert!(bench.rig.behaviour().seen.iter().all(|seen| seen.0 == 0));
}

#[test]
fn an_error_of_the_device_is_eio_and_the_connection_goes_on() {
    let mut bench = Bench::new(false);
    bench.rig.behaviour().status = Some(1);
    bench.send(&[&request(command::READ, 0, 1, 0, 512)]);
    assert_eq!(bench.reply(), (5, 1));
    bench.rig.behaviour().status = None;
    bench.send(&[&request(command::READ, 0, 2, 0, 512)]);
    assert_eq!(bench.reply(), (0, 2));
}

#[test]
fn a_reset_answers_eshutdown_and_ends_the_connection() {
    let mut bench = Bench::new(false);
    bench.rig.behaviour().hold = true;
    bench.send(&[&request(command::READ, 0, 1, 0, 512)]);
    while bench.connection.run() {}
    bench.rig.driver.stop(Errno::NODEV);
    assert_eq!(bench.reply(), (108, 1));
    bench.run_until_over();
    assert_eq!(
        bench.connection.failure(),
        Some(Failure::DiskEnded(Errno::NODEV))
    );
}

#[test]
fn no_more_requests_are_taken_than_there_is_room_for() {
    let mut bench = Bench::new(false);
    bench.rig.behaviour().hold = true;
    let requests: Vec<u8> = (0..400)
        .flat_map(|cookie| request(command::READ, 0, cookie, 0, 512))
        .collect();
    bench.send(&[&requests]);
    while bench.connection.run() {}
    assert_eq!(bench.connection.take_done().requests, 256);
    bench.rig.behaviour().hold = false;
    bench.rig.prod();
    for _ in 0..400 {
        assert_eq!(bench.reply().0, 0);
        bench.receive(512);
    }
}

/// 64 MiB of blocks: what one client can have us hold.
#[test]
fn no_more_bytes_are_held_than_there_is_room_for() {
    let mut bench = Bench::new(false);
    bench.rig.behaviour().hold = true;
    let requests: Vec<u8> = (0..20)
        .flat_map(|cookie| request(command::READ, 0, cookie, 0, 8 << 20))
        .collect();
    bench.send(&[&requests]);
    while bench.connection.run() {}
    assert_eq!(bench.connection.take_done().requests, 8);
}

#[test]
fn a_client_that_goes_with_requests_in_flight_leaves_nothing_behind() {
    let Bench {
        mut connection,
        client,
        rig,
    } = Bench::new(false);
    rig.behaviour().hold = true;
    let mut client = client;
    client
        .write_all(&request(command::READ, 0, 1, 0, 4096).repeat(8))
        .unwrap();
    connection.socket_event();
    while connection.run() {}
    drop(client);
    connection.socket_event();
    while connection.run() {}
    // It waits for what the device has; then nobody is there to answer.
    rig.behaviour().hold = false;
    rig.prod();
    while !connection.is_over() {
        connection.run();
    }
    drop(connection);
    assert_eq!(rig.memory.bounce_in_use(), 0);
}

#[test]
fn bad_magic_ends_the_connection_whatever_is_in_flight() {
    let mut bench = Bench::new(false);
    bench.rig.behaviour().hold = true;
    bench.send(&[
        &request(command::READ, 0, 1, 0, 512),
        &[0xab; Header::BYTES],
    ]);
    bench.run_until_over();
    assert_eq!(
        bench.connection.failure(),
        Some(Failure::BadMagic(0xabab_abab))
    );
}

#[test]
fn an_end_that_came_with_the_last_data_is_seen_before_a_sleep() {
    let mut bench = Bench::new(false);
    bench.send(&[&request(command::WRITE, 0, 1, 0, 512)]);
    bench.client.shutdown(std::net::Shutdown::Write).unwrap();
    while bench.connection.run() {}
    assert_eq!(bench.connection.arm(), Armed::Ready);
    bench.run_until_over();
    assert_eq!(bench.connection.failure(), Some(Failure::Truncated));
}

#[test]
fn a_half_closed_client_gets_its_replies() {
    let mut bench = Bench::new(false);
    bench.send(&[&request(command::READ, 0, 1, 0, 512)]);
    bench.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.reply(), (0, 1));
    bench.receive(512);
    bench.run_until_over();
    assert_eq!(bench.connection.failure(), None);
}

#[test]
fn a_disk_that_grows_is_served_to_its_new_end() {
    let mut bench = Bench::new(false);
    let end = SHAPE.sectors * Sectors::SIZE;
    bench.send(&[&request(command::WRITE_ZEROES, 0, 1, end, 512)]);
    assert_eq!(bench.reply(), (28, 1));
    let mut space = vduse_framework::blk::testing::config_space(&SHAPE);
    space[..8].copy_from_slice(&(SHAPE.sectors + 8).to_le_bytes());
    bench.rig.driver.set_config(&space).unwrap();
    bench.rig.behaviour().disk.resize(end as usize + 4096, 0);
    bench.send(&[&request(command::WRITE_ZEROES, 0, 2, end, 512)]);
    assert_eq!(bench.reply(), (0, 2));
}

#[test]
fn structured_replies_carry_data_extents_and_errors() {
    let mut bench = Bench::new(true);
    bench.send(&[&request(command::READ, 0, 1, 512, 512)]);
    let reply = bench.receive(28 + 512);
    assert_eq!(reply[4..8], [0, 1, 0, 1]);
    assert_eq!(reply[16..28], [0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 2, 0]);
    bench.send(&[&request(command::BLOCK_STATUS, 0, 3, 0, 1024)]);
    let reply = bench.receive(24 + 8);
    assert_eq!(reply[4..8], [0, 1, 0, 5]);
    assert_eq!(reply[20..], [0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 0, 0]);
    bench.send(&[&request(command::READ, 0, 4, 1, 512)]);
    let reply = bench.receive(26);
    assert_eq!(reply[4..8], [0, 1, 0x80, 1]);
    assert_eq!(reply[20..], [0, 0, 0, 22, 0, 0]);
}

/// Keeps its questions.
#[derive(Default)]
struct Patient(Mutex<Vec<Question>>);

impl Allocation for Patient {
    fn ask(&self, question: Question) {
        self.0.lock().unwrap().push(question);
    }
}

impl Patient {
    fn take(&self) -> Question {
        self.0.lock().unwrap().remove(0)
    }
}

/// A connection to a disk whose allocation `Patient` knows.
fn asking() -> (Bench, Arc<Patient>) {
    let patient = Arc::<Patient>::default();
    (Bench::with(true, Some(patient.clone())), patient)
}

fn hole(len: u64) -> Part {
    Part {
        len,
        is_hole: true,
        is_zero: true,
    }
}

/// The payload of a BLOCK_STATUS reply to the request of that cookie.
fn extents(bench: &mut Bench, cookie: u64, count: usize) -> Vec<(u32, u32)> {
    let reply = bench.receive(24 + 8 * count);
    assert_eq!(reply[4..8], [0, 1, 0, 5]);
    assert_eq!(reply[8..16], cookie.to_be_bytes());
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let extents = reply[24..].chunks_exact(8);
    extents
        .map(|extent| (number(&extent[..4]), number(&extent[4..])))
        .collect()
}

#[test]
fn where_nobody_knows_all_is_data() {
    let mut bench = Bench::new(true);
    bench.send(&[&request(command::BLOCK_STATUS, 0, 3, 0, 1024)]);
    assert_eq!(extents(&mut bench, 3, 1), [(1024, 0)]);
}

#[test]
fn a_question_waits_for_its_answer_alone() {
    let (mut bench, patient) = asking();
    bench.send(&[
        &request(command::BLOCK_STATUS, 0, 1, 4096, 8192),
        &request(command::BLOCK_STATUS, flag::REQ_ONE, 2, 0, 8192),
        &request(command::FLUSH, 0, 3, 0, 0),
    ]);
    assert_eq!(bench.receive(20)[8..16], 3u64.to_be_bytes());
    let (first, second) = (patient.take(), patient.take());
    let asked = |question: &Question| (question.offset(), question.length(), question.most());
    assert_eq!(asked(&first), (4096, 8192, 512));
    assert_eq!(asked(&second), (0, 8192, 1));
    let zero = Part {
        is_hole: false,
        ..hole(512)
    };
    std::thread::spawn(move || second.answer(Ok(vec![hole(4096), zero])))
        .join()
        .unwrap();
    assert_eq!(extents(&mut bench, 2, 1), [(4096, 3)]);
    first.answer(Ok(vec![hole(1024), zero, hole(1 << 40)]));
    let all = [(1024, 3), (512, 2), (8192 - 1536, 3)];
    assert_eq!(extents(&mut bench, 1, 3), all);
}

#[test]
fn a_question_without_an_answer_is_an_error() {
    let (mut bench, patient) = asking();
    let answers: [fn(Question); 3] = [
        drop,
        |question| question.answer(Ok(vec![hole(0)])),
        |question| question.answer(Err(Errno::IO)),
    ];
    for answer in answers {
        bench.send(&[&request(command::BLOCK_STATUS, 0, 1, 0, 512)]);
        while bench.connection.run() {}
        answer(patient.take());
        let reply = bench.receive(26);
        assert_eq!(reply[4..8], [0, 1, 0x80, 1]);
        assert_eq!(reply[20..], [0, 0, 0, 5, 0, 0]);
    }
    assert_eq!(bench.connection.blocks().taken(), 0);
}

#[test]
fn an_end_waits_for_a_question_and_an_abort_does_not() {
    for aborts in [false, true] {
        let (mut bench, patient) = asking();
        bench.send(&[&request(command::BLOCK_STATUS, 0, 1, 0, 512)]);
        while bench.connection.run() {}
        bench.connection.close();
        bench.connection.run();
        assert!(!bench.connection.is_over());
        if aborts {
            bench.connection.abort();
            let Bench { connection, .. } = bench;
            drop(connection);
            patient.take().answer(Ok(vec![hole(512)]));
        } else {
            patient.take().answer(Ok(vec![hole(512)]));
            assert_eq!(extents(&mut bench, 1, 1), [(512, 3)]);
            bench.run_until_over();
        }
    }
}
