//! What lies where, asked of a server.

use super::{Client, FACTS, STATUS, failed, status};
use crate::facts::Facts;
use crate::replies::Replies;
use crate::request::Kind;
use rustix::io::Errno;
use std::time::Instant;
use vduse_nbdwire::{Error, Head, allocation};

const HOLE: u32 = allocation::HOLE | allocation::ZERO;

#[test]
fn what_lies_where_is_put_together_however_it_is_cut() {
    for step in [1, 7, 20, 1000] {
        for ends_alone in [false, true] {
            let mut client = Client::new(true);
            client.ask(1, STATUS, 1024, 4096);
            let header = client.send(usize::MAX)[0].0;
            assert_eq!((header.command, header.flags), (7, 0));
            assert_eq!((header.offset, header.length), (1024, 4096));
            let told = [(512, 0), (1024, HOLE), (512, allocation::ZERO), (99_999, 0)];
            let mut reply = status(header.cookie, !ends_alone, 1, &told);
            if ends_alone {
                reply.extend(Head::none(header.cookie).bytes());
            }
            client.feed(&reply, step).unwrap();
            let want = b"dhhzdddd".to_vec();
            assert_eq!(client.ended(), [(1, Ok(()), Some(want))]);
        }
    }
}

#[test]
fn one_piece_is_asked_for_as_one_descriptor() {
    let mut client = Client::new(true);
    client.ask(1, Kind::BlockStatus { is_one: true }, 0, 4096);
    assert_eq!(client.send(usize::MAX)[0].0.flags, 1 << 3);
}

#[test]
fn a_question_that_the_server_refuses_fails_and_the_connection_goes_on() {
    let mut client = Client::new(true);
    for told in [&[][..], &[(512, HOLE)]] {
        let cookie = client.sent(STATUS, 0, 4096);
        if !told.is_empty() {
            client.feed(&status(cookie, false, 1, told), 100).unwrap();
        }
        client.feed(&failed(cookie, true, 5, b"no"), 100).unwrap();
        assert_eq!(client.ended(), [(0, Err(Errno::IO), None)]);
    }
    let cookie = client.sent(STATUS, 0, 4096);
    let refused = Head::simple(cookie, Some(Error::Inval));
    client.feed(refused.bytes(), 100).unwrap();
    assert_eq!(client.ended(), [(0, Err(Errno::INVAL), None)]);
}

#[test]
fn a_server_that_cannot_tell_is_not_asked_and_all_is_data() {
    let mut client = Client::new(true);
    let silent = Facts {
        allocation: None,
        ..FACTS
    };
    let cookie = client.sent(STATUS, 0, 1024);
    let half = status(cookie, false, 1, &[(512, HOLE)]);
    client.feed(&half, 100).unwrap();
    client.outstanding.interrupt(Instant::now());
    client.outstanding.connect(silent);
    assert_eq!(client.ended(), [(0, Ok(()), Some(b"dd".to_vec()))]);
    client.ask(1, STATUS, 0, 2048);
    assert_eq!(client.send(usize::MAX), []);
    assert_eq!(client.ended(), [(1, Ok(()), Some(b"dddd".to_vec()))]);
}

#[test]
fn an_answer_comes_from_one_server_alone() {
    let mut client = Client::new(true);
    let cookie = client.sent(STATUS, 0, 1024);
    let half = status(cookie, false, 1, &[(700, HOLE)]);
    client.feed(&half, 100).unwrap();
    client.outstanding.interrupt(Instant::now());
    client.outstanding.connect(Facts {
        allocation: Some(9),
        ..FACTS
    });
    client.replies = Replies::new(true);
    let cookie = client.send(usize::MAX)[0].0.cookie;
    let whole = status(cookie, true, 9, &[(512, 0), (512, HOLE)]);
    client.feed(&whole, 100).unwrap();
    assert_eq!(client.ended(), [(0, Ok(()), Some(b"dh".to_vec()))]);
}
