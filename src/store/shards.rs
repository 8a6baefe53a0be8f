//! Tensors in safetensors files, memory-mapped: one file, or the shards of a folder with their index. Everything that a
//! header or an index says is checked when it is opened, so that looking up a tensor cannot fail in any other way than by
//! its name. It must never know a model, or what a tensor is for.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensors};

pub use safetensors::tensor::Dtype;

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

/// Named tensors in one file or several.
#[derive(Debug)]
pub struct Shards {
    shards: Vec<Shard>,
    /// Which shard holds each tensor.
    places: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// First byte of the data.
    data: usize,
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
        let shard = Shard::open(path)?;
        let places = shard.header.tensors().into_keys().map(|name| (name, 0)).collect();
        Ok(Shards { shards: vec![shard], places })
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
        let mut shards = Vec::new();
        for (tensor, file) in &index.weight_map {
            if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(content(format!("{file:?}, the file of {tensor}, is not a name in this folder")));
            }
            if !numbers.contains_key(file.as_str()) {
                numbers.insert(file, shards.len());
                shards.push(Shard::open(&folder.join(file))?);
            }
            let shard = &shards[numbers[file.as_str()]];
            if shard.header.info(tensor).is_none() {
                return Err(content(format!("{tensor} should be in {file}, and is not")));
            }
        }
        for shard in &shards {
            let named = |name: &String| {
                let file = index.weight_map.get(name);
                file.is_some_and(|file| shard.path.file_name().is_some_and(|own| own == file.as_str()))
            };
            if let Some(name) = shard.header.tensors().into_keys().filter(|name| !named(name)).min() {
                return Err(content(format!("{} holds {name}, which should not be there", shard.path.display())));
            }
        }
        let places = index.weight_map.iter().map(|(name, file)| (name.clone(), numbers[file.as_str()])).collect();
        Ok(Shards { shards, places })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// A tensor.
    pub fn get(&self, name: &str) -> Option<Entry<'_>> {
        let shard = &self.shards[*self.places.get(name)?];
        let info = shard.header.info(name)?;
        let (from, to) = info.data_offsets;
        let bytes = &shard.map[shard.data + from..shard.data + to];
        Some(Entry { dtype: info.dtype, shape: &info.shape, bytes, path: &shard.path })
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Shard, ShardsError> {
        let read = |source| ShardsError::Read { path: path.into(), source };
        let file = File::open(path).map_err(read)?;
        // Safety: the map is only ever read, and bytes are valid whatever they are. A file that another process cuts
        // short while it is mapped ends this process with a signal, as with every program that maps files; one that it
        // changes gives other weights, never another length: the header is parsed once and kept.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let content = |e| ShardsError::Content { path: path.into(), reason: format!("not a safetensors file: {e}") };
        let (header_bytes, header) = SafeTensors::read_metadata(&map).map_err(content)?;
        Ok(Shard { path: path.into(), data: header_bytes + 8, map, header })
    }
}
