//! A model that was trained and saved, opened again to be asked: the run folder's configuration and weights,
//! behind the trait that sampling uses. It must never know who reads the text.

use super::folder::Folder;
use super::generate::NextLogits;
use super::hugging_face::HuggingFace;
use super::run::{TrainError, read_model};
use crate::device::Device;
use crate::model::{self, Decoder, Gpt};
use crate::program::schedule::{Fabric, Schedule};
use crate::store::{Options, Placement, Store, checkpoint};
use crate::wafer::Wafer;

/// A saved model on a device.
pub struct Saved {
    config: model::Config,
    fabric: Fabric,
    store: Store,
    decoder: Decoder,
}

impl Saved {
    /// Opens the model of a run folder on a device.
    ///
    /// # Errors
    /// [`TrainError`] names the file that is missing or does not fit.
    pub fn open(folder: &Folder, device: Device) -> Result<Saved, TrainError> {
        let config = folder.read_config()?;
        let model = read_model(&config.model)?.with_vocabulary(folder.read_tokenizer()?.vocab_size())?;
        let options = Options { placement: Placement::Resident, budget: None, training: false };
        let mut store = Store::new(&device, Gpt::tensors(&model, config.seed), options)?;
        checkpoint::load(&mut store, &folder.weights())?;
        let decoder = Decoder::new(&device, &model)?;
        let grid = Wafer::new(config.wafer.width, config.wafer.height);
        let fabric = Fabric::new(device, Schedule::Fused, grid);
        Ok(Saved { config: model, fabric, store, decoder })
    }

    /// Opens the model of a folder of Hugging Face on a device.
    ///
    /// # Errors
    /// What the device says.
    pub fn import(model: &HuggingFace, device: Device) -> Result<Saved, TrainError> {
        let (config, store) = (model.config().clone(), model.store(&device)?);
        let decoder = Decoder::new(&device, &config)?;
        let fabric = Fabric::new(device, Schedule::Fused, Wafer::new(8, 8));
        Ok(Saved { config, fabric, store, decoder })
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
    type Error = TrainError;

    fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        Ok(self.decoder.extend(&self.fabric, &mut self.store, tokens)?)
    }

    fn restart(&mut self) {
        self.decoder.restart();
    }

    fn context(&self) -> usize {
        self.config.context
    }
}
