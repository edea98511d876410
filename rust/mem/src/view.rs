//! One queue's private view of an IOTLB, and the pins of its requests in flight.

use crate::iotlb::{Fault, Iotlb};
use crate::table::{Mapping, Table};
use crate::{Access, DirtyLog, Iova, Piece, Pieces, Pinned, Region, sigbus};
use std::sync::Arc;

/// One queue's private view of an [`Iotlb`]: look-ups share no cache line with other queues.
pub struct View {
    iotlb: Arc<Iotlb>,
    generation: u64,
    /// Copied when it grows while pins hold it; a pin's mappings are never taken from it.
    table: Arc<Table>,
    /// Places of the mappings found last: the rings' and the requests' memory take turns.
    hits: [usize; 2],
    /// Of the generation, or a newer one.
    log: Option<Arc<DirtyLog>>,
}

impl View {
    /// A view of `iotlb`, at its current generation.
    pub fn new(iotlb: Arc<Iotlb>) -> View {
        View {
            generation: iotlb.generation(),
            log: iotlb.log(),
            iotlb,
            table: Arc::default(),
            hits: [0; 2],
        }
    }

    /// The IOTLB that this is a view of.
    pub fn iotlb(&self) -> &Arc<Iotlb> {
        &self.iotlb
    }

    /// Batch boundary: drops what a newer generation has dropped. Returns the generation this
    /// view is now at (the worker's acknowledgement). Pieces translated before and not
    /// covered by a [`Pin`] are not to be used after this.
    #[inline]
    pub fn refresh(&mut self) -> u64 {
        let generation = self.iotlb.generation();
        if generation != self.generation {
            self.generation = generation;
            // What is still mapped comes back from the IOTLB without asking its resolver.
            self.table = Arc::default();
            self.log = self.iotlb.log();
        }
        generation
    }

    /// Where writes are marked, if they are.
    #[inline]
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// Appends the pieces of `[iova, iova+len)` to `out`, in order; on a fault `out` is as it
    /// was. `len` 0 is `Fault::Range`.
    #[inline]
    pub fn translate(
        &mut self,
        iova: Iova,
        len: u32,
        access: Access,
        out: &mut Pieces,
    ) -> Result<(), Fault> {
        let last = iova
            .last(u64::from(len))
            .ok_or(Fault::Range(iova, u64::from(len)))?;
        if let Some(piece) = self.translate_hit(iova, last, access)? {
            out.push(piece);
            return Ok(());
        }
        let before = out.len();
        self.walk(iova, last, access, out)
            .inspect_err(|_| out.truncate(before))
    }

    /// The one piece of a range that lies in one of the mappings found last.
    #[inline]
    fn translate_hit(
        &self,
        iova: Iova,
        last: Iova,
        access: Access,
    ) -> Result<Option<Piece>, Fault> {
        for hit in self.hits {
            if let Some(mapping) = self.table.get(hit)
                && mapping.span.contains(iova.0)
                && last.0 <= mapping.span.last
            {
                check(mapping, iova, access)?;
                return Ok(Some(Piece {
                    ptr: mapping.host_at(iova.0),
                    len: (last.0 - iova.0) as usize + 1, // at most a descriptor's u32
                }));
            }
        }
        Ok(None)
    }

    /// Copies the bytes at `iova` into `to`, once.
    #[inline]
    pub fn read(&mut self, iova: Iova, to: &mut [u8]) -> Result<(), Fault> {
        let len = to.len() as u64;
        let last = iova.last(len).ok_or(Fault::Range(iova, len))?;
        if let Some(piece) = self.translate_hit(iova, last, Access::Read)? {
            // SAFETY: translated for reading by this view, whose table keeps it mapped for the
            // copy.
            unsafe { piece.read_into(to) };
            return Ok(());
        }
        let mut pieces = Pieces::new();
        self.walk(iova, last, Access::Read, &mut pieces)?;
        let mut rest = to;
        for piece in &pieces {
            // SAFETY: as above; a table that has grown holds all that it held.
            let copied = unsafe { piece.read_into(rest) };
            rest = &mut rest[copied..];
        }
        Ok(())
    }

    /// The range as one contiguous piece that keeps itself mapped (ring areas); a range over
    /// two mappings is `Fault::Range`.
    pub fn pinned(&mut self, iova: Iova, len: u64, access: Access) -> Result<Pinned, Fault> {
        let bad = Fault::Range(iova, len);
        let last = iova.last(len).ok_or(bad)?;
        let mapping = self.find(iova, last)?;
        check(mapping, iova, access)?;
        if last.0 > mapping.span.last {
            return Err(bad);
        }
        Ok(Pinned {
            ptr: mapping.host_at(iova.0),
            len: len as usize, // a part of the mapping, which is in memory
            region: mapping.region.clone(),
        })
    }

    /// Keeps every piece that this view has translated so far (since its last
    /// [`View::refresh`]) mapped until dropped: one for each request in flight. Cheap: one
    /// reference count that only this queue touches.
    #[inline]
    pub fn pin(&self) -> Pin {
        Pin {
            table: self.table.clone(),
        }
    }

    fn walk(
        &mut self,
        iova: Iova,
        last: Iova,
        access: Access,
        out: &mut Pieces,
    ) -> Result<(), Fault> {
        let mut from = iova;
        loop {
            let mapping = self.find(from, last)?;
            check(mapping, from, access)?;
            let to = last.0.min(mapping.span.last);
            out.push(Piece {
                ptr: mapping.host_at(from.0),
                len: (to - from.0) as usize + 1, // at most a descriptor's u32
            });
            if to == last.0 {
                return Ok(());
            }
            from = Iova(to + 1);
        }
    }

    /// The mapping that holds `iova`, fetched if need be.
    fn find(&mut self, iova: Iova, last: Iova) -> Result<&Mapping, Fault> {
        let place = match self.table.find(iova.0) {
            Some((place, _)) => place,
            None => {
                let mapping = self.iotlb.mapping(iova, last)?;
                Arc::make_mut(&mut self.table).insert(mapping, iova.0)
            }
        };
        if !self.hits.contains(&place) {
            self.hits = [place, self.hits[0]];
        }
        Ok(&self.table[place])
    }
}

#[inline]
fn check(mapping: &Mapping, iova: Iova, access: Access) -> Result<(), Fault> {
    if !mapping.perm.allows(access) {
        return Err(Fault::Denied(iova, access));
    }
    if mapping.region.is_poisoned() {
        return Err(Fault::Poisoned(iova));
    }
    Ok(())
}

/// Keeps translated pieces mapped; see [`View::pin`].
#[derive(Clone, Debug)]
pub struct Pin {
    table: Arc<Table>,
}

impl Pin {
    /// The region it holds that is memory of our own, if one is.
    #[inline]
    pub fn own_region(&self) -> Option<&Arc<Region>> {
        self.table.own()
    }

    /// Whether a region this pin holds was poisoned: the request must fail. Costs one load
    /// while no region of the process was ever lost.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        sigbus::any_lost() && self.table.is_poisoned()
    }
}
