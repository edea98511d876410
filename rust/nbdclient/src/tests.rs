//! Requests and replies without sockets: what a server can do to a client, and what a lost
//! connection does not.

mod hostile;
mod live;
mod status;

use crate::facts::Facts;
use crate::outstanding::Outstanding;
use crate::question::Question;
use crate::replies::{Fault, Replies};
use crate::request::{Kind, Request, Whose};
use rustix::io::Errno;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vduse_device::backend::{Piece, StatusRequest};
use vduse_device::{Extent, Length, Offset};
use vduse_nbdwire::{Error, Head, Header, chunk};

/// Name, result and data of what has ended.
type End = (u64, Result<(), Errno>, Option<Vec<u8>>);
/// Those so far.
pub(crate) type Seen = Arc<Mutex<Vec<End>>>;

const FACTS: Facts = Facts {
    size: 1 << 30,
    flags: 0xffff,
    is_structured: true,
    allocation: Some(1),
    minimum_block: 1,
    maximum_payload: 4096,
};

const STATUS: Kind = Kind::BlockStatus { is_one: false };

struct Client {
    outstanding: Outstanding,
    replies: Replies,
    seen: Seen,
}

impl Client {
    fn new(is_structured: bool) -> Client {
        let mut outstanding = Outstanding::new(FACTS);
        outstanding.connect(FACTS);
        Client {
            outstanding,
            replies: Replies::new(is_structured),
            seen: Seen::default(),
        }
    }

    fn ask(&mut self, name: u64, kind: Kind, offset: u64, length: u64) {
        if let Kind::BlockStatus { is_one } = kind {
            let extent = Extent::new(Offset(offset), Length(length)).unwrap();
            let (most, seen) = (if is_one { 1 } else { 16 }, self.seen.clone());
            let tell = move |answer: Result<Vec<Piece>, Errno>| {
                let end = answer.map(|pieces| drawn(&pieces));
                let (result, data) = (end.as_ref().map(|_| ()).map_err(|it| *it), end.ok());
                seen.lock().unwrap().push((name, result, data));
            };
            let request = StatusRequest::new(extent, most, tell);
            let request = Question::into_request(request, FACTS);
            return self.outstanding.add(request, None);
        }
        let payload = match kind {
            Kind::Write => vec![name as u8; length as usize],
            _ => Vec::new(),
        };
        let request = Request {
            whose: Whose::Test(name, self.seen.clone()),
            kind,
            offset,
            length,
            payload,
            interrupted: None,
        };
        self.outstanding.add(request, None);
    }

    /// Sends all that waits, in steps of `step` bytes; headers and payloads as the server gets
    /// them.
    fn send(&mut self, step: usize) -> Vec<(Header, Vec<u8>)> {
        let mut wire = Vec::new();
        while self.outstanding.has_to_send() {
            let (pieces, bytes) = self.outstanding.to_send(6);
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
            assert_eq!(all.len(), bytes);
            let sent = step.min(bytes);
            wire.extend_from_slice(&all[..sent]);
            self.outstanding.has_sent(sent);
        }
        let (mut requests, mut rest) = (Vec::new(), &wire[..]);
        while let Some((head, after)) = rest.split_first_chunk::<{ Header::BYTES }>() {
            let header = Header::parse(head).unwrap();
            let len = if header.has_payload() {
                header.length as usize
            } else {
                0
            };
            requests.push((header, after[..len].to_vec()));
            rest = &after[len..];
        }
        assert!(rest.is_empty());
        requests
    }

    /// One request that was sent; its cookie.
    fn sent(&mut self, kind: Kind, offset: u64, length: u64) -> u64 {
        self.ask(0, kind, offset, length);
        self.send(usize::MAX).pop().unwrap().0.cookie
    }

    /// Feeds the replies in steps, as sockets cut them.
    fn feed(&mut self, bytes: &[u8], step: usize) -> Result<(), Fault> {
        let mut kept = Vec::new();
        for piece in bytes.chunks(step) {
            kept.extend_from_slice(piece);
            let taken = self.replies.take(&kept, &mut self.outstanding)?;
            kept.drain(..taken);
        }
        Ok(())
    }

