//! One training step: forward, backward, the optimiser's two phases. Owns device, store, model and scalars; a step is a
//! pure function of its batches, rate and what the store holds. It must never know files, text or a person.

use crate::device::{Buffer, Device, DeviceError, Elem};
use crate::model::{Activations, Config as ModelConfig, Gpt, Micro, Recompute, Shape, Visit};
use crate::program::Matrix;
use crate::program::adamw::{self, AdamW};
use crate::program::grad_norm::{self, GRAD_NORM, LOSS, NON_FINITE, SCALARS};
use crate::program::schedule::{Fabric, Schedule};
use crate::store::{Options, Placement, Role, Store, StoreError};
use crate::wafer::Wafer;

/// What a trainer is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The model.
    pub model: ModelConfig,
    /// Sizes of a step.
    pub shape: Shape,
    /// Seed of the initial values.
    pub seed: u64,
    /// How stepwise programs run.
    pub schedule: Schedule,
    /// The grid of the emulated wafer.
    pub wafer: Wafer,
    /// Where panels stay.
    pub placement: Placement,
    /// Device memory that may be used, in bytes; `None`: what it takes.
    pub device_memory: Option<u64>,
    /// What is kept for the backward pass.
    pub recompute: Recompute,
    /// The optimiser, but for rate and step.
    pub optimizer: Optimizer,
}

impl Setup {
    /// The usual: AdamW as in [`Optimizer::default`], parameters on the device, tiles fused on a wafer of 8 x 8, no bound on
    /// memory. Alter what should be otherwise.
    pub fn new(model: ModelConfig, shape: Shape) -> Setup {
        Setup {
            model,
            shape,
            seed: 1337,
            schedule: Schedule::Fused,
            wafer: Wafer::new(8, 8),
            placement: Placement::Resident,
            device_memory: None,
            recompute: Recompute::Auto,
            optimizer: Optimizer::default(),
        }
    }
}

/// Constants of AdamW and of clipping.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay of tensors of two or more dimensions.
    pub weight_decay: f32,
    /// Largest global norm of the gradient; 0 turns clipping off.
    pub grad_clip: f32,
}

impl Default for Optimizer {
    /// The defaults of `gaufre train`, those of nanoGPT.
    fn default() -> Optimizer {
        Optimizer { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 }
    }
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean loss over the tokens of the step, in nats, before the update.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// True when something was not finite: no weight and no moment was touched.
    pub skipped: bool,
}

/// What a step's backward pass leaves: for checks.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Mean loss.
    pub loss: f64,
    /// Each tensor's gradient by name, row-major without padding, at the precision the device keeps.
    pub gradients: Vec<(String, Vec<f64>)>,
}

