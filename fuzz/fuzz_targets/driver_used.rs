//! Any bytes from a device: an error, or each request back once with a length that fits; no panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_ring::fuzzing::driver_used(data));
