//! The end of a worker's queues.

use super::{Queues, RETRY};
use rustix::event::Timespec;

/// Turns that the end waits for the io_uring to empty, each as long as [`RETRY`].
const LAST_TURNS: usize = 1000;

impl Queues {
    /// Waits for completions, a moment.
    fn nap(&self) {
        let Some(uring) = &self.uring else {
            return std::thread::sleep(RETRY);
        };
        let uring = uring.borrow();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            uring.event_fd(),
            rustix::event::PollFlags::IN,
        )];
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: RETRY.subsec_nanos().into(),
        };
        // Whatever comes of it, there is another turn.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        let _ = rustix::io::read(uring.event_fd(), &mut [0; 8]);
    }
}

impl Drop for Queues {
    /// Gives up all queues and lets the io_uring empty itself, within bounds.
    fn drop(&mut self) {
        let devices: Vec<u64> = self
            .queues
            .iter()
            .map(|(_, queue)| queue.device().id)
            .collect();
        for device in devices {
            self.discard(device, None);
        }
        for _ in 0..LAST_TURNS {
            if self.queues.is_empty() {
                break;
            }
            self.nap();
            self.read_mail();
            self.collect();
            self.expire();
        }
        self.mailbox.close();
    }
}
