//! Entry function of the fuzz target: bytes are what a client sends, in pieces. It panics where
//! its invariant is broken.

use crate::allocation::{Allocation, Part, Question};
use crate::block::Blocks;
use crate::connection::{Connection, Options};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::thread::Builder;
use vduse_framework::blk::testing::{Memory, Rig, SHAPE};
use vduse_nbdsocket::Socket;

/// One disk for all inputs.
static RIG: LazyLock<Rig> = LazyLock::new(|| Rig::new(Memory::domain(4 << 20), SHAPE));

/// Turns without progress after which an answer is not to be expected any more; the device is a
/// thread of its own.
const PATIENCE: u32 = 1 << 24;

/// Answers by the question's offset: with too much, with nothing, later, or not at all.
struct Any;

impl Allocation for Any {
    fn ask(&self, question: Question) {
        let part = Part {
            len: question.offset(),
            is_hole: true,
            is_zero: question.length() > 4096,
        };
        match question.offset() >> 9 & 3 {
            0 => question.answer(Ok(vec![part; 1000])),
            1 => question.answer(Ok(Vec::new())),
            2 => drop(Builder::new().spawn(move || question.answer(Ok(vec![part])))),
            _ => drop(question),
        }
    }
}

/// Any bytes from a client: the connection answers what it took and ends, within bounds, and
/// lets go of all memory.
pub fn nbd_client(data: &[u8]) {
    let Some((&first, mut data)) = data.split_first() else {
        return;
    };
    let Ok((mut client, socket)) = UnixStream::pair() else {
        return;
    };
    client.set_nonblocking(true).expect("a socket");
    let structured = first & 1 != 0;
    let queue = RIG
        .driver
        .queue_for_events(0, Arc::new(|| {}))
        .expect("queue 0");
    let options = Options {
        structured,
        base_allocation: structured,
    };
    let socket = Socket::new(socket.into(), None).expect("a stream socket");
    let allocation: Option<Arc<dyn Allocation>> = match first & 2 {
        0 => None,
        _ => Some(Arc::new(Any)),
    };
    let driver = RIG.driver.clone();
    let wake = Arc::new(|| {});
    let mut connection = Connection::new(socket, driver, queue, options, allocation, wake);
    let piece = usize::from(first >> 1).max(1) * 16;
    while !data.is_empty() && !connection.is_over() {
        let sent = client.write(&data[..piece.min(data.len())]).unwrap_or(0);
        data = &data[sent..];
        step(&mut connection, &mut client);
    }
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    let mut turns = 0;
    while !connection.is_over() {
        turns = match step(&mut connection, &mut client) {
            true => 0,
            false => turns + 1,
        };
        assert!(turns < PATIENCE, "a request is not answered");
    }
    assert!(
        connection.blocks().taken() <= Blocks::MOST,
        "too much is held"
    );
}

fn step(connection: &mut Connection, client: &mut UnixStream) -> bool {
    connection.socket_event();
    let worked = connection.run();
    assert!(
        connection.blocks().taken() <= Blocks::MOST,
        "too much is held"
    );
    let mut replies = [0; 4096];
    let received = client.read(&mut replies).unwrap_or(0);
    worked || received > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::request;
    use crate::wire::{command, flag};

    /// Mutated inputs, in each test run.
    const MUTATIONS: u32 = 3000;

    /// Every request of the protocol once, well and ill, and what comes of them by small random
    /// changes. The former are seeds of the fuzz target, written where `VDUSE_WRITE_CORPUS` says.
    #[test]
    fn corpus_nbd_client() {
        let write = request(command::WRITE, flag::FUA, 1, 512, 512);
        let commands = [
            [&write[..], &[0x5a; 512]].concat(),
            [&request(command::WRITE, 0, 1, 1, 512)[..], &[0x5a; 512]].concat(),
            request(command::READ, flag::DF, 2, 0, 4096).to_vec(),
            request(command::READ, 0, 2, u64::MAX, 4096).to_vec(),
            request(command::FLUSH, 0, 3, 0, 0).to_vec(),
            request(command::TRIM, 0, 4, 0, 8192).to_vec(),
            request(command::CACHE, 0, 5, 0, 512).to_vec(),
            request(command::WRITE_ZEROES, flag::NO_HOLE, 6, 512, 512).to_vec(),
            request(command::WRITE_ZEROES, flag::FAST_ZERO, 7, 0, 512).to_vec(),
            request(command::BLOCK_STATUS, flag::REQ_ONE, 8, 0, 65536).to_vec(),
            request(0xffff, 0, 9, 0, 512).to_vec(),
            request(command::DISC, 0, 10, 0, 0).to_vec(),
            write.to_vec(),
            vec![0xff; 64],
        ];
        let all = commands[..11].concat();
        let folder = std::env::var_os("VDUSE_WRITE_CORPUS").map(std::path::PathBuf::from);
        let folder = folder.map(|folder| folder.join("nbd_client"));
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).unwrap();
        }
        for (number, seed) in commands.iter().chain([&all]).enumerate() {
            for first in [0, 1, 2, 255] {
                let input = [&[first][..], seed].concat();
                nbd_client(&input);
                if let Some(folder) = &folder {
                    std::fs::write(folder.join(format!("{number}-{first}")), input).unwrap();
                }
            }
        }
        let mut state = 1u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        for _ in 0..MUTATIONS {
            let mut input = vec![random(256) as u8];
            for _ in 0..1 + random(4) {
                input.extend(&commands[random(commands.len())]);
            }
            for _ in 0..random(4) {
                let at = random(input.len());
                input[at] ^= 1 << random(8);
            }
            input.truncate(input.len() - random(8));
            nbd_client(&input);
        }
    }
}
