//! Tensors in safetensors files, memory-mapped: one file, or the shards of a folder with their index. Everything that a
//! header or an index says is checked when it is opened, headers by the reader that trusts nobody, so that looking up a tensor cannot fail in any other way than by
//! its name. It must never know a model, or what a tensor is for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::safetensors::{self, File, OpenError};

pub use super::safetensors::Dtype;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of tensors that cannot be opened, or is refused.
    #[error(transparent)]
    File(#[from] OpenError),
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// One tensor as it lies in its file.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Lengths of its dimensions.
    pub shape: &'a [usize],
    /// Its elements, little-endian, row-major, at any alignment.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub path: &'a Path,
}

impl Entry<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Appends elements as f32: see [`safetensors::append_f32`].
    ///
    /// # Panics
    /// When there are no such elements.
    pub fn append_f32(&self, elements: Range<usize>, out: &mut Vec<f32>) -> bool {
        safetensors::append_f32(self.dtype, self.bytes, elements, out)
    }
}

/// Named tensors in one file or several.
#[derive(Debug)]
pub struct Shards {
    files: Vec<File>,
    /// Which file holds each tensor, and which of its tensors it is.
    places: BTreeMap<String, (usize, usize)>,
}

/// Bytes that an index may have: GPT-2 XL's is below 100 kB.
const INDEX_BYTES: u64 = 64 << 20;

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// The tensors of one file.
    ///
    /// # Errors
    /// [`ShardsError`] names the file.
    pub fn file(path: &Path) -> Result<Shards, ShardsError> {
        let file = safetensors::open(path)?;
        let names = file.tensors().iter().enumerate();
        let places = names.map(|(at, tensor)| (tensor.name.clone(), (0, at))).collect();
        Ok(Shards { files: vec![file], places })
    }

    /// The tensors of a folder: those of `model.safetensors.index.json` where there is one, else of `model.safetensors`.
    ///
    /// # Errors
    /// [`ShardsError`] names the file: one that is missing or broken, or an index that does not agree with its shards.
    pub fn folder(folder: &Path) -> Result<Shards, ShardsError> {
        let index = folder.join("model.safetensors.index.json");
        match index.exists() {
            true => Shards::indexed(folder, &index),
            false => Shards::file(&folder.join("model.safetensors")),
        }
    }

    fn indexed(folder: &Path, path: &Path) -> Result<Shards, ShardsError> {
        let content = |reason: String| ShardsError::Content { path: path.into(), reason };
        let read = |source| ShardsError::Read { path: path.into(), source };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > INDEX_BYTES {
            return Err(content(format!("{bytes} bytes are too many for an index; {INDEX_BYTES} are the most")));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let index: Index = serde_json::from_str(&text).map_err(|e| content(format!("not an index of shards: {e}")))?;
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut files = Vec::new();
        for (tensor, file) in &index.weight_map {
            let strange = file.contains(char::is_control);
            if strange || Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(content(format!("{file:?}, the file of {tensor:?}, is not a name in this folder")));
            }
            if !numbers.contains_key(file.as_str()) {
                numbers.insert(file, files.len());
                files.push(safetensors::open(&folder.join(file))?);
            }
        }
        let mut held: BTreeMap<(&str, usize), usize> = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            held.extend(file.tensors().iter().enumerate().map(|(at, tensor)| ((tensor.name.as_str(), number), at)));
        }
        let mut places = BTreeMap::new();
        for (tensor, file) in &index.weight_map {
            let number = numbers[file.as_str()];
            let at = held.remove(&(tensor.as_str(), number));
            let at = at.ok_or_else(|| content(format!("{tensor:?} should be in {file}, and is not")))?;
            places.insert(tensor.clone(), (number, at));
        }
        if let Some((name, number)) = held.into_keys().next() {
            let path = files[number].path().display();
            return Err(content(format!("{path} holds {name:?}, which should not be there")));
        }
        Ok(Shards { files, places })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// A tensor.
    pub fn get(&self, name: &str) -> Option<Entry<'_>> {
        let (file, at) = *self.places.get(name)?;
        let file = &self.files[file];
        let tensor = &file.tensors()[at];
        Some(Entry { dtype: tensor.dtype, shape: &tensor.shape, bytes: file.bytes(tensor), path: file.path() })
    }

    /// Lets the system have back the memory that it holds a tensor in: see [`File::release`].
    pub fn release(&self, name: &str) {
        if let Some((file, at)) = self.places.get(name) {
            let file = &self.files[*file];
            file.release(&file.tensors()[*at]);
        }
    }
}
