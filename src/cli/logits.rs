//! The part of `gaufre eval` that writes logits: of a GPT-2 in a folder of Hugging Face, over a text.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};

use crate::data::Tokenizer;
use crate::device::Device;
use crate::program::schedule::{Fabric, Schedule};
use crate::report;
use crate::train::hugging_face::HuggingFace;
use crate::train::logits;
use crate::wafer::Wafer;

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a GPT-2 as Hugging Face's transformers keeps it
    #[arg(long, value_name = "FOLDER")]
    init: PathBuf,
    /// Text to predict
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Safetensors file to write: `tokens` and `logits`
    #[arg(long, value_name = "FILE")]
    dump_logits: PathBuf,
    /// Tokens of a window [default: the context of the model]
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// auto, host, gpu, gpu:NAME, software or oracle (see `gaufre devices`)
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of a native device [0: all cores]
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// Writes the logits of a text.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let device = Device::open(&args.device, args.threads)?;
    eprintln!("{}", report::device::line(&device));
    dump(&args.init, &args.data, args.seq_len, &args.dump_logits, device)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the logits that the model of a folder has for a text file.
fn dump(init: &Path, data: &Path, seq_len: Option<usize>, out: &Path, device: Device) -> anyhow::Result<()> {
    let model = HuggingFace::open(init)?;
    let (context, vocabulary) = (model.config().context, model.config().vocab_size);
    let seq_len = seq_len.unwrap_or(context);
    ensure!((1..=context).contains(&seq_len), "--seq-len {seq_len}: must be 1 to {context}, the model's context");
    let text = std::fs::read_to_string(data).with_context(|| format!("--data {}", data.display()))?;
    let tokenizer = Tokenizer::load(&model.tokenizer())?;
    let ids = tokenizer.vocab_size();
    ensure!(ids <= vocabulary, "{}: has {ids} ids, the model {vocabulary}", model.tokenizer().display());
    let tokens = tokenizer.encode(&text)?;
    ensure!(!tokens.is_empty(), "--data {}: no text in it", data.display());
    let mut store = model.store(&device)?;
    let fabric = Fabric::new(device.clone(), Schedule::Fused, Wafer::new(8, 8));
    Ok(device.run(|| logits::dump(model.config(), &fabric, &mut store, &tokens, seq_len, out))?)
}
