//! The tiny model whose whole training step is compared between devices: odd sizes, two micro-batches, biases, and gains
//! and biases moved off 1 and 0 so that no term of a gradient vanishes. It must never know what the results are held to.

use crate::model::{Config, Micro, Recompute, Shape};
use crate::program::cross_entropy::IGNORE;
use crate::program::initial::{normal, word};
use crate::program::schedule::Fabric;
use crate::store::Role;
use crate::train::step::{Gradients, SetupError};
use crate::train::{Setup, Trainer};

const MODEL: &str = "layers = 2\nheads = 3\nd_model = 84\ncontext = 37\nvocab_size = 211\n";
const SHAPE: Shape = Shape { batch: 2, seq_len: 37, micro_batches: 2 };
const SEED: u64 = 20;

/// Loss and every gradient of one step, before any update, on the device of a fabric, by its schedule and on its grid.
///
/// # Errors
/// What the device says.
pub fn step(fabric: &Fabric) -> Result<Gradients, SetupError> {
    let mut trainer = Trainer::new(fabric.device().clone(), setup(fabric))?;
    for tensor in 0..trainer.store().tensors().len() {
        let mut weights = trainer.store().read(tensor, Role::Weight)?;
        for (i, w) in weights.iter_mut().enumerate() {
            *w += 0.1 * normal(SEED + tensor as u64, i as u64) as f32;
        }
        trainer.store().write(tensor, Role::Weight, &weights)?;
    }
    Ok(trainer.gradients(&batches())?)
}

fn setup(fabric: &Fabric) -> Setup {
    Setup {
        seed: SEED,
        schedule: fabric.schedule(),
        wafer: fabric.wafer(),
        recompute: Recompute::None,
        ..Setup::new(Config::parse("tiny", MODEL).expect("the tiny model is a model"), SHAPE)
    }
}

/// Random tokens; every tenth target does not count.
fn batches() -> Vec<Micro> {
    let ids = |key: u64| (0..SHAPE.rows() as u64).map(move |i| word(key, i) % 211);
    let micro = |m: u64| Micro {
        inputs: ids(2 * m).collect(),
        targets: ids(2 * m + 1).enumerate().map(|(i, t)| if i % 10 == 9 { IGNORE } else { t }).collect(),
    };
    (0..SHAPE.micro_batches as u64).map(micro).collect()
}
