//! Tests of both sides together and of the device side against hostile rings.

mod corpus;
mod crash;
mod inflight;
mod loopback;
mod malformed_packed;
mod malformed_split;
mod marks;
mod oracle;
mod stress;
mod used;
