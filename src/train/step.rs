//! One training step: forward, backward, the optimiser's two phases. Owns device, store, model and scalars; a step is a
//! pure function of its batches, rate and what the store holds. It must never know files, text or a person.

use serde::{Deserialize, Serialize};

use super::optimizer::{Clip, Moment, Optimizer, Updater};
use crate::device::{Buffer, Device, DeviceError, Elem, View};
use crate::model::{Activations, Config as ModelConfig, Gpt, Micro, Pass, Recompute, Shape, Told, Visit};
use crate::program::Matrix;
use crate::program::exchange::Checks;
use crate::program::grad_norm::{self, GRAD_NORM, LOSS, NON_FINITE, SCALARS, SLOT_FLOATS, Slots};
use crate::program::initial::word;
use crate::program::schedule::{Fabric, Routing, Schedule};
use crate::store::disk::Opened;
use crate::store::journal::{Interrupted, Mark};
use crate::store::{Archive, Format, Options, Panel, Placement, Role, Spill, Store, StoreError, Tensor};
use crate::wafer::Wafer;

/// What a trainer is made of.
#[derive(Clone)]
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
    /// How products go over it in supersteps.
    pub routing: Routing,
    /// Whether messages between tiles are checked at every hop.
    pub check_messages: bool,
    /// Where panels stay.
    pub placement: Placement,
    /// Where the store lies on a disk, for [`Placement::Disk`].
    pub archive: Option<Archive>,
    /// Device memory that may be used, in bytes; `None`: what it takes.
    pub device_memory: Option<u64>,
    /// Bytes that slots may take where nothing bounds them: what a panel finds there it need not read again. `None`: as few
    /// as the stream wants.
    pub spare: Option<u64>,
    /// What is kept for the backward pass.
    pub recompute: Recompute,
    /// Where layer inputs go that the device shall not hold; `None`: nowhere where they fit, else off it.
    pub spill: Option<Spill>,
    /// How parameters are kept; what is not f32 is rounded on the device after each update.
    pub param_dtype: Format,
    /// Whether parameters are kept at full precision too, where they are rounded.
    pub master: bool,
    /// The optimiser, but for rate and step.
    pub optimizer: Optimizer,
    /// Whether gradients are computed, counted and dropped: nothing is updated then.
    pub dry: bool,
}

impl Setup {
    /// The usual: f32, AdamW as in [`Optimizer::default`], parameters on the device, tiles fused on a wafer of 8 x 8, no
    /// bound on memory. Alter what should be otherwise.
    pub fn new(model: ModelConfig, shape: Shape) -> Setup {
        Setup {
            model,
            shape,
            seed: 1337,
            schedule: Schedule::Fused,
            wafer: Wafer::new(8, 8),
            routing: Routing::default(),
            check_messages: false,
            placement: Placement::Resident,
            archive: None,
            device_memory: None,
            spare: None,
            recompute: Recompute::Auto,
            spill: None,
            param_dtype: Format::F32,
            master: false,
            optimizer: Optimizer::default(),
            dry: false,
        }
    }

    /// Whether everything is kept for the backward pass, and where layer inputs go: what changes memory alone.
    fn activations(&self) -> (bool, Spill) {
        let available = self.device_memory.unwrap_or(AUTO_KEEPS);
        let kept = Gpt::keeps(&self.model, &self.shape, self.recompute, available);
        let fits = |share: u64| Activations::bytes(&self.model, &self.shape, kept, false) <= available / share;
        let spill = self.spill.unwrap_or(match self.placement {
            // Where panels take turns, they have the better use for half of the memory.
            Placement::Resident => Spill::None,
            _ if self.device_memory.is_none() || fits(2) => Spill::None,
            Placement::Ram => Spill::Ram,
            Placement::Disk => Spill::Disk,
        });
        (kept, spill)
    }

    /// Where layer inputs go.
    pub fn spill(&self) -> Spill {
        self.activations().1
    }

    /// Bytes on the device beside the slots of a store of tensors.
    pub fn fixed_bytes(&self, tensors: &[Tensor]) -> u64 {
        let (kept, spill) = self.activations();
        let slots: usize = tensors.iter().map(|t| grad_norm::slots(t.rows)).sum();
        let sums = 4 * (slots * SLOT_FLOATS + SCALARS) as u64;
        let activations = Activations::bytes(&self.model, &self.shape, kept, spill != Spill::None);
        activations + sums + Updater::bytes(&self.optimizer, tensors)
    }

