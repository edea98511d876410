//! Pages of our own in place of the driver's bounce pages (VDUSE_IOTLB_REG_UMEM): registered when
//! the bounce region is first looked up, given back at every reset, so that a request that ends
//! later than that finds memory which is ours alone.

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vduse_channel::UmemPort;
use vduse_mem::{Backing, Entry, Iova, Perm, Region, Resolver};

/// Resolves misses in the bounce region to pages of our own, all others by the channel.
pub(crate) struct OwnPages {
    port: Arc<dyn UmemPort>,
    state: Mutex<State>,
    /// Is told why pages of our own are not used, once until the next reset.
    refused: Box<dyn Fn(String) + Send + Sync>,
}

enum State {
    /// Nobody has looked the bounce region up.
    Unused,
    Registered(Arc<Region>),
    /// The channel's own pages are mapped: they and ours are not to be mixed.
    Refused,
}

impl OwnPages {
    pub(crate) fn new(
        port: Arc<dyn UmemPort>,
        refused: impl Fn(String) + Send + Sync + 'static,
    ) -> OwnPages {
        OwnPages {
            port,
            state: Mutex::new(State::Unused),
            refused: Box::new(refused),
        }
    }

    /// Gives the driver its pages back, with the data that is under way; to be called when no
    /// queue looks anything up. What still has a region of ours may go on to use it. False: the
    /// pages are still the driver's.
    pub(crate) fn give_back(&self) -> bool {
        let mut state = self.lock();
        let State::Registered(region) = std::mem::replace(&mut *state, State::Unused) else {
            return true;
        };
        match self.port.dereg_umem(region.len() as u64) {
            // EBADF: the kernel's node was closed, which gave them back.
            Ok(()) | Err(Errno::NOENT | Errno::BADF) => true,
            Err(_) => {
                // The framework may still write there: never to be another's memory.
                std::mem::forget(region);
                *state = State::Refused;
                false
            }
        }
    }

