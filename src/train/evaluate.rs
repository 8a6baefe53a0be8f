//! The loss of a saved model over all of a text: each token but the first is predicted once, from at most a sequence of
//! tokens before it. It must never know how the numbers are shown.

use std::path::PathBuf;

use super::folder::Folder;
use super::run::{TrainError, bytes_per_token, read_model};
use super::saved;
use crate::data::{Corpus, DataError, Tokens};
use crate::device::{Device, Elem};
use crate::model::{Gpt, Micro, Shape, Visit};
use crate::program::cross_entropy::IGNORE;
use crate::program::grad_norm::{LOSS, SCALARS};
use crate::program::schedule::{Fabric, Schedule};
use crate::report::metrics::bits_per_byte;
use crate::store::{Spill, Store};
use crate::wafer::Wafer;

/// What a model makes of a text.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Mean loss in nats a token.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Bits for each byte of the text, where its length is known.
    pub bits_per_byte: Option<f64>,
}

/// Evaluates the newest weights of a run on a device, over files and folders of text, or over the whole validation text of
/// the run where there are none. A long text is prepared in the cache of the run, and mapped.
///
/// # Errors
/// [`TrainError`] names the file or the value.
pub fn evaluate(folder: &Folder, data: &[PathBuf], device: &Device) -> Result<Evaluation, TrainError> {
    let config = folder.read_config()?;
    let tokenizer = folder.read_tokenizer()?;
    let model = read_model(&config.model)?.with_vocabulary(tokenizer.vocab_size())?;
    let sizes = config.shape(model.context)?;
    let (tokens, bytes_per_token) = match data {
        [] => {
            let corpus = Corpus::load(&config.request(), sizes.seq_len + 1)?;
            let bytes = bytes_per_token(&corpus);
            (corpus.validation, bytes)
        }
        paths => {
            let (tokens, bytes) = Corpus::read(paths, &tokenizer, &config.field, &config.request().cache)?;
            let each = bytes as f64 / tokens.len().max(1) as f64;
            (tokens, Some(each))
        }
    };
    if tokens.len() < 2 {
        let (split, cure) = ("given", "give more text with --data");
        return Err(DataError::TooShort { split, tokens: tokens.len(), needed: 2, cure }.into());
    }
    let mut store = saved::weights(folder, &config, &model, device)?;
    let shape = Shape { batch: sizes.batch_size, seq_len: sizes.seq_len, micro_batches: 1 };
    let mut gpt = Gpt::new(device, model, shape, false, Spill::None).map_err(TrainError::Store)?;
    let loss = device.run(|| mean_loss(&mut gpt, &mut store, device, &tokens))?;
    Ok(Evaluation {
        tokens: tokens.len() as u64 - 1,
        loss,
        perplexity: loss.exp(),
        bits_per_byte: bytes_per_token.map(|bytes| bits_per_byte(loss, bytes)),
    })
}

/// Mean loss over all tokens but the first. The last micro-batch is filled up with targets that do not count.
fn mean_loss(gpt: &mut Gpt, store: &mut Store, device: &Device, tokens: &Tokens) -> Result<f64, TrainError> {
    let fabric = Fabric::new(device.clone(), Schedule::Fused, Wafer::new(8, 8));
    let scalars = device.buffer("scalars of an evaluation", Elem::F32, SCALARS)?;
    let rows = gpt.shape().rows();
    let mut sum = 0.0;
    let last = tokens.len() - 1;
    let mut window = Vec::with_capacity(rows + 1);
    for start in (0..last).step_by(rows) {
        window.clear();
        tokens.extend(start, rows.min(last - start) + 1, &mut window);
        let (inputs, targets) = (&window[..window.len() - 1], &window[1..]);
        let padded = |part: &[u32], fill| part.iter().copied().chain(std::iter::repeat(fill)).take(rows).collect();
        gpt.load(device, &[Micro { inputs: padded(inputs, 0), targets: padded(targets, IGNORE) }])?;
        for visit in gpt.visits() {
            match visit {
                Visit::Head => gpt.turn(&fabric, store, &scalars.all(), LOSS, None)?,
                _ => gpt.forward(&fabric, store, visit)?,
            }
        }
        sum += device.download_f64(&scalars.all())?[LOSS] * targets.len() as f64;
    }
    Ok(sum / (tokens.len() - 1) as f64)
}
