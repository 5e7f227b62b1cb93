//! The `twinlog` binary.

fn main() {}
