//! What a worker is to an engine, without a worker: for the tests of backends in other crates.

use super::{Completion, Local};
use crate::mailbox::{Completer, Mail, Mailbox};
use std::cell::RefCell;
use std::sync::{Arc, mpsc};

/// Takes completions where a worker would.
pub struct Inbox {
    mailbox: Arc<Mailbox>,
    bell: mpsc::Receiver<()>,
}

impl Inbox {
    /// One, and what engines are attached with.
    pub fn new() -> (Inbox, Local) {
        let mailbox = Mailbox::new();
        let (rung, bell) = mpsc::channel();
        mailbox.set_bell(move || {
            let _ = rung.send(());
        });
        let local = Local {
            spawner: Default::default(),
            completer: Completer::new(mailbox.clone()),
            uring: RefCell::new(None),
        };
        (Inbox { mailbox, bell }, local)
    }

    /// What has come since the last call.
    pub fn take(&self) -> Vec<Completion> {
        let mut mail = Mail::default();
        self.mailbox.take(&mut mail);
        mail.completions
    }

    /// Waits until something has come, or an engine has woken the worker; takes it.
    pub fn wait(&self) -> Vec<Completion> {
        let _ = self.bell.recv();
        self.take()
    }
}