/// Why a trainer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Activations alone take more than was allowed.
    #[error(
        "--device-memory {available}: activations alone take {needed} bytes; raise it, or lower --batch-size, --seq-len or --grad-accum{}",
        if *.kept { ", or use --recompute layer" } else { "" }
    )]
    TooSmall {
        /// Bytes of the activations.
        needed: u64,
        /// Bytes allowed.
        available: u64,
        /// Whether everything is kept for the backward pass.
        kept: bool,
    },
    /// A sequence longer than the model's position table.
    #[error("--seq-len {seq_len}: the model has {context} positions")]
    TooLong {
        /// Tokens of a sequence.
        seq_len: usize,
        /// Rows of the position table.
        context: usize,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Activations that `--recompute auto` keeps when no `--device-memory` is given.
const AUTO_KEEPS: u64 = 4 << 30;

/// A model in training.
pub struct Trainer {
    fabric: Fabric,
    store: Store,
    model: Gpt,
    optimizer: Optimizer,
    scalars: Buffer,
    partials: Buffer,
    /// First slot of each tensor's partial sums; at the end, the number of all.
    first_slot: Vec<usize>,
}

impl Trainer {
    /// Allocates everything a step needs.
    ///
    /// # Errors
    /// [`SetupError`], before anything is computed.
    pub fn new(device: Device, setup: Setup) -> Result<Trainer, SetupError> {
        let (config, shape) = (setup.model, setup.shape);
        if shape.seq_len > config.context {
            return Err(SetupError::TooLong { seq_len: shape.seq_len, context: config.context });
        }
        let available = setup.device_memory.unwrap_or(AUTO_KEEPS);
        let kept = Gpt::keeps(&config, &shape, setup.recompute, available);
        let tensors = Gpt::tensors(&config, setup.seed);
        let mut first_slot = vec![0];
        for t in &tensors {
            first_slot.push(first_slot[first_slot.len() - 1] + grad_norm::slots(t.rows));
        }
        let slots = first_slot[tensors.len()];
        let fixed = Activations::bytes(&config, &shape, kept) + 4 * (slots * grad_norm::SLOT_FLOATS + SCALARS) as u64;
        let budget = match setup.device_memory {
            Some(allowed) if allowed <= fixed => {
                return Err(SetupError::TooSmall { needed: fixed, available: allowed, kept });
            }
            allowed => allowed.map(|bytes| bytes - fixed),
        };
        let store = Store::new(&device, tensors, Options { placement: setup.placement, budget, training: true })?;
        let model = Gpt::new(&device, config, shape, kept)?;
        Ok(Trainer {
            store,
            model,
            optimizer: setup.optimizer,
            scalars: device.buffer("scalars", Elem::F32, SCALARS)?,
            partials: device.buffer("gradient partials", Elem::F32, slots * grad_norm::SLOT_FLOATS)?,
            first_slot,
            fabric: Fabric::new(device, setup.schedule, setup.wafer),
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.fabric.device()
    }

    /// The model.
    pub fn model(&self) -> &Gpt {
        &self.model
    }

    /// The parameters.
    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// The scheduler and the parameters, for work beside training.
    pub fn parts(&mut self) -> (&Fabric, &mut Store) {
        (&self.fabric, &mut self.store)
    }

    /// One step on the micro-batches of `step` (counted from 1) at a rate.
    ///
    /// # Errors
    /// What the device says; a non-finite number is a skipped step, not an error.
    pub fn step(&mut self, step: u64, lr: f32, batches: &[Micro]) -> Result<StepResult, StoreError> {
        self.backpropagate(batches)?;
        let device = self.fabric.device().clone();
        let (scalars, slots) = (self.scalars.all(), self.first_slot[self.first_slot.len() - 1]);
        grad_norm::finish(&device, &self.partials.all(), slots, self.optimizer.grad_clip, &scalars)?;
        for tensor in 0..self.store.tensors().len() {
            let decay = if self.store.tensors()[tensor].vector { 0.0 } else { self.optimizer.weight_decay };
            let Optimizer { beta1, beta2, eps, .. } = self.optimizer;
            let hyper = AdamW { lr, beta1, beta2, eps, weight_decay: decay, step };
            for panel in self.store.panels(tensor) {
                let u = self.store.update(tensor, panel)?;
                adamw::apply(&device, &hyper, &u.weight, &u.gradient, &u.moment1, &u.moment2, &scalars)?;
            }
        }
        let read = device.download(&scalars)?;
        Ok(StepResult { loss: read[LOSS], grad_norm: read[GRAD_NORM], skipped: read[NON_FINITE] != 0.0 })
    }

    /// Forward and backward of all visits: loss in the scalars, gradients in the store, their partial norms beside.
    ///
    /// # Errors
    /// What the device says.
    pub fn backpropagate(&mut self, batches: &[Micro]) -> Result<(), StoreError> {
        self.store.begin_step();
        self.forward(batches, true)?;
        let visits = self.model.visits();
        for visit in visits.into_iter().rev() {
            self.model.backward(&self.fabric, &mut self.store, visit)?;
            self.stats(visit)?;
        }
        Ok(())
    }

    /// Mean loss over the targets of the batches; parameters and moments are left alone.
    ///
    /// # Errors
    /// What the device says.
    pub fn evaluate(&mut self, batches: &[Micro]) -> Result<f32, StoreError> {
        Ok(self.evaluate_f64(batches)? as f32)
    }

    /// The same at the precision that the device keeps.
    ///
    /// # Errors
    /// What the device says.
    pub fn evaluate_f64(&mut self, batches: &[Micro]) -> Result<f64, StoreError> {
        self.forward(batches, false)?;
        Ok(self.fabric.device().download_f64(&self.scalars.all())?[LOSS])
    }

    /// Loss and gradients of a step, at the precision of the device: for checks.
    ///
    /// # Errors
    /// What the device says.
    pub fn gradients(&mut self, batches: &[Micro]) -> Result<Gradients, StoreError> {
        self.backpropagate(batches)?;
        let loss = self.fabric.device().download_f64(&self.scalars.all())?[LOSS];
        let mut gradients = Vec::new();
        for tensor in 0..self.store.tensors().len() {
            let name = self.store.tensors()[tensor].name.clone();
            gradients.push((name, self.store.read_f64(tensor, Role::Gradient)?));
        }
        Ok(Gradients { loss, gradients })
    }

    /// The logits of batches, a chunk of the vocabulary at a time: see [`Gpt::logits`].
    ///
    /// # Errors
    /// What the device says, and `take`.
    pub fn logits(
        &mut self,
        batches: &[Micro],
        take: &mut dyn FnMut(usize, usize, &Matrix) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.model.load(self.fabric.device(), batches)?;
        for visit in self.model.visits().into_iter().filter(|v| *v != Visit::Head) {
            self.model.forward(&self.fabric, &mut self.store, visit)?;
        }
        self.model.logits(&self.fabric, &mut self.store, take)
    }

    fn forward(&mut self, batches: &[Micro], train: bool) -> Result<(), StoreError> {
        self.model.load(self.fabric.device(), batches)?;
        for visit in self.model.visits() {
            match visit {
                Visit::Head => {
                    self.model.turn(&self.fabric, &mut self.store, &self.scalars.all(), LOSS, train)?;
                }
                _ => self.model.forward(&self.fabric, &mut self.store, visit)?,
            }
        }
        Ok(())
    }

    /// The optimiser's first phase for the tensors whose gradient is complete.
    fn stats(&mut self, visit: Visit) -> Result<(), StoreError> {
        let owned: Vec<usize> = self.model.table().owned(visit).collect();
        for tensor in owned {
            for panel in self.store.panels(tensor) {
                self.store.begin_operation();
                let gradient = self.store.whole_gradient(tensor, panel)?;
                let slot = self.first_slot[tensor] + grad_norm::slots(panel.first_row);
                grad_norm::partial(self.fabric.device(), &gradient, &self.partials.all(), slot)?;
            }
        }
        Ok(())
    }
}
