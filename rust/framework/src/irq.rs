//! When VDUSE_VQ_INJECT_IRQ is taken: one rule, whichever way the call comes.

use crate::VqLine;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why an irq is not taken; in the order in which the kernel looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IrqError {
    /// The device did not answer a message in time.
    #[error("the device is broken: destroy it")]
    Broken,
    /// The device has fewer virtqueues.
    #[error("no virtqueue {0}")]
    Index(u32),
    /// The driver is not live, and gave no eventfd of its own.
    #[error("no irq before DRIVER_OK")]
    NotLive,
}

impl IrqError {
    /// As the ioctl fails.
    pub fn errno(self) -> Errno {
        match self {
            IrqError::Broken => Errno::PERM,
            IrqError::Index(_) | IrqError::NotLive => Errno::INVAL,
        }
    }
}

/// The irqs of one device: whether they are taken, and the lines they go to.
#[derive(Debug)]
pub struct IrqGate {
    lines: Box<[Arc<VqLine>]>,
    driver_ok: AtomicBool,
    broken: AtomicBool,
}

impl IrqGate {
    /// Of a device with these virtqueues, before DRIVER_OK.
    pub fn new(lines: impl IntoIterator<Item = Arc<VqLine>>) -> IrqGate {
        IrqGate {
            lines: lines.into_iter().collect(),
            driver_ok: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    /// Whether DRIVER_OK is in the device's status.
    pub fn set_driver_ok(&self, driver_ok: bool) {
        self.driver_ok.store(driver_ok, Ordering::Release);
    }

    /// The device is broken, for good.
    pub fn set_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// `Broken` before anything else is looked at.
    pub fn check(&self) -> Result<(), IrqError> {
        match self.broken.load(Ordering::Acquire) {
            true => Err(IrqError::Broken),
            false => Ok(()),
        }
    }

    /// An irq of a virtqueue: signals the driver, where the queue is ready. Runs nothing of the
    /// driver's on this stack, and waits for nobody.
    pub fn inject(&self, index: u32) -> Result<(), IrqError> {
        self.check()?;
        let line = self
            .lines
            .get(index as usize)
            .ok_or(IrqError::Index(index))?;
        match line.irq(self.driver_ok.load(Ordering::Acquire)) {
            true => Ok(()),
            false => Err(IrqError::NotLive),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsFd;

    fn gate() -> (IrqGate, Arc<VqLine>) {
        let line = Arc::new(VqLine::new().unwrap());
        (IrqGate::new([line.clone()]), line)
    }

    #[test]
    fn no_irq_before_driver_ok() {
        let (gate, line) = gate();
        assert_eq!(gate.inject(0), Err(IrqError::NotLive));
        gate.set_driver_ok(true);
        assert_eq!((gate.inject(0), line.take_irqs()), (Ok(()), 1));
        gate.set_driver_ok(false);
        assert_eq!(
            (gate.inject(0), line.take_irqs()),
            (Err(IrqError::NotLive), 0)
        );
    }

    #[test]
    fn a_driver_with_an_eventfd_gets_irqs_without_driver_ok_once_its_queue_is_ready() {
        let (gate, line) = gate();
        let call = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        line.set_callfd(Some(call.as_fd())).unwrap();
        let signals = || {
            let mut counter = [0; 8];
            rustix::io::read(&call, &mut counter).map_or(0, |_| u64::from_ne_bytes(counter))
        };
        line.set_ready(false);
        assert_eq!((gate.inject(0), signals()), (Err(IrqError::NotLive), 0));
        line.set_ready(true);
        assert_eq!((gate.inject(0), signals()), (Ok(()), 1));
    }

    #[test]
    fn the_irq_of_a_queue_that_is_not_ready_is_taken_and_goes_nowhere() {
        let (gate, line) = gate();
        gate.set_driver_ok(true);
        line.set_ready(false);
        assert_eq!((gate.inject(0), line.take_irqs()), (Ok(()), 0));
    }

    #[test]
    fn errors_come_in_the_kernels_order() {
        let (gate, _line) = gate();
        assert_eq!(gate.inject(1), Err(IrqError::Index(1)));
        gate.set_broken();
        assert_eq!(
            (gate.inject(1), gate.inject(0)),
            (Err(IrqError::Broken), Err(IrqError::Broken))
        );
        let errors = [IrqError::Broken, IrqError::Index(1), IrqError::NotLive];
        assert_eq!(
            errors.map(IrqError::errno),
            [Errno::PERM, Errno::INVAL, Errno::INVAL]
        );
    }
}
