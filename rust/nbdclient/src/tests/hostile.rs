//! What a server must not do.

use super::{Client, STATUS, chunk_of, data, failed, hole, status};
use crate::replies::{Fault, Replies};
use crate::request::Kind;
use std::time::Instant;
use vduse_nbdwire::{Head, Header, chunk};

#[test]
fn what_a_server_must_not_do_ends_its_connection_and_no_request() {
    type Lie = (&'static str, Kind, Box<dyn Fn(u64) -> Vec<u8>>, Fault);
    let lies: Vec<Lie> = vec![
        (
            "magic",
            Kind::Read,
            Box::new(|_| b"HTTP/1.1 400".to_vec()),
            Fault::Magic(0x4854_5450),
        ),
        (
            "stray",
            Kind::Read,
            Box::new(|c| Head::none(c + 1).bytes().to_vec()),
            Fault::Stray,
        ),
        (
            "other part",
            Kind::Read,
            Box::new(|c| Head::none(c + (1 << 32)).bytes().to_vec()),
            Fault::Stray,
        ),
        (
            "before",
            Kind::Read,
            Box::new(|c| data(c, true, 511, &[0; 512])),
            Fault::Range,
        ),
        (
            "behind",
            Kind::Read,
            Box::new(|c| data(c, true, 513, &[0; 512])),
            Fault::Range,
        ),
        (
            "overflow",
            Kind::Read,
            Box::new(|c| data(c, true, u64::MAX, &[0; 2])),
            Fault::Range,
        ),
        (
            "more",
            Kind::Read,
            Box::new(|c| data(c, true, 512, &[0; 513])),
            Fault::Range,
        ),
        (
            "twice",
            Kind::Read,
            Box::new(|c| [data(c, false, 512, &[0; 512]), data(c, true, 512, &[0; 1])].concat()),
            Fault::Range,
        ),
        (
            "hole",
            Kind::Read,
            Box::new(|c| hole(c, true, 512, u32::MAX)),
            Fault::Range,
        ),
        (
            "missing",
            Kind::Read,
            Box::new(|c| data(c, true, 512, &[0; 511])),
            Fault::Missing,
        ),
        (
            "no data",
            Kind::Read,
            Box::new(|c| Head::none(c).bytes().to_vec()),
            Fault::Missing,
        ),
        (
            "empty data",
            Kind::Read,
            Box::new(|c| data(c, true, 512, &[])),
            Fault::Chunk(1),
        ),
        (
            "simple",
            Kind::Read,
            Box::new(|c| Head::simple(c, None).bytes().to_vec()),
            Fault::Simple,
        ),
        (
            "data of a write",
            Kind::Write,
            Box::new(|c| data(c, true, 512, &[0; 512])),
            Fault::Chunk(1),
        ),
        (
            "hole of a write",
            Kind::Write,
            Box::new(|c| hole(c, true, 512, 512)),
            Fault::Chunk(2),
        ),
        (
            "none, not last",
            Kind::Write,
            Box::new(|c| chunk_of(c, false, chunk::NONE, &[])),
            Fault::Chunk(0),
        ),
        (
            "status",
            Kind::Write,
            Box::new(|c| chunk_of(c, true, chunk::BLOCK_STATUS, &[0; 12])),
            Fault::Chunk(5),
        ),
        (
            "another context",
            STATUS,
            Box::new(|c| status(c, true, 8, &[(512, 0)])),
            Fault::Status("is of a context that was not agreed on"),
        ),
        (
            "a context twice",
            STATUS,
            Box::new(|c| [0, 1].map(|_| status(c, false, 1, &[(512, 0)])).concat()),
            Fault::Status("is told twice"),
        ),
        (
            "no bytes",
            STATUS,
            Box::new(|c| status(c, true, 1, &[(0, 0)])),
            Fault::Status("is of no bytes"),
        ),
        (
            "too many",
            STATUS,
            Box::new(|c| status(c, true, 1, &[(513, 0), (1, 0)])),
            Fault::Status("is of what was not asked about"),
        ),
        (
            "no status",
            STATUS,
            Box::new(|c| Head::none(c).bytes().to_vec()),
            Fault::Status("is missing"),
        ),
        (
            "a simple status",
            STATUS,
            Box::new(|c| Head::simple(c, None).bytes().to_vec()),
            Fault::Status("is missing"),
        ),
        (
            "no descriptors",
            STATUS,
            Box::new(|c| status(c, true, 1, &[])),
            Fault::Chunk(chunk::BLOCK_STATUS),
        ),
        (
            "half a descriptor",
            STATUS,
            Box::new(|c| chunk_of(c, true, chunk::BLOCK_STATUS, &[0; 8])),
            Fault::Chunk(chunk::BLOCK_STATUS),
        ),
        (
            "data of a question",
            STATUS,
            Box::new(|c| data(c, true, 512, &[0; 512])),
            Fault::Chunk(1),
        ),
        (
            "unknown",
            Kind::Write,
            Box::new(|c| chunk_of(c, true, 77, &[])),
            Fault::Chunk(77),
        ),
        (
            "short error",
            Kind::Write,
            Box::new(|c| chunk_of(c, true, chunk::ERROR, &[0; 5])),
            Fault::Chunk(chunk::ERROR),
        ),
        (
            "long error",
            Kind::Write,
            Box::new(|c| chunk_of(c, true, chunk::ERROR, &[0; 5000])),
            Fault::Chunk(chunk::ERROR),
        ),
        (
            "message",
            Kind::Write,
            Box::new(|c| chunk_of(c, true, chunk::ERROR, &[0, 0, 0, 5, 0, 9, 0])),
            Fault::Chunk(chunk::ERROR),
        ),
        (
            "shutdown",
            Kind::Write,
            Box::new(|c| failed(c, true, 108, b"")),
            Fault::Shutdown,
        ),
    ];
    for (name, kind, lie, fault) in lies {
        for step in [1, 4096] {
            let mut client = Client::new(true);
            let cookie = client.sent(kind, 512, 512);
            assert_eq!(client.feed(&lie(cookie), step), Err(fault), "{name}");
            assert_eq!(client.ended(), [], "{name}");
            // It is asked again on the next connection.
            client.outstanding.interrupt(Instant::now());
            client.replies = Replies::new(true);
            let again = client.send(usize::MAX);
            assert_eq!((again.len(), again[0].0.offset), (1, 512), "{name}");
            assert_ne!(again[0].0.cookie, cookie, "{name}");
        }
    }
}

#[test]
fn a_reply_to_what_has_not_left_as_a_whole_is_a_stray() {
    let mut client = Client::new(true);
    client.ask(0, Kind::Write, 0, 512);
    let (pieces, _) = client.outstanding.to_send(2);
    let cookie = Header::parse(pieces[0].first_chunk().unwrap())
        .unwrap()
        .cookie;
    client.outstanding.has_sent(539);
    assert_eq!(
        client.feed(Head::none(cookie).bytes(), 100),
        Err(Fault::Stray)
    );
}

#[test]
fn random_replies_never_panic() {
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..20_000 {
        let mut client = Client::new(next() % 4 > 0);
        let cookies: Vec<u64> = (0..3)
            .map(|at| {
                client.sent(
                    [Kind::Read, Kind::Write, STATUS][at as usize % 3],
                    512 * at,
                    512,
                )
            })
            .collect();
        let mut bytes = Vec::new();
        for _ in 0..4 {
            let cookie = cookies[next() as usize % 3];
            let payload: Vec<u8> = (0..next() % 40).map(|_| (next() % 3) as u8).collect();
            let kind = [0, 1, 2, 5, 0x8001, 0x8002, 9][next() as usize % 7];
            bytes.extend(chunk_of(cookie, next() % 2 > 0, kind, &payload));
            bytes.extend(Head::simple(cookie, None).bytes());
        }
        let _ = client.feed(&bytes, 1 + next() as usize % 50);
    }
}
