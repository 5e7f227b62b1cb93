//! The `twinlog` binary. Everything is in the library; it begins at [`twinlog::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    twinlog::cli::main()
}
