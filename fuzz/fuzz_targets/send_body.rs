//! The reader of send requests over any body, and our opaque id put into it.

#![no_main]

mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::send_body(data));
