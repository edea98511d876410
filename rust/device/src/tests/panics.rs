//! A backend that panics where its device is being given up, beside a good one.

use super::*;
use std::time::Instant;

/// Where it panics, besides in `submit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Cancel,
    Deadline,
    Expire,
    Drop,
}

struct Panics(At);

impl Backend for Panics {
    fn info(&self) -> Info {
        disk(Kind::Detachable)
    }

    fn attach(&self, _local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(PanicsEngine {
            at: self.0,
            has_requests: false,
        }))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct PanicsEngine {
    at: At,
    has_requests: bool,
}

impl PanicsEngine {
    fn reaches(&self, at: At) {
        assert_ne!(self.at, at, "the panic that a test wants");
    }
}

impl Engine for PanicsEngine {
    fn submit(&mut self, _token: Token, op: Op) -> Submitted {
        self.has_requests = true;
        match op {
            Op::Read { .. } => Submitted::Pending,
            _ => panic!("the panic that a test wants"),
        }
    }

    fn cancel(&mut self, _token: Token) {
        self.reaches(At::Cancel);
    }

    fn deadline(&self) -> Option<Instant> {
        if !self.has_requests {
            return None;
        }
        self.reaches(At::Deadline);
        (self.at == At::Expire).then(Instant::now)
    }

    fn expire(&mut self, _now: Instant, _ended: &mut Vec<Completion>) {
        self.reaches(At::Expire);
    }
}

impl Drop for PanicsEngine {
    fn drop(&mut self) {
        self.reaches(At::Drop);
    }
}

#[test]
fn a_backend_that_panics_wherever_it_can_ends_its_device_alone() {
    for at in [At::Cancel, At::Deadline, At::Expire, At::Drop] {
        let pool = TestPool::new(1);
        let mut good = Rig::new(&pool, memory(), false);
        let mut bad = Rig::new(&pool, Arc::new(Panics(at)), false);
        bad.send(1, None, 1);
        bad.send(2, Some(1), 1);
        let message = bad.wait_broken();
        assert!(message.contains("panicked"), "{at:?}: {message}");
        bad.path.reset(Duration::ZERO);
        good.send(1, Some(1), 1);
        assert_eq!(good.wait(), (1, 0), "{at:?}");
        assert!(good.path.invalidate(Iova(0), Iova(0), LONG), "{at:?}");
    }
}
