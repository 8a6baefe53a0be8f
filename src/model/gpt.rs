//! The model as a list of visits, forward and backward. Parameters come from the store, activations from [`Activations`];
//! every micro-batch of a step passes a visit before the next visit begins. It must never know an optimiser or a clock.

use super::activations::{Activations, Index, Recompute, Shape};
use super::config::Config;
use super::head::Sweep;
use super::layer::Block;
use super::linear::Completion;
use super::masks::{Masks, Site};
use super::table::{Pass, Table, Visit};
use crate::device::{Device, View};
use crate::program::embedding::{self, Occurrences};
use crate::program::initial::Initial;
use crate::program::schedule::Fabric;
use crate::program::{Matrix, cross_entropy};
use crate::store::{Panel, Result, Spill, Store, Tensor};
use std::cell::Cell;

/// One micro-batch: `batch * seq_len` inputs and targets, row by row.
#[derive(Clone, Debug)]
pub struct Micro {
    /// Token ids.
    pub inputs: Vec<u32>,
    /// The token after each; [`cross_entropy::IGNORE`] where it does not count.
    pub targets: Vec<u32>,
}

/// Who is told of each panel of a gradient, by tensor, once it is complete.
pub type Told<'a> = &'a mut dyn FnMut(&mut Store, usize, Panel) -> Result<()>;

/// A decoder-only transformer on one device, for one shape.
pub struct Gpt {
    config: Config,
    table: Table,
    shape: Shape,
    kept: bool,
    spill: Spill,
    acts: Activations,
    /// What joins the residual stream, before it does.
    joins: Matrix,
    /// Where layer inputs are spilled: the numbers of those that the two buffers hold.
    held: Cell<[Option<usize>; 2]>,
    /// Micro-batches that were loaded.
    loaded: usize,
    /// One over the number of targets that count in them.
    scale: f32,
    /// Of what is left out of them, where something is.
    key: Option<u64>,
}

