//! Any bytes as a split ring: an error or chains within bounds, no panic, no access outside the mapping.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_ring::fuzzing::split_device(data));
