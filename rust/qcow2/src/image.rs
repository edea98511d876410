//! What is done to an open image: each request as a future.
//!
//! Reads and writes run side by side, but of those that allocate one at a time ([`Order`]). What
//! takes mappings away, and what zeroes part of a cluster (which the format driver does in two
//! steps), has the image to itself.

use crate::chain::{Link, Opened};
use crate::door::Work;
use crate::files::{FileId, Files};
use crate::order::Order;
use crate::status;
use crate::storage::FileStorage;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, StorageExt};
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use vduse_device::backend::{Engine, Error, Local, StatusRequest};
use vduse_device::{Extent, Length, Offset};

type Access = FormatAccess<FileStorage>;

/// Keeps what is mapped where it is.
pub(crate) type Reading = OwnedRwLockReadGuard<Access>;

/// Zeroes written at once where the format has none.
const ZEROES_AT_ONCE: u64 = 1 << 20;

/// What an image can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nature {
    /// Clusters can be zeroes: from version 3 on.
    pub(crate) has_zeroes: bool,
    pub(crate) read_only: bool,
    /// Bytes of a cluster.
    pub(crate) cluster_size: u64,
    /// Bytes of the image beneath; 0 without one.
    pub(crate) backing: u64,
}

/// An open image.
pub(crate) struct Image {
    access: Arc<RwLock<Access>>,
    order: Arc<Order>,
    nature: Nature,
}

/// The storages of a link's files.
pub(crate) struct LinkStorage {
    image: FileStorage,
    /// A qcow2 image's data file, if it has one; `None` for raw ones.
    format: Option<Option<FileStorage>>,
}

/// The chain's storages, and the engines of their files.
pub(crate) type Attached = (Vec<LinkStorage>, Vec<Box<dyn Engine>>);

/// Attaches an engine to every file of the chain, on the task's thread.
pub(crate) fn attach(links: &[Link], files: &Arc<Files>, local: &Local) -> Result<Attached, Error> {
    let mut engines = Vec::new();
    let mut storage = |opened: &Opened, order| {
        let id = FileId(engines.len());
        engines.push(opened.file.attach(local)?);
        Ok::<_, Error>(FileStorage::new(
            opened.file.clone(),
            id,
            files.clone(),
            opened.path.clone(),
            order,
        ))
    };
    let mut storages = Vec::new();
    for link in links {
        let tables = link.format.as_ref().map(|format| format.tables.clone());
        let order = tables.map(|tables| Arc::new(Order::new(tables)));
        let image = storage(&link.image, order)?;
        let format = match &link.format {
            None => None,
            Some(format) => {
                let data = format.data.as_ref().map(|data| storage(data, None));
                Some(data.transpose()?)
            }
        };
        storages.push(LinkStorage { image, format });
    }
    Ok((storages, engines))
}

impl Image {
    /// Opens the chain, the uppermost image first in `links`.
    pub(crate) async fn open(links: Vec<LinkStorage>, mut nature: Nature) -> io::Result<Image> {
        let order = links.first().and_then(|link| link.image.order());
        let mut below: Option<Access> = None;
        let uppermost = links.len().saturating_sub(1);
        for (above, link) in links.into_iter().rev().enumerate() {
            nature.backing = below.as_ref().map_or(0, FormatAccess::size);
            let writable = above == uppermost && !nature.read_only;
            let access = match link.format {
                None => FormatAccess::new(Raw::open_image(link.image, false).await?),
                Some(data) => {
                    let image = Qcow2::<FileStorage>::builder(link.image)
                        .backing(below.take())
                        .data_file(data)
                        .write(writable);
                    FormatAccess::new(image.open(DenyImplicitOpenGate::default()).await?)
                }
            };
            below = Some(access);
        }
        Ok(Image {
            access: Arc::new(RwLock::new(below.ok_or(Errno::INVAL)?)),
            order: order.ok_or(Errno::INVAL)?,
            nature,
        })
    }

    /// Bytes of the disk; 0 while it is being resized.
    pub(crate) fn size(&self) -> u64 {
        self.access.try_read().map_or(0, |access| access.size())
    }

    /// Unless something has it to itself, or waits for that.
    pub(crate) fn try_read(&self) -> Option<Reading> {
        self.access.clone().try_read_owned().ok()
    }

    /// Carries a request out; what was read.
    pub(crate) async fn run(&self, work: Work) -> io::Result<Option<Vec<u8>>> {
        match work {
            Work::Read(extent) => return self.read(extent).await.map(Some),
            Work::Write(extent, data) => {
                let access = self.access.read().await;
                self.write(&access, &data, extent).await?;
            }
            Work::Flush => self.flush().await?,
            Work::Discard(extent) => self.discard(extent).await?,
            Work::WriteZeroes(extent, may_unmap) => {
                let access = self.access.write().await;
                self.zero(&access, extent, may_unmap).await?;
            }
        }
        Ok(None)
    }

    async fn read(&self, extent: Extent) -> io::Result<Vec<u8>> {
        let mut data = vec![0; extent.len().0 as usize];
        let access = self.access.read().await;
        access.read(&mut data, extent.offset().0).await?;
        Ok(data)
    }

    /// Answers what lies where; of a part, if all of it would take long to look at.
    pub(crate) async fn status(&self, request: StatusRequest) {
        let access = self.access.read().await;
        let cluster_size = self.nature.cluster_size;
        let pieces = status::pieces(&access, request.extent(), cluster_size).await;
        request.answer(pieces);
    }

    async fn write(&self, access: &Access, data: &[u8], extent: Extent) -> io::Result<()> {
        if self.is_mapped(access, extent).await? {
            return access.write(data, extent.offset().0).await;
        }
        for part in self.by_tables(extent) {
            let at = (part.offset().0 - extent.offset().0) as usize;
            let data = &data[at..at + part.len().0 as usize];
            let write = access.write(data, part.offset().0);
            self.order.run(access, write).await?;
        }
        Ok(())
    }

