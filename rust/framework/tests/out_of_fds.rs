//! Alone in its process, whose fds it uses up.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use vduse_framework::blk::{BlkDriver, SetupError};
use vduse_framework::{Domain, VqLine};

#[test]
fn a_driver_that_finds_no_fd_gives_its_memory_back() {
    let domain = Domain::new(1 << 20).unwrap();
    let lines = [Arc::new(VqLine::new().unwrap())];
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let refused = BlkDriver::new(domain.clone(), 0, &[0; 60], &[16], &lines);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(refused.err(), Some(SetupError::Eventfd(Errno::MFILE)));
    assert_eq!(domain.stats().unwrap().coherent, 0);
}
