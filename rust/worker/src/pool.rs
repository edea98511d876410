//! The threads.
//! (Being written.) Contract:
//!
//! ```ignore
//! pub struct Pool;                 // owns the threads
//! impl Pool {
//!     pub fn new(workers: Option<usize>) -> Result<Pool, Errno>; // None: one a CPU, at most 4
//!     pub fn workers(&self) -> usize;
//!     pub fn handle(&self) -> Workers;
//!     pub fn close(&self);         // ends the threads and waits for them
//! }
//! #[derive(Clone)] pub struct Workers;   // reaches the workers, keeps nothing alive
//! impl Workers {
//!     pub fn len(&self) -> usize;
//!     /// Makes a task on a worker's thread. Returns at once; a letter to a worker that has
//!     /// ended is dropped.
//!     pub fn spawn(&self, worker: usize, make: impl FnOnce(Place) -> Option<Box<dyn Task>> + Send + 'static);
//! }
//! ```
