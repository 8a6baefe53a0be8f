//! Optimisers: what each keeps of a tensor, and the launches of its update, one tensor at a time. All is decided on the
//! device, from the scalars of the step, so a gradient that is not finite reaches neither weight nor state. It must never
//! know a model, nor where a panel lies.

use serde::{Deserialize, Serialize};

use crate::device::{Device, Transfer, View};
use crate::program::Matrix;
use crate::program::adafactor::{self, Adafactor};
use crate::program::adamw::{self, AdamW};
use crate::program::quantize;
use crate::program::round::{self, Mode, Round};
use crate::program::sgd::{self, Sgd};
use crate::store::role::{ROLES, Span, State};
use crate::store::{Format, Panel, Result, Role, Store, Tensor, Training};

/// The rule that turns gradients into updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Adam with decoupled decay (arXiv 1711.05101).
    AdamW {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
    },
    /// Adafactor (arXiv 1804.04235) as PyTorch has it: second moments of rows and columns alone, no first moment.
    Adafactor {
        /// The second moment decays by `1 - step^this`.
        beta2_decay: f32,
        /// Least size of a tensor that its rate is relative to.
        eps2: f32,
        /// Largest root mean square of an update.
        clip_threshold: f32,
    },
    /// Gradient descent with momentum.
    Sgd {
        /// What is kept of the momentum.
        momentum: f32,
    },
}

/// How the values of an optimiser's states are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateDtype {
    /// Four bytes.
    F32,
    /// Two bytes, rounded stochastically.
    Bf16,
    /// A byte, on a grid of 256 values a block.
    Q8,
}

/// What the norm of the gradient is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// All tensors: gradients wait until the last is known.
    Global,
    /// The tensors of a layer, which is updated as soon as its own gradient is known.
    Layer,
}

/// Which words choose an optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// The rule.
    pub rule: Rule,
    /// How its states are kept.
    pub states: StateDtype,
    /// Decay of tensors of two or more dimensions.
    pub weight_decay: f32,
    /// Largest norm of the gradient; 0 turns clipping off.
    pub grad_clip: f32,
    /// Of which gradient.
    pub clip: Clip,
}

impl Default for Optimizer {
    /// The defaults of `gaufre train`, those of nanoGPT.
    fn default() -> Optimizer {
        Optimizer {
            rule: Rule::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 },
            states: StateDtype::F32,
            weight_decay: 0.1,
            grad_clip: 1.0,
            clip: Clip::Global,
        }
    }
}

impl Optimizer {
    /// What a store keeps for it; `master`: parameters at full precision beside rounded ones.
    pub fn training(&self, master: bool) -> Training {
        let format = |q8| match self.states {
            StateDtype::F32 => Format::F32,
            StateDtype::Bf16 => Format::Bf16,
            StateDtype::Q8 => q8,
        };
        let (signed, unsigned) = (format(Format::Q8Signed), format(Format::Q8Unsigned));
        let states = match self.rule {
            Rule::AdamW { .. } => [State::whole(signed), State::whole(unsigned)],
            Rule::Sgd { .. } => [State::whole(signed), State::NONE],
            // Rows and columns are few: they are kept as they are.
            Rule::Adafactor { .. } => [
                State { matrix: Span::Rows, vector: Span::None, format: Format::F32 },
                State { matrix: Span::Columns, vector: Span::Whole, format: Format::F32 },
            ],
        };
        Training { states, master }
    }
}

/// What is the same for all tensors of a step.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Number of the step, from 1.
    pub step: u64,
    /// Its learning rate.
    pub lr: f32,
}

/// The second moments of a tensor.
struct Factored<'a> {
    row: Matrix,
    column: Matrix,
    scratch: &'a adafactor::Scratch,
}

impl Factored<'_> {
    fn tensor<'a>(&'a self, scalars: &'a View) -> adafactor::Tensor<'a> {
        adafactor::Tensor { row: &self.row, column: &self.column, scalars, scratch: self.scratch }
    }
}

/// An optimiser at work: its settings, and the memory that it needs beside the store.
pub struct Updater {
    optimizer: Optimizer,
    seed: u64,
    /// What Adafactor gathers of one tensor, and the row of a vector, which it keeps nothing of.
    scratch: Option<(adafactor::Scratch, Matrix)>,
}

/// The working memory of Adafactor for a store's tensors, each as rows, columns, rows of a panel.
fn shapes(store: &Store) -> Vec<(usize, usize, usize)> {
    let rows = |t: usize| store.panels(t).map(|panel| panel.rows).max().unwrap_or(1);
    store.tensors().iter().enumerate().map(|(number, t)| (t.rows, t.cols, rows(number))).collect()
}

