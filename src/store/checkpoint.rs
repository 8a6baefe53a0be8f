//! Checkpoints: the parameters of a store as safetensors files of named f32 tensors, written whole and read back checked
//! name by name and shape by shape. Tensors pass one at a time, so neither way holds a second model in memory. It must
//! never know what a tensor is for, nor what stands in the state that a caller keeps beside them.
//!
//! A checkpoint to go on from is a folder `step-NNNNNN` of three files: `model.safetensors`, `optimizer.safetensors` (what the
//! optimiser keeps) and `state.json`, which also holds a hash (XXH3, 128 bits) of each file and of itself.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::durable::{self, Disk, WriteError};
use super::{Array, Format, Role, Store, StoreError};

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
        source: io::Error,
    },
    /// The file is not what was once written.
    #[error("{}: damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is whole, but not what it should be.
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

impl CheckpointError {
    /// Whether the files are to blame, so that another checkpoint may be whole.
    pub fn is_damage(&self) -> bool {
        matches!(self, CheckpointError::Read { .. } | CheckpointError::Damaged { .. })
    }
}

/// Result of a checkpoint call.
pub type Result<T> = std::result::Result<T, CheckpointError>;

/// File of the weights.
pub const WEIGHTS: &str = "model.safetensors";
const STATES: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Roles in each file.
const WEIGHT_ROLES: &[Role] = &[Role::Weight];
const STATE_ROLES: &[Role] = &[Role::State1, Role::State2, Role::Master];
/// Longest header that is read, as the format's own library has it.
const HEADER_BYTES: u64 = 100_000_000;
/// Longest state that is read.
const STATE_BYTES: u64 = 1 << 24;

/// What `state.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    state: serde_json::Value,
    files: BTreeMap<String, String>,
    hash: String,
}

impl Sealed {
    fn new(state: serde_json::Value, files: BTreeMap<String, String>) -> Sealed {
        let mut sealed = Sealed { state, files, hash: String::new() };
        sealed.hash = sealed.digest();
        sealed
    }

    /// Of what it means, not of its spaces.
    fn digest(&self) -> String {
        hex(xxh3_128(&serde_json::to_vec(&(&self.state, &self.files)).expect("JSON values are written as JSON")))
    }
}

/// Writes the weights of a store to one file, with `metadata` in the header. Equal weights and metadata give equal bytes.
///
/// # Errors
/// [`CheckpointError`]; the file is then as it was before.
pub fn save(store: &mut Store, disk: &dyn Disk, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut failed = None;
    let written = durable::write_on(disk, path, |file| write(store, WEIGHT_ROLES, metadata, file, &mut failed));
    failed.map_or_else(|| Ok(written?), |error| Err(StoreError::into(error)))
}

