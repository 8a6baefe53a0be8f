//! A model that was trained and saved, opened again to be asked: the run folder's configuration, tokenizer and weights,
//! behind the trait that sampling uses. It must never know who reads the text.

use std::path::Path;

use super::folder::Folder;
use super::generate::{NextLogits, SamplingError};
use super::run::{TrainError, read_model};
use crate::data::Tokenizer;
use crate::device::Device;
use crate::model::{self, Decoder, Gpt};
use crate::program::schedule::{Fabric, Schedule};
use crate::store::{Options, Placement, Store, StoreError, checkpoint};
use crate::wafer::Wafer;

/// A saved model on a device.
pub struct Saved {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    config: model::Config,
    fabric: Fabric,
    store: Store,
    decoder: Decoder,
}

/// Why the next token could not be had.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum SavedError {
    /// The device.
    Store(#[from] StoreError),
    /// The logits.
    Sampling(#[from] SamplingError),
}

impl Saved {
    /// Opens a run folder on a device.
    ///
    /// # Errors
    /// [`TrainError`] names the file that is missing or does not fit.
    pub fn open(run: &Path, device: Device) -> Result<Saved, TrainError> {
        let folder = Folder::open(run)?;
        let config = folder.read_config()?;
        let tokenizer = folder.read_tokenizer()?;
        let model = read_model(&config.model)?.with_vocabulary(tokenizer.vocab_size())?;
        let options = Options { placement: Placement::Resident, budget: None, training: false };
        let mut store = Store::new(&device, Gpt::tensors(&model, config.seed), options)?;
        checkpoint::load(&mut store, &folder.checkpoint())?;
        let decoder = Decoder::new(&device, &model).map_err(StoreError::from)?;
        let grid = Wafer::new(config.wafer.width, config.wafer.height);
        let fabric = Fabric::new(device, Schedule::Fused, grid);
        Ok(Saved { tokenizer, config: model, fabric, store, decoder })
    }

    /// The model.
    pub fn config(&self) -> &model::Config {
        &self.config
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.fabric.device()
    }
}

impl NextLogits for Saved {
    type Error = SavedError;

    fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, SavedError> {
        Ok(self.decoder.extend(&self.fabric, &mut self.store, tokens)?)
    }

    fn restart(&mut self) {
        self.decoder.restart();
    }

    fn context(&self) -> usize {
        self.config.context
    }
}
