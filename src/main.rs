//! The `sinter` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    sinter::cli::main()
}
