//! Models in and out of folders of Hugging Face: `config.json`, safetensors in one file or in shards, `tokenizer.json`.
//! Everything in a folder is checked when it is opened. It must never know what is trained on.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::folder::Folder;
use super::run::{TrainError, read_model};
use super::saved::weights;
use crate::device::Device;
use crate::model::{self, Gpt, ModelError, Table, hugging_face as names};
use crate::store::checkpoint::CheckpointError;
use crate::store::durable::{WriteError, write_whole};
use crate::store::export::{self, Origin, Rounding, Target};
use crate::store::import::{self, ImportError, Source};
use crate::store::shards::{Shards, ShardsError};
use crate::store::{Options, Placement, Store};

/// Bytes that a `config.json` may have.
const CONFIG_BYTES: u64 = 1 << 20;

/// Why a folder cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HuggingFaceError {
    /// A file cannot be read.
    #[error("{}: {source}; give a folder with config.json and model.safetensors", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The model is not one that can be computed here.
    #[error("{}: {source}", path.display())]
    Model {
        /// The folder.
        path: PathBuf,
        /// Which field.
        source: ModelError,
    },
    /// Its tensors are not those of the model.
    #[error("{}: {source}", path.display())]
    Names {
        /// The folder.
        path: PathBuf,
        /// Which tensor.
        source: names::NamesError,
    },
    /// A head of its own, where the configuration says that it has none.
    #[error("{}: {head} differs from {table}, and config.json says that they are tied", path.display())]
    Untied {
        /// The folder.
        path: PathBuf,
        /// The head's weight.
        head: String,
        /// The token table.
        table: String,
    },
    /// The files of the weights.
    #[error(transparent)]
    Shards(#[from] ShardsError),
    /// A tensor.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A folder that holds a model is not written over.
    #[error("{}: holds a model already; give another folder", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// Writing.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Writing the weights.
    #[error(transparent)]
    Export(#[from] CheckpointError),
}

/// A folder of a model, opened.
#[derive(Debug)]
pub struct HuggingFace {
    folder: PathBuf,
    config: model::Config,
    shards: Shards,
    sources: Vec<Source>,
}

impl HuggingFace {
    /// Opens a folder and checks all of it: the fields of the configuration, the names, shapes and types of all tensors,
    /// and that all weights are finite.
    ///
    /// # Errors
    /// [`HuggingFaceError`] names the file and the field or tensor.
    pub fn open(folder: &Path) -> Result<HuggingFace, HuggingFaceError> {
        let path = folder.join("config.json");
        let read = |source| HuggingFaceError::Read { path: path.clone(), source };
        let bytes = fs::metadata(&path).map_err(read)?.len();
        if bytes > CONFIG_BYTES {
            return Err(read(std::io::Error::other(format!("{bytes} bytes are too many for a configuration"))));
        }
        let text = fs::read_to_string(&path).map_err(read)?;
        let name = folder.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
        let config = names::read_config(&name, &text)
            .map_err(|source| HuggingFaceError::Model { path: folder.into(), source })?;
        let shards = Shards::folder(folder)?;
        let stored = names::locate(&config, shards.names())
            .map_err(|source| HuggingFaceError::Names { path: folder.into(), source })?;
        let sources: Vec<Source> = stored.into_iter().map(|s| Source { name: s.name, order: s.order }).collect();
        import::check(&Gpt::tensors(&config, 0), &shards, &sources)?;
        let table = &sources[Table::new(&config).tokens].name;
        let bytes = |name: &str| shards.get(name).map(|entry| (entry.dtype, entry.bytes));
        let differs = |head: &String| bytes(head).is_some_and(|head| Some(head) != bytes(table));
        if let Some(head) = names::heads(&config).into_iter().find(|head| config.tied && differs(head)) {
            return Err(HuggingFaceError::Untied { path: folder.into(), head, table: table.clone() });
        }
        Ok(HuggingFace { folder: folder.into(), config, shards, sources })
    }

    /// The model.
    pub fn config(&self) -> &model::Config {
        &self.config
    }

    /// The file of the tokenizer that the model was trained with.
    pub fn tokenizer(&self) -> PathBuf {
        self.folder.join("tokenizer.json")
    }

    /// Fills the weights of a store that was made for [`HuggingFace::config`].
    ///
    /// # Errors
    /// What the device says.
    pub fn load(&self, store: &mut Store) -> Result<(), HuggingFaceError> {
        Ok(import::load(store, &self.shards, &self.sources)?)
    }

    /// A store with the weights, to be asked and not trained.
    ///
    /// # Errors
    /// What the device says.
    pub fn store(&self, device: &Device) -> Result<Store, TrainError> {
        let mut store = Store::new(device, Gpt::tensors(&self.config, 0), Options::WEIGHTS)?;
        self.load(&mut store)?;
        Ok(store)
    }
}

/// Writes the model of a run as a folder of Hugging Face: `config.json`, `model.safetensors`, and the tokenizer of the run.
/// A model without biases that its family always has is written with biases of 0, which is the same function. Weights that
/// lie in a store on a disk pass from there, a panel at a time.
///
/// # Errors
/// [`TrainError`] names the file, or the part of the model that its family does not have; a folder that holds a model is left
/// as it is.
pub fn export(run: &Folder, to: &Path, rounding: Rounding) -> Result<(), TrainError> {
    let config = run.read_config()?;
    let model = read_model(&config.model)?.with_vocabulary(run.read_tokenizer()?.vocab_size())?;
    let text = names::write_config(&model, rounding.torch())
        .map_err(|source| HuggingFaceError::Model { path: run.path().into(), source })?;
    if ["config.json", "model.safetensors", "model.safetensors.index.json"].iter().any(|name| to.join(name).exists()) {
        return Err(HuggingFaceError::Taken { path: to.into() }.into());
    }
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    let write = |from: Origin<'_>| -> Result<(), TrainError> {
        let written = |source| HuggingFaceError::Write(WriteError { path: to.into(), source });
        fs::create_dir_all(to).map_err(written)?;
        let path = to.join("model.safetensors");
        Ok(export::write(from, &targets(&model), rounding, &path, about).map_err(HuggingFaceError::from)?)
    };
    match config.store.placement() {
        Placement::Disk => {
            let device = Device::host(config.threads)?;
            device.run(|| write(Origin::Store(&mut weights(run, &config, &model, &device)?)))?;
        }
        _ => write(Origin::File(&Shards::file(&run.weights()?).map_err(HuggingFaceError::from)?))?,
    }
    if let Ok(tokenizer) = fs::read(run.tokenizer()) {
        write_whole(&to.join("tokenizer.json"), &tokenizer).map_err(HuggingFaceError::from)?;
    }
    // Last: a folder with a configuration is whole.
    Ok(write_whole(&to.join("config.json"), text.as_bytes()).map_err(HuggingFaceError::from)?)
}

/// The tensors of a model as transformers wants them.
fn targets(model: &model::Config) -> Vec<Target> {
    let ours = Table::new(model);
    let whole = names::whole(model);
    Table::new(&whole)
        .parameters
        .iter()
        .map(|parameter| {
            let names::Stored { name, order } = names::stored_as(&whole, parameter);
            let source = ours.parameters.iter().any(|p| p.name == parameter.name).then(|| parameter.name.clone());
            Target { name, source, rows: parameter.rows, cols: parameter.cols, vector: parameter.vector, order }
        })
        .collect()
}
