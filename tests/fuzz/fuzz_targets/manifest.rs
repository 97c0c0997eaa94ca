#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| aman_fuzz::manifest(data));
