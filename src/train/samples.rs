//! A short text by the model as it is so far, written beside its run at each evaluation: people see in it what a loss does
//! not say. The same weights give the same text, and nothing that training reads is touched. It must never know when.

use super::config::{Config, Home};
use super::folder::Folder;
use super::generate::{Generation, NextLogits, Sampling, SamplingError};
use super::run::TrainError;
use super::step::Trainer;
use crate::data::Tokenizer;
use crate::model::Decoder;
use crate::program::schedule::Fabric;
use crate::store::durable::{Disk, WriteError};
use crate::store::{Store, checkpoint};

/// What samples are drawn with: a little less random than the model thinks, as a person would ask for them.
const TEMPERATURE: f64 = 0.8;

/// Writes the samples of a run.
pub struct Samples {
    decoder: Decoder,
    tokenizer: Tokenizer,
    tokens: u64,
    seed: u64,
}

impl Samples {
    /// What the samples of a run need on its device, allocated before its first step; `None` where it has none: with
    /// `--sample-tokens 0`, and where the memory of the device is counted or parameters stream, which would pass once a token.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(config: &Config, trainer: &Trainer, tokenizer: &Tokenizer) -> Result<Option<Samples>, TrainError> {
        let counted = config.store != Home::Resident || config.device_memory.is_some();
        if config.sample_tokens == 0 || config.eval_every == 0 || counted {
            return Ok(None);
        }
        let decoder = Decoder::new(trainer.device(), trainer.model().config())?;
        Ok(Some(Samples { decoder, tokenizer: tokenizer.clone(), tokens: config.sample_tokens, seed: config.seed }))
    }

    /// Writes what the model of a trainer says after `step` steps to `samples/step-NNNNNN.txt` in the folder of its run. A
    /// model whose logits are not finite says nothing: whether its run goes on is not decided here.
    ///
    /// # Errors
    /// What the device and the disk say.
    pub fn write(
        &mut self,
        trainer: &mut Trainer,
        folder: &Folder,
        disk: &dyn Disk,
        step: u64,
    ) -> Result<(), TrainError> {
        let options = Sampling { temperature: TEMPERATURE, top_k: None, top_p: None, seed: self.seed };
        let opening = self.tokenizer.opening();
        let (fabric, store) = trainer.parts();
        let tokenizer = self.tokenizer.clone();
        let mut speaker = Speaker { samples: self, fabric, store };
        let tokens = speaker.samples.tokens;
        let mut generation = Generation::new(&mut speaker, &opening, options);
        let said: Result<Vec<u32>, TrainError> = (0..tokens).map(|_| generation.token()).collect();
        let said = match said {
            Err(TrainError::Sampling(SamplingError::NotFinite { .. })) => return Ok(()),
            said => said?,
        };
        let text = tokenizer.decode(&said)? + "\n";
        let samples = folder.samples();
        let made = disk.create_folder(&samples).map_err(|source| WriteError { path: samples, source });
        made.map_err(checkpoint::CheckpointError::from)?;
        Ok(folder.write(disk, &format!("{}/step-{step:06}.txt", Folder::SAMPLES), text.as_bytes())?)
    }
}

/// The model of a trainer, one token after another.
struct Speaker<'a> {
    samples: &'a mut Samples,
    fabric: &'a Fabric,
    store: &'a mut Store,
}

impl NextLogits for Speaker<'_> {
    type Error = TrainError;

    fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        let mut logits = self.samples.decoder.extend(self.fabric, self.store, tokens)?;
        // A model may have more rows than its tokenizer has ids; none of them can be written.
        logits.truncate(self.samples.tokenizer.vocab_size());
        Ok(logits)
    }

    fn restart(&mut self) {
        self.samples.decoder.restart();
    }

    fn context(&self) -> usize {
        self.samples.decoder.context()
    }
}
