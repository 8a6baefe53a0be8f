//! GPT-2 in and out of folders of Hugging Face: `config.json`, safetensors in one file or in shards, `tokenizer.json`.
//! Everything in a folder is checked when it is opened. It must never know what is trained on.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::folder::Folder;
use super::run::{TrainError, read_model};
use crate::device::Device;
use crate::model::{self, Gpt, ModelError, Table, hugging_face as names};
use crate::store::checkpoint::CheckpointError;
use crate::store::durable::{WriteError, write_whole};
use crate::store::export::{self, Rounding, Target};
use crate::store::import::{self, ImportError, Source};
use crate::store::shards::{Shards, ShardsError};
use crate::store::{Options, Store};

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
    /// A head of its own.
    #[error("{}: lm_head.weight differs from wte.weight; only a head tied to the token table can be read", path.display())]
    Untied {
        /// The folder.
        path: PathBuf,
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

/// A folder of a GPT-2, opened.
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
        let name = folder.file_name().map_or("gpt2".into(), |name| name.to_string_lossy().into_owned());
        let config = names::read_config(&name, &text)
            .map_err(|source| HuggingFaceError::Model { path: folder.into(), source })?;
        let shards = Shards::folder(folder)?;
        let stored = names::locate(&Table::new(&config), shards.names())
            .map_err(|source| HuggingFaceError::Names { path: folder.into(), source })?;
        let sources: Vec<Source> =
            stored.into_iter().map(|s| Source { name: s.name, transposed: s.transposed }).collect();
        import::check(&Gpt::tensors(&config, 0), &shards, &sources)?;
        let tied = shards.get(names::HEAD).is_none_or(|head| {
            shards.get(&sources[0].name).is_some_and(|table| (table.dtype, table.bytes) == (head.dtype, head.bytes))
        });
        if !tied {
            return Err(HuggingFaceError::Untied { path: folder.into() });
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
/// A model without biases is written with biases of 0, which is the same function.
///
/// # Errors
/// [`TrainError`] names the file; a folder that holds a model is left as it is.
pub fn export(run: &Folder, to: &Path, rounding: Rounding) -> Result<(), TrainError> {
    let config = run.read_config()?;
    let model = read_model(&config.model)?.with_vocabulary(run.read_tokenizer()?.vocab_size())?;
    let weights = Shards::file(&run.checkpoint()).map_err(HuggingFaceError::from)?;
    if ["config.json", "model.safetensors", "model.safetensors.index.json"].iter().any(|name| to.join(name).exists()) {
        return Err(HuggingFaceError::Taken { path: to.into() }.into());
    }
    let written = |source| HuggingFaceError::Write(WriteError { path: to.into(), source });
    fs::create_dir_all(to).map_err(written)?;
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    export::write(&weights, &targets(&model), rounding, &to.join("model.safetensors"), about)
        .map_err(HuggingFaceError::from)?;
    if let Ok(tokenizer) = fs::read(run.tokenizer()) {
        write_whole(&to.join("tokenizer.json"), &tokenizer).map_err(HuggingFaceError::from)?;
    }
    // Last: a folder with a configuration is whole.
    let text = names::write_config(&model, rounding.torch());
    Ok(write_whole(&to.join("config.json"), text.as_bytes()).map_err(HuggingFaceError::from)?)
}

/// The tensors of a model as transformers wants them.
fn targets(model: &model::Config) -> Vec<Target> {
    let ours = Table::new(model);
    let all = Table::new(&model::Config { bias: true, ..model.clone() });
    all.parameters
        .iter()
        .map(|parameter| {
            let names::Stored { name, transposed } = names::stored_as(parameter);
            let source = ours.parameters.iter().any(|p| p.name == parameter.name).then(|| parameter.name.clone());
            let shape = match parameter.vector {
                true => vec![parameter.cols],
                false => vec![parameter.rows, parameter.cols],
            };
            Target { name, source, shape, transposed }
        })
        .collect()
}
