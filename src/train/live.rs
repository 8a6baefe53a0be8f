//! A model in training, asked for text between two steps: its weights as they are now, behind the trait that sampling
//! uses. It must never know who reads the text.

use super::generate::NextLogits;
use super::run::TrainError;
use super::step::Trainer;
use crate::model::Decoder;
use crate::program::schedule::Fabric;
use crate::store::{Result, Store};

/// A model in training on its device, with a sequence of its own. Nothing of the training is altered.
pub struct Live<'a> {
    fabric: &'a Fabric,
    store: &'a mut Store,
    decoder: Decoder,
}

impl Trainer {
    /// The model as it is now, to be sampled from with [`Generation`](super::Generation). Allocates a cache of keys and
    /// values for one sequence of the model's context.
    ///
    /// # Errors
    /// What the device says.
    pub fn live(&mut self) -> Result<Live<'_>> {
        let decoder = Decoder::new(self.device(), self.model().config())?;
        let (fabric, store) = self.parts();
        Ok(Live { fabric, store, decoder })
    }
}

impl NextLogits for Live<'_> {
    type Error = TrainError;

    fn next(&mut self, tokens: &[u32]) -> std::result::Result<Vec<f32>, TrainError> {
        Ok(self.decoder.extend(self.fabric, self.store, tokens)?)
    }

    fn restart(&mut self) {
        self.decoder.restart();
    }

    fn context(&self) -> usize {
        self.decoder.context()
    }
}
