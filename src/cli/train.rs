//! `gaufre train`: trains a model on text and says how it goes, goes on with a run that stopped, and shows at the end what
//! the model writes.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use clap::parser::ValueSource;

use super::demo;
use crate::device::Device;
use crate::report::ReportError;
use crate::report::html::Page;
use crate::report::metrics::Metrics;
use crate::report::progress::Progress;
use crate::report::tensorboard::TensorBoard;
use crate::train::config::Config;
use crate::train::folder::Folder;
use crate::train::generate::Sampling;
use crate::train::{self, Control, Summary};

/// Exit code of a run that was interrupted and saved, as shells have it.
const INTERRUPTED: u8 = 130;

/// Flags of the verb: the configuration of a run, how it is steered, and what is only of this call.
#[derive(clap::Args)]
pub struct Args {
    /// TOML file with values of the flags below, under the same names; flags win
    #[arg(long = "config", value_name = "FILE", conflicts_with = "resume")]
    file: Option<PathBuf>,
    /// Go on with the run in a folder; flags that change no result may be given anew
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// Save and stop after N steps in all; the learning rate stays that of --steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
    /// Tokens of the sample that is written at the end; 0: none
    #[arg(long, value_name = "N", default_value_t = 400)]
    sample_tokens: u64,
    #[command(flatten)]
    config: Config,
    /// Keys of the configuration that were typed rather than left at their defaults.
    #[arg(skip)]
    typed: Vec<String>,
}

impl Args {
    /// Keeps in mind which flags were typed.
    pub(super) fn note_typed(&mut self, flags: &clap::ArgMatches) {
        let typed = |id: &&clap::Id| flags.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        self.typed = flags.ids().filter(typed).map(ToString::to_string).collect();
    }

    /// Defaults, under the demo's values, under those of the file, under those that were typed.
    fn resolve(&self) -> anyhow::Result<Config> {
        let Some(path) = &self.file else { return demo::fill(self.config.clone(), &self.typed) };
        let mut base = Config::read(path)?;
        // The file of a run names the run's own folder, which is taken: a run like it gets another.
        if base.out.as_deref() == path.parent() {
            base.out = None;
        }
        let keys = std::fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let given: Vec<String> = keys.into_iter().flatten().map(|(key, _)| key).chain(self.typed.clone()).collect();
        demo::fill(base.overlaid(&self.config, &self.typed)?, &given)
    }

    /// Trains, from the start or from where a run stopped; with the configuration that holds.
    fn train(&self, control: Control<'_>) -> anyhow::Result<(Config, Summary)> {
        let mut observer = (Progress::stderr(), (Metrics::default(), (TensorBoard::default(), Page::default())));
        let Some(run) = &self.resume else {
            let config = self.resolve()?;
            let summary = train::start(&config, control, &mut observer)?;
            return Ok((config, summary));
        };
        let folder = Folder::open(run).context("--resume")?;
        let out = self.typed.iter().any(|key| key == "out");
        ensure!(!out, "--out: a run that goes on stays in its folder; leave it out");
        let config = folder.read_config()?.overlaid(&self.config, &self.typed)?;
        let summary = train::resume(run, &config, control, &mut observer)?;
        Ok((config, summary))
    }
}

/// Trains; progress goes to standard error, the folder of the run to standard output.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let control = Control { stop: interrupts()?, stop_after: args.stop_after, ..Control::default() };
    let (config, summary) = args.train(control)?;
    let folder = summary.folder.display();
    let interrupted = summary.stopped && control.stop.load(Ordering::Relaxed);
    if !summary.stopped {
        if args.sample_tokens > 0 {
            say("\na sample of what it writes:\n")?;
            sample(&config, &summary.folder, args.sample_tokens)?;
        }
        let command = std::env::args().next().unwrap_or_else(|| "gaufre".into());
        say(&format!(
            "\n\nthe run is in {folder}; to have it write more:\n  {command} generate {folder} --prompt \"fn \"\n"
        ))?;
    }
    if !std::io::stdout().is_terminal() {
        writeln!(std::io::stdout(), "{folder}")?;
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn say(text: &str) -> Result<(), ReportError> {
    let mut out = std::io::stderr();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|source| ReportError { path: "standard error".into(), source })
}

fn sample(config: &Config, folder: &Path, tokens: u64) -> anyhow::Result<()> {
    let options = Sampling { temperature: 0.8, top_k: None, top_p: None, seed: config.seed };
    let device = Device::open(&config.device, config.threads)?;
    let mut saved = train::Saved::open(&Folder::open(folder)?, device)?;
    let prompt = saved.opening();
    Ok(saved.sample(&prompt, tokens, options, &mut |text| say(text))?)
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
