//! Any bytes as a packed ring: an error or chains within bounds, no panic, no access outside the mapping.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_ring::fuzzing::packed_device(data));
