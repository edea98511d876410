//! Any bytes as an in-flight record: an error, or a queue whose own record its successor accepts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_ring::fuzzing::inflight_recover(data));
