//! Where irqs go.

use super::*;

#[test]
fn irqs_go_through_the_channel_where_there_is_no_call_fd() {
    use std::sync::atomic::Ordering;
    let pool = pool();
    let mut rig = Rig::idle(&pool, memory(), false);
    let setup = QueueSetup {
        call: None,
        ..rig.setup()
    };
    rig.path.start_queue(0, setup).unwrap();
    rig.path.set_call(0, None).unwrap();
    assert_eq!(rig.guest.irqs.load(Ordering::Relaxed), 1, "one may be lost");
    rig.path.set_call(0, Some(dup(&rig.call))).unwrap();
    rig.send(1, Some(1), 1);
    assert_eq!(rig.wait(), (1, 0));
}

#[test]
fn a_full_call_pipe_does_not_stop_a_queue() {
    let pool = pool();
    let mut rig = Rig::idle(&pool, memory(), false);
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    let setup = QueueSetup {
        call: Some(writer),
        ..rig.setup()
    };
    rig.path.start_queue(0, setup).unwrap();
    // 64 KiB hold 8192 irqs of 8 bytes.
    for round in 0..9000 {
        rig.send(0, Some(1), 1);
        rig.driver.enable_irqs();
        while rig.driver.pop_used().unwrap().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(rig.status(0), 0, "round {round}");
    }
}

#[test]
fn kicks_come_another_way_once_the_fd_is_changed() {
    let pool = pool();
    let mut rig = Rig::idle(&pool, memory(), false);
    rig.path.start_queue(0, rig.setup()).unwrap();
    let other = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    rig.path.set_kick(0, dup(&other)).unwrap();
    rig.kick = other;
    rig.send(1, Some(1), 1);
    assert_eq!(rig.wait(), (1, 0));
    rig.path
        .stop_queue(0, std::time::Duration::from_secs(5))
        .unwrap();
    let other = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    assert!(rig.path.set_kick(0, other).is_err(), "nothing runs");
}
