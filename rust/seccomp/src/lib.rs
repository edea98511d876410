//! Another program's calls on /dev/vduse, answered here in the kernel's place: no kernel module,
//! no root. The program runs under a seccomp filter of ours, whose notifications
//! (`SECCOMP_RET_USER_NOTIF`, seccomp_unotify(2)) one thread takes.
//!
//! ```text
//! program --notification--> thread --not ours--> goes on in the kernel
//!                              |----an irq-----> IrqGate, answered at once
//!                              '----the rest---> queue, an eventfd says so -> NodeCall
//! ```
//!
//! Every number, address and string that comes with a notification is the program's: it is read
//! once and checked, and a mistake ends that call with the errno that the kernel has for it. This is
//! no security boundary: a call that is let through runs on what its memory holds by then.

mod abi;
mod call;
mod calls;
mod decode;
mod eventfd;
mod filter;
mod launch;
mod listener;
mod nodes;
mod notices;
mod path;
mod serve;
mod stat;
mod stats;
mod supervised;
mod tracee;

pub use call::{NodeCall, ReplyError};
pub use launch::{Launch, LaunchError, Step};
pub use stats::Stats;
pub use supervised::Supervised;