    /// Whether nothing has to be allocated to write there; it stays so as long as nothing has the
    /// image to itself.
    async fn is_mapped(&self, access: &Access, extent: Extent) -> io::Result<bool> {
        let mut at = extent.offset().0;
        while at < extent.end().0 {
            match access.get_mapping(at, extent.end().0 - at).await? {
                (Mapping::Raw { writable: true, .. }, len) if len > 0 => at += len,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The parts of a range that have an L2 table each.
    fn by_tables(&self, extent: Extent) -> impl Iterator<Item = Extent> + use<> {
        let per_table = self.nature.cluster_size / 8 * self.nature.cluster_size;
        let (mut at, end) = (extent.offset().0, extent.end().0);
        std::iter::from_fn(move || {
            let next = (at + 1).checked_next_multiple_of(per_table)?.min(end);
            let part = Extent::new(Offset(at), Length(next.checked_sub(at)?))?;
            at = next;
            (!part.is_empty()).then_some(part)
        })
    }

    /// What completed before is stable afterwards.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        if self.nature.read_only {
            return Ok(());
        }
        let access = self.access.read().await;
        self.order.flush(&access).await?;
        access.sync().await
    }

    async fn discard(&self, extent: Extent) -> io::Result<()> {
        let access = self.access.write().await;
        self.punch(&access, extent).await?;
        for part in self.by_tables(extent) {
            let (offset, len) = (part.offset().0, part.len().0);
            match (self.nature.has_zeroes, self.nature.backing) {
                (true, _) => {
                    // SAFETY: the image is locked for this alone.
                    let discard = unsafe { access.discard_to_any_unsafe(offset, len) };
                    self.order.run(&access, discard).await?;
                }
                (false, 0) => self.unmap(&access, part).await?,
                // What is beneath would show through; a hint may be ignored.
                (false, _) => {}
            }
        }
        Ok(())
    }

    /// Takes the mappings of a range that has one L2 table away; nothing else is under way.
    async fn unmap(&self, access: &Access, part: Extent) -> io::Result<()> {
        let (offset, len) = (part.offset().0, part.len().0);
        // SAFETY: the image is locked for this alone.
        let discard = unsafe { access.discard_to_backing_unsafe(offset, len) };
        self.order.run(access, discard).await
    }

    /// Gives the space of a range that is about to lose its clusters back to the file system: imago
    /// only notes that they are free. Nothing else is under way.
    async fn punch(&self, access: &Access, extent: Extent) -> io::Result<()> {
        let mut at = extent.offset().0;
        while at < extent.end().0 {
            let (mapping, len) = access.get_mapping(at, extent.end().0 - at).await?;
            if let Mapping::Raw {
                storage,
                offset,
                writable: true,
                ..
            } = mapping
            {
                storage.discard(offset, len).await?;
            }
            if len == 0 {
                return Ok(());
            }
            at += len;
        }
        Ok(())
    }

    /// Nothing else is under way.
    async fn zero(&self, access: &Access, extent: Extent, may_unmap: bool) -> io::Result<()> {
        if !self.nature.has_zeroes {
            return self.write_zeroes(access, extent).await;
        }
        if may_unmap && extent.len().0 >= self.nature.cluster_size {
            self.punch(access, extent).await?;
        }
        for part in self.by_tables(extent) {
            let (offset, len) = (part.offset().0, part.len().0);
            if may_unmap {
                // SAFETY: the image is locked for this alone.
                let zero = unsafe { access.discard_to_zero_unsafe(offset, len) };
                self.order.run(access, zero).await?;
            } else {
                let zero = access.write_zeroes(offset, len);
                self.order.run(access, zero).await?;
            }
        }
        Ok(())
    }

    /// As data.
    async fn write_zeroes(&self, access: &Access, extent: Extent) -> io::Result<()> {
        let zeroes = vec![0; ZEROES_AT_ONCE.min(extent.len().0) as usize];
        let mut at = extent.offset().0;
        while at < extent.end().0 {
            let len = (extent.end().0 - at).min(ZEROES_AT_ONCE);
            let part = Extent::new(Offset(at), Length(len)).ok_or(Errno::FBIG)?;
            self.write(access, &zeroes[..len as usize], part).await?;
            at += len;
        }
        Ok(())
    }

    /// Makes the disk `size` bytes long; what is new reads as zeroes.
    pub(crate) async fn resize(&self, size: u64) -> io::Result<()> {
        if self.nature.read_only {
            return Err(Errno::ROFS.into());
        }
        let mut access = self.access.write().await;
        let before = access.size();
        if let Some(lost) = before.checked_sub(size).filter(|&lost| lost > 0) {
            // The driver does so, too, but not in order.
            let lost = Extent::new(Offset(size), Length(lost)).ok_or(Errno::FBIG)?;
            for part in self.by_tables(lost) {
                self.unmap(&access, part).await?;
            }
            access.resize_shrink(size).await?;
        } else {
            let grow = access.resize_grow(size, PreallocateMode::None);
            self.order.run(&access, grow).await?;
        }
        // The last cluster may have more bytes than the disk had, and the image beneath, too.
        let cluster = before.next_multiple_of(self.nature.cluster_size);
        let end = size.min(cluster.max(self.nature.backing));
        if end > before {
            let extent = Extent::new(Offset(before), Length(end - before));
            let extent = extent.ok_or(Errno::FBIG)?;
            self.zero(&access, extent, true).await?;
        }
        self.order.flush(&access).await?;
        access.sync().await
    }
}
