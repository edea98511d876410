//! Any bytes from an NBD client: what was taken is answered, the connection ends, nothing is held beyond its bounds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_nbd::fuzzing::nbd_client(data));
