//! `gaufre train`: trains a model on text and says how it goes; goes on with a run that stopped.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use clap::parser::ValueSource;

use crate::report::html::Page;
use crate::report::metrics::Metrics;
use crate::report::progress::Progress;
use crate::report::tensorboard::TensorBoard;
use crate::train::folder::Folder;
use crate::train::{self, Control};

/// Exit code of a run that was interrupted and saved, as shells have it.
const INTERRUPTED: u8 = 130;

/// Flags of the verb: the configuration of a run, and how it is steered.
#[derive(clap::Args)]
struct Flags {
    #[command(flatten)]
    config: train::config::Config,
    /// Go on with the run in a folder; flags that change no result may be given anew
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// Save and stop after N steps in all; the learning rate stays that of --steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
}

/// [`Flags`], and which of them a person typed.
pub struct Args {
    flags: Flags,
    typed: Vec<String>,
}

impl clap::Args for Args {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(found: &clap::ArgMatches) -> Result<Args, clap::Error> {
        let typed = |id: &&clap::Id| found.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        let typed = found.ids().filter(typed).map(ToString::to_string).collect();
        Ok(Args { flags: Flags::from_arg_matches(found)?, typed })
    }

    fn update_from_arg_matches(&mut self, found: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Args::from_arg_matches(found)?;
        Ok(())
    }
}

/// Trains; progress goes to standard error, the folder of the run to standard output.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { flags: Flags { config, resume, stop_after }, typed } = args;
    let control = Control { stop: interrupts()?, stop_after, ..Control::default() };
    let mut observer = (Progress::stderr(), (Metrics::default(), (TensorBoard::default(), Page::default())));
    let summary = match resume {
        None => train::start(&config, control, &mut observer)?,
        Some(run) => {
            let folder = Folder::open(&run).context("--resume")?;
            ensure!(
                !typed.iter().any(|key| key == "out"),
                "--out: a run that goes on stays in its folder; leave it out"
            );
            let config = folder.read_config()?.overlaid(&config, &typed)?;
            train::resume(&run, &config, control, &mut observer)?
        }
    };
    writeln!(std::io::stdout(), "{}", summary.folder.display())?;
    let interrupted = summary.stopped && control.stop.load(Ordering::Relaxed);
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// A flag that the first Ctrl-C (or request to terminate) raises; the second ends the process at once.
fn interrupts() -> anyhow::Result<&'static AtomicBool> {
    static RAISED: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if RAISED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
        eprintln!("stopping at the end of the step; once more ends at once");
    })
    .context("Ctrl-C cannot be caught")?;
    Ok(&RAISED)
}
