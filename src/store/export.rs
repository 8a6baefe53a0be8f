//! Weights out of one safetensors file into another, under other names, transposed and rounded where asked, a tensor at a
//! time. Neither a device nor a second copy of the model is needed. It must never know which software will read them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as Written, Metadata, TensorInfo};

use super::checkpoint::CheckpointError;
use super::durable::write_with;
use super::import::value;
use super::shards::{Dtype, Shards};

/// Type of the elements of an exported file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// As they are.
    F32,
    /// To the nearest half, ties to even. Values beyond 65504 are refused.
    F16,
    /// To the nearest bfloat16, ties to even.
    BF16,
}

/// One tensor to be written.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name in the new file.
    pub name: String,
    /// Its name in the old one; `None`: all zero.
    pub source: Option<String>,
    /// Lengths of its dimensions in the old file.
    pub shape: Vec<usize>,
    /// Whether it is written as its transpose.
    pub transposed: bool,
}

/// Writes a file with the tensors asked for, in that order, and `metadata` in its header.
///
/// # Errors
/// [`CheckpointError`] names the tensor that is missing, has another shape or type than said, or a value that the new type
/// cannot hold; nothing is written then.
pub fn write(
    from: &Shards,
    targets: &[Target],
    rounding: Rounding,
    path: &Path,
    metadata: HashMap<String, String>,
) -> Result<(), CheckpointError> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(targets.len());
    for target in targets {
        check(from, target, rounding, path)?;
        let mut shape = target.shape.clone();
        if target.transposed {
            shape.reverse();
        }
        let begin = end;
        end += shape.iter().product::<usize>() * rounding.bytes();
        infos.push((target.name.clone(), TensorInfo { dtype: rounding.dtype(), shape, data_offsets: (begin, end) }));
    }
    let content = |reason: String| CheckpointError::Content { path: path.into(), reason };
    let header = Metadata::new(Some(metadata), infos).map_err(|e| content(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| content(e.to_string()))?;
    // The format wants the data to begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        targets.iter().try_for_each(|target| put(from, target, rounding, file))
    })?)
}

fn check(from: &Shards, target: &Target, rounding: Rounding, path: &Path) -> Result<(), CheckpointError> {
    let Some(source) = &target.source else { return Ok(()) };
    let Some(entry) = from.get(source) else {
        return Err(CheckpointError::Content { path: path.into(), reason: format!("no tensor {source} to write") });
    };
    let content = |reason: String| CheckpointError::Content { path: entry.path.into(), reason };
    if entry.shape != target.shape || entry.dtype != Dtype::F32 {
        let (theirs, ours) = (entry.shape, &target.shape);
        return Err(content(format!("{source} is {:?} {theirs:?}, the model has F32 {ours:?}", entry.dtype)));
    }
    let lost = |at: &usize| {
        let exact = value(&entry, *at);
        exact.is_finite() && !rounding.rounded(exact).is_finite()
    };
    match (0..target.shape.iter().product()).find(lost) {
        Some(at) => {
            let x = value(&entry, at);
            Err(content(format!(
                "{source} is {x:e} at element {at}, too large for {rounding:?}; write another --dtype"
            )))
        }
        None => Ok(()),
    }
}

fn put(from: &Shards, target: &Target, rounding: Rounding, file: &mut dyn Write) -> io::Result<()> {
    let count: usize = target.shape.iter().product();
    let Some(entry) = target.source.as_ref().and_then(|source| from.get(source)) else {
        return io::copy(&mut io::Read::take(io::repeat(0), (count * rounding.bytes()) as u64), &mut *file).map(|_| ());
    };
    let cols = *target.shape.last().unwrap_or(&1);
    let rows = count / cols.max(1);
    for at in 0..count {
        let x = value(&entry, if target.transposed { at % rows * cols + at / rows } else { at });
        match rounding {
            Rounding::F32 => file.write_all(&x.to_le_bytes())?,
            Rounding::F16 => file.write_all(&f16::from_f32(x).to_le_bytes())?,
            Rounding::BF16 => file.write_all(&bf16::from_f32(x).to_le_bytes())?,
        }
    }
    Ok(())
}

impl Rounding {
    /// Its name in PyTorch.
    pub fn torch(self) -> &'static str {
        match self {
            Rounding::F32 => "float32",
            Rounding::F16 => "float16",
            Rounding::BF16 => "bfloat16",
        }
    }

    fn dtype(self) -> Written {
        match self {
            Rounding::F32 => Written::F32,
            Rounding::F16 => Written::F16,
            Rounding::BF16 => Written::BF16,
        }
    }

    fn bytes(self) -> usize {
        self.dtype().bitsize() / 8
    }

    fn rounded(self, x: f32) -> f32 {
        match self {
            Rounding::F32 => x,
            Rounding::F16 => f16::from_f32(x).to_f32(),
            Rounding::BF16 => bf16::from_f32(x).to_f32(),
        }
    }
}
