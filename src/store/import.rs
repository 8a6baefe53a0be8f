//! Weights from the files of others into a store: f32, f16 or bf16, in another order where asked. All is checked before the
//! first value is placed. Values pass in pieces of a panel, and the system may have back what it held of a file once a tensor
//! has passed, so that a model may be larger than memory. It must never know which software wrote the files.

use std::path::PathBuf;

use super::order::Order;
use super::shards::{Dtype, Entry, Shards};
use super::{Store, StoreError, Tensor};

/// Where the values of a tensor come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name in the files.
    pub name: String,
    /// How it lies there.
    pub order: Order,
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

/// Elements that are looked at together.
const TOGETHER: usize = 1 << 18;

/// Whether every tensor has a source of its shape, of a known type, and all values finite.
///
/// # Errors
/// [`ImportError`] names the first that has not.
pub fn check(tensors: &[Tensor], shards: &Shards, sources: &[Source]) -> Result<(), ImportError> {
    let mut values = Vec::with_capacity(TOGETHER);
    for (tensor, source) in tensors.iter().zip(sources) {
        let entry = fitting(tensor, shards, source)?;
        for first in (0..entry.elements()).step_by(TOGETHER) {
            values.clear();
            entry.append_f32(first..(first + TOGETHER).min(entry.elements()), &mut values);
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let reason = format!("is {} at element {}; only finite weights can be used", values[at], first + at);
                return Err(ImportError::Tensor { path: entry.path.into(), tensor: source.name.clone(), reason });
            }
        }
        shards.release(&source.name);
    }
    Ok(())
}

/// Fills the weights of a store; `sources` are in the order of its tensors, and were [checked](check).
///
/// # Errors
/// [`ImportError`]; the weights are untouched unless the device or the disk failed.
pub fn load(store: &mut Store, shards: &Shards, sources: &[Source]) -> Result<(), ImportError> {
    for (tensor, source) in store.tensors().iter().zip(sources) {
        fitting(tensor, shards, source)?;
    }
    for (number, source) in sources.iter().enumerate() {
        let tensor = store.tensors()[number].clone();
        let entry = fitting(&tensor, shards, source)?;
        store.set(number, &mut |first, count, out| gather(&entry, source.order, &tensor, (first, count), out))?;
        shards.release(&source.name);
    }
    Ok(())
}

/// The source of a tensor, where it is of the right shape and a type that can be read.
fn fitting<'a>(tensor: &Tensor, shards: &'a Shards, source: &Source) -> Result<Entry<'a>, ImportError> {
    let entry = shards.get(&source.name).ok_or_else(|| ImportError::Missing { tensor: source.name.clone() })?;
    let wrong = |reason| Err(ImportError::Tensor { path: entry.path.into(), tensor: source.name.clone(), reason });
    let expected = source.order.shape(tensor.rows, tensor.cols, tensor.vector);
    if entry.shape != expected {
        return wrong(format!("has the shape {:?}, the model needs {expected:?}", entry.shape));
    }
    if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return wrong(format!("has elements of type {:?}; F32, F16 and BF16 can be read", entry.dtype));
    }
    Ok(entry)
}

/// Appends rows of a tensor as they are here.
fn gather(entry: &Entry<'_>, order: Order, tensor: &Tensor, (first, count): (usize, usize), out: &mut Vec<f32>) {
    let cols = tensor.cols;
    match order {
        Order::Same => drop(entry.append_f32(first * cols..(first + count) * cols, out)),
        // Elements of a vector go as rows of a matrix do.
        Order::Grouped { .. } if tensor.vector => (0..cols).for_each(|at| {
            let at = order.theirs(at);
            entry.append_f32(at..at + 1, out);
        }),
        Order::Grouped { .. } => (first..first + count).for_each(|row| {
            let row = order.theirs(row);
            entry.append_f32(row * cols..(row + 1) * cols, out);
        }),
        Order::Transposed => {
            let (before, mut column) = (out.len(), Vec::with_capacity(count));
            out.resize(before + count * cols, 0.0);
            for col in 0..cols {
                column.clear();
                entry.append_f32(col * tensor.rows + first..col * tensor.rows + first + count, &mut column);
                out[before + col..].iter_mut().step_by(cols).zip(&column).for_each(|(to, from)| *to = *from);
            }
        }
    }
}
