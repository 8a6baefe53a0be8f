//! Checkpoints: the weights of a store as one safetensors file of named f32 tensors, written whole and read back checked
//! name by name and shape by shape. Tensors pass one at a time, so neither way holds a second model in memory. It must
//! never know what a tensor is for.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};

use super::durable::{WriteError, write_with};
use super::{Role, Store, StoreError, Tensor};

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file could not be written; what stood there before is whole.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes the weights of a store, with `metadata` in the header.
///
/// # Errors
/// [`CheckpointError`]; the file is then as it was before.
pub fn save(store: &mut Store, path: &Path, metadata: HashMap<String, String>) -> Result<(), CheckpointError> {
    let content = |reason: String| CheckpointError::Content { path: path.into(), reason };
    let mut end = 0;
    let infos = store.tensors().iter().map(|t| {
        let begin = end;
        end += t.rows * t.cols * 4;
        (t.name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape(t), data_offsets: (begin, end) })
    });
    let header = Metadata::new(Some(metadata), infos.collect()).map_err(|e| content(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| content(e.to_string()))?;
    // The format wants the data to begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut failed = None;
    let written = write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in 0..store.tensors().len() {
            match store.read(tensor, Role::Weight) {
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
        None => Ok(written?),
    }
}

/// Reads the weights of a store from a file that must have exactly its tensors.
///
/// # Errors
/// [`CheckpointError::Content`] names the first tensor that is missing, unknown or of another shape; nothing was
/// replaced then.
pub fn load(store: &mut Store, path: &Path) -> Result<(), CheckpointError> {
    let content = |reason: String| CheckpointError::Content { path: path.into(), reason };
    let bytes = std::fs::read(path).map_err(|source| CheckpointError::Read { path: path.into(), source })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| content(format!("not a safetensors file: {e}")))?;
    for tensor in store.tensors() {
        let Ok(found) = file.tensor(&tensor.name) else {
            return Err(content(format!("tensor {} is missing: is this a checkpoint of another model?", tensor.name)));
        };
        if found.shape() != shape(tensor) || found.dtype() != Dtype::F32 {
            let (ours, theirs) = (shape(tensor), found.shape());
            return Err(content(format!(
                "{} is {:?} {theirs:?}, the model has F32 {ours:?}",
                tensor.name,
                found.dtype()
            )));
        }
    }
    if let Some(unknown) = file.names().into_iter().find(|name| !store.tensors().iter().any(|t| t.name == *name)) {
        return Err(content(format!("tensor {unknown} is not of this model")));
    }
    for number in 0..store.tensors().len() {
        let found = file.tensor(&store.tensors()[number].name).map_err(|e| content(e.to_string()))?;
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(found.data());
        store.write(number, Role::Weight, &values)?;
    }
    Ok(())
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    if tensor.vector { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] }
}
