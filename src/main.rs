//! The `twinlog` binary: everything is in the library, [`twinlog::cli`] is where it begins.

use std::process::ExitCode;

fn main() -> ExitCode {
    twinlog::cli::main()
}
