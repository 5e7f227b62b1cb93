//! The parser of Meta's webhooks over any body.

#![no_main]

mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::webhook(data));
