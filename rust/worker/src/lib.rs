//! Worker threads that serve what comes once per I/O request. It knows neither the device side
//! nor the framework side: both put [`Task`]s on the same workers, and where a driver queue's task
//! and a device queue's lie on one worker, a request runs to completion there, through the ring.
//!
//! A worker runs its *hot* tasks, those with work lately, round by round. Hot tasks are looked
//! at without being notified, so they ask the other side for no kicks and no irqs. When a round
//! brings nothing, the worker looks again for a moment, then has its hot tasks armed (asking for
//! notifications, looking a last time) and sleeps. Tasks that are not hot cost nothing.

mod mailbox;
mod patience;
mod place;
mod pool;
mod task;
mod tasks;
#[cfg(all(test, not(loom)))]
mod tests;
mod watches;
mod worker;

pub use patience::Patience;
pub use place::{Place, Spawner, Waker};
pub use pool::{Pool, PoolError, Settings, Workers};
pub use task::{Next, Task, Turn};
