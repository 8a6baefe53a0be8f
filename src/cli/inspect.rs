//! `gaufre inspect`: what a file of weights holds, tensor by tensor, without a model or a device.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use half::{bf16, f16};
use serde_json::json;

use crate::store::safetensors::{self, Dtype, File, Tensor};

/// Flags of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a run, or a safetensors file
    path: PathBuf,
    /// Print JSON; a value that is not finite is null
    #[arg(long)]
    json: bool,
}

/// Prints a row for each tensor and one for all of them.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = safetensors::open(&weights(&args.path)?)?;
    let found: Vec<(&Tensor, Summary)> = file.tensors().iter().map(|t| (t, Summary::of(&file, t))).collect();
    let text = match args.json {
        true => serde_json::to_string_pretty(&for_programs(&file, &found))? + "\n",
        false => for_people(&file, &found),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// The file of weights that a path stands for.
fn weights(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let file = path.join("model.safetensors");
    if !file.is_file() {
        bail!(
            "{}: no model.safetensors in it; name a folder that `gaufre train` wrote, or a safetensors file",
            path.display()
        );
    }
    Ok(file)
}

/// What the elements of a tensor, or of many, are like. Elements that are not finite are counted and left out of the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    elements: u64,
    non_finite: u64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Default for Summary {
    fn default() -> Summary {
        Summary { elements: 0, non_finite: 0, sum: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Summary {
    fn of(file: &File, tensor: &Tensor) -> Summary {
        let bytes = file.bytes(tensor);
        match tensor.dtype {
            Dtype::F64 => Summary::each(bytes, f64::from_le_bytes),
            Dtype::F32 => Summary::each(bytes, |b| f32::from_le_bytes(b).into()),
            Dtype::F16 => Summary::each(bytes, |b| f16::from_le_bytes(b).into()),
            Dtype::BF16 => Summary::each(bytes, |b| bf16::from_le_bytes(b).into()),
            Dtype::I64 => Summary::each(bytes, |b| i64::from_le_bytes(b) as f64),
            Dtype::I32 => Summary::each(bytes, |b| i32::from_le_bytes(b).into()),
            Dtype::I16 => Summary::each(bytes, |b| i16::from_le_bytes(b).into()),
            Dtype::I8 => Summary::each(bytes, |b| i8::from_le_bytes(b).into()),
            Dtype::U64 => Summary::each(bytes, |b| u64::from_le_bytes(b) as f64),
            Dtype::U32 => Summary::each(bytes, |b| u32::from_le_bytes(b).into()),
            Dtype::U16 => Summary::each(bytes, |b| u16::from_le_bytes(b).into()),
            Dtype::U8 | Dtype::Bool => Summary::each(bytes, |[b]: [u8; 1]| b.into()),
        }
    }

    /// Sums in f64: of a billion f32 the rounding is far below the last digit shown.
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Summary {
        let mut all = Summary::default();
        for element in bytes.as_chunks::<N>().0 {
            let x = value(*element);
            all.elements += 1;
            if x.is_finite() {
                all.sum += x;
                all.squares += x * x;
                all.min = all.min.min(x);
                all.max = all.max.max(x);
            } else {
                all.non_finite += 1;
            }
        }
        all
    }

    fn and(self, other: Summary) -> Summary {
        Summary {
            elements: self.elements + other.elements,
            non_finite: self.non_finite + other.non_finite,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    fn mean(&self) -> f64 {
        self.sum / (self.elements - self.non_finite) as f64
    }

    fn norm(&self) -> f64 {
        self.squares.sqrt()
    }

    /// Norm, mean, least and largest, as text.
    fn shown(&self) -> [String; 4] {
        match self.elements == self.non_finite {
            true => ["-", "-", "-", "-"].map(String::from),
            false => [self.norm(), self.mean(), self.min, self.max].map(|x| format!("{x:.4e}")),
        }
    }
}

fn total(found: &[(&Tensor, Summary)]) -> Summary {
    found.iter().fold(Summary::default(), |all, (_, summary)| all.and(*summary))
}

fn for_people(file: &File, found: &[(&Tensor, Summary)]) -> String {
    let row = |name: String, dtype: String, shape: String, bytes: usize, of: &Summary| {
        let [norm, mean, min, max] = of.shown();
        [name, dtype, shape, bytes.to_string(), norm, mean, min, max, of.non_finite.to_string()]
    };
    let mut rows =
        vec![["tensor", "dtype", "shape", "bytes", "norm", "mean", "min", "max", "non-finite"].map(String::from)];
    for (tensor, summary) in found {
        let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let name = tensor.name.escape_debug().to_string();
        rows.push(row(name, tensor.dtype.to_string(), shape, tensor.bytes.len(), summary));
    }
    let all = total(found);
    let bytes = found.iter().map(|(tensor, _)| tensor.bytes.len()).sum();
    let count = format!("{} tensors", found.len());
    rows.push(row(count, String::new(), format!("{} elements", all.elements), bytes, &all));
    let widths: [usize; 9] =
        std::array::from_fn(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or_default());
    let mut text = format!("{}, {} bytes\n", file.path().display(), file.file_bytes());
    for (key, value) in file.metadata() {
        text += &format!("{}: {}\n", key.escape_debug(), value.escape_debug());
    }
    text.push('\n');
    for row in &rows {
        let cell = |i: usize| match i {
            0..=2 => format!("{:<1$}", row[i], widths[i]),
            _ => format!("{:>1$}", row[i], widths[i]),
        };
        let line = (0..row.len()).map(cell).collect::<Vec<_>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn for_programs(file: &File, found: &[(&Tensor, Summary)]) -> serde_json::Value {
    let values = |of: &Summary| {
        let some = of.elements > of.non_finite;
        let [norm, mean, min, max] = [of.norm(), of.mean(), of.min, of.max].map(|x| some.then_some(x));
        json!({ "elements": of.elements, "norm": norm, "mean": mean, "min": min, "max": max,
                "non_finite": of.non_finite })
    };
    let tensors: Vec<_> = found
        .iter()
        .map(|(tensor, summary)| {
            let mut row = values(summary);
            row["name"] = json!(tensor.name);
            row["dtype"] = json!(tensor.dtype.name());
            row["shape"] = json!(tensor.shape);
            row["bytes"] = json!(tensor.bytes.len());
            row
        })
        .collect();
    let metadata: serde_json::Map<_, _> = file.metadata().iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    json!({
        "file": file.path().display().to_string(),
        "bytes": file.file_bytes(),
        "metadata": metadata,
        "total": values(&total(found)),
        "tensors": tensors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let bytes: Vec<u8> = [3.0f32, f32::NAN, -4.0, f32::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
        let found = Summary::each(&bytes, |b| f32::from_le_bytes(b).into());
        assert_eq!((found.elements, found.non_finite, found.min, found.max), (4, 2, -4.0, 3.0));
        assert_eq!((found.norm(), found.mean()), (5.0, -0.5));
        let nothing = Summary::each(&bytes[4..8], |b| f32::from_le_bytes(b).into());
        assert_eq!(nothing.shown()[0], "-");
        assert_eq!(nothing.and(found), Summary { elements: 5, non_finite: 3, ..found });
    }
}
