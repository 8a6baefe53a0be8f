//! `gaufre train`: trains a model on text, says how it goes, and shows at the end what the model writes.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::parser::ValueSource;

use super::demo;
use crate::device::Device;
use crate::report::ReportError;
use crate::report::metrics::Metrics;
use crate::report::progress::Progress;
use crate::train;
use crate::train::config::Config;
use crate::train::folder::Folder;
use crate::train::generate::Sampling;

/// Flags of the verb: the configuration of a run, and what is only of this call.
#[derive(clap::Args)]
pub struct Args {
    /// TOML file with values of the flags below, under the same names; flags win
    #[arg(long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
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
}

/// Trains; progress goes to standard error, the folder of the run to standard output.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.resolve()?;
    let mut observer = (Progress::stderr(), Metrics::default());
    let summary = train::run(&config, &mut observer)?;
    let say = |text: &str| {
        let mut out = std::io::stderr();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|source| ReportError { path: "standard error".into(), source })
    };
    if args.sample_tokens > 0 {
        say("\na sample of what it writes:\n")?;
        sample(&config, &summary.folder, args.sample_tokens, &mut |text| say(text))?;
    }
    let folder = summary.folder.display();
    say(&format!(
        "\n\nthe run is in {folder}; to have it write more:\n  {} generate {folder} --prompt \"fn \"\n",
        command()
    ))?;
    if !std::io::stdout().is_terminal() {
        writeln!(std::io::stdout(), "{folder}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What to type to have this program: its name where a shell would find that, else its path.
fn command() -> String {
    std::env::args().next().unwrap_or_else(|| "gaufre".into())
}

fn sample(
    config: &Config,
    folder: &Path,
    tokens: u64,
    say: &mut dyn FnMut(&str) -> Result<(), ReportError>,
) -> anyhow::Result<()> {
    let options = Sampling { temperature: 0.8, top_k: None, seed: config.seed };
    let device = Device::open(&config.device, config.threads)?;
    let mut saved = train::Saved::open(&Folder::open(folder)?, device)?;
    let prompt = saved.opening();
    Ok(saved.sample(&prompt, tokens, options, say)?)
}
