//! Any bytes from an NBD server: every request ends, and no byte lands outside its own buffer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_nbdclient::fuzzing::nbd_server(data));
