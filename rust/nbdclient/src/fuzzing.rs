//! Entry function of the fuzz target: bytes are what a server sends, in pieces. It panics where
//! its invariant is broken.

use crate::facts::Facts;
use crate::outstanding::Outstanding;
use crate::question::Question;
use crate::replies::Replies;
use crate::request::{Kind, Request, Waiter, Whose};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use vduse_device::backend::StatusRequest;
use vduse_device::{Extent, Length, Offset};

const FACTS: Facts = Facts {
    size: 1 << 20,
    flags: 0xffff,
    is_structured: true,
    allocation: Some(1),
    minimum_block: 1,
    maximum_payload: 4096,
};

/// What the server is asked for: kind, offset, length. The second is sent in two parts.
const ASKED: [(Kind, u64, u64); 5] = [
    (Kind::Read, 0, 512),
    (Kind::Read, 4096, 8192),
    (Kind::Write, 512, 512),
    (Kind::Flush, 0, 0),
    (Kind::WriteZeroes { may_unmap: true }, 0, 1 << 20),
];

/// Any bytes from a server: they are taken or end the connection, and every request ends, with all
/// of its data if it was a read that went well, and what lies where within what was asked about.
pub fn nbd_server(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else {
        return;
    };
    let mut outstanding = Outstanding::new(FACTS);
    let mut replies = Replies::new(first & 1 == 0);
    let waiters = ASKED.map(|(kind, offset, length)| {
        let waiter = Arc::new(Waiter::default());
        let request = Request {
            whose: Whose::Waiter(waiter.clone()),
            kind,
            offset,
            length,
            payload: vec![
                0;
                if kind == Kind::Write {
                    length as usize
                } else {
                    0
                }
            ],
            interrupted: None,
        };
        outstanding.add(request, None);
        waiter
    });
    let (tell, told) = channel();
    if let Some(extent) = Extent::new(Offset(512), Length(8192)) {
        let question = StatusRequest::new(extent, 3, move |answer| {
            let _ = tell.send(answer);
        });
        outstanding.add(Question::into_request(question, FACTS), None);
    }
    let mut kept = Vec::new();
    for piece in data.chunks(usize::from(first >> 1).max(1)) {
        send(&mut outstanding);
        if feed(piece, &mut kept, &mut replies, &mut outstanding).is_none() {
            outstanding.interrupt(Instant::now());
            break;
        }
        assert!(kept.len() < 64, "a part of a header is all that is left");
    }
    outstanding.end_all(Errno::IO);
    outstanding.ended.tell();
    for waiter in waiters {
        assert_ne!(waiter.wait(Duration::ZERO), Err(Errno::TIMEDOUT));
    }
    if let Ok(Ok(pieces)) = told.recv() {
        let bytes: u64 = pieces.iter().map(|piece| piece.len.0).sum();
        assert!((1..=3).contains(&pieces.len()) && (512..=8192).contains(&bytes));
    }
}

fn send(outstanding: &mut Outstanding) {
    while outstanding.has_to_send() {
        let (_, bytes) = outstanding.to_send(16);
        outstanding.has_sent(bytes);
    }
}

/// As a socket's bytes come: first to where they belong, if that is known. `None`: the connection
/// has ended.
fn feed(
    mut piece: &[u8],
    kept: &mut Vec<u8>,
    replies: &mut Replies,
    outstanding: &mut Outstanding,
) -> Option<()> {
    if let Some(direct) = replies.direct(outstanding) {
        let here = direct.len().min(piece.len());
        direct[..here].copy_from_slice(&piece[..here]);
        piece = &piece[here..];
        replies.filled(here, outstanding).ok()?;
    }
    kept.extend_from_slice(piece);
    let taken = replies.take(kept, outstanding).ok()?;
    kept.drain(..taken);
    Some(())
}