impl Updater {
    /// For the tensors of a store; rounding draws on `seed`.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(device: &Device, optimizer: Optimizer, seed: u64, store: &Store) -> Result<Updater> {
        let scratch = match optimizer.rule {
            Rule::Adafactor { .. } => {
                Some((adafactor::Scratch::new(device, &shapes(store))?, Matrix::new(device, "row of a vector", 1, 1)?))
            }
            _ => None,
        };
        Ok(Updater { optimizer, seed, scratch })
    }

    /// Device bytes that [`Updater::new`] takes at most, however tensors are cut.
    pub fn bytes(optimizer: &Optimizer, tensors: &[Tensor]) -> u64 {
        let whole: Vec<_> = tensors.iter().map(|t| (t.rows, t.cols, t.rows)).collect();
        match optimizer.rule {
            Rule::Adafactor { .. } => (adafactor::Scratch::bytes(&whole) + 4 * Matrix::stride_for(1)) as u64,
            _ => 0,
        }
    }

    /// Updates one tensor. Its gradient is no longer needed then, and is dropped.
    ///
    /// # Errors
    /// What the device or the store says.
    pub fn update(
        &self,
        device: &Device,
        store: &mut Store,
        tensor: usize,
        moment: Moment,
        scalars: &View,
    ) -> Result<()> {
        if self.scratch.is_some() {
            self.factor(device, store, tensor, moment, scalars)?;
        }
        for panel in store.panels(tensor) {
            self.panel(device, store, tensor, panel, moment, scalars)?;
            store.drop_gradient(tensor, panel);
        }
        Ok(())
    }

    /// Adafactor's passes before the update: second moments, then the size of the step.
    fn factor(&self, device: &Device, store: &mut Store, tensor: usize, moment: Moment, scalars: &View) -> Result<()> {
        let hyper = self.adafactor(store, tensor, moment);
        for panel in store.panels(tensor) {
            store.begin_operation();
            let gradient = store.whole_gradient(tensor, panel)?;
            let factored = self.factored(store, tensor)?;
            adafactor::sums(device, &factored.tensor(scalars), &gradient, panel.first_row)?;
        }
        store.begin_operation();
        adafactor::factor(device, &hyper, &self.factored(store, tensor)?.tensor(scalars))?;
        for panel in store.panels(tensor) {
            let u = store.update(tensor, panel)?;
            let factored = self.factored(store, tensor)?;
            adafactor::partial(device, &hyper, &factored.tensor(scalars), u.target(), &u.gradient, panel.first_row)?;
        }
        store.begin_operation();
        Ok(adafactor::finish(device, &hyper, &self.factored(store, tensor)?.tensor(scalars))?)
    }

    fn adafactor(&self, store: &Store, tensor: usize, Moment { step, lr }: Moment) -> Adafactor {
        let Rule::Adafactor { beta2_decay, eps2, clip_threshold } = self.optimizer.rule else {
            unreachable!("only Adafactor is factored")
        };
        let weight_decay = self.decay(store, tensor);
        Adafactor { lr, beta2_decay, eps1: None, eps2, clip_threshold, weight_decay, step }
    }

    fn factored(&self, store: &mut Store, tensor: usize) -> Result<Factored<'_>> {
        let (scratch, spare) = self.scratch.as_ref().expect("Adafactor has its working memory");
        let row = match store.array(tensor, Role::State1) {
            Some(_) => store.state(tensor, Role::State1)?,
            None => spare.clone(),
        };
        Ok(Factored { row, column: store.state(tensor, Role::State2)?, scratch })
    }

    fn decay(&self, store: &Store, tensor: usize) -> f32 {
        if store.tensors()[tensor].vector { 0.0 } else { self.optimizer.weight_decay }
    }

    fn panel(
        &self,
        device: &Device,
        store: &mut Store,
        tensor: usize,
        panel: Panel,
        Moment { step, lr }: Moment,
        scalars: &View,
    ) -> Result<()> {
        let weight_decay = self.decay(store, tensor);
        let u = store.update(tensor, panel)?;
        let state = |i: usize| u.states[i].as_ref().expect("the rule keeps this state");
        match self.optimizer.rule {
            Rule::AdamW { beta1, beta2, eps } => {
                let hyper = AdamW { lr, beta1, beta2, eps, weight_decay, step };
                adamw::apply(device, &hyper, u.target(), &u.gradient, state(0), state(1), scalars)?;
            }
            Rule::Sgd { momentum } => {
                let hyper = Sgd { lr, momentum, weight_decay, step };
                sgd::apply(device, &hyper, u.target(), &u.gradient, state(0), scalars)?;
            }
            Rule::Adafactor { .. } => {
                let hyper = self.adafactor(store, tensor, Moment { step, lr });
                let factored = self.factored(store, tensor)?;
                let (tensor, row) = (factored.tensor(scalars), panel.first_row);
                adafactor::apply(device, &hyper, &tensor, u.target(), &u.gradient, row)?;
            }
        }
        self.round(device, store, tensor, panel, &u, step)
    }

    /// Brings what was updated to the values that its format holds.
    fn round(
        &self,
        device: &Device,
        store: &Store,
        tensor: usize,
        panel: Panel,
        u: &crate::store::Update,
        step: u64,
    ) -> Result<()> {
        let stochastic = |role: Role| {
            let stream = (tensor * ROLES + role as usize) as u32;
            Round { mode: Mode::Stochastic { seed: self.seed, step, stream } }
        };
        let keep = |role: Role, matrix: &Matrix| match store.array(tensor, role).map(|a| a.format) {
            Some(Format::Bf16) => round::run(device, &stochastic(role), matrix, panel.first_row),
            Some(Format::Q8Signed) => quantize::run(device, quantize::Table::Signed, matrix),
            Some(Format::Q8Unsigned) => quantize::run(device, quantize::Table::Unsigned, matrix),
            Some(Format::F32) | None => Ok(()),
        };
        for (role, state) in [Role::State1, Role::State2].into_iter().zip(&u.states) {
            state.as_ref().map_or(Ok(()), |matrix| keep(role, matrix))?;
        }
        let Some(master) = &u.master else { return Ok(keep(Role::Weight, &u.weight)?) };
        device.copy(&Transfer {
            source: master.view.buffer.clone(),
            source_offset: master.view.offset,
            source_stride: master.stride,
            target: u.weight.view.buffer.clone(),
            target_offset: u.weight.view.offset,
            target_stride: u.weight.stride,
            rows: master.rows,
            cols: master.stride,
        })?;
        Ok(round::run(device, &Round { mode: Mode::Nearest }, &u.weight, panel.first_row)?)
    }
}
