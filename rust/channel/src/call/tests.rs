//! The call socket against frameworks, honest and hostile, on the other end of a socketpair.

use super::*;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, recv, send, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use std::thread;
use vduse_mem::Perm;

/// A call socket, and the framework's end of it.
fn pair() -> (CallSocket, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let (device, framework) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (CallSocket::new(device), framework)
}

/// One call as the framework receives it: its nr, seq and payload.
fn receive(framework: &OwnedFd) -> (u32, u32, Vec<u8>) {
    let mut buffer = [0; MAX_PACKET];
    let (bytes, _) = recv(framework, &mut buffer[..], RecvFlags::empty()).unwrap();
    let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
    (word(0), word(4), buffer[HEADER..bytes].to_vec())
}

fn answer(framework: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let packet = [IoSlice::new(packet)];
    sendmsg(framework, &packet, &mut control, SendFlags::NOSIGNAL).unwrap();
}

fn packet(result: i32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    [&result.to_ne_bytes(), &sequence.to_ne_bytes(), payload].concat()
}

/// What `call` gives when the framework answers call number 1 with `reply` and `fds`.
fn call_answered<R>(
    reply: &[u8],
    fds: &[BorrowedFd<'_>],
    call: impl FnOnce(&CallSocket) -> R,
) -> (R, CallSocket) {
    let (socket, framework) = pair();
    answer(&framework, reply, fds);
    let result = call(&socket);
    // The framework still lives: an error after this is the socket's own doing.
    if socket.call(7, &[], &[]).err() != Some(Errno::CONNRESET) {
        panic!("the socket outlived a wrong answer");
    }
    drop(framework);
    (result, socket)
}

fn plain_call(socket: &CallSocket) -> Option<Errno> {
    socket.call(7, &[], &[]).err()
}

#[test]
fn call_and_answer_carry_payload_and_fds_both_ways() {
    let (socket, framework) = pair();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let served = thread::spawn(move || {
        for expected in 1..=2 {
            let mut buffer = [0; MAX_PACKET];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let bytes = recvmsg(&framework, &mut slices, &mut control, flags)
                .unwrap()
                .bytes;
            let fds: Vec<_> = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                })
                .flatten()
                .collect();
            assert_eq!(buffer[4..8], u32::to_ne_bytes(expected));
            assert_eq!((&buffer[8..bytes], fds.len()), (&b"ping"[..], 1));
            answer(&framework, &packet(5, expected, b"pong"), &[fds[0].as_fd()]);
        }
    });
    for _ in 0..2 {
        let answer = socket.call(42, b"ping", &[writer.as_fd()]).unwrap();
        assert_eq!((answer.result, &answer.payload[..]), (5, &b"pong"[..]));
        rustix::io::write(&answer.fds[0], b"x").unwrap();
        let flags = rustix::io::fcntl_getfd(&answer.fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mut byte = [0];
        assert_eq!(rustix::io::read(&reader, &mut byte), Ok(1));
    }
    served.join().unwrap();
    assert_eq!(plain_call(&socket), Some(Errno::CONNRESET));
}

#[test]
fn an_errno_is_an_answer_and_the_socket_lives() {
    let (socket, framework) = pair();
    let nothing = packet(-Errno::INVAL.raw_os_error(), 1, &[]);
    answer(&framework, &nothing, &[]);
    let resolved = socket.resolve(Iova(0x1000), Iova(0x1fff));
    assert_eq!(resolved.unwrap_err(), Errno::INVAL);
    assert_eq!(receive(&framework).0, 0xc020_8110);
    answer(&framework, &packet(0, 2, &[]), &[]);
    assert_eq!(socket.inject_irq(3), Ok(()));
    let call = receive(&framework);
    assert_eq!(call, (0x4004_8117, 2, 3_u32.to_ne_bytes().to_vec()));
}

#[test]
fn resolve_gives_the_entry_as_rewritten() {
    let (socket, framework) = pair();
    let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    let mut entry = abi::iotlb_request(Iova(0), Iova(0xffff));
    entry[..8].copy_from_slice(&0x3000_u64.to_ne_bytes());
    entry[24] = 1;
    answer(&framework, &packet(0, 1, &entry), &[memory.as_fd()]);
    let (_fd, entry) = socket.resolve(Iova(0x1000), Iova(0x1fff)).unwrap();
    let asked = abi::iotlb_request(Iova(0x1000), Iova(0x1fff));
    assert_eq!(receive(&framework), (0xc020_8110, 1, asked.to_vec()));
    let expected = Entry {
        start: Iova(0),
        last: Iova(0xffff),
        offset: 0x3000,
        perm: Perm::Ro,
    };
    assert_eq!(entry, expected);
}

