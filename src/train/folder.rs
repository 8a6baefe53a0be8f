//! The folder of a run: which files it holds, and the claim of a fresh one. It must never know what stands in a
//! checkpoint.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::config::{Config, ConfigError};
use crate::data::{DataError, Tokenizer};
use crate::model;
use crate::store::durable::{WriteError, write_whole};

/// Why a folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be made or written.
    #[error("--out {}: {source}; choose a folder that can be written", path.display())]
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another run is in it.
    #[error("--out {}: holds a run already; choose another folder, or remove it", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that was named as a run, and is none.
    #[error("run {}: no config.toml in it; name the folder that `gaufre train` wrote", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// A file in it cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes the folder of a new run (`--out`, else the first of `runs/NAME-1`, `runs/NAME-2`, ... that is free) and
    /// writes the configuration into it, which shows at once that it can be written. `name` is the model's.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn claim(config: &Config, name: &str) -> Result<Folder, FolderError> {
        let folder = match &config.out {
            Some(path) => {
                fs::create_dir_all(path).map_err(unwritable(path))?;
                Folder(path.clone())
            }
            None => Folder::next_free(Path::new("runs"), name)?,
        };
        if folder.config().exists() {
            return Err(FolderError::Taken { path: folder.0 });
        }
        let config = Config { out: Some(folder.0.clone()), ..config.clone() };
        write_whole(&folder.config(), config.to_toml().as_bytes()).map_err(|e| unwritable(&folder.0)(e.source))?;
        Ok(folder)
    }

    /// The folder of a run that is there.
    ///
    /// # Errors
    /// [`FolderError::NoRun`].
    pub fn open(path: &Path) -> Result<Folder, FolderError> {
        let folder = Folder(path.into());
        match folder.config().is_file() {
            true => Ok(folder),
            false => Err(FolderError::NoRun { path: folder.0 }),
        }
    }

    /// Making the folder is the claim: of two runs that start at once, one gets the next number.
    fn next_free(runs: &Path, name: &str) -> Result<Folder, FolderError> {
        fs::create_dir_all(runs).map_err(unwritable(runs))?;
        for n in 1u64.. {
            let path = runs.join(format!("{name}-{n}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Folder(path)),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(unwritable(&path)(source)),
            }
        }
        unreachable!("more folders than numbers")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The configuration, TOML.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// The model, TOML.
    pub fn model(&self) -> PathBuf {
        self.0.join("model.toml")
    }

    /// The tokenizer, JSON.
    pub fn tokenizer(&self) -> PathBuf {
        self.0.join("tokenizer.json")
    }

    /// The weights, safetensors.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("model.safetensors")
    }

    /// The configuration that the run was started with.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the line.
    pub fn read_config(&self) -> Result<Config, ConfigError> {
        let config = Config::read(&self.config())?;
        // The model as it was resolved then: its file, its preset or the folder it came from may be gone.
        Ok(match self.model().is_file() {
            true => Config { model: self.model().to_string_lossy().into_owned(), ..config },
            false => config,
        })
    }

    /// Saves the model of the run.
    ///
    /// # Errors
    /// [`FolderError::Write`].
    pub fn write_model(&self, model: &model::Config) -> Result<(), FolderError> {
        Ok(write_whole(&self.model(), model.to_toml().as_bytes())?)
    }

    /// Saves the tokenizer of the run.
    ///
    /// # Errors
    /// [`FolderError::Write`].
    pub fn write_tokenizer(&self, tokenizer: &Tokenizer) -> Result<(), FolderError> {
        Ok(write_whole(&self.tokenizer(), tokenizer.to_json().as_bytes())?)
    }

    /// The tokenizer of the run.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`].
    pub fn read_tokenizer(&self) -> Result<Tokenizer, DataError> {
        Tokenizer::load(&self.tokenizer())
    }
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    |source| FolderError::Unwritable { path: path.into(), source }
}
