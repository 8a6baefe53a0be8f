//! What a training step leaves out (dropout): a key for each place where something is, so that every pass over the same
//! micro-batch of the same step leaves out the same. It must never know a step or a seed, beyond the key that it is given.

use crate::device::{Device, Result};
use crate::program::attention::Dropout;
use crate::program::initial::word;
use crate::program::{Matrix, dropout};

/// A place where something is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The sum of embeddings.
    Embedding = 0,
    /// What attention adds to the residual stream.
    Attention = 1,
    /// What the MLP adds to it.
    Mlp = 2,
    /// Probabilities of attention.
    Probabilities = 3,
}

/// The masks of one visit for one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masks {
    /// Of the step.
    pub key: u64,
    /// Share that is left out.
    pub rate: f32,
    /// Number of the visit.
    pub visit: usize,
    /// Number of the micro-batch.
    pub micro: usize,
}

impl Masks {
    /// Leaves out a part of `x`, in place.
    pub fn apply(&self, device: &Device, site: Site, x: &Matrix) -> Result<()> {
        dropout::run(device, x, self.key(site), self.rate)
    }

    /// Those of attention's probabilities.
    pub fn of_attention(&self) -> Dropout {
        Dropout { key: self.key(Site::Probabilities), rate: self.rate }
    }

    /// Two words of the generator that also makes initial values: by place and micro-batch, keyed by the step.
    fn key(&self, site: Site) -> u64 {
        let place = ((self.visit * 4 + site as usize) as u64) << 32 | self.micro as u64;
        let [low, high] = [2 * place, 2 * place + 1].map(|at| u64::from(word(self.key, at)));
        high << 32 | low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_a_key_of_its_own() {
        let sites = [Site::Embedding, Site::Attention, Site::Mlp, Site::Probabilities];
        let mut keys = std::collections::BTreeSet::new();
        for key in [1, 2] {
            for (visit, micro) in [(0, 0), (0, 1), (1, 0), (7, 3)] {
                let masks = Masks { key, rate: 0.1, visit, micro };
                keys.extend(sites.map(|site| masks.key(site)));
            }
        }
        assert_eq!(keys.len(), 2 * 4 * 4);
    }
}
