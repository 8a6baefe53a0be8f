//! `gaufre train`: trains a model on text and says how it goes; goes on with a run that stopped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};

use super::demo;
use super::typed::Typed;
use crate::device::Device;
use crate::report::ReportError;
use crate::report::html::Page;
use crate::report::metrics::Metrics;
use crate::report::progress::Progress;
use crate::report::tensorboard::TensorBoard;
use crate::report::trace::{SLOWER, Trace};
use crate::train::config::Config;
use crate::train::folder::Folder;
use crate::train::generate::Sampling;
use crate::train::{self, Control};

/// Exit code of a run that was interrupted and saved, as shells have it.
const INTERRUPTED: u8 = 130;

/// Flags of the verb: the configuration of a run, and how it is steered.
#[derive(clap::Args)]
pub struct Flags {
    /// TOML file with values of the flags below, under the same names; flags win
    #[arg(long = "config", value_name = "FILE", conflicts_with = "resume")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: Config,
    /// Go on with the run in a folder; flags that change no result may be given anew
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// Save and stop after N steps in all; the learning rate stays that of --steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
    /// Write what ran when, and what it moved, as a Chrome trace that Perfetto opens; each program is waited for, which is
    /// slower
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Flags, and which of them a person typed.
pub type Args = Typed<Flags>;

/// Trains; progress goes to standard error, the folder of the run to standard output.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.resolve()?;
    let Flags { resume, stop_after, trace, .. } = args.flags;
    let control = Control { stop: interrupts()?, stop_after, traced: trace.is_some(), ..Control::default() };
    let trace = trace.map(|path| traced(&path, &config)).transpose()?;
    let files = (Metrics::default(), (TensorBoard::default(), Page::default()));
    let mut observer = (Progress::stderr(), (files, trace));
    let summary = match resume {
        None => train::start(&config, control, &mut observer)?,
        Some(run) => train::resume(&run, &config, control, &mut observer)?,
    };
    let folder = summary.folder.as_path();
    if !summary.stopped {
        if config.sample_tokens > 0 {
            say("\na sample of what it writes:\n")?;
            sample(&config, folder)?;
        }
        let (name, run) = (command(), folder.display());
        let prompt = summary.word.as_ref().map_or(String::new(), |word| format!(" --prompt {word}"));
        say(&format!("\nthe run is in {run}; to have it write more:\n  {name} generate {run}{prompt}\n"))?;
    }
    writeln!(std::io::stdout(), "{}", folder.display())?;
    let interrupted = summary.stopped && control.stop.load(Ordering::Relaxed);
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

impl Args {
    /// What was typed, over what the run or the file says, over the demo's values, over the defaults.
    fn resolve(&self) -> anyhow::Result<Config> {
        let (typed, flags) = (&self.typed, &self.flags);
        if let Some(run) = &flags.resume {
            let folder = Folder::open(run).context("--resume")?;
            let moved = typed.iter().any(|key| key == "out");
            ensure!(!moved, "--out: a run that goes on stays in its folder; leave it out");
            return Ok(folder.read_config()?.overlaid(&flags.config, typed)?);
        }
        let Some(path) = &flags.file else { return demo::fill(flags.config.clone(), typed) };
        let mut base = Config::read_part(path)?;
        // The file of a run names the run's own folder, which is taken: a run like it gets another.
        if base.out.as_deref() == path.parent() {
            base.out = None;
        }
        let keys = std::fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let given: Vec<String> = keys.into_iter().flatten().map(|(key, _)| key).chain(typed.clone()).collect();
        demo::fill(base.overlaid(&flags.config, typed)?, &given)
    }
}

/// Says something to the person, beside what programs read.
fn say(text: &str) -> Result<(), ReportError> {
    let mut out = std::io::stderr();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|source| ReportError { path: "standard error".into(), source })
}

/// A trace of a run, and that it is slower.
fn traced(path: &Path, config: &Config) -> Result<Trace, ReportError> {
    say(&format!("{SLOWER}\n"))?;
    let about = vec![
        ("gaufre", env!("CARGO_PKG_VERSION").to_owned()),
        ("schedule", format!("{:?}", config.schedule).to_lowercase()),
        ("wafer", config.wafer.to_string()),
    ];
    Ok(Trace::new(path, about))
}

/// What to type to have this program.
fn command() -> String {
    std::env::args().next().unwrap_or_else(|| "gaufre".into())
}

fn sample(config: &Config, folder: &Path) -> anyhow::Result<()> {
    let options = Sampling { temperature: 0.8, top_k: None, top_p: None, seed: config.seed };
    let device = Device::open(&config.device, config.threads)?;
    let mut saved = train::Saved::open(&Folder::open(folder)?, device)?;
    let prompt = saved.opening();
    saved.sample(&prompt, config.sample_tokens, options, &mut |text| say(text))?;
    Ok(say("\n")?)
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
