//! Images of the fake cluster: their opening, requests, and a cluster that does not answer.

mod opening;
mod requests;
mod stalls;
mod status;
mod support;
