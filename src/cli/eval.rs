//! `gaufre eval`: how well a trained model predicts a text.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};

use super::logits;
use crate::device::Device;
use crate::report;
use crate::train::evaluate::{Evaluation, evaluate};
use crate::train::folder::Folder;

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run
    #[arg(required_unless_present = "init", conflicts_with = "init")]
    run: Option<PathBuf>,
    /// Folder of a model as Hugging Face's transformers keeps it, with --data FILE and --dump-logits
    #[arg(long, value_name = "FOLDER", requires = "dump_logits")]
    init: Option<PathBuf>,
    /// Safetensors file to write: `tokens` and `logits`
    #[arg(long, value_name = "FILE", requires = "init")]
    dump_logits: Option<PathBuf>,
    /// Tokens of a window of --dump-logits [default: the context of the model]
    #[arg(long, value_name = "N", requires = "dump_logits")]
    seq_len: Option<usize>,
    /// Text files, and folders of text files, to predict [default: the whole validation text of the run]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// auto, host, gpu, gpu:NAME, software or oracle (see `gaufre devices`)
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of a native device [0: all cores]
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Prints loss, perplexity and bits per byte to standard output.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let device = Device::open(&args.device, args.threads)?;
    eprintln!("{}", report::device::line(&device));
    if let (Some(init), Some(out)) = (&args.init, &args.dump_logits) {
        ensure!(args.data.len() == 1, "--dump-logits: give one file with --data, not {}", args.data.len());
        logits::dump(init, &args.data[0], args.seq_len, out, device)?;
        return Ok(ExitCode::SUCCESS);
    }
    let folder = Folder::open(args.run.as_deref().context("RUN: name the folder of a run")?)?;
    let found = evaluate(&folder, &args.data, &device)?;
    let text = match args.json {
        true => serde_json::to_string(&found)?,
        false => table(&found),
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn table(found: &Evaluation) -> String {
    let Evaluation { tokens, loss, perplexity, bits_per_byte } = found;
    let bits = bits_per_byte.map_or(String::new(), |bits| format!("\nbits per byte  {bits:.4}"));
    format!("tokens         {tokens}\nloss           {loss:.4}\nperplexity     {perplexity:.4}{bits}")
}
