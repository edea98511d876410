//! What the owners of devices ask of a worker.

use super::{Queues, URING};
use crate::backend::Error;
use crate::command::Command;
use crate::datapath::StartError;
use crate::handle::QueueId;
use crate::queue::{NewQueue, Queue};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

const PANICKED: &str = "internal error: attaching to the backend panicked (please report it)";

impl Queues {
    pub(super) fn read_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        self.mailbox.take(&mut mail);
        self.completions.append(&mut mail.completions);
        if std::mem::take(&mut mail.has_new_deadlines) {
            let ids: Vec<QueueId> = self.queues.iter().map(|(_, queue)| queue.id).collect();
            for id in ids {
                // Notes its deadline, as after everything it does.
                self.guarded(id, |_| Ok(()));
            }
        }
        for command in mail.commands.drain(..) {
            // A panic in a backend's `attach` leaves its caller without an answer, no more.
            let _ = catch_unwind(AssertUnwindSafe(|| self.obey(command)));
        }
        self.mail = mail;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { queue, reply } => {
                // Nobody waits for the answer only if the caller's thread is gone.
                let _ = reply.send(self.start(*queue));
            }
            Command::Drain { id } => {
                self.guarded(id, |queue| {
                    queue.drain();
                    Ok(())
                });
                self.make_hot(id);
            }
            Command::SetIrq { id, irq, done } => {
                if let Some(queue) = self.queue(id) {
                    queue.set_irq(irq);
                }
                drop(done);
            }
            Command::SetKick { id, kick, reply } => {
                let _ = reply.send(self.set_kick(id, kick));
            }
            Command::Refresh { device, done } => {
                self.refresh(device);
                drop(done);
            }
            Command::Pause { device, done } => {
                for id in self.of_device(device) {
                    let done = done.clone();
                    self.guarded(id, |queue| {
                        queue.pause(done);
                        Ok(())
                    });
                    self.retire(id);
                }
            }
            Command::Resume { device, failed } => {
                for id in self.of_device(device) {
                    self.resume(id, &failed);
                }
            }
            Command::Discard { device, done } => self.discard(device, done.as_ref()),
        }
    }

    fn start(&mut self, new: NewQueue) -> Result<QueueId, StartError> {
        self.runs += 1;
        let id = QueueId::new(self.queues.next_key(), self.runs);
        let service = new.attach(id, &self.local)?;
        self.watch_uring()?;
        self.place
            .watch(new.kick.as_fd(), id.raw(), false)
            .map_err(|errno| StartError::System("kick fd", errno))?;
        self.queues.insert(Box::new(Queue::new(id, new, service)));
        self.load.fetch_add(1, Ordering::Relaxed);
        // Kicks may have been lost: a new queue looks at its ring at once.
        self.make_hot(id);
        Ok(id)
    }

    fn set_kick(&mut self, id: QueueId, kick: OwnedFd) -> Result<(), StartError> {
        if self.queue(id).is_none() {
            return Ok(());
        }
        self.place
            .watch(kick.as_fd(), id.raw(), false)
            .map_err(|errno| StartError::System("kick fd", errno))?;
        if let Some(queue) = self.queue(id) {
            let former = queue.set_kick(kick);
            self.place.unwatch(former.as_fd());
        }
        // A kick on either may have been missed.
        self.make_hot(id);
        Ok(())
    }

    /// A queue goes on after a pause.
    fn resume(&mut self, id: QueueId, failed: &Sender<Error>) {
        let Some(queue) = self.queues.get_mut(id.key()) else {
            return;
        };
        let service = match queue.is_at_rest() {
            true => {
                let attached = catch_unwind(AssertUnwindSafe(|| queue.attach(&self.local)));
                match attached.unwrap_or_else(|_| Err(Error::new(Errno::IO, PANICKED))) {
                    Ok(service) => Some(service),
                    Err(error) => return queue.cannot_resume(error, failed),
                }
            }
            false => None,
        };
        queue.resume(service);
        // Kicks may have been missed.
        self.make_hot(id);
        if let Err(error) = self.watch_uring()
            && let Some(queue) = self.queue(id)
        {
            queue.cannot_resume(Error::new(Errno::IO, error.to_string()), failed);
        }
    }

    fn of_device(&self, device: u64) -> Vec<QueueId> {
        let queues = self.queues.iter().map(|(_, queue)| queue);
        let queues = queues.filter(|queue| queue.device().id == device);
        queues.map(|queue| queue.id).collect()
    }

    /// Starts to watch the io_uring once an engine has asked for it.
    fn watch_uring(&mut self) -> Result<(), StartError> {
        if self.uring.is_none()
            && let Some(uring) = &*self.local.uring.borrow()
        {
            self.place
                .watch(uring.borrow().event_fd(), URING, false)
                .map_err(|errno| StartError::System("io_uring", errno))?;
            self.uring = Some(uring.clone());
        }
        Ok(())
    }

    /// The queues of a device let go of the generation they have looked at. They ask for kicks
    /// first: an unused ring need not be mapped, so nobody looks for it before it is used.
    fn refresh(&mut self, device: u64) {
        for id in self.of_device(device) {
            let is_hot = self.queue(id).is_some_and(|queue| queue.is_hot);
            let has_work = is_hot && self.arm_queue(id);
            if is_hot && !has_work {
                self.hot.retain(|&hot| hot != id);
            }
            if let Some(queue) = self.queue(id) {
                queue.is_hot = has_work;
                queue.acknowledge(has_work);
            }
        }
    }
}
