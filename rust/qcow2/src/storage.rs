//! A file of the image as imago's storage: every access goes through the table of the image's
//! task to the file's engine. Bytes are copied once on the way, so that no future borrows memory
//! to the system.

use crate::files::{Ask, FileId, Files};
use crate::fresh::Fresh;
use crate::glance;
use crate::header::Tables;
use crate::order::Order;
use imago::Storage;
use imago::io_buffers::{IoBuffer, IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vduse_device::backend::Backend;
use vduse_device::{Extent, Length, Offset};

/// What the system likes best, also without O_DIRECT.
const MEMORY_ALIGNMENT: usize = 4096;
/// Zeroes written at once past a file's end.
const ZEROES_AT_ONCE: u64 = 1 << 20;

/// One file of an image.
pub(crate) struct FileStorage {
    file: Arc<dyn Backend>,
    /// Writes past its end make it longer.
    grows: bool,
    id: FileId,
    files: Arc<Files>,
    path: PathBuf,
    /// Bytes up to the end of what was written.
    size: AtomicU64,
    fresh: Fresh,
    /// Of a qcow2 image's own file.
    order: Option<Arc<Order>>,
    helper: CommonStorageHelper,
}

impl FileStorage {
    pub(crate) fn new(
        file: Arc<dyn Backend>,
        id: FileId,
        files: Arc<Files>,
        path: PathBuf,
        order: Option<Arc<Order>>,
    ) -> FileStorage {
        let size = file.length().0;
        FileStorage {
            size: AtomicU64::new(size),
            fresh: Fresh::past(size),
            grows: file.grows(),
            file,
            id,
            files,
            path,
            order,
            helper: CommonStorageHelper::default(),
        }
    }

    async fn ask(&self, ask: Ask) -> io::Result<Option<IoBuffer>> {
        if glance::is_on() {
            std::future::pending::<()>().await;
        }
        let asked = self.files.ask(self.id, ask);
        Ok(asked.await?)
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn order(&self) -> Option<Arc<Order>> {
        self.order.clone()
    }

    /// A range that lies before the file's end.
    pub(crate) fn within(&self, offset: u64, len: u64) -> Option<Extent> {
        let extent = extent(offset, len).ok()?;
        (extent.end().0 <= self.size.load(Ordering::Relaxed)).then_some(extent)
    }

    /// It is about to be written.
    pub(crate) fn touch(&self, extent: Extent) {
        self.fresh.write(extent);
    }

    async fn write(&self, extent: Extent, memory: IoBuffer) -> io::Result<()> {
        if !self.grows && extent.end().0 > self.size()? {
            return Err(Errno::NOSPC.into());
        }
        self.touch(extent);
        let Some(order) = &self.order else {
            return self.write_now(extent, memory).await;
        };
        order.may_write(extent).await;
        let is_start = extent.offset().0 == 0;
        let tables = is_start.then(|| Tables::read(memory.as_ref().into_slice()));
        let result = self.write_now(extent, memory).await;
        order.wrote(tables.flatten(), result.is_ok());
        result
    }

    async fn write_now(&self, extent: Extent, memory: IoBuffer) -> io::Result<()> {
        self.ask(Ask::Write(extent, memory)).await?;
        self.reached(extent.end());
        Ok(())
    }

    /// A write has reached this far.
    fn reached(&self, end: Offset) {
        self.size.fetch_max(end.0, Ordering::Relaxed);
    }
}

impl Storage for FileStorage {
    fn req_align(&self) -> usize {
        self.file.info().block_size as usize
    }

    fn zero_align(&self) -> usize {
        self.req_align()
    }

    fn discard_align(&self) -> usize {
        self.req_align()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size.load(Ordering::Relaxed))
    }

    async unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let len = bufv.len();
        let there = self.size()?.saturating_sub(offset).min(len);
        if there == 0 {
            bufv.fill(0);
            return Ok(());
        }
        let memory = IoBuffer::new(there as usize, MEMORY_ALIGNMENT)?;
        let read = self.ask(Ask::Read(extent(offset, there)?, memory)).await?;
        let read = read.ok_or(Errno::IO)?;
        let (mut head, mut tail) = bufv.split_at(there);
        head.copy_from_slice(read.as_ref().into_slice());
        if there < len {
            tail.fill(0);
        }
        Ok(())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        if bufv.is_empty() {
            return Ok(());
        }
        let extent = extent(offset, bufv.len())?;
        let mut memory = IoBuffer::new(bufv.len() as usize, MEMORY_ALIGNMENT)?;
        bufv.copy_into_slice(memory.as_mut().into_slice());
        self.write(extent, memory).await
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, true).await
    }

    async unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, false).await
    }

    async unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let there = self.size()?.saturating_sub(offset).min(length);
        if there > 0 && self.file.info().can_discard {
            self.ask(Ask::Discard(extent(offset, there)?)).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.ask(Ask::Flush).await?;
        Ok(())
    }

    async fn settle_writes(&self) -> io::Result<()> {
        if let Some(order) = &self.order {
            order.frees();
        }
        self.files.settle().await;
        Ok(())
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    /// Only where nothing else is under way: while an image is resized.
    async fn resize(&self, new_size: u64, mode: PreallocateMode) -> io::Result<()> {
        match mode {
            PreallocateMode::None | PreallocateMode::Zero => {}
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        self.files.settle().await;
        self.file.resize(Length(new_size)).map_err(system)?;
        self.size.store(new_size, Ordering::Relaxed);
        Ok(())
    }
}

impl FileStorage {
    async fn zero(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        let all = extent(offset, length)?;
        if may_unmap && self.fresh.is_fresh(all) {
            return Ok(());
        }
        let there = self.size()?.saturating_sub(offset).min(length);
        if there > 0 {
            let part = extent(offset, there)?;
            self.ask(Ask::WriteZeroes(part, may_unmap)).await?;
        }
        // Not by truncating: a write under way may have gone further.
        let mut at = offset + there;
        while at < all.end().0 {
            let part = extent(at, (all.end().0 - at).min(ZEROES_AT_ONCE))?;
            let mut memory = IoBuffer::new(part.len().0 as usize, MEMORY_ALIGNMENT)?;
            memory.as_mut().into_slice().fill(0);
            self.write(part, memory).await?;
            at = part.end().0;
        }
        Ok(())
    }
}

impl fmt::Debug for FileStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileStorage({})", self.path.display())
    }
}

impl fmt::Display for FileStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// A range that files have.
fn extent(offset: u64, len: u64) -> io::Result<Extent> {
    Extent::new(Offset(offset), Length(len))
        .filter(|extent| i64::try_from(extent.end().0).is_ok())
        .ok_or_else(|| Errno::FBIG.into())
}

fn system(error: vduse_device::backend::Error) -> io::Error {
    error.errno.into()
}
