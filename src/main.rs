//! The one binary. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cowvm::cli::main(std::env::args_os().collect())
}