/// Writes weights, states of the optimiser and a caller's `state` as a folder.
///
/// # Errors
/// [`CheckpointError`]; no folder of that name is then there that was not there before.
pub fn save_folder(store: &mut Store, disk: &dyn Disk, path: &Path, state: &impl Serialize) -> Result<()> {
    durable::write_folder(disk, path, |part| {
        let mut files = BTreeMap::new();
        for (name, roles) in [(WEIGHTS, WEIGHT_ROLES), (STATES, STATE_ROLES)] {
            let (mut failed, mut hash) = (None, String::new());
            let written = durable::write_through(disk, &part.join(name), |file| {
                let mut hashed = Hashed { file, hash: Xxh3::new() };
                write(store, roles, &BTreeMap::new(), &mut hashed, &mut failed)?;
                hash = hex(hashed.hash.digest128());
                Ok(())
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
            written.map_err(|source| WriteError { path: path.join(name), source })?;
            files.insert(name.to_string(), hash);
        }
        let text = serde_json::to_value(state).and_then(|s| serde_json::to_vec_pretty(&Sealed::new(s, files)));
        let text = text.map_err(|e| CheckpointError::Content { path: path.join(STATE), reason: e.to_string() })?;
        let written = durable::write_through(disk, &part.join(STATE), |file| file.write_all(&text));
        Ok(written.map_err(|source| WriteError { path: path.join(STATE), source })?)
    })
}

/// Reads the weights of a store from a file that must have exactly its tensors.
///
/// # Errors
/// [`CheckpointError::Content`] names the first tensor that is missing, unknown or of another shape; nothing was
/// replaced then.
pub fn load(store: &mut Store, path: &Path) -> Result<()> {
    let mut source = Source::open(path)?;
    source.expect(store, WEIGHT_ROLES)?;
    source.load(store, WEIGHT_ROLES)
}

/// Reads weights and states of a store from a folder that [`save_folder`] wrote.
///
/// # Errors
/// [`CheckpointError::Damaged`] where a file is not the one that was written, [`CheckpointError::Content`] where it is of
/// another model; nothing was replaced then.
pub fn load_folder(store: &mut Store, path: &Path) -> Result<()> {
    let sealed: Sealed = unseal(path)?;
    let mut sources = Vec::new();
    for (name, roles) in [(WEIGHTS, WEIGHT_ROLES), (STATES, STATE_ROLES)] {
        let file = path.join(name);
        let known = sealed.files.get(name);
        if known != Some(&hash_of(&file)?) {
            return Err(CheckpointError::Damaged { path: file, reason: "its hash is not that of the state".into() });
        }
        let source = Source::open(&file)?;
        source.expect(store, roles)?;
        sources.push((source, roles));
    }
    sources.into_iter().try_for_each(|(mut source, roles)| source.load(store, roles))
}

/// The state of a folder that [`save_folder`] wrote.
///
/// # Errors
/// [`CheckpointError::Damaged`] where it is not what was written, [`CheckpointError::Content`] where it is no such state.
pub fn read_state<S: DeserializeOwned>(path: &Path) -> Result<S> {
    let sealed: Sealed = unseal(path)?;
    let content = |e: serde_json::Error| CheckpointError::Content { path: path.join(STATE), reason: e.to_string() };
    serde_json::from_value(sealed.state).map_err(content)
}

fn unseal(path: &Path) -> Result<Sealed> {
    let path = path.join(STATE);
    let damaged = |reason: String| CheckpointError::Damaged { path: path.clone(), reason };
    let read = |source| CheckpointError::Read { path: path.clone(), source };
    let mut text = Vec::new();
    File::open(&path).map_err(read)?.take(STATE_BYTES + 1).read_to_end(&mut text).map_err(read)?;
    if text.len() as u64 > STATE_BYTES {
        return Err(damaged(format!("more than {STATE_BYTES} bytes")));
    }
    let sealed: Sealed = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    match sealed.hash == sealed.digest() {
        true => Ok(sealed),
        false => Err(damaged("its hash is not that of what it holds".into())),
    }
}

/// The name of the folder of a step.
pub fn folder_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// Steps and folders of the checkpoints in a folder, the oldest first; none where there is no such folder.
///
/// # Errors
/// [`CheckpointError::Read`].
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |source| CheckpointError::Read { path: folder.into(), source };
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = name.strip_prefix("step-").and_then(|n| n.parse().ok()).filter(|step| folder_name(*step) == name);
        found.extend(step.map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

/// Removes what writers that were killed left in a folder. Only the one writer of the folder may ask for it.
///
/// # Errors
/// [`CheckpointError::Write`].
pub fn clear_litter(disk: &dyn Disk, folder: &Path) -> Result<()> {
    let litter = |path: &Path| path.extension().is_some_and(|e| e == "part");
    let clear = || {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            match path.is_dir() {
                _ if !litter(&path) => {}
                true => disk.remove_folder(&path)?,
                false => disk.remove_file(&path)?,
            }
        }
        Ok(())
    };
    match folder.exists() {
        true => Ok(clear().map_err(|source| WriteError { path: folder.into(), source })?),
        false => Ok(()),
    }
}

fn hex(hash: u128) -> String {
    format!("xxh3-128:{hash:032x}")
}

/// The hash of a file.
fn hash_of(path: &Path) -> Result<String> {
    let read = || {
        let (mut file, mut hash) = (File::open(path)?, Xxh3::new());
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hex(hash.digest128())),
                n => hash.update(&piece[..n]),
            }
        }
    };
    read().map_err(|source| CheckpointError::Read { path: path.into(), source })
}

/// Writes on, and hashes what passes.
struct Hashed<'a> {
    file: &'a mut dyn Write,
    hash: Xxh3,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes tensors in some roles. What the store says of an error comes out in `failed`.
fn write(
    store: &mut Store,
    roles: &[Role],
    metadata: &BTreeMap<String, String>,
    file: &mut dyn Write,
    failed: &mut Option<StoreError>,
) -> io::Result<()> {
    let (mut end, mut header) = (0, serde_json::Map::new());
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::to_value(metadata)?);
    }
    for (name, array, vector) in arrays(store, roles) {
        let begin = end;
        end += array.rows * array.cols * width(array.format);
        let info = TensorInfo { dtype: dtype(array.format), shape: shape(&array, vector), data_offsets: (begin, end) };
        header.insert(name, serde_json::to_value(info)?);
    }
    let mut header = serde_json::to_vec(&header)?;
    // The format wants the data to begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for &role in roles {
        for tensor in 0..store.tensors().len() {
            let Some(array) = store.array(tensor, role) else { continue };
            match store.read(tensor, role) {
                Ok(values) if width(array.format) == 4 => file.write_all(bytemuck::cast_slice(&values))?,
                Ok(values) => {
                    let mut bytes = vec![0; array.format.bytes(array.rows, array.cols)];
                    array.format.encode(&values, array.rows, array.cols, array.cols, &mut bytes);
                    file.write_all(&bytes)?;
                }
                Err(error) => {
                    *failed = Some(error);
                    return Err(io::Error::other("the device failed"));
                }
            }
        }
    }
    Ok(())
}

