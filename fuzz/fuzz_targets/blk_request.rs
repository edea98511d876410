//! Any bytes from a driver of a disk: answers within bounds or an end, no panic, no access outside its memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_device::fuzzing::blk_request(data));