impl Gpt {
    /// Allocates the activations of a model. `kept`: see [`Gpt::keeps`]; `spill`: where layer inputs go that the device
    /// shall not hold.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(device: &Device, config: Config, shape: Shape, kept: bool, spill: Spill) -> Result<Gpt> {
        let table = Table::new(&config);
        let acts = Activations::new(device, &config, &shape, kept, spill != Spill::None)?;
        let positions: Vec<u32> = (0..shape.rows()).map(|r| (r % shape.seq_len) as u32).collect();
        device.upload(&acts.positions.0.all(), &positions)?;
        let joins = acts.gradients.narrow(config.d_model);
        let held = Cell::default();
        let mut gpt = Gpt { config, table, shape, kept, spill, acts, joins, held, loaded: 0, scale: 0.0, key: None };
        fill(device, &mut gpt.acts.positions.1, &positions)?;
        Ok(gpt)
    }

    /// Whether all activations are kept: `auto` keeps them where they take at most `available` bytes.
    pub fn keeps(config: &Config, shape: &Shape, recompute: Recompute, available: u64) -> bool {
        match recompute {
            Recompute::None => true,
            Recompute::Layer => false,
            Recompute::Auto => Activations::bytes(config, shape, true, false) <= available,
        }
    }

    /// The tensors of a model, for a store.
    pub fn tensors(config: &Config, seed: u64) -> Vec<Tensor> {
        let table = Table::new(config);
        let tensor = |(i, p): (usize, super::table::Parameter)| Tensor {
            shared: config.tied && i == table.tokens,
            name: p.name,
            rows: p.rows,
            cols: p.cols,
            vector: p.vector,
            initial: Initial { seed, tensor: i as u32, kind: p.initial },
            group: match p.owner {
                Visit::Embed => 0,
                Visit::Layer(i) => i + 1,
                Visit::Head => config.layers + 1,
            },
        };
        table.parameters.into_iter().enumerate().map(tensor).collect()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The table of parameters.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Sizes of a step.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn activations(&self) -> &Activations {
        &self.acts
    }

    /// All visits, in forward order.
    pub fn visits(&self) -> Vec<Visit> {
        let layers = (0..self.config.layers).map(Visit::Layer);
        std::iter::once(Visit::Embed).chain(layers).chain([Visit::Head]).collect()
    }

    /// Uploads micro-batches: those of a step, or fewer to be evaluated.
    ///
    /// # Errors
    /// What the device says.
    ///
    /// # Panics
    /// When there are none, or more than the shape says.
    pub fn load(&mut self, device: &Device, batches: &[Micro]) -> Result<()> {
        assert!((1..=self.shape.micro_batches).contains(&batches.len()), "{} micro-batches", batches.len());
        self.loaded = batches.len();
        self.key = None;
        self.held.set([None; 2]);
        for (ids, batch) in self.acts.ids.iter_mut().zip(batches) {
            device.upload(&ids.inputs.all(), &batch.inputs)?;
            device.upload(&ids.targets.all(), &batch.targets)?;
            fill(device, &mut ids.index, &batch.inputs)?;
        }
        let counted = batches.iter().flat_map(|b| &b.targets).filter(|t| **t != cross_entropy::IGNORE).count();
        self.scale = 1.0 / counted.max(1) as f32;
        Ok(())
    }

    /// From now on, until other micro-batches are loaded, leaves out a part of what embeds, attends and joins the residual
    /// stream, where the model's `dropout` says so: what is left out is a function of `key`, the place and the micro-batch.
    pub fn leave_out(&mut self, key: u64) {
        self.key = (self.config.dropout > 0.0).then_some(key);
    }

    /// The forward pass of a visit, all micro-batches. [`Visit::Head`] leaves nothing for its backward pass: see
    /// [`Gpt::turn`].
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, fabric: &Fabric, store: &mut Store, visit: Visit) -> Result<()> {
        self.begin(store, visit, true)?;
        fabric.device().phase(|| visit.phase(Pass::Forward));
        match visit {
            Visit::Embed => (0..self.loaded).try_for_each(|micro| {
                let x = self.buffer(0, micro);
                self.embed(fabric, store, micro, &x)?;
                self.leave(store, 0, micro, &x)
            }),
            Visit::Layer(layer) => (0..self.loaded).try_for_each(|micro| {
                let (x, y) = (self.input(store, layer, micro)?, self.buffer(layer + 1, micro));
                self.block(layer, micro, x).forward(fabric, store, Some(&y))?;
                self.leave(store, layer + 1, micro, &y)
            }),
            Visit::Head => unreachable!("the head turns: its forward and backward are one sweep"),
        }
    }

    /// The head: adds the mean loss of the step to `scalars[slot]`, micro-batch after micro-batch, and with `train` begins
    /// the backward pass.
    ///
    /// # Errors
    /// What the device says.
    pub fn turn(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        scalars: &View,
        slot: usize,
        mut train: Option<Told<'_>>,
    ) -> Result<()> {
        self.begin(store, Visit::Head, false)?;
        for micro in 0..self.loaded {
            let sweep = Sweep::new(self, micro, self.input(store, self.config.layers, micro)?);
            fabric.device().phase(|| Visit::Head.phase(Pass::Forward));
            sweep.forward(fabric, store)?;
            let losses = &self.acts.head.losses;
            cross_entropy::sum(fabric, losses, self.scale, scalars, slot, micro > 0)?;
            if let Some(told) = &mut train {
                let mut done = Completion { last: micro + 1 == self.loaded, told: &mut **told };
                fabric.device().phase(|| Visit::Head.phase(Pass::Backward));
                sweep.backward(fabric, store, self.scale, &mut done)?;
            }
        }
        Ok(())
    }

    /// The head without targets: the logits of the micro-batches that passed the other visits, a chunk of the vocabulary at
    /// a time, as `take(micro-batch, first id, [rows, ids])`. What is handed out is overwritten by the next chunk, so the
    /// logits of a text never lie on the device whole.
    ///
    /// # Errors
    /// What the device says, and `take`.
    pub fn logits(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        take: &mut dyn FnMut(usize, usize, &Matrix) -> Result<()>,
    ) -> Result<()> {
        self.begin(store, Visit::Head, false)?;
        (0..self.loaded).try_for_each(|micro| {
            let sweep = Sweep::new(self, micro, self.input(store, self.config.layers, micro)?);
            sweep.each_chunk(fabric, store, &mut |first, logits| take(micro, first, logits))
        })
    }

    /// The backward pass of a visit but the head, whose is part of [`Gpt::turn`]; all micro-batches. Afterwards the gradients
    /// of the tensors that the visit owns are complete; `told` is told of each panel as it becomes so.
    ///
    /// # Errors
    /// What the device says, and `told`.
    pub fn backward(&self, fabric: &Fabric, store: &mut Store, visit: Visit, told: Told<'_>) -> Result<()> {
        if visit != Visit::Head {
            self.begin(store, visit, false)?;
            fabric.device().phase(|| visit.phase(Pass::Backward));
        }
        match visit {
            Visit::Embed => (0..self.loaded).try_for_each(|micro| {
                let mut done = Completion { last: micro + 1 == self.loaded, told: &mut *told };
                self.embed_backward(fabric, store, micro, &mut done)
            }),
            Visit::Layer(layer) => (0..self.loaded).try_for_each(|micro| {
                let mut done = Completion { last: micro + 1 == self.loaded, told: &mut *told };
                let block = self.block(layer, micro, self.input(store, layer, micro)?);
                if let (true, Some(before)) = (self.spill != Spill::None, layer.checked_sub(1)) {
                    store.spill_ahead(self.number(before, micro))?;
                }
                if !self.kept {
                    block.forward(fabric, store, None)?;
                }
                block.backward(fabric, store, &self.acts.gradients, &self.acts.d_stream[micro], &mut done)
            }),
            Visit::Head => Ok(()),
        }
    }

    /// Tells the store which tensors come now and next.
    fn begin(&self, store: &mut Store, visit: Visit, forward: bool) -> Result<()> {
        let visits = self.visits();
        let at = visits.iter().position(|v| *v == visit).expect("a visit of this model");
        let next = if forward { visits.get(at + 1) } else { at.checked_sub(1).map(|i| &visits[i]) };
        let tensors = |visit: Visit| match visit {
            Visit::Head => vec![self.table.head.weight, self.table.norm_f.weight],
            _ => self.table.owned(visit).collect::<Vec<_>>(),
        };
        store.begin_visit(&tensors(visit), &next.map_or(Vec::new(), |v| tensors(*v)))
    }

    /// The number under which the input of a layer is spilled.
    fn number(&self, layer: usize, micro: usize) -> usize {
        layer * self.shape.micro_batches + micro
    }

    /// The buffer of a layer's input: its own, or, where they are spilled, one of two that all take turns in.
    fn buffer(&self, layer: usize, micro: usize) -> Matrix {
        match self.spill {
            Spill::None => self.acts.stream[layer][micro].clone(),
            _ => self.acts.stream[layer % 2][0].clone(),
        }
    }

    /// The input of a layer; the last is the head's.
    fn input(&self, store: &mut Store, layer: usize, micro: usize) -> Result<Matrix> {
        let (x, number) = (self.buffer(layer, micro), self.number(layer, micro));
        let mut held = self.held.get();
        if self.spill != Spill::None && held[layer % 2] != Some(number) {
            store.unspill(number, &x)?;
            held[layer % 2] = Some(number);
            self.held.set(held);
        }
        Ok(x)
    }

    /// Lets the input of a layer leave the device, where it is spilled; its buffer still holds it.
    fn leave(&self, store: &mut Store, layer: usize, micro: usize, x: &Matrix) -> Result<()> {
        let mut held = self.held.get();
        held[layer % 2] = Some(self.number(layer, micro));
        self.held.set(held);
        store.spill(self.spill, self.number(layer, micro), x)
    }

    /// Gradients of the residual stream of each micro-batch: what the visits that are still to come need of those before.
    pub fn upstream(&self) -> &[Matrix] {
        &self.acts.d_stream
    }

    fn block(&self, layer: usize, micro: usize, x: Matrix) -> Block<'_> {
        Block {
            config: &self.config,
            shape: &self.shape,
            rows: &self.table.layers[layer],
            kept: self.acts.layer(layer, micro),
            x,
            joins: &self.joins,
            middle: &self.acts.gradients.middle,
            rotary: self.acts.rotary.as_ref(),
            masks: self.masks(layer + 1, micro),
            cache: None,
        }
    }

    /// What is left out of a visit, where something is: visit 0 embeds, visit `i + 1` is layer `i`.
    fn masks(&self, visit: usize, micro: usize) -> Option<Masks> {
        self.key.map(|key| Masks { key, rate: self.config.dropout, visit, micro })
    }

    /// `x = tokens`, and positions where they are learned.
    fn embed(&self, fabric: &Fabric, store: &mut Store, micro: usize, x: &Matrix) -> Result<()> {
        let positions = self.table.positions;
        if let Some(table) = positions {
            embed(fabric, store, table, &self.acts.positions.0.all(), x, false)?;
        }
        embed(fabric, store, self.table.tokens, &self.acts.ids[micro].inputs.all(), x, positions.is_some())?;
        match self.masks(0, micro) {
            Some(masks) => Ok(masks.apply(fabric.device(), Site::Embedding, x)?),
            None => Ok(()),
        }
    }

    fn embed_backward(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        micro: usize,
        done: &mut Completion<'_>,
    ) -> Result<()> {
        let (positions, tokens) = (&self.acts.positions.1, &self.acts.ids[micro].index);
        let dx = &self.acts.d_stream[micro];
        if let Some(masks) = self.masks(0, micro) {
            masks.apply(fabric.device(), Site::Embedding, dx)?;
        }
        if let Some(table) = self.table.positions {
            embed_backward(fabric, store, table, positions, dx, done)?;
        }
        embed_backward(fabric, store, self.table.tokens, tokens, dx, done)
    }
}