/// What is kept in some roles, in the order of a file: name, array, and whether its tensor has one dimension.
fn arrays(store: &Store, roles: &[Role]) -> Vec<(String, Array, bool)> {
    let of = |role: Role, number: usize| {
        let tensor = &store.tensors()[number];
        Some((format!("{}{}", role.prefix(), tensor.name), store.array(number, role)?, tensor.vector))
    };
    roles.iter().flat_map(|&role| (0..store.tensors().len()).filter_map(move |number| of(role, number))).collect()
}

/// The type in a file of what is kept in a format: f32 holds the values of every one.
fn dtype(format: Format) -> Dtype {
    if format == Format::Bf16 { Dtype::BF16 } else { Dtype::F32 }
}

/// Bytes of a value of that type.
fn width(format: Format) -> usize {
    if format == Format::Bf16 { 2 } else { 4 }
}

/// A safetensors file, open.
struct Source {
    path: PathBuf,
    file: BufReader<File>,
    header: Metadata,
    /// Where the data begins.
    begin: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Source> {
        let read = |source| CheckpointError::Read { path: path.into(), source };
        let damaged = |reason: String| CheckpointError::Damaged { path: path.into(), reason };
        let file = File::open(path).map_err(read)?;
        let bytes = file.metadata().map_err(read)?.len();
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut length = [0; 8];
        if bytes < 8 {
            return Err(damaged(format!("not a safetensors file: {bytes} bytes")));
        }
        file.read_exact(&mut length).map_err(read)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES.min(bytes - 8) {
            return Err(damaged(format!("not a safetensors file: a header of {length} bytes")));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(read)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|e| damaged(format!("not a safetensors file: {e}")))?;
        let data = bytes - 8 - length;
        if header.data_len() as u64 != data {
            return Err(damaged(format!("{data} bytes of data, {} were written", header.data_len())));
        }
        Ok(Source { path: path.into(), file, header, begin: 8 + length })
    }

    /// Whether it has exactly the arrays of a store.
    fn expect(&self, store: &Store, roles: &[Role]) -> Result<()> {
        let content = |reason: String| Err(CheckpointError::Content { path: self.path.clone(), reason });
        let ours = arrays(store, roles);
        for (name, array, vector) in &ours {
            let Some(found) = self.header.info(name) else {
                return content(format!("tensor {name} is missing: is this a checkpoint of another model?"));
            };
            let (ours, ours_dtype) = (shape(array, *vector), dtype(array.format));
            if found.shape != ours || found.dtype != ours_dtype {
                let (dtype, theirs) = (found.dtype, &found.shape);
                return content(format!("{name} is {dtype:?} {theirs:?}, the model has {ours_dtype:?} {ours:?}"));
            }
        }
        let known: HashSet<&str> = ours.iter().map(|(name, ..)| name.as_str()).collect();
        match self.header.offset_keys().into_iter().find(|name| !known.contains(name.as_str())) {
            Some(unknown) => content(format!("tensor {unknown} is not of this model")),
            None => Ok(()),
        }
    }

    /// Reads tensors that [`Source::expect`] found.
    fn load(&mut self, store: &mut Store, roles: &[Role]) -> Result<()> {
        for &role in roles {
            for number in 0..store.tensors().len() {
                let Some(array) = store.array(number, role) else { continue };
                let name = format!("{}{}", role.prefix(), store.tensors()[number].name);
                let (begin, end) = self.header.info(&name).map_or((0, 0), |info| info.data_offsets);
                let mut bytes = vec![0u8; end - begin];
                let read = self
                    .file
                    .seek(SeekFrom::Start(self.begin + begin as u64))
                    .and_then(|_| self.file.read_exact(&mut bytes));
                read.map_err(|source| CheckpointError::Read { path: self.path.clone(), source })?;
                let mut values = vec![0f32; array.rows * array.cols];
                let format = if width(array.format) == 4 { Format::F32 } else { array.format };
                format.decode(&bytes, array.rows, array.cols, array.cols, &mut values);
                store.write(number, role, &values)?;
            }
        }
        Ok(())
    }
}

fn shape(array: &Array, vector: bool) -> Vec<usize> {
    if vector || !array.cut { vec![array.cols] } else { vec![array.rows, array.cols] }
}
