//! The logits of all tokens of a text, written to a file as they are computed: neither device nor host ever holds those of
//! more than one window. It must never know where text or weights came from.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::run::TrainError;
use crate::model::{Config, Gpt, Micro, Shape, Visit};
use crate::program::schedule::Fabric;
use crate::store::checkpoint::CheckpointError;
use crate::store::durable::write_with;
use crate::store::{Spill, Store, StoreError};

/// Writes `tokens` (U32, `[tokens]`) and `logits` (F32, `[tokens, vocabulary]`) to a safetensors file. The text is cut into
/// windows of `seq_len` tokens, each of which begins at position 0 and knows nothing of the one before; row `i` holds the
/// logits of the token after token `i`.
///
/// # Errors
/// [`TrainError`] says what the device or the disk does; a file that was there before is then as it was.
///
/// # Panics
/// Without a token, with one beyond the vocabulary, or with a window that is not 1 to the context of the model.
pub fn dump(
    config: &Config,
    fabric: &Fabric,
    store: &mut Store,
    tokens: &[u32],
    seq_len: usize,
    path: &Path,
) -> Result<(), TrainError> {
    assert!(!tokens.is_empty() && (1..=config.context).contains(&seq_len), "{} tokens, {seq_len}", tokens.len());
    assert!(tokens.iter().all(|token| (*token as usize) < config.vocab_size), "a token beyond the vocabulary");
    let shape = Shape { batch: 1, seq_len, micro_batches: 1 };
    let mut gpt = Gpt::new(fabric.device(), config.clone(), shape, false, Spill::None)?;
    let header = header(tokens.len(), config.vocab_size, seq_len)
        .map_err(|reason| CheckpointError::Content { path: path.into(), reason })?;
    let mut failed = None;
    let written = write_with(path, |file| {
        file.write_all(&header)?;
        file.write_all(bytemuck::cast_slice(tokens))?;
        for window in tokens.chunks(seq_len) {
            match logits(&mut gpt, fabric, store, window) {
                Ok(values) => file.write_all(bytemuck::cast_slice(&values))?,
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("the device failed"));
                }
            }
        }
        Ok(())
    });
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(written.map_err(CheckpointError::from)?),
    }
}

/// The logits after each token of a window. A short one is filled up: what comes later cannot change what came before.
fn logits(gpt: &mut Gpt, fabric: &Fabric, store: &mut Store, window: &[u32]) -> Result<Vec<f32>, StoreError> {
    let (seq_len, vocabulary) = (gpt.shape().seq_len, gpt.config().vocab_size);
    let mut inputs = window.to_vec();
    inputs.resize(seq_len, 0);
    gpt.load(fabric.device(), &[Micro { targets: inputs.clone(), inputs }])?;
    for visit in gpt.visits().into_iter().filter(|visit| *visit != Visit::Head) {
        gpt.forward(fabric, store, visit)?;
    }
    let mut all = vec![0.0; window.len() * vocabulary];
    gpt.logits(fabric, store, &mut |_, first, chunk| {
        let values = chunk.download(fabric.device())?;
        for (row, values) in all.chunks_mut(vocabulary).zip(values.chunks(chunk.cols)) {
            row[first..first + chunk.cols].copy_from_slice(values);
        }
        Ok(())
    })?;
    Ok(all)
}

fn header(tokens: usize, vocabulary: usize, seq_len: usize) -> Result<Vec<u8>, String> {
    let info = |dtype, shape: Vec<usize>, data_offsets| TensorInfo { dtype, shape, data_offsets };
    let split = 4 * tokens;
    let infos = vec![
        ("tokens".to_string(), info(Dtype::U32, vec![tokens], (0, split))),
        ("logits".to_string(), info(Dtype::F32, vec![tokens, vocabulary], (split, split + split * vocabulary))),
    ];
    let about = HashMap::from([("seq_len".to_string(), seq_len.to_string())]);
    let header = Metadata::new(Some(about), infos).map_err(|e| e.to_string())?;
    let mut text = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
    // The format wants the data to begin at a multiple of 8.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}
