//! `gaufre train`: trains a model on text and says how it goes.

use std::io::Write;
use std::process::ExitCode;

use crate::report::html::Page;
use crate::report::metrics::Metrics;
use crate::report::progress::Progress;
use crate::report::tensorboard::TensorBoard;
use crate::train;

/// Flags of the verb: the configuration of a run.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: train::config::Config,
}

/// Trains; progress goes to standard error, the folder of the run to standard output.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut observer = (Progress::stderr(), (Metrics::default(), (TensorBoard::default(), Page::default())));
    let summary = train::run(&args.config, &mut observer)?;
    writeln!(std::io::stdout(), "{}", summary.folder.display())?;
    Ok(ExitCode::SUCCESS)
}
