//! A sorted table of mappings that never overlap.

use crate::iotlb::Span;
use crate::{DirtyLog, Perm, Region};
use std::ops::Index;
use std::ptr::NonNull;
use std::sync::Arc;

/// One mapped IOTLB entry, or the part of it that was free in the table.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) span: Span,
    /// Host address of the span's first byte.
    pub(crate) host: NonNull<u8>,
    pub(crate) perm: Perm,
    pub(crate) region: Arc<Region>,
}

// SAFETY: `host` is an address in `region`, which is Send and Sync and keeps it mapped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// All of a region, from IOVA `start` on; `None` if that wraps past 2^64.
    pub(crate) fn whole(start: u64, perm: Perm, region: Arc<Region>) -> Option<Mapping> {
        Some(Mapping {
            span: Span {
                start,
                last: start.checked_add(region.len() as u64 - 1)?,
            },
            host: NonNull::new(region.as_ptr())?,
            perm,
            region,
        })
    }

    /// The host address of `iova`, which is in the span.
    #[inline]
    pub(crate) fn host_at(&self, iova: u64) -> NonNull<u8> {
        debug_assert!(self.span.contains(iova));
        // SAFETY: the span is the region's length at most, and `iova` is in it.
        unsafe { self.host.add((iova - self.span.start) as usize) }
    }

    fn clip(&mut self, span: Span) {
        self.host = self.host_at(span.start);
        self.span = span;
    }
}

impl Index<usize> for Table {
    type Output = Mapping;

    fn index(&self, place: usize) -> &Mapping {
        &self.mappings[place]
    }
}

/// Mappings in order of their addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    mappings: Vec<Mapping>,
    /// That of a mapping which is memory of our own; a device has one at most.
    own: Option<Arc<Region>>,
    /// Where writes are marked, if they are.
    pub(crate) log: Option<Arc<DirtyLog>>,
}

impl Table {
    /// The mapping that holds `iova`, and its place.
    pub(crate) fn find(&self, iova: u64) -> Option<(usize, &Mapping)> {
        let index = self.after(iova).checked_sub(1)?;
        let mapping = &self.mappings[index];
        mapping.span.contains(iova).then_some((index, mapping))
    }

    /// The mapping at a place.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Mapping> {
        self.mappings.get(index)
    }

    /// Inserts what of `mapping` is free around `iova`, which it holds and which is in no
    /// mapping yet. A device may have heard of a new mapping before it dropped an old one
    /// that overlaps it, and an entry may simply be wrong. Returns its place.
    pub(crate) fn insert(&mut self, mut mapping: Mapping, iova: u64) -> usize {
        let place = self.after(iova);
        let mut span = mapping.span;
        if let Some(before) = place.checked_sub(1).map(|index| &self.mappings[index]) {
            span.start = span.start.max(before.span.last + 1);
        }
        if let Some(next) = self.mappings.get(place) {
            span.last = span.last.min(next.span.start - 1);
        }
        mapping.clip(span);
        if mapping.region.is_own() {
            self.own = Some(mapping.region.clone());
        }
        self.mappings.insert(place, mapping);
        place
    }

    /// Drops every mapping that overlaps `span`.
    pub(crate) fn remove(&mut self, span: Span) {
        self.mappings.retain(|mapping| !mapping.span.overlaps(span));
        let own = self.mappings.iter().find(|it| it.region.is_own());
        self.own = own.map(|mapping| mapping.region.clone());
    }

    /// The region that is memory of our own, if one is.
    #[inline]
    pub(crate) fn own(&self) -> Option<&Arc<Region>> {
        self.own.as_ref()
    }

    /// How many mappings.
    pub(crate) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Bytes mapped.
    pub(crate) fn bytes(&self) -> usize {
        self.mappings
            .iter()
            .map(|mapping| mapping.region.len())
            .sum()
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.mappings
            .iter()
            .any(|mapping| mapping.region.is_poisoned())
    }

    /// How many mappings start at `iova` or before.
    fn after(&self, iova: u64) -> usize {
        self.mappings
            .partition_point(|mapping| mapping.span.start <= iova)
    }
}
