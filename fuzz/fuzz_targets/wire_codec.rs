//! The codec of the replication connection over any bytes from a server, cut anywhere.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| twinlog::wire::fuzz::check(data));