    fn ended(&self) -> Vec<End> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// A letter a sector: d for data, h for a hole, z for zeroes that take room.
fn drawn(pieces: &[Piece]) -> Vec<u8> {
    let letters = pieces.iter().flat_map(|piece| {
        let letter = match (piece.is_hole, piece.is_zero) {
            (_, false) => b'd',
            (true, true) => b'h',
            (false, true) => b'z',
        };
        vec![letter; (piece.len.0 / 512) as usize]
    });
    letters.collect()
}

/// A chunk that tells what lies where.
fn status(cookie: u64, is_last: bool, context: u32, told: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    for (length, flags) in told {
        payload.extend(length.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    chunk_of(cookie, is_last, chunk::BLOCK_STATUS, &payload)
}

/// A chunk with any payload.
fn chunk_of(cookie: u64, is_last: bool, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend(u16::from(is_last).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn data(cookie: u64, is_last: bool, offset: u64, data: &[u8]) -> Vec<u8> {
    let payload = [&offset.to_be_bytes(), data].concat();
    chunk_of(cookie, is_last, chunk::OFFSET_DATA, &payload)
}

fn hole(cookie: u64, is_last: bool, offset: u64, length: u32) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    chunk_of(cookie, is_last, chunk::OFFSET_HOLE, &payload)
}

fn failed(cookie: u64, is_last: bool, error: u32, message: &[u8]) -> Vec<u8> {
    let len = (message.len() as u16).to_be_bytes();
    let payload = [&error.to_be_bytes()[..], &len, message].concat();
    chunk_of(cookie, is_last, chunk::ERROR, &payload)
}

#[test]
fn a_read_is_put_together_of_chunks_in_any_order_however_they_are_cut() {
    for step in [1, 7, 20, 1000] {
        let mut client = Client::new(true);
        let cookie = client.sent(Kind::Read, 1024, 1024);
        let reply = [
            data(cookie, false, 1536, &[7; 512]),
            hole(cookie, false, 1024, 256),
            data(cookie, false, 1280, &[9; 256]),
            Head::none(cookie).bytes().to_vec(),
        ];
        client.feed(&reply.concat(), step).unwrap();
        let whole = [vec![0; 256], vec![9; 256], vec![7; 512]].concat();
        assert_eq!(client.ended(), [(0, Ok(()), Some(whole))]);
    }
}

#[test]
fn simple_replies_carry_data_errors_and_nothing() {
    let mut client = Client::new(false);
    client.ask(1, Kind::Read, 0, 512);
    client.ask(2, Kind::Write, 512, 512);
    client.ask(3, Kind::Flush, 0, 0);
    let sent = client.send(usize::MAX);
    let [read, write, flush] = [0, 1, 2].map(|at: usize| sent[at].0.cookie);
    assert_eq!(sent[1].1, [2; 512]);
    let reply = [
        Head::simple(flush, None).bytes().to_vec(),
        Head::simple(write, Some(Error::NoSpc)).bytes().to_vec(),
        Head::simple(read, None).bytes().to_vec(),
        vec![5; 512],
    ];
    client.feed(&reply.concat(), 100).unwrap();
    let want = [
        (3, Ok(()), None),
        (2, Err(Errno::NOSPC), None),
        (1, Ok(()), Some(vec![5; 512])),
    ];
    assert_eq!(client.ended(), want);
}

#[test]
fn an_error_chunk_fails_its_read_and_the_connection_goes_on() {
    let mut client = Client::new(true);
    let cookie = client.sent(Kind::Read, 0, 512);
    client
        .feed(&failed(cookie, false, 5, b"bad sector"), 3)
        .unwrap();
    assert_eq!(client.ended(), []);
    client.feed(Head::none(cookie).bytes(), 100).unwrap();
    assert_eq!(client.ended()[0].1, Err(Errno::IO));
    let next = client.sent(Kind::Flush, 0, 0);
    client.feed(Head::none(next).bytes(), 100).unwrap();
    assert_eq!(client.ended(), [(0, Ok(()), None)]);
}

#[test]
fn what_a_lost_connection_left_is_sent_again_whole_and_in_the_order_it_came() {
    let mut client = Client::new(true);
    client.ask(1, Kind::Write, 0, 512);
    client.ask(2, Kind::Read, 512, 1024);
    client.ask(3, Kind::Flush, 0, 0);
    client.ask(4, Kind::WriteZeroes { may_unmap: true }, 4096, 4096);
    let sent = client.send(100);
    // The flush has ended, and half of the read is there.
    client
        .feed(Head::none(sent[2].0.cookie).bytes(), 100)
        .unwrap();
    let half = data(sent[1].0.cookie, false, 512, &[1; 512]);
    client.feed(&half, 100).unwrap();
    client.ask(5, Kind::Write, 8192, 512);
    client.outstanding.interrupt(Instant::now());
    client.replies = Replies::new(true);
    client.ask(6, Kind::Read, 0, 512);
    assert_eq!(client.ended(), [(3, Ok(()), None)]);
    client.outstanding.connect(FACTS);
    let again = client.send(33);
    let offsets: Vec<u64> = again.iter().map(|(header, _)| header.offset).collect();
    assert_eq!(offsets, [0, 512, 4096, 8192, 0]);
    assert_eq!((&again[0].1, &again[3].1), (&vec![1; 512], &vec![5; 512]));
    // A reply of before means nothing now.
    let mut late = Replies::new(true);
    let stale = Head::none(sent[0].0.cookie);
    assert_eq!(
        late.take(stale.bytes(), &mut client.outstanding),
        Err(Fault::Stray)
    );
    // And the read comes from one server alone.
    client
        .feed(&data(again[1].0.cookie, true, 512, &[2; 1024]), 100)
        .unwrap();
    assert_eq!(client.ended(), [(2, Ok(()), Some(vec![2; 1024]))]);
}

#[test]
fn a_connection_that_breaks_in_a_payload_sends_that_request_again_from_its_start() {
    let mut client = Client::new(true);
    client.ask(1, Kind::Write, 0, 512);
    client.outstanding.has_sent(100);
    client.outstanding.interrupt(Instant::now());
    assert_eq!(client.send(usize::MAX)[0].1, [1; 512]);
}

#[test]
fn requests_fail_when_they_have_waited_since_their_first_interruption() {
    let mut client = Client::new(true);
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    client.ask(1, Kind::Read, 0, 512);
    assert_eq!(client.outstanding.deadline(second * 10), None);
    client.outstanding.interrupt(start);
    client.outstanding.connect(FACTS);
    client.send(usize::MAX);
    client.ask(2, Kind::Read, 0, 512);
    // A server that dies of the first request does not keep it waiting for ever.
    client.outstanding.interrupt(start + second * 6);
    assert_eq!(
        client.outstanding.deadline(second * 10),
        Some(start + second * 10)
    );
    client.outstanding.expire(start + second * 9, second * 10);
    assert_eq!(client.ended(), []);
    client.outstanding.expire(start + second * 10, second * 10);
    let ended = client.ended();
    assert_eq!(
        (ended.len(), ended[0].0, ended[0].1),
        (1, 1, Err(Errno::IO))
    );
    assert_eq!(
        client.outstanding.deadline(second * 10),
        Some(start + second * 16)
    );
    // What was given up is not sent.
    assert_eq!(client.send(usize::MAX).len(), 1);
}

#[test]
fn what_moves_to_another_connection_is_whole_in_its_order_and_has_waited_as_long() {
    let mut client = Client::new(true);
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    client.ask(1, Kind::Write, 0, 8192);
    client.ask(2, Kind::Read, 512, 1024);
    let sent = client.send(usize::MAX);
    client
        .feed(Head::none(sent[0].0.cookie).bytes(), 100)
        .unwrap();
    client.outstanding.interrupt(start);
    let moved = client.outstanding.take_all();
    assert_eq!(client.outstanding.len(), 0);
    assert!(!client.outstanding.has_to_send());
    let mut other = Client::new(true);
    for request in moved {
        other.outstanding.add(request, None);
    }
    assert_eq!(other.outstanding.len(), 2);
    assert_eq!(other.outstanding.deadline(second), Some(start + second));
    let again = other.send(usize::MAX);
    let places: Vec<(u64, u32)> = again.iter().map(|(it, _)| (it.offset, it.length)).collect();
    assert_eq!(places, [(0, 4096), (512, 1024)]);
    assert_eq!(client.ended(), []);
}

#[test]
fn a_request_is_cut_to_what_the_server_takes() {
    let mut client = Client::new(true);
    client.ask(1, Kind::Write, 0, 10_000);
    let mut offsets = Vec::new();
    for _ in 0..3 {
        assert_eq!(client.ended(), []);
        let sent = client.send(usize::MAX);
        assert_eq!(sent.len(), 1);
        offsets.push((sent[0].0.offset, sent[0].0.length));
        client
            .feed(Head::none(sent[0].0.cookie).bytes(), 100)
            .unwrap();
    }
    assert_eq!(offsets, [(0, 4096), (4096, 4096), (8192, 1808)]);
    assert_eq!(client.ended(), [(1, Ok(()), None)]);
    client.ask(2, Kind::Read, 0, 8192);
    for part in 0..2u8 {
        let header = client.send(usize::MAX)[0].0;
        client
            .feed(
                &data(header.cookie, true, header.offset, &[part; 4096]),
                999,
            )
            .unwrap();
    }
    let whole = [[0; 4096], [1; 4096]].concat();
    assert_eq!(client.ended(), [(2, Ok(()), Some(whole))]);
}
