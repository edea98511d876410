//! Engines outside of virtqueues: a backend that stands on another one runs that one's engines in
//! a task of its own.

use super::{Completion, Local, Uring};
use crate::Completer;
use crate::mailbox::{Mail, Mailbox};
use rustix::io::Errno;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use vduse_worker::Place;

/// What a task offers the engines in it, and where their completions come out. Lives on its
/// worker's thread. The task's owner gives out tokens as it likes.
pub struct Lane {
    mailbox: Arc<Mailbox>,
    local: Local,
    /// The same as `local.uring`, once it is watched.
    uring: Option<Rc<RefCell<Uring>>>,
    mail: Mail,
}

impl Lane {
    /// For the task at `place`, which is woken by what comes from other threads.
    pub fn new(place: &Place) -> Lane {
        let (mailbox, waker) = (Mailbox::new(), place.waker());
        mailbox.set_bell(move || waker.wake());
        Lane {
            local: Local {
                spawner: place.spawner(),
                completer: Completer::new(mailbox.clone()),
                uring: RefCell::new(None),
            },
            mailbox,
            uring: None,
            mail: Mail::default(),
        }
    }

    /// What engines are attached with; [`Lane::watch`] follows.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Starts to watch the io_uring, under `key`, once an engine has asked for one.
    pub fn watch(&mut self, place: &Place, key: u64) -> Result<(), Errno> {
        if self.uring.is_none()
            && let Some(uring) = &*self.local.uring.borrow()
        {
            place.watch(uring.borrow().event_fd(), key, false)?;
            self.uring = Some(uring.clone());
        }
        Ok(())
    }

    /// Hands over what engines have collected, and takes what has ended into `out`. True if the
    /// kernel took not everything: to be tried again soon.
    pub fn collect(&mut self, out: &mut Vec<Completion>) -> bool {
        self.mailbox.take(&mut self.mail);
        out.append(&mut self.mail.completions);
        match &self.uring {
            Some(uring) if self.has_news() => uring.borrow_mut().turn(out),
            _ => false,
        }
    }

    /// Whether [`Lane::collect`] would find something of the io_uring's.
    pub fn has_news(&self) -> bool {
        let uring = self.uring.as_ref();
        uring.is_some_and(|uring| uring.borrow_mut().has_news())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
