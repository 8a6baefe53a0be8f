//! The folder of a run: which files it holds, the claim of a fresh one, and the lock that keeps a second writer out. It
//! must never know what stands in a checkpoint.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::config::{Config, ConfigError};
use crate::data::{DataError, Tokenizer};
use crate::model;
use crate::store::checkpoint::{self, CheckpointError, WEIGHTS};
use crate::store::durable::{Disk, WriteError, write_on};

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
    #[error("--out {}: holds a run already; choose another folder, or go on with --resume {}", path.display(), path.display())]
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
    /// Another process writes into it.
    #[error("run {}: another process is writing into it; wait for its end, or choose another folder", path.display())]
    Busy {
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

/// The right to write into a folder, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    /// A process that this one has just begun may hold a copy of the open file for a moment; the lock is given up for all.
    fn drop(&mut self) {
        // Closing it does the same, if later.
        let _ = self.0.unlock();
    }
}

impl Folder {
    /// Name of the folder of the samples.
    pub const SAMPLES: &str = "samples";

    /// Makes the folder of a new run (`--out`, else the first of `runs/NAME-1`, `runs/NAME-2`, ... that is free) and
    /// writes the configuration into it, which shows at once that it can be written. `name` is the model's.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn claim(config: &Config, name: &str, disk: &dyn Disk) -> Result<(Folder, Lock), FolderError> {
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
        let lock = folder.lock()?;
        // Between the look and the lock another process may have come and gone.
        if folder.config().exists() {
            return Err(FolderError::Taken { path: folder.0 });
        }
        let config = Config { out: Some(folder.0.clone()), ..config.clone() };
        folder.write(disk, "config.toml", config.to_toml().as_bytes()).map_err(|e| match e {
            FolderError::Write(e) => unwritable(&folder.0)(e.source),
            other => other,
        })?;
        Ok((folder, lock))
    }

    /// Takes the right to write.
    ///
    /// # Errors
    /// [`FolderError::Busy`] while another process has it.
    pub fn lock(&self) -> Result<Lock, FolderError> {
        let file = File::options().write(true).create(true).truncate(false).open(self.0.join("lock"));
        let file = file.map_err(unwritable(&self.0))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => Err(FolderError::Busy { path: self.0.clone() }),
            Err(TryLockError::Error(source)) => Err(unwritable(&self.0)(source)),
        }
    }

    /// Writes a file of the folder whole.
    ///
    /// # Errors
    /// [`FolderError::Write`].
    pub fn write(&self, disk: &dyn Disk, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
        Ok(write_on(disk, &self.0.join(name), |file| file.write_all(bytes))?)
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
        self.0.join(WEIGHTS)
    }

    /// The newest weights: those of the newest checkpoint, else [`Folder::checkpoint`].
    ///
    /// # Errors
    /// [`CheckpointError::Read`] where the checkpoints are there and cannot be listed.
    pub fn weights(&self) -> Result<PathBuf, CheckpointError> {
        let newest = checkpoint::list(&self.checkpoints())?.pop();
        let weights = newest.map(|(_, path)| path.join(WEIGHTS)).filter(|path| path.is_file());
        Ok(weights.unwrap_or_else(|| self.checkpoint()))
    }

    /// The folder of the checkpoints to go on from.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// The folder of what the model said along the way: `step-NNNNNN.txt`.
    pub fn samples(&self) -> PathBuf {
        self.0.join(Folder::SAMPLES)
    }

    /// What the run ran on, JSON: an entry for its start and for each time it went on.
    pub fn about(&self) -> PathBuf {
        self.0.join("run.json")
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
    pub fn write_model(&self, disk: &dyn Disk, model: &model::Config) -> Result<(), FolderError> {
        self.write(disk, "model.toml", model.to_toml().as_bytes())
    }

    /// Saves the tokenizer of the run.
    ///
    /// # Errors
    /// [`FolderError::Write`].
    pub fn write_tokenizer(&self, disk: &dyn Disk, tokenizer: &Tokenizer) -> Result<(), FolderError> {
        self.write(disk, "tokenizer.json", tokenizer.to_json().as_bytes())
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
