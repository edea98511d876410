//! Engine: our own virtio-blk driver, through bounce pages or on an arena without a copy.

use crate::engine::{Direction, Done, Engine, EngineError};
use crate::{Buffers, SECTOR};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;
use vduse_framework::blk::{BlkDriver, BlkQueue, Request, Sectors};
use vduse_framework::{Arena, Buffer};

/// A load's handles on all queues of a driver; requests go to them in turn.
pub struct Ours {
    // Before the buffers, which a request outstanding at the end may still use.
    queues: Vec<BlkQueue>,
    buffers: Buffers,
    arena: Option<(Arc<Arena>, usize)>,
    capacity: u64,
    ended: Vec<(u64, Result<u64, Errno>)>,
}

impl Ours {
    /// Takes a started driver. With `arena`, the one behind the driver, the buffers lie in it;
    /// else they are memory that the driver must copy.
    pub fn new(
        driver: &Arc<BlkDriver>,
        arena: Option<Arc<Arena>>,
        depth: u32,
        block_size: u32,
    ) -> Result<Ours, EngineError> {
        let memory = |error: std::io::Error| EngineError::Driver("buffers", error.to_string());
        let (buffers, arena) = match arena {
            None => (Buffers::new(depth, block_size).map_err(memory)?, None),
            Some(arena) => {
                let len = depth as usize * block_size as usize;
                let offset = arena
                    .alloc(len)
                    .map_err(|error| EngineError::Driver("arena", error.to_string()))?;
                let buffer = arena
                    .buffer(offset, len)
                    .ok_or(EngineError::Os("arena", Errno::FAULT))?;
                let buffers = Buffers::lent(buffer, block_size).map_err(memory)?;
                (buffers, Some((arena, offset)))
            }
        };
        Ok(Ours {
            queues: (0..driver.queues())
                .filter_map(|index| driver.queue(index))
                .collect(),
            buffers,
            arena,
            capacity: driver.capacity().bytes().unwrap_or(u64::MAX),
            ended: Vec::new(),
        })
    }

    fn buffer(&self, block: u32) -> Result<Buffer, EngineError> {
        let len = self.buffers.block_size();
        match &self.arena {
            Some((arena, offset)) => arena
                .buffer(offset + block as usize * len, len)
                .ok_or(EngineError::Os("arena", Errno::FAULT)),
            // SAFETY: the memory outlives the queues, which drop what is outstanding, and the
            // load leaves a block alone while a request on it is in flight.
            None => Ok(unsafe { Buffer::new(self.buffers.block(block), len) }),
        }
    }
}

impl Engine for Ours {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    fn submit(
        &mut self,
        block: u32,
        direction: Direction,
        offset: u64,
    ) -> Result<bool, EngineError> {
        let buffer = self.buffer(block)?;
        let sector = Sectors(offset / SECTOR);
        let request = match direction {
            Direction::Read => Request::Read { sector, buffer },
            Direction::Write => Request::Write { sector, buffer },
        };
        let index = block as usize % self.queues.len();
        match self.queues[index].submit(request, block.into()) {
            Ok(()) => {}
            // Read-only, say: the request has failed, the driver goes on.
            Err(errno @ (Errno::ROFS | Errno::OPNOTSUPP)) => {
                self.ended.push((block.into(), Err(errno)));
            }
            Err(errno) => return Err(EngineError::Os("submit", errno)),
        }
        Ok(true)
    }

    fn kick(&mut self) -> Result<(), EngineError> {
        self.queues.iter().for_each(BlkQueue::kick);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), EngineError> {
        for queue in &mut self.queues {
            queue.reap(&mut self.ended);
        }
        let ended = self.ended.drain(..);
        done.extend(ended.map(|(token, result)| (token as u32, result.map(|_| ()))));
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), EngineError> {
        // Any queue with work will do: what others complete meanwhile is reaped with it.
        if let Some(queue) = self.queues.iter_mut().find(|queue| queue.outstanding() > 0) {
            queue.wait(Some(timeout));
        }
        Ok(())
    }
}
