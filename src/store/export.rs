//! Weights out of a safetensors file or a store into a new file, under other names, in another order and rounded where asked,
//! a tensor at a time. A second copy of the model is never held. It must never know which software will read them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as Written, Metadata, TensorInfo};

use super::Store;
use super::checkpoint::CheckpointError;
use super::durable::{WriteError, write_with};
use super::order::Order;
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
    /// Its name here; `None`: all zero.
    pub source: Option<String>,
    /// Rows here.
    pub rows: usize,
    /// Columns here.
    pub cols: usize,
    /// Whether it has one dimension.
    pub vector: bool,
    /// How it is to lie there.
    pub order: Order,
}

/// Where the values come from.
pub enum Origin<'a> {
    /// A file, of f32 or bf16.
    File(&'a Shards),
    /// A store, wherever it lies.
    Store(&'a mut Store),
}

/// Elements that pass at once out of a file.
const TOGETHER: usize = 1 << 18;

/// Writes a file with the tensors asked for, in that order, and `metadata` in its header.
///
/// # Errors
/// [`CheckpointError`] names the tensor that is missing, has another shape or type than said, or a value that the new type
/// cannot hold; nothing is written then.
pub fn write(
    mut from: Origin<'_>,
    targets: &[Target],
    rounding: Rounding,
    path: &Path,
    metadata: HashMap<String, String>,
) -> Result<(), CheckpointError> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(targets.len());
    for target in targets {
        from.expect(target, path)?;
        let begin = end;
        end += target.rows * target.cols * rounding.bytes();
        let shape = target.order.shape(target.rows, target.cols, target.vector);
        infos.push((target.name.clone(), TensorInfo { dtype: rounding.dtype(), shape, data_offsets: (begin, end) }));
    }
    let content = |reason: String| CheckpointError::Content { path: path.into(), reason };
    let header = Metadata::new(Some(metadata), infos).map_err(|e| content(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| content(e.to_string()))?;
    // The format wants the data to begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut failed = None;
    let written = write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut out = Out { file, path, rounding, bytes: Vec::new() };
        targets.iter().try_for_each(|target| put(&mut from, target, &mut out)).map_err(|error| {
            failed = Some(error);
            io::Error::other("a tensor cannot be written")
        })
    });
    failed.map_or_else(|| Ok(written?), Err)
}

/// The new file, and how values go into it.
struct Out<'a> {
    file: &'a mut dyn Write,
    path: &'a Path,
    rounding: Rounding,
    bytes: Vec<u8>,
}

impl Out<'_> {
    fn pass(&mut self, values: &[f32]) -> Result<(), CheckpointError> {
        self.bytes.clear();
        self.rounding.append(values, &mut self.bytes);
        Ok(self.file.write_all(&self.bytes).map_err(|source| WriteError { path: self.path.into(), source })?)
    }
}

/// Writes one tensor.
fn put(from: &mut Origin<'_>, target: &Target, out: &mut Out<'_>) -> Result<(), CheckpointError> {
    let Some(source) = &target.source else {
        return out.pass(&vec![0.0; target.rows * target.cols]);
    };
    let (mut whole, mut at) = (Vec::new(), 0);
    from.each(source, &mut |values| {
        let rounding = out.rounding;
        if let Some(lost) = values.iter().position(|x| x.is_finite() && !rounding.rounded(*x).is_finite()) {
            let (x, at) = (values[lost], at + lost);
            let reason =
                format!("{source} is {x:e} at element {at}, too large for {rounding:?}; write another --dtype");
            return Err(CheckpointError::Content { path: out.path.into(), reason });
        }
        at += values.len();
        match target.order {
            Order::Same => out.pass(values),
            _ => {
                whole.extend_from_slice(values);
                Ok(())
            }
        }
    })?;
    if target.order == Order::Same { Ok(()) } else { ordered(target, &whole, out) }
}

/// Writes all values of a tensor that is to lie otherwise, row by row there.
fn ordered(target: &Target, values: &[f32], out: &mut Out<'_>) -> Result<(), CheckpointError> {
    let Target { rows, cols, vector, order, .. } = *target;
    if order == Order::Transposed && !vector {
        return (0..cols).try_for_each(|col| {
            let column: Vec<f32> = values[col..].iter().step_by(cols).copied().collect();
            out.pass(&column)
        });
    }
    // Elements of a vector go as rows of a matrix do.
    let (rows, cols) = if vector { (cols, 1) } else { (rows, cols) };
    (0..rows).try_for_each(|row| out.pass(&values[order.ours(row) * cols..][..cols]))
}

/// Takes some values in their order.
type Take<'a> = &'a mut dyn FnMut(&[f32]) -> Result<(), CheckpointError>;

impl Origin<'_> {
    /// Whether it has the tensor that is asked for.
    fn expect(&self, target: &Target, path: &Path) -> Result<(), CheckpointError> {
        let Some(source) = &target.source else { return Ok(()) };
        let missing = || CheckpointError::Content { path: path.into(), reason: format!("no tensor {source} to write") };
        let ours = Order::Same.shape(target.rows, target.cols, target.vector);
        match self {
            Origin::File(shards) => {
                let entry = shards.get(source).ok_or_else(missing)?;
                if entry.shape == ours && matches!(entry.dtype, Dtype::F32 | Dtype::BF16) {
                    return Ok(());
                }
                let reason = format!("{source} is {:?} {:?}, the model has {ours:?}", entry.dtype, entry.shape);
                Err(CheckpointError::Content { path: entry.path.into(), reason })
            }
            Origin::Store(store) => {
                let found = store.tensors().iter().find(|t| t.name == *source).ok_or_else(missing)?;
                assert_eq!((found.rows, found.cols), (target.rows, target.cols), "{source} is of this model");
                Ok(())
            }
        }
    }

    /// Gives all values of a tensor that was expected, row-major, in pieces.
    fn each(&mut self, source: &str, take: Take<'_>) -> Result<(), CheckpointError> {
        match self {
            Origin::File(shards) => {
                let entry = shards.get(source).expect("it was expected");
                let mut values = Vec::with_capacity(TOGETHER);
                for first in (0..entry.elements()).step_by(TOGETHER) {
                    values.clear();
                    entry.append_f32(first..(first + TOGETHER).min(entry.elements()), &mut values);
                    take(&values)?;
                }
                shards.release(source);
            }
            Origin::Store(store) => {
                let number = store.tensors().iter().position(|t| t.name == source).expect("it was expected");
                for panel in store.panels(number) {
                    take(&store.read_panel(number, panel)?)?;
                }
            }
        }
        Ok(())
    }
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

    fn append(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Rounding::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Rounding::F16 => bytes.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
            Rounding::BF16 => bytes.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
        }
    }
}
