//! A model that was trained and saved, opened again to be asked: the run folder's configuration and weights,
//! behind the trait that sampling uses. It must never know who reads the text.

use super::config::Config;
use super::folder::Folder;
use super::generate::{Generation, NextLogits, Sampling};
use super::hugging_face::HuggingFace;
use super::run::{TrainError, read_model, store_folder};
use crate::data::{TextStream, Tokenizer};
use crate::device::Device;
use crate::model::{self, Decoder, Gpt};
use crate::program::schedule::{Fabric, Schedule};
use crate::report::ReportError;
use crate::store::durable::{Disk, RealDisk};
use crate::store::{Archive, Options, Placement, Store, checkpoint};
use crate::wafer::Wafer;

/// The newest weights of a run, to be asked and not trained. Where the run keeps them on a disk, they stay there, and panels
/// take turns on the device.
///
/// # Errors
/// [`TrainError`] names the file that is missing or does not fit.
pub(super) fn weights(
    folder: &Folder,
    config: &Config,
    model: &model::Config,
    device: &Device,
) -> Result<Store, TrainError> {
    let (placement, budget) = (config.store.placement(), config.device_memory);
    let options = Options { placement, budget, weights: config.param_dtype, training: None };
    let tensors = Gpt::tensors(model, config.seed);
    if placement == Placement::Disk {
        let archive = Archive {
            folder: store_folder(config, folder.path()),
            in_place: config.in_place,
            read_only: true,
            stream_bytes: config.stream_memory,
            scratch_bytes: 0,
            gradients_wait: true,
            dry: false,
            spill_bytes: 0,
            disk: RealDisk.share(),
        };
        return Ok(Store::on_disk(device, tensors, options, &archive)?.0);
    }
    let mut store = Store::new(device, tensors, options)?;
    checkpoint::load(&mut store, &folder.weights()?)?;
    Ok(store)
}

/// A saved model on a device.
pub struct Saved {
    config: model::Config,
    tokenizer: Tokenizer,
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
        let tokenizer = folder.read_tokenizer()?;
        let model = read_model(&config.model)?.with_vocabulary(tokenizer.vocab_size())?;
        let store = weights(folder, &config, &model, &device)?;
        let decoder = Decoder::new(&device, &model)?;
        let fabric = Fabric::new(device, Schedule::Fused, Wafer::new(8, 8));
        Ok(Saved { config: model, tokenizer, fabric, store, decoder })
    }

    /// Opens the model of a folder of Hugging Face on a device.
    ///
    /// # Errors
    /// What the device says.
    pub fn import(model: &HuggingFace, device: Device) -> Result<Saved, TrainError> {
        let tokenizer = Tokenizer::load(&model.tokenizer())?;
        let (config, store) = (model.config().clone(), model.store(&device)?);
        let decoder = Decoder::new(&device, &config)?;
        let fabric = Fabric::new(device, Schedule::Fused, Wafer::new(8, 8));
        Ok(Saved { config, tokenizer, fabric, store, decoder })
    }

    /// The model.
    pub fn config(&self) -> &model::Config {
        &self.config
    }

    /// Says `tokens` tokens that follow a prompt, piece by piece as they come.
    ///
    /// # Errors
    /// What the device says, and what `say` does.
    pub fn sample(
        &mut self,
        prompt: &[u32],
        tokens: u64,
        options: Sampling,
        say: &mut dyn FnMut(&str) -> Result<(), ReportError>,
    ) -> Result<(), TrainError> {
        let tokenizer = self.tokenizer.clone();
        let mut text = TextStream::new(&tokenizer);
        let mut generation = Generation::new(self, prompt, options);
        for _ in 0..tokens {
            say(&text.push(generation.token()?)?)?;
        }
        Ok(say(&text.finish())?)
    }

    /// The tokens to begin with when nothing is asked: a new document, a new line, or else any token.
    pub fn opening(&self) -> Vec<u32> {
        self.tokenizer.opening()
    }

    /// The tokenizer of the run.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.fabric.device()
    }
}

impl NextLogits for Saved {
    type Error = TrainError;

    fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        let mut logits = self.decoder.extend(&self.fabric, &mut self.store, tokens)?;
        // A model may have more rows than its tokenizer has ids; none of them can be written.
        logits.truncate(self.tokenizer.vocab_size());
        Ok(logits)
    }

    fn restart(&mut self) {
        self.decoder.restart();
    }

    fn context(&self) -> usize {
        self.decoder.context()
    }
}