    /// Bytes on the device that are left for slots; `None`: as few as it takes.
    ///
    /// # Errors
    /// [`SetupError::TooSmall`] where nothing is left.
    pub fn budget(&self, tensors: &[Tensor]) -> Result<Option<u64>, SetupError> {
        let Some(available) = self.device_memory else { return Ok(self.spare) };
        let needed = self.fixed_bytes(tensors);
        match available.checked_sub(needed) {
            None | Some(0) => Err(SetupError::TooSmall { needed, available, kept: self.activations().0 }),
            left => Ok(left),
        }
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
    /// A sequence longer than the model's context.
    #[error("--seq-len {seq_len}: the model has {context} positions")]
    TooLong {
        /// Tokens of a sequence.
        seq_len: usize,
        /// Positions of the model.
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

/// What the seed is mixed with for the keys of dropout, which are to have nothing in common with initial values.
const LEFT_OUT: u64 = 0x6472_6F70_6F75_7400;

/// A model in training.
pub struct Trainer {
    fabric: Fabric,
    store: Store,
    model: Gpt,
    optimizer: Optimizer,
    updater: Updater,
    seed: u64,
    dry: bool,
    scalars: Buffer,
    partials: Buffer,
    /// First slot of each tensor's partial sums; at the end, the number of all.
    first_slot: Vec<usize>,
    opened: Option<Opened>,
}

/// What a step that was cut short was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    /// Number of the visit whose tensors were replaced last.
    visit: usize,
    /// Whether the visits before it are still to be passed backwards; else only updates are missing.
    backward: bool,
}

impl Trainer {
    /// Allocates everything a step needs.
    ///
    /// # Errors
    /// [`SetupError`], before anything is computed.
    ///
    /// # Panics
    /// When [`Placement::Disk`] comes without an archive.
    pub fn new(device: Device, setup: Setup) -> Result<Trainer, SetupError> {
        let (kept, spill) = setup.activations();
        let (context, seq_len) = (setup.model.context, setup.shape.seq_len);
        if seq_len > context {
            return Err(SetupError::TooLong { seq_len, context });
        }
        let tensors = Gpt::tensors(&setup.model, setup.seed);
        let mut first_slot = vec![0];
        for t in &tensors {
            first_slot.push(first_slot[first_slot.len() - 1] + grad_norm::slots(t.rows));
        }
        let slots = first_slot[tensors.len()];
        let budget = setup.budget(&tensors)?;
        let Setup { model: config, shape, optimizer, .. } = setup;
        let options = Options {
            placement: setup.placement,
            budget,
            weights: setup.param_dtype,
            training: Some(optimizer.training(setup.master)),
        };
        let (store, opened) = match setup.placement {
            Placement::Disk => {
                let archive = setup.archive.expect("a store on a disk has a folder");
                let (store, opened) = Store::on_disk(&device, tensors, options, &archive)?;
                (store, Some(opened))
            }
            _ => (Store::new(&device, tensors, options)?, None),
        };
        let model = Gpt::new(&device, config, shape, kept, spill)?;
        let fabric = Fabric::new(device.clone(), setup.schedule, setup.wafer).with_routing(setup.routing);
        let fabric = if setup.check_messages { fabric.with_checks(Checks::new(None)) } else { fabric };
        Ok(Trainer {
            updater: Updater::new(&device, optimizer, setup.seed, &store)?,
            store,
            model,
            optimizer,
            seed: setup.seed,
            dry: setup.dry,
            scalars: device.buffer("scalars", Elem::F32, SCALARS)?,
            partials: device.buffer("gradient partials", Elem::F32, slots * SLOT_FLOATS)?,
            first_slot,
            fabric,
            opened,
        })
    }

    /// The tiles.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
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

    /// What was found where the store lies on a disk; once.
    pub fn opened(&mut self) -> Option<Opened> {
        self.opened.take()
    }

    /// One step on the micro-batches of `step` (counted from 1) at a rate.
    ///
    /// # Errors
    /// What the device or the store says; a non-finite number is a skipped step, not an error.
    pub fn step(&mut self, step: u64, lr: f32, batches: &[Micro]) -> Result<StepResult, StoreError> {
        let moment = Moment { step, lr };
        self.store.begin_step();
        self.load(batches, step)?;
        self.forward(true)?;
        let head = self.model.visits().len() - 1;
        self.updated_at_once(head, moment)?;
        self.descend(head, moment)?;
        self.end(0, moment)
    }

    /// Goes on with a step that was cut short after it began to replace weights: the rest of it, as if nothing had been.
    /// Layer inputs are computed again from the weights below, which the step had not come to.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    ///
    /// # Panics
    /// When it is not a step of this model.
    pub fn complete(
        &mut self,
        interrupted: &Interrupted,
        lr: f32,
        batches: &[Micro],
    ) -> Result<StepResult, StoreError> {
        let Mark { step, note, words } = &interrupted.mark;
        let note: Note = serde_json::from_value(note.clone()).expect("a mark of a trainer");
        let moment = Moment { step: *step, lr };
        self.store.begin_step();
        self.store.take_up(interrupted);
        let device = self.fabric.device().clone();
        let [scalars, partials, upstream @ ..] = &words[..] else { panic!("a mark of a trainer") };
        if note.backward {
            self.load(batches, *step)?;
            for visit in self.model.visits().into_iter().take(note.visit) {
                self.model.forward(&self.fabric, &mut self.store, visit)?;
            }
            for (matrix, bits) in self.model.upstream().iter().zip(upstream) {
                device.upload(&matrix.view, bits)?;
            }
        }
        device.upload(&self.scalars.all(), scalars)?;
        device.upload(&self.partials.all(), partials)?;
        if note.backward {
            self.descend(note.visit, moment)?;
            return self.end(0, moment);
        }
        self.end(note.visit + 1, moment)
    }

    /// The backward pass of the visits below `from`, and, where layers are clipped one by one, their updates.
    fn descend(&mut self, from: usize, moment: Moment) -> Result<(), StoreError> {
        for visit in (0..from).rev() {
            self.backward(visit)?;
            self.updated_at_once(visit, moment)?;
        }
        Ok(())
    }

    /// What is left when all gradients are known: updates from visit `from` on, unless they were made at once; the numbers.
    fn end(&mut self, from: usize, moment: Moment) -> Result<StepResult, StoreError> {
        let device = self.fabric.device().clone();
        let slots = Slots::all(self.first_slot[self.first_slot.len() - 1]);
        let clip = self.optimizer.grad_clip;
        if from == 0 {
            device.phase(|| "norm of the gradient".into());
            grad_norm::finish(&self.fabric, &self.partials.all(), slots, clip, &self.scalars.all())?;
        }
        if self.optimizer.clip == Clip::Global {
            for visit in from..self.model.visits().len() {
                self.update(visit, moment, false)?;
            }
        }
        let read = device.download(&self.scalars.all())?;
        Ok(StepResult { loss: read[LOSS], grad_norm: read[GRAD_NORM], skipped: read[NON_FINITE] != 0.0 })
    }

    /// Where layers are clipped one by one: the norm of this one, and its update. What is not finite here, or was before,
    /// keeps this layer and all that follow as they are.
    fn updated_at_once(&mut self, visit: usize, moment: Moment) -> Result<(), StoreError> {
        if self.optimizer.clip == Clip::Global {
            return Ok(());
        }
        let owned = self.owned(visit);
        let (first, last) = (owned[0], owned[owned.len() - 1]);
        let (first, end) = (self.first_slot[first], self.first_slot[last + 1]);
        let finite = self.first_slot[self.first_slot.len() - 1] - first;
        let slots = Slots { first, norm: end - first, finite };
        let (partials, scalars) = (self.partials.all(), self.scalars.all());
        grad_norm::finish(&self.fabric, &partials, slots, self.optimizer.grad_clip, &scalars)?;
        self.update(visit, moment, true)
    }

    /// Updates the tensors of a visit, and lets them leave.
    fn update(&mut self, visit: usize, moment: Moment, backward: bool) -> Result<(), StoreError> {
        if self.dry {
            return Ok(());
        }
        let owned = self.owned(visit);
        let Trainer { fabric, store, model, updater, scalars, partials, .. } = self;
        let (device, scalars) = (fabric.device(), scalars.all());
        store.expect_update(&owned)?;
        device.phase(|| model.visits()[visit].phase(Pass::Update));
        for &tensor in &owned {
            updater.update(device, store, tensor, moment, &scalars)?;
        }
        store.settle(&owned, &mut || {
            let bits =
                |view: &View| Ok::<_, StoreError>(device.download(view)?.into_iter().map(f32::to_bits).collect());
            let mut words = vec![bits(&scalars)?, bits(&partials.all())?];
            if backward {
                words.extend(model.upstream().iter().map(|m| bits(&m.view)).collect::<Result<Vec<_>, _>>()?);
            }
            let note = serde_json::to_value(Note { visit, backward }).expect("a note is JSON");
            Ok(Mark { step: moment.step, note, words })
        })
    }

    fn owned(&self, visit: usize) -> Vec<usize> {
        self.model.table().owned(self.model.visits()[visit]).collect()
    }

    /// Forward and backward of all visits: loss in the scalars, gradients in the store, their partial norms beside.
    ///
    /// # Errors
    /// What the device or the store says.
    pub fn backpropagate(&mut self, batches: &[Micro]) -> Result<(), StoreError> {
        self.store.begin_step();
        self.model.load(self.fabric.device(), batches)?;
        self.forward(true)?;
        (0..self.model.visits().len() - 1).rev().try_for_each(|visit| self.backward(visit))
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
        self.model.load(self.fabric.device(), batches)?;
        self.forward(false)?;
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

    /// The micro-batches of a step that trains, and what it leaves out of them.
    fn load(&mut self, batches: &[Micro], step: u64) -> Result<(), StoreError> {
        self.model.load(self.fabric.device(), batches)?;
        let [low, high] = [2 * step, 2 * step + 1].map(|at| u64::from(word(self.seed ^ LEFT_OUT, at)));
        self.model.leave_out(high << 32 | low);
        Ok(())
    }

    fn forward(&mut self, train: bool) -> Result<(), StoreError> {
        for visit in self.model.visits() {
            match visit {
                Visit::Head => self.turn(train)?,
                _ => self.model.forward(&self.fabric, &mut self.store, visit)?,
            }
        }
        Ok(())
    }

    /// The head, forward and, to train, backward.
    fn turn(&mut self, train: bool) -> Result<(), StoreError> {
        let expected = self.gradients_of(self.model.visits().len() - 1);
        let Trainer { fabric, store, model, scalars, partials, first_slot, dry, .. } = self;
        let mut counted =
            Counted { device: fabric.device(), partials: &partials.all(), first_slot, dry: *dry, panels: 0 };
        let mut told = |store: &mut Store, tensor, panel| counted.panel(store, tensor, panel);
        let told: Option<Told<'_>> = if train { Some(&mut told) } else { None };
        model.turn(fabric, store, &scalars.all(), LOSS, told)?;
        assert!(!train || counted.panels == expected, "{} of {expected} gradients of the head", counted.panels);
        Ok(())
    }

    /// The backward pass of a visit but the head.
    fn backward(&mut self, visit: usize) -> Result<(), StoreError> {
        let expected = self.gradients_of(visit);
        let Trainer { fabric, store, model, partials, first_slot, dry, .. } = self;
        let mut counted =
            Counted { device: fabric.device(), partials: &partials.all(), first_slot, dry: *dry, panels: 0 };
        let mut told = |store: &mut Store, tensor, panel| counted.panel(store, tensor, panel);
        model.backward(fabric, store, model.visits()[visit], &mut told)?;
        assert_eq!(counted.panels, expected, "gradients of visit {visit}");
        Ok(())
    }

    /// Panels of the tensors that a visit owns.
    fn gradients_of(&self, visit: usize) -> usize {
        self.owned(visit).into_iter().map(|tensor| self.store.panels(tensor).count()).sum()
    }
}

/// The optimiser's first phase: takes each panel of a gradient as it becomes complete, while it is still on the device.
struct Counted<'a> {
    device: &'a Device,
    partials: &'a View,
    first_slot: &'a [usize],
    dry: bool,
    panels: usize,
}

impl Counted<'_> {
    fn panel(&mut self, store: &mut Store, tensor: usize, panel: Panel) -> Result<(), StoreError> {
        let gradient = store.whole_gradient(tensor, panel)?;
        let slot = self.first_slot[tensor] + grad_norm::slots(panel.first_row);
        grad_norm::partial(self.device, &gradient, self.partials, slot)?;
        self.panels += 1;
        if self.dry {
            store.drop_gradient(tensor, panel);
        }
        Ok(())
    }
}
