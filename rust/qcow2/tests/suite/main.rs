//! Images made by qemu-img, served by the backend, and looked at by QEMU's tools afterwards.

mod checker;
mod hostile;
mod images;
mod killed;
mod moody;
mod status;
mod support;
