//! Layers: a backend around a backend. Each is a file of its own; any number stack.
//!
//! A layer's engine gets the operations that the engine beneath would have got, on the same
//! thread and under the same tokens. What it holds back it keeps as it came and ends by
//! [`Engine::expire`]; it never completes anything by itself through the completer.

mod delay;
mod error;
mod held;
mod kinds;
mod overlay;
mod random;
mod read_only;
#[cfg(test)]
pub(crate) mod testing;
mod throttle;
mod window;

pub use delay::{Delay, Pause};
pub use error::{ErrorLayer, Faults, Rule, RuleId};
pub use kinds::{OpKind, OpKinds};
pub use overlay::Overlay;
pub use read_only::ReadOnly;
pub use throttle::{Limits, Rate, Split, Throttle, ThrottleLayer};
pub use window::{Filter, Window};

use crate::Length;
use crate::backend::{Backend, Connection, Engine, Error, Info, Local, Observer, StatusRequest};
use std::sync::{Arc, Weak};

/// What a layer changes; everything else is the backend's beneath.
pub trait Layer: Send + Sync {
    /// What the disk is with this layer on it.
    fn info(&self, below: Info) -> Info {
        below
    }

    /// Bytes of memory that hold what an overlay keeps.
    fn overlay_allocated(&self) -> u64 {
        0
    }

    /// Whether a write past the end makes the disk longer, where that is so beneath.
    fn grows(&self) -> bool {
        true
    }

    /// Tells what lies where; see [`Backend::block_status`].
    fn block_status(&self, below: &dyn Backend, request: StatusRequest) {
        below.block_status(request);
    }

    /// The layer's engine around the engine of a virtqueue, on the calling worker's thread.
    fn wrap(&self, below: Box<dyn Engine>, local: &Local) -> Box<dyn Engine>;
}

/// A backend with a layer on it.
pub struct Layered<L> {
    below: Arc<dyn Backend>,
    layer: L,
    /// Others use what lies beneath, too.
    is_shared: bool,
}

impl<L: Layer> Layered<L> {
    /// `layer` on `below`, which nobody else uses.
    pub fn new(below: Arc<dyn Backend>, layer: L) -> Layered<L> {
        Layered {
            below,
            layer,
            is_shared: false,
        }
    }

    /// `layer` on `below`, which others use, too: closing it does not close that.
    pub fn shared(below: Arc<dyn Backend>, layer: L) -> Layered<L> {
        Layered {
            below,
            layer,
            is_shared: true,
        }
    }
}

impl<L: Layer> Backend for Layered<L> {
    fn info(&self) -> Info {
        self.layer.info(self.below.info())
    }

    fn engine_name(&self) -> &'static str {
        self.below.engine_name()
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        Ok(self.layer.wrap(self.below.attach(local)?, local))
    }

    fn refresh_size(&self) -> Result<u64, Error> {
        self.below.refresh_size()
    }

    fn length(&self) -> Length {
        self.below.length()
    }

    fn grows(&self) -> bool {
        self.layer.grows() && self.below.grows()
    }

    fn flush(&self) -> Result<(), Error> {
        self.below.flush()
    }

    fn close(&self) -> Result<(), Error> {
        match self.is_shared {
            true => self.flush(),
            false => self.below.close(),
        }
    }

    fn overlay_allocated(&self) -> u64 {
        self.layer.overlay_allocated() + self.below.overlay_allocated()
    }

    fn block_status(&self, request: StatusRequest) {
        self.layer.block_status(&*self.below, request);
    }

    fn connection(&self) -> Connection {
        self.below.connection()
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.below.observe(observer);
    }
}
