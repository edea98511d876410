//! Driver and device on two threads, over one memory file, each asleep on an eventfd whenever
//! it has nothing to do: a lost wake-up is a standstill, which the watchdog ends.

use crate::testing::{Memory, segment};
use crate::{Chain, Layout};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::OwnedFd;

const REQUESTS: u32 = 100_000;

/// How long a side may sleep while requests are open.
const WATCHDOG: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

fn signal(event: &OwnedFd) {
    rustix::io::write(event, &1u64.to_ne_bytes()).expect("signal");
}

fn wait(event: &OwnedFd, who: &str) {
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    assert_eq!(
        poll(&mut fds, Some(&WATCHDOG)),
        Ok(1),
        "{who}: lost wake-up"
    );
    rustix::io::read(event, &mut [0; 8]).expect("a signal");
}

fn drive(memory: &Memory, kick: &OwnedFd, irq: &OwnedFd) {
    let mut driver = memory.driver();
    let (mut sent, mut done) = (0, 0);
    let mut seen = vec![false; REQUESTS as usize];
    while done < REQUESTS {
        while sent < REQUESTS {
            let at = segment(u64::from(sent) << 8, 1 + sent % 1000);
            let readable = &[at, at][..1 + (sent % 2) as usize];
            if !driver.has_room(3) {
                break;
            }
            driver.add(readable, &[at], sent).expect("has room");
            sent += 1;
            if sent % 7 == 0 {
                break;
            }
        }
        if driver.publish() {
            signal(kick);
        }
        let before = done;
        while let Some((token, written)) = driver.pop_used().expect("honest device") {
            assert_eq!(written, 1 + token % 1000);
            assert!(!std::mem::replace(&mut seen[token as usize], true));
            done += 1;
        }
        let stuck = sent == REQUESTS || !driver.has_room(3);
        if done == before && stuck && done < REQUESTS && !driver.enable_irqs() {
            wait(irq, "driver");
        }
    }
}

fn serve(memory: &Memory, kick: &OwnedFd, irq: &OwnedFd) {
    let mut device = memory.device();
    let mut view = memory.view();
    let mut chain = Chain::default();
    let mut done = 0;
    while done < REQUESTS {
        device.suppress_kicks();
        let mut batch = 0;
        while batch < 16 && device.pop(&mut view, &mut chain).expect("honest driver") {
            let token = (chain.writable[0].iova.0 >> 8) as u32;
            assert_eq!(chain.readable.len(), 1 + (token % 2) as usize);
            device.complete(chain.id, chain.slots, chain.writable[0].len);
            batch += 1;
        }
        done += batch;
        if device.publish() {
            signal(irq);
        }
        if batch == 0 && !device.enable_kicks() {
            wait(kick, "device");
        }
    }
}

fn run(packed: bool, event_idx: bool, size: u16) {
    let memory = Memory::new(Layout {
        size,
        packed,
        event_idx,
        indirect: size.is_multiple_of(2),
    });
    let event = || eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    let (kick, irq) = (event(), event());
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&memory, &kick, &irq));
        drive(&memory, &kick, &irq);
    });
}

#[test]
fn split_two_threads() {
    for event_idx in [false, true] {
        run(false, event_idx, 4);
        run(false, event_idx, 64);
    }
}

#[test]
fn packed_two_threads() {
    for event_idx in [false, true] {
        run(true, event_idx, 4);
        run(true, event_idx, 37);
    }
}