    /// Our region for the bounce region of `size` bytes; `None` where the channel's is used.
    fn region(&self, size: u64) -> Option<Arc<Region>> {
        let mut state = self.lock();
        match &*state {
            State::Registered(region) => return Some(region.clone()),
            State::Refused => return None,
            State::Unused => {}
        }
        match register(self.port.as_ref(), size) {
            Ok(region) => {
                *state = State::Registered(region.clone());
                Some(region)
            }
            Err(errno) => {
                *state = State::Refused;
                drop(state);
                (self.refused)(refusal(errno, size));
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver for OwnPages {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        let size = self.port.umem_size(start, last)?;
        let Some((size, region)) = size.and_then(|size| Some((size, self.region(size)?))) else {
            return self.port.resolve(start, last);
        };
        let entry = Entry {
            start: Iova(0),
            last: Iova(size - 1), // the region's bytes, at least one
            offset: 0,
            perm: Perm::Rw,
        };
        Ok((Backing::Own(region), entry))
    }
}

impl Drop for OwnPages {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn register(port: &dyn UmemPort, size: u64) -> Result<Arc<Region>, Errno> {
    let len = usize::try_from(size).map_err(|_| Errno::NOMEM)?;
    let region =
        Region::own(len).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))?;
    // SAFETY: `State::Registered` keeps the region until it is deregistered, or for ever.
    unsafe { port.reg_umem(region.as_ptr().addr(), size) }?;
    Ok(region)
}

fn refusal(errno: Errno, size: u64) -> String {
    const MIB: u64 = 1 << 20;
    let size = size.div_ceil(MIB);
    let limit = getrlimit(Resource::Memlock).current;
    let why = match (errno, limit) {
        (Errno::NOMEM, Some(limit)) => format!(
            "RLIMIT_MEMLOCK is {} MiB: raise it (ulimit -l, LimitMEMLOCK= of a systemd unit)",
            limit / MIB
        ),
        (Errno::PERM | Errno::ACCESS, _) => {
            format!("{errno}: the framework may not reach this process's memory")
        }
        _ => errno.to_string(),
    };
    format!("{size} MiB of own bounce pages refused: {why}; without them everything works as well")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BASE, Guest};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    const SIZE: u64 = 1 << 20;

    /// A channel with a bounce region of 1 MiB.
    #[derive(Default)]
    struct Port {
        /// Errno of the next registrations.
        refuses: Mutex<Option<Errno>>,
        /// Errno of a deregistration.
        keeps: Mutex<Option<Errno>>,
        registered: Mutex<Option<usize>>,
        registrations: AtomicU64,
        /// Misses that it resolved itself.
        resolved: AtomicU64,
    }

    impl Resolver for Port {
        fn resolve(&self, _: Iova, _: Iova) -> Result<(Backing, Entry), Errno> {
            self.resolved.fetch_add(1, Relaxed);
            let guest = Guest::new(4096);
            guest.resolve(Iova(BASE), Iova(BASE))
        }
    }

    impl UmemPort for Port {
        fn umem_size(&self, iova: Iova, _: Iova) -> Result<Option<u64>, Errno> {
            Ok((iova.0 < SIZE).then_some(SIZE))
        }

        unsafe fn reg_umem(&self, address: usize, size: u64) -> Result<(), Errno> {
            assert_eq!(size, SIZE);
            if let Some(errno) = *self.refuses.lock().unwrap() {
                return Err(errno);
            }
            let before = self.registered.lock().unwrap().replace(address);
            assert_eq!(before, None, "registered twice");
            self.registrations.fetch_add(1, Relaxed);
            Ok(())
        }

        fn dereg_umem(&self, size: u64) -> Result<(), Errno> {
            assert_eq!(size, SIZE);
            if let Some(errno) = *self.keeps.lock().unwrap() {
                return Err(errno);
            }
            let had = self.registered.lock().unwrap().take();
            had.map(drop).ok_or(Errno::NOENT)
        }
    }

    fn own_pages(port: &Arc<Port>) -> (Arc<OwnPages>, Arc<Mutex<Vec<String>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = told.clone();
        let pages = OwnPages::new(port.clone(), move |why| log.lock().unwrap().push(why));
        (Arc::new(pages), told)
    }

    fn own(pages: &OwnPages, at: u64) -> Arc<Region> {
        match pages.resolve(Iova(at), Iova(at)) {
            Ok((Backing::Own(region), entry)) => {
                assert_eq!((entry.start, entry.last), (Iova(0), Iova(SIZE - 1)));
                region
            }
            other => panic!("not pages of our own: {other:?}"),
        }
    }

    #[test]
    fn the_bounce_region_is_registered_once_and_the_rest_is_the_channels() {
        let port = Arc::new(Port::default());
        let (pages, told) = own_pages(&port);
        assert!(matches!(
            pages.resolve(Iova(SIZE), Iova(u64::MAX)),
            Ok((Backing::File(_), _))
        ));
        let region = own(&pages, SIZE - 1);
        assert!(region.is_own());
        assert_eq!(
            *port.registered.lock().unwrap(),
            Some(region.as_ptr().addr())
        );
        assert!(Arc::ptr_eq(&region, &own(&pages, 0)));
        assert_eq!(port.registrations.load(Relaxed), 1);
        assert!(told.lock().unwrap().is_empty());
    }

    #[test]
    fn what_a_late_request_has_is_not_registered_again() {
        let port = Arc::new(Port::default());
        let (pages, _) = own_pages(&port);
        let late = own(&pages, 0);
        assert!(pages.give_back());
        assert_eq!(*port.registered.lock().unwrap(), None);
        assert!(pages.give_back(), "there is nothing to give back");
        assert!(!Arc::ptr_eq(&late, &own(&pages, 0)));
        drop(pages);
        assert_eq!(
            *port.registered.lock().unwrap(),
            None,
            "given back at the end"
        );
    }

    #[test]
    fn refused_pages_are_not_asked_for_again_before_a_reset() {
        let port = Arc::new(Port::default());
        let (pages, told) = own_pages(&port);
        *port.refuses.lock().unwrap() = Some(Errno::NOMEM);
        for _ in 0..2 {
            assert!(matches!(
                pages.resolve(Iova(0), Iova(0)),
                Ok((Backing::File(_), _))
            ));
            // Ours and the channel's are not to be mixed.
            *port.refuses.lock().unwrap() = None;
        }
        assert_eq!(port.resolved.load(Relaxed), 2);
        let told = told.lock().unwrap().join("\n");
        assert_eq!(told.matches("1 MiB of own bounce pages refused").count(), 1);
        assert!(pages.give_back());
        own(&pages, 0);
    }

    #[test]
    fn pages_that_cannot_be_had_back_are_never_another_ones() {
        let port = Arc::new(Port::default());
        let (pages, _) = own_pages(&port);
        let region = Arc::downgrade(&own(&pages, 0));
        *port.keeps.lock().unwrap() = Some(Errno::CONNRESET);
        assert!(!pages.give_back());
        drop(pages);
        assert!(region.upgrade().is_some());
    }
}
