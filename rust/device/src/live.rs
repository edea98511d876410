//! What a queue has while it may touch guest memory: its view and its ring.

use crate::datapath::StartError;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vduse_mem::{Access, DirtyLog, Fault, Iotlb, Iova, Perm, Pinned, Region, View};
use vduse_ring::{Areas, DeviceQueue, Layout, QueueState, RingError, RingLog, Segment};

/// The ring, where it is mapped now, and the view that its requests are translated with.
pub(crate) struct Live {
    pub(crate) view: View,
    pub(crate) ring: DeviceQueue,
    /// The virtqueue's index.
    index: u32,
    layout: Layout,
    areas: [Iova; 3],
    /// Generation of the IOTLB at which the areas were mapped.
    mapped_at: u64,
    /// What writes were marked in at that generation.
    log: Option<Arc<DirtyLog>>,
    /// A newer generation was acknowledged: the ring may be elsewhere.
    pub(crate) is_stale: bool,
    /// Publish once even with nothing staged: a predecessor's irq may be missing.
    pub(crate) owes_publication: bool,
    /// Completions are staged in the ring.
    pub(crate) is_staged: bool,
}

/// Why a device stops.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The ring, or where it lies.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A status byte out of reach, or memory taken away.
    #[error("the request's status byte is out of reach: {0}")]
    Status(Fault),
    /// A buffer of a chain out of reach.
    #[error("a buffer is out of reach: {0}")]
    Buffer(Fault),
    /// A page was found missing.
    #[error("guest memory was taken away (SIGBUS)")]
    Poisoned,
    /// The dirty log has no bit for what was written.
    #[error("the dirty log of a migration is too small for the guest's memory")]
    Unlogged,
    /// A bug here, caught.
    #[error("internal error: serving the queue panicked (please report it)")]
    Panic,
}

impl Live {
    /// Maps the ring areas, and the in-flight record if there is one. Under a dirty log the areas
    /// are marked first: a predecessor may have died before it could.
    pub(crate) fn new(
        iotlb: Arc<Iotlb>,
        index: u32,
        layout: Layout,
        areas: [Iova; 3],
        state: QueueState,
        inflight: Option<(OwnedFd, u64)>,
    ) -> Result<Live, StartError> {
        layout.check().map_err(RingError::from)?;
        let mut view = View::new(iotlb);
        let mapped_at = view.refresh();
        let pinned = pin(&mut view, &layout, areas).map_err(RingError::from)?;
        let owes_publication = inflight.is_some();
        let ring = match inflight {
            None => DeviceQueue::new(layout, pinned, state)?,
            Some((file, offset)) => {
                let len = usize::try_from(DeviceQueue::inflight_size(&layout))
                    .map_err(|_| StartError::System("in-flight record", Errno::NOMEM))?;
                let record = Region::map(file.as_fd(), offset, len, Perm::Rw).map_err(|error| {
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
                    StartError::System("cannot map the in-flight record", errno)
                })?;
                DeviceQueue::with_inflight(layout, pinned, state, Pinned::whole(record))?
            }
        };
        let mut live = Live {
            view,
            ring,
            index,
            layout,
            areas,
            mapped_at,
            log: None,
            is_stale: false,
            owes_publication,
            is_staged: false,
        };
        live.follow_log();
        Ok(live)
    }

    /// Batch boundary: the view is at the newest generation, and the ring is where that maps
    /// it. To be called before the ring is touched.
    pub(crate) fn refresh(&mut self) -> Result<(), Stop> {
        let generation = self.view.refresh();
        if generation != self.mapped_at {
            let areas = pin(&mut self.view, &self.layout, self.areas).map_err(RingError::from)?;
            self.ring.remap(&self.layout, areas)?;
            self.mapped_at = generation;
            self.follow_log();
        }
        self.is_stale = false;
        Ok(())
    }

    /// The ring's writes are marked where the view says, if that has changed.
    fn follow_log(&mut self) {
        let log = self.view.log();
        if log.map(Arc::as_ptr) == self.log.as_ref().map(Arc::as_ptr) {
            return;
        }
        self.log = log.cloned();
        let ring_log = log.and_then(|log| {
            Some(RingLog {
                device: log.used(self.index)?,
                desc: self.areas[0],
                log: log.clone(),
            })
        });
        self.ring.set_log(&self.layout, ring_log);
    }

    /// The view's acknowledgement of a new generation, between batches. The ring follows when
    /// it is next used: until then it need not be mapped.
    pub(crate) fn acknowledge(&mut self) {
        self.is_stale = self.view.refresh() != self.mapped_at;
    }

    /// Stages a completion; see [`DeviceQueue::complete`]. `writable`: the chain's device-writable
    /// part, all of which is marked in the dirty log, if there is one: a request that failed may
    /// have written any of it.
    #[inline]
    pub(crate) fn complete(&mut self, id: u16, slots: u16, written: u32, writable: &[Segment]) {
        if let Some(log) = &self.log {
            mark(log, writable);
        }
        self.ring.complete(id, slots, written);
        self.is_staged = true;
    }

    /// Whether a page was found missing since the last look, or something could not be marked in
    /// the dirty log.
    pub(crate) fn check_memory(&self) -> Result<(), Stop> {
        if self.ring.is_poisoned() || self.view.iotlb().is_poisoned() {
            return Err(Stop::Poisoned);
        }
        if self.log.as_ref().is_some_and(|log| log.has_missed()) {
            return Err(Stop::Unlogged);
        }
        Ok(())
    }
}

#[cold]
fn mark(log: &DirtyLog, segments: &[Segment]) {
    for segment in segments {
        log.mark(segment.iova, segment.len.into());
    }
}

fn pin(view: &mut View, layout: &Layout, areas: [Iova; 3]) -> Result<Areas, Fault> {
    let [desc, driver, device] = layout.area_sizes();
    if layout.packed {
        // The device marks descriptors used in place.
        view.pinned(areas[0], desc, Access::Write)?;
    }
    view.pinned(areas[2], device, Access::Read)?;
    Ok(Areas {
        desc: view.pinned(areas[0], desc, Access::Read)?,
        driver: view.pinned(areas[1], driver, Access::Read)?,
        device: view.pinned(areas[2], device, Access::Write)?,
    })
}
