//! The buffer protocol: memory of Python objects as buffers of disk requests. The one file of
//! the binding where a request's lifetime is answered for.
//!
//! A buffer is held (exported) until its request has ended, so that its object can neither free
//! nor resize it. That a program does not use the bytes meanwhile is its own affair, as with
//! `os.preadv`: it would see torn data, as from another process.

use crate::error;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vduse_framework::Buffer;
use vduse_framework::blk::{BlkDriver, BlkQueue, Request, Sectors};

/// The memory of a Python object, held; for the device to read.
pub struct Readable(PyUntypedBuffer);

/// The same, for the device to write.
pub struct Writable(PyUntypedBuffer);

impl Readable {
    /// BufferError where it is not contiguous.
    pub fn hold(object: &Bound<'_, PyAny>) -> PyResult<Readable> {
        contiguous(object).map(Readable)
    }
}

impl Writable {
    /// BufferError where it is not contiguous, TypeError where it is read-only.
    pub fn hold(object: &Bound<'_, PyAny>) -> PyResult<Writable> {
        let buffer = contiguous(object)?;
        if buffer.readonly() {
            return Err(PyTypeError::new_err("the buffer is read-only"));
        }
        Ok(Writable(buffer))
    }
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    Ok(buffer)
}

/// A request with the memory it holds.
pub enum DiskRequest {
    /// Reads whole sectors.
    Read(Sectors, Writable),
    /// Writes whole sectors.
    Write(Sectors, Readable),
    /// Flush, discard, write-zeroes.
    Plain(Request),
}

impl DiskRequest {
    /// The request, and what must be held until it has ended.
    fn split(self) -> (Request, Option<PyUntypedBuffer>) {
        match self {
            DiskRequest::Read(sector, Writable(held)) => {
                let buffer = buffer(&held);
                (Request::Read { sector, buffer }, Some(held))
            }
            DiskRequest::Write(sector, Readable(held)) => {
                let buffer = buffer(&held);
                (Request::Write { sector, buffer }, Some(held))
            }
            DiskRequest::Plain(request) => (request, None),
        }
    }
}

/// Used by this file alone, which keeps `held` until the request has ended.
fn buffer(held: &PyUntypedBuffer) -> Buffer {
    let ptr = NonNull::new(held.buf_ptr().cast()).unwrap_or(NonNull::dangling());
    // SAFETY: the export keeps the bytes where they are while `held` lives, which is until the
    // request has ended (`run`, `Batches`); a request that writes has a writable one.
    unsafe { Buffer::new(ptr, held.len_bytes()) }
}

/// One request, waited for without the GIL; a signal handler's exception ends the wait.
pub fn run(py: Python<'_>, driver: &Arc<BlkDriver>, request: DiskRequest) -> PyResult<u64> {
    let (request, held) = request.split();
    let mut signal = Ok(());
    let outcome = py.detach(|| driver.run(request, &mut || go_on(&mut signal)));
    drop(held);
    signal?;
    outcome.map_err(|errno| failed(driver, errno))
}

/// The serial.
pub fn serial(py: Python<'_>, driver: &Arc<BlkDriver>) -> PyResult<Vec<u8>> {
    let mut id = [0u8; 20];
    let mut signal = Ok(());
    // SAFETY: `run` returns once the request has ended or let go of the buffer.
    let buffer = unsafe { Buffer::new(NonNull::from(&mut id).cast(), id.len()) };
    let request = Request::GetId { buffer };
    let outcome = py.detach(|| driver.run(request, &mut || go_on(&mut signal)));
    signal?;
    outcome.map_err(|errno| failed(driver, errno))?;
    let len = id.iter().position(|&byte| byte == 0).unwrap_or(id.len());
    Ok(id[..len].to_vec())
}

/// Requests submitted and not reaped, with what they hold.
pub struct Batches {
    driver: Arc<BlkDriver>,
    // Dropped before what is held: it lets go of all buffers.
    queue: BlkQueue,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    next: u64,
    buffers: HashMap<u64, PyUntypedBuffer>,
}

impl Batches {
    /// On a queue of the driver's. ValueError if there is no such queue.
    pub fn new(driver: &Arc<BlkDriver>, index: usize) -> PyResult<Batches> {
        let queue = driver
            .queue(index)
            .ok_or_else(|| PyValueError::new_err("no such queue"))?;
        Ok(Batches {
            driver: Arc::clone(driver),
            queue,
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands all of them to the device with one kick; their tokens. Never waits.
    pub fn submit(&self, py: Python<'_>, batch: Vec<DiskRequest>) -> Vec<u64> {
        let mut requests = Vec::with_capacity(batch.len());
        let mut tokens = Vec::with_capacity(batch.len());
        {
            let mut held = self.held();
            for request in batch {
                let (request, buffer) = request.split();
                let token = held.next;
                held.next += 1;
                if let Some(buffer) = buffer {
                    held.buffers.insert(token, buffer);
                }
                requests.push(request);
                tokens.push(token);
            }
        }
        py.detach(|| {
            let tokens = tokens.iter().copied();
            self.queue.submit_all(requests.into_iter().zip(tokens));
        });
        tokens
    }

    /// Requests that have ended, at least `minimum` unless `timeout` passed first or nothing is
    /// outstanding: token, and bytes or -errno.
    pub fn reap(
        &self,
        py: Python<'_>,
        minimum: usize,
        timeout: Option<Duration>,
    ) -> PyResult<Vec<(u64, i64)>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut ended = Vec::new();
        let mut signal = Ok(());
        py.detach(|| {
            loop {
                self.queue.reap(&mut ended);
                if ended.len() >= minimum || self.queue.outstanding() == 0 {
                    break;
                }
                let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                if !self.queue.wait_while(left, &mut || go_on(&mut signal)) {
                    self.queue.reap(&mut ended);
                    break;
                }
            }
        });
        if let Err(error) = signal {
            // Nothing is lost: the next reap has them.
            self.queue.put_back(&mut ended);
            return Err(error);
        }
        let mut released = Vec::with_capacity(ended.len());
        {
            let mut held = self.held();
            released.extend(
                ended
                    .iter()
                    .filter_map(|(token, _)| held.buffers.remove(token)),
            );
        }
        // Outside the lock: releasing a buffer may run Python code.
        drop(released);
        Ok(ended
            .into_iter()
            .map(|(token, outcome)| (token, number(outcome)))
            .collect())
    }

    /// The driver that carries them out.
    pub fn driver(&self) -> &Arc<BlkDriver> {
        &self.driver
    }
}

/// Bytes, or -errno.
fn number(outcome: Result<u64, Errno>) -> i64 {
    match outcome {
        Ok(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
        Err(errno) => -i64::from(errno.raw_os_error()),
    }
}

/// Whether to wait on: not after a signal handler has raised, and not at the interpreter's end,
/// where the threads that answer for the device stand still.
fn go_on(signal: &mut PyResult<()>) -> bool {
    *signal = Python::try_attach(|py| py.check_signals())
        .unwrap_or_else(|| Err(PyRuntimeError::new_err("the interpreter is ending")));
    signal.is_ok()
}

/// A request's errno as an OSError, with the reason where the device was given up.
fn failed(driver: &BlkDriver, errno: Errno) -> PyErr {
    match driver.failure() {
        Some(why) if errno == Errno::IO => error::os_error(errno, why),
        _ if errno == Errno::INVAL => {
            let size = driver.capacity().bytes().unwrap_or(u64::MAX);
            let words = format!("no whole sectors, or past the disk's end at {size} bytes");
            error::os_error(errno, words)
        }
        _ => error::errno(errno),
    }
}
