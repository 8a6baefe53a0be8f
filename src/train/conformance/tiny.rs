//! The tiny models whose whole training step is compared between devices, one a family: odd sizes, two micro-batches, and gains
//! and biases moved off 1 and 0 so that no term of a gradient vanishes. It must never know what the results are held to.

use super::Step;
use crate::model::{Config, Micro, PRESETS, Recompute, Shape};
use crate::program::cross_entropy::IGNORE;
use crate::program::initial::{normal, word};
use crate::program::schedule::{Fabric, Schedule};
use crate::store::Role;
use crate::train::step::{Gradients, SetupError};
use crate::train::{Setup, Trainer};
use crate::wafer::Wafer;

/// GPT-2's family has no tiny among the presets: its small ones are for use.
const GPT2: &str = "layers = 2\nheads = 3\nd_model = 84\ncontext = 37\nvocab_size = 211\n";
const SHAPE: Shape = Shape { batch: 2, seq_len: 37, micro_batches: 2 };
const SEED: u64 = 20;

/// The step of the tiny of each family.
pub fn steps() -> Vec<Step> {
    let of = |config: Config| Step { name: config.name.clone(), run: Box::new(move |f| Ok(step(&config, f)?)) };
    models().into_iter().map(of).collect()
}

/// The tiny of each family.
pub fn models() -> Vec<Config> {
    let tiny = PRESETS.iter().filter(|(name, _)| name.ends_with("-tiny"));
    let parsed = |(name, text): &(&str, &str)| Config::parse(name, text).expect("a preset is a model");
    std::iter::once(&("gpt2-tiny", GPT2)).chain(tiny).map(parsed).collect()
}

/// What a step of a model is made of, on a fabric.
pub fn setup(config: &Config, schedule: Schedule, wafer: Wafer) -> Setup {
    Setup { seed: SEED, schedule, wafer, recompute: Recompute::None, ..Setup::new(config.clone(), SHAPE) }
}

/// Loss and every gradient of one step of a model, before any update, on the device of a fabric, by its schedule and on its
/// grid.
fn step(config: &Config, fabric: &Fabric) -> Result<Gradients, SetupError> {
    let setup = setup(config, fabric.schedule(), fabric.wafer().clone());
    let mut trainer = Trainer::new(fabric.device().clone(), setup)?;
    for tensor in 0..trainer.store().tensors().len() {
        let mut weights = trainer.store().read(tensor, Role::Weight)?;
        for (i, w) in weights.iter_mut().enumerate() {
            *w += 0.1 * normal(SEED + tensor as u64, i as u64) as f32;
        }
        trainer.store().write(tensor, Role::Weight, &weights)?;
    }
    Ok(trainer.gradients(&batches(config.vocab_size as u32))?)
}

/// Random tokens; every tenth target does not count.
pub fn batches(vocabulary: u32) -> Vec<Micro> {
    let ids = |key: u64| (0..SHAPE.rows() as u64).map(move |i| word(key, i) % vocabulary);
    let micro = |m: u64| Micro {
        inputs: ids(2 * m).collect(),
        targets: ids(2 * m + 1).enumerate().map(|(i, t)| if i % 10 == 9 { IGNORE } else { t }).collect(),
    };
    (0..SHAPE.micro_batches as u64).map(micro).collect()
}
