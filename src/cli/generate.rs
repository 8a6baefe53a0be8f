//! `gaufre generate`: writes text with a trained model, character by character as it comes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};

use crate::data::Tokenizer;
use crate::device::Device;
use crate::report::{self, ReportError};
use crate::train;
use crate::train::folder::Folder;
use crate::train::generate::Sampling;
use crate::train::hugging_face::HuggingFace;

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run
    #[arg(required_unless_present = "init")]
    run: Option<PathBuf>,
    /// Folder of a model as Hugging Face's transformers keeps it, in place of a run
    #[arg(long, value_name = "FOLDER", conflicts_with = "run")]
    init: Option<PathBuf>,
    /// Text to go on from [default: the start of a document]
    #[arg(long)]
    prompt: Option<String>,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    max_tokens: u64,
    /// Below 1 safer, above 1 wilder; 0 takes the most probable token always
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Consider only so many of the most probable tokens [default: all]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Consider only the most probable tokens that together have this probability [default: all]
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Equal seeds write equal text
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
    /// auto, host, gpu, gpu:NAME, software or oracle (see `gaufre devices`)
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of a native device [0: all cores]
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// Where the model comes from.
enum Model {
    Run(Folder),
    Init(Box<HuggingFace>),
}

impl Model {
    fn open(args: &Args) -> anyhow::Result<Model> {
        match (&args.run, &args.init) {
            (Some(run), _) => Ok(Model::Run(Folder::open(run)?)),
            (None, Some(init)) => Ok(Model::Init(Box::new(HuggingFace::open(init)?))),
            (None, None) => bail!("no model: name the folder of a run, or give --init"),
        }
    }
}

/// Writes the prompt and what follows it to standard output.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    options.check()?;
    ensure!(args.max_tokens > 0, "--max-tokens 0: must be 1 or more");
    ensure!(args.prompt.as_deref() != Some(""), "--prompt \"\": empty; give at least one character, or leave it out");
    let model = Model::open(args)?;
    let tokenizer = match &model {
        Model::Run(folder) => folder.read_tokenizer()?,
        Model::Init(init) => Tokenizer::load(&init.tokenizer())?,
    };
    let prompt = args.prompt.as_deref().map(|text| tokenizer.encode(text)).transpose();
    let prompt = prompt.map_err(|e| anyhow::Error::new(e).context("--prompt"))?;
    let device = Device::open(&args.device, args.threads)?;
    eprintln!("{}", report::device::line(&device));

    let mut saved = match &model {
        Model::Run(folder) => train::Saved::open(folder, device)?,
        Model::Init(init) => train::Saved::import(init, device)?,
    };
    let prompt = prompt.unwrap_or_else(|| saved.opening());
    let mut out = std::io::stdout().lock();
    let mut say = |text: &str| {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|source| ReportError { path: "standard output".into(), source })
    };
    say(args.prompt.as_deref().unwrap_or_default())?;
    saved.sample(&prompt, args.max_tokens, options, &mut say)?;
    say("\n")?;
    Ok(ExitCode::SUCCESS)
}
