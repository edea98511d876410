//! Any bytes as an image's first ones: refused with a printable line, or read within bounds, and the same bytes twice say the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vduse_qcow2::fuzzing::header(data));
