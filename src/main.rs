//! The command `gaufre`: what is typed goes to `cli`, what went wrong comes out as one line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match gaufre::cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => return gaufre::cli::refuse(&usage),
    };
    cli.run().unwrap_or_else(|error| {
        eprintln!("error: {}", gaufre::cli::one_line(&error));
        ExitCode::FAILURE
    })
}
