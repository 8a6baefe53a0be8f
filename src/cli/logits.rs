//! The part of `gaufre eval` that writes logits: of a model in a folder of Hugging Face, over a text.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::data::Tokenizer;
use crate::device::Device;
use crate::program::schedule::{Fabric, Schedule};
use crate::train::hugging_face::HuggingFace;
use crate::train::logits;
use crate::wafer::Wafer;

/// Writes the logits that the model of a folder has for a text file.
pub(super) fn dump(init: &Path, data: &Path, seq_len: Option<usize>, out: &Path, device: Device) -> anyhow::Result<()> {
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
