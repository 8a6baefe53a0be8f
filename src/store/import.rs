//! Weights from the files of others into a store: f32, f16 or bf16, transposed where asked. All is checked before the
//! first value is placed, and tensors pass one at a time. It must never know which software wrote the files.

use std::path::PathBuf;

use half::{bf16, f16};

use super::shards::{Dtype, Entry, Shards};
use super::{Store, StoreError, Tensor};

/// Where the values of a tensor come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name in the files.
    pub name: String,
    /// Whether it lies there as `[cols, rows]`.
    pub transposed: bool,
}

/// Why weights cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A tensor that does not fit.
    #[error("{}: tensor {tensor} {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name there.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that is not there.
    #[error("tensor {tensor} is missing")]
    Missing {
        /// Its name.
        tensor: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether every tensor has a source of its shape, of a known type, and all values finite.
///
/// # Errors
/// [`ImportError`] names the first that has not.
pub fn check(tensors: &[Tensor], shards: &Shards, sources: &[Source]) -> Result<(), ImportError> {
    for (tensor, source) in tensors.iter().zip(sources) {
        let entry = entry(shards, source)?;
        let wrong = |reason| ImportError::Tensor { path: entry.path.into(), tensor: source.name.clone(), reason };
        let expected = match (tensor.vector, source.transposed) {
            (true, _) => vec![tensor.cols],
            (false, true) => vec![tensor.cols, tensor.rows],
            (false, false) => vec![tensor.rows, tensor.cols],
        };
        if entry.shape != expected {
            return Err(wrong(format!("has the shape {:?}, the model needs {expected:?}", entry.shape)));
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(wrong(format!("has elements of type {:?}; F32, F16 and BF16 can be read", entry.dtype)));
        }
        if let Some(at) = (0..elements(&entry)).find(|at| !value(&entry, *at).is_finite()) {
            return Err(wrong(format!("is {} at element {at}; only finite weights can be used", value(&entry, at))));
        }
    }
    Ok(())
}

/// Fills the weights of a store; `sources` are in the order of its tensors.
///
/// # Errors
/// [`ImportError`]; the weights are untouched unless the device failed.
pub fn load(store: &mut Store, shards: &Shards, sources: &[Source]) -> Result<(), ImportError> {
    check(store.tensors(), shards, sources)?;
    for (number, source) in sources.iter().enumerate() {
        let entry = entry(shards, source)?;
        let Tensor { rows, cols, .. } = store.tensors()[number];
        let place = |at: usize| if source.transposed { at % cols * rows + at / cols } else { at };
        let values: Vec<f32> = (0..rows * cols).map(|at| value(&entry, place(at))).collect();
        store.set(number, &values)?;
    }
    Ok(())
}

fn entry<'a>(shards: &'a Shards, source: &Source) -> Result<Entry<'a>, ImportError> {
    shards.get(&source.name).ok_or_else(|| ImportError::Missing { tensor: source.name.clone() })
}

fn elements(entry: &Entry<'_>) -> usize {
    entry.shape.iter().product()
}

/// An element as f32; exact for every type that is read.
pub(super) fn value(entry: &Entry<'_>, at: usize) -> f32 {
    let pair = |at: usize| [entry.bytes[2 * at], entry.bytes[2 * at + 1]];
    match entry.dtype {
        Dtype::F16 => f16::from_le_bytes(pair(at)).to_f32(),
        Dtype::BF16 => bf16::from_le_bytes(pair(at)).to_f32(),
        _ => f32::from_le_bytes(entry.bytes[4 * at..4 * at + 4].try_into().expect("four bytes")),
    }
}