/// `out[r] (+)= table[ids[r]]`, panel by panel.
pub(super) fn embed(
    fabric: &Fabric,
    store: &mut Store,
    table: usize,
    ids: &View,
    out: &Matrix,
    accumulate: bool,
) -> Result<()> {
    for panel in store.panels(table) {
        store.begin_operation();
        let rows = store.weight(table, panel)?;
        embedding::forward(fabric.device(), ids, &rows, panel.first_row, out, accumulate)?;
    }
    Ok(())
}

fn embed_backward(
    fabric: &Fabric,
    store: &mut Store,
    table: usize,
    index: &Index,
    dx: &Matrix,
    done: &mut Completion<'_>,
) -> Result<()> {
    for panel in store.panels(table) {
        store.begin_operation();
        let gradient = store.gradient_to_add(table, panel)?;
        let (rows, starts, ids) = (index.rows.all(), index.starts.all(), index.ids.all());
        embedding::backward(fabric.device(), &rows, &starts, &ids, index.count, dx, &gradient, panel.first_row)?;
        done.panel(store, table, panel)?;
    }
    Ok(())
}

fn fill(device: &Device, index: &mut Index, ids: &[u32]) -> Result<()> {
    let found = Occurrences::of(ids);
    device.upload(&index.rows.view(0, found.rows.len()), &found.rows)?;
    device.upload(&index.starts.view(0, found.starts.len()), &found.starts)?;
    device.upload(&index.ids.view(0, found.ids.len()), &found.ids)?;
    index.count = found.ids.len();
    Ok(())
}
