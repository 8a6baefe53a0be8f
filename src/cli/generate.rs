//! `gaufre generate`: writes text with a trained model, character by character as it comes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;

use crate::data::TextStream;
use crate::device::Device;
use crate::report;
use crate::train;
use crate::train::folder::Folder;
use crate::train::generate::{Generation, Sampling};

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run
    run: PathBuf,
    /// Text to go on from
    #[arg(long, default_value = "\n", hide_default_value = true)]
    prompt: String,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    max_tokens: u64,
    /// Below 1 safer, above 1 wilder; 0 takes the most probable token always
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Consider only so many of the most probable tokens [default: all]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
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

/// Writes the prompt and what follows it to standard output.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = Sampling { temperature: args.temperature, top_k: args.top_k, seed: args.seed };
    options.check()?;
    ensure!(args.max_tokens > 0, "--max-tokens 0: must be 1 or more");
    ensure!(!args.prompt.is_empty(), "--prompt \"\": empty; give at least one character, or leave it out");
    let folder = Folder::open(&args.run)?;
    let tokenizer = folder.read_tokenizer()?;
    let prompt = tokenizer.encode(&args.prompt).map_err(|e| anyhow::Error::new(e).context("--prompt"))?;
    let device = Device::open(&args.device, args.threads)?;
    eprintln!("{}", report::device::line(&device));

    let mut decoder = train::Saved::open(&folder, device)?;
    let mut generation = Generation::new(&mut decoder, &prompt, options);
    let mut text = TextStream::new(&tokenizer);
    let mut out = std::io::stdout().lock();
    write!(out, "{}", args.prompt)?;
    for _ in 0..args.max_tokens {
        out.flush()?;
        write!(out, "{}", text.push(generation.token()?)?)?;
    }
    writeln!(out, "{}", text.finish())?;
    Ok(ExitCode::SUCCESS)
}