#[test]
fn a_wrong_frame_ends_the_conversation() {
    let long = packet(0, 1, &[0; MAX_PACKET]);
    let cases: [(&str, &[u8]); 6] = [
        ("short", &[0; 7]),
        ("one byte", &[0]),
        ("sequence of no call", &packet(0, 2, &[])),
        ("sequence before the first", &packet(0, 0, &[])),
        ("result below every errno", &packet(i32::MIN, 1, &[])),
        ("longer than a packet", &long),
    ];
    for (case, reply) in cases {
        let (error, _socket) = call_answered(reply, &[], plain_call);
        assert_eq!(error, Some(Errno::PROTO), "{case}");
    }
}

#[test]
fn an_empty_packet_is_the_end() {
    let (error, _socket) = call_answered(&[], &[], plain_call);
    assert_eq!(error, Some(Errno::CONNRESET));
}

#[test]
fn too_many_fds_end_the_conversation_and_are_closed() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    for count in [MAX_FDS + 1, 16] {
        let fds = vec![writer.as_fd(); count];
        let (error, _socket) = call_answered(&packet(0, 1, &[]), &fds, plain_call);
        assert_eq!(error, Some(Errno::PROTO), "{count} fds");
    }
    drop(writer);
    let mut byte = [0];
    assert_eq!(rustix::io::read(&reader, &mut byte), Ok(0), "an fd leaked");
}

#[test]
fn an_iotlb_answer_that_is_none_ends_the_conversation() {
    let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    let mut entry = abi::iotlb_request(Iova(0), Iova(0xffff));
    entry[24] = 3;
    let mut forbidden = entry;
    forbidden[24] = 4;
    let (one, two) = ([memory.as_fd()], [memory.as_fd(); 2]);
    let cases: [(&str, &[u8], &[BorrowedFd<'_>]); 5] = [
        ("no fd", &entry, &[]),
        ("two fds", &entry, &two),
        ("no entry", &[], &one),
        ("half an entry", &entry[..16], &one),
        ("perm 4", &forbidden, &one),
    ];
    for (case, payload, fds) in cases {
        let resolve = |socket: &CallSocket| socket.resolve(Iova(0), Iova(1)).err();
        let (error, _socket) = call_answered(&packet(0, 1, payload), fds, resolve);
        assert_eq!(error, Some(Errno::PROTO), "{case}");
    }
}

#[test]
fn a_framework_that_goes_away_in_the_middle_is_a_reset() {
    let (socket, framework) = pair();
    let gone = thread::spawn(move || receive(&framework));
    assert_eq!(plain_call(&socket), Some(Errno::CONNRESET));
    gone.join().unwrap();
    assert_eq!(plain_call(&socket), Some(Errno::CONNRESET));
}

#[test]
fn a_silent_framework_does_not_hold_the_caller_for_ever() {
    let flags = SocketFlags::CLOEXEC;
    let (device, framework) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let socket = CallSocket::with_patience(device, Duration::from_millis(20));
    assert_eq!(plain_call(&socket), Some(Errno::TIMEDOUT));
    // What it says later is for nobody.
    assert_eq!(plain_call(&socket), Some(Errno::CONNRESET));
    assert_eq!(
        send(&framework, &packet(0, 2, &[]), SendFlags::NOSIGNAL),
        Err(Errno::PIPE)
    );
}

#[test]
fn shutdown_ends_a_call_that_waits() {
    let (socket, framework) = pair();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| plain_call(&socket));
        receive(&framework); // the call is under way
        socket.shutdown();
        assert_eq!(waiting.join().unwrap(), Some(Errno::CONNRESET));
    });
}

#[test]
fn callers_on_many_threads_each_get_their_own_answer() {
    let (socket, framework) = pair();
    let echo = thread::spawn(move || {
        for _ in 0..400 {
            let (nr, sequence, _) = receive(&framework);
            answer(&framework, &packet(nr as i32, sequence, &[]), &[]);
        }
    });
    thread::scope(|scope| {
        for caller in 0..4 {
            let socket = &socket;
            scope.spawn(move || {
                for _ in 0..100 {
                    assert_eq!(socket.call(caller, &[], &[]).unwrap().result, caller as i32);
                }
            });
        }
    });
    echo.join().unwrap();
}

#[test]
fn what_does_not_fit_is_not_sent() {
    let (socket, framework) = pair();
    let too_long = socket.call(7, &[0; MAX_PACKET - HEADER + 1], &[]);
    assert_eq!(too_long.err(), Some(Errno::MSGSIZE));
    let fds = [framework.as_fd(); MAX_FDS + 1];
    assert_eq!(socket.call(7, &[], &fds).err(), Some(Errno::MSGSIZE));
    answer(&framework, &packet(0, 1, &[]), &[]);
    assert_eq!(plain_call(&socket), None, "the socket still lives");
}

#[test]
fn what_is_no_socket_is_dead_from_the_start() {
    let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    let socket = CallSocket::new(memory);
    assert_eq!(plain_call(&socket), Some(Errno::CONNRESET));
}
