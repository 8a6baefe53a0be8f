//! Stands in for the training loop: checks a run and claims its folder, in the order in which a run does.

use std::path::PathBuf;

use super::config::{Config, ConfigError};
use super::folder::{Folder, FolderError};
use super::generate::{NextLogits, SamplingError};
use crate::data::{Corpus, DataError};
use crate::device::{Device, DeviceError};
use crate::report::{Observer, ReportError};

/// Why a run ends.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs)]
pub enum TrainError {
    Config(#[from] ConfigError),
    Data(#[from] DataError),
    Device(#[from] DeviceError),
    Folder(#[from] FolderError),
    Report(#[from] ReportError),
    Sampling(#[from] SamplingError),
}

/// What a run leaves.
pub struct Summary {
    /// Its folder.
    pub folder: PathBuf,
}

/// Trains.
pub fn run(config: &Config, _observer: &mut dyn Observer) -> Result<Summary, TrainError> {
    config.check()?;
    let shape = config.shape(64)?;
    let corpus = Corpus::load(&config.data, config.tokenizer, config.val_split, shape.seq_len + 1)?;
    Device::open(&config.device, config.threads)?;
    let folder = Folder::claim(config, "model")?;
    folder.write_tokenizer(&corpus.tokenizer)?;
    Ok(Summary { folder: folder.path().into() })
}

/// A decoder of all-equal logits.
pub fn decoder(_folder: &Folder, _device: &Device) -> Result<impl NextLogits<Error = TrainError> + use<>, TrainError> {
    struct Equal;
    impl NextLogits for Equal {
        type Error = TrainError;
        fn next(&mut self, _: &[u32]) -> Result<Vec<f32>, TrainError> {
            Ok(vec![0.0; 4])
        }
        fn restart(&mut self) {}
        fn context(&self) -> usize {
            64
        }
    }
    Ok(Equal)
}
