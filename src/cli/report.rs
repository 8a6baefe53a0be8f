//! `gaufre report`: makes the page of a run, finished or not.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::report::html;
use crate::train::folder::Folder;

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run
    run: PathBuf,
}

/// Writes `report.html` into the folder and says where it is.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let page = html::write(Folder::open(&args.run)?.path())?;
    writeln!(std::io::stdout(), "{}", page.display())?;
    Ok(ExitCode::SUCCESS)
}
