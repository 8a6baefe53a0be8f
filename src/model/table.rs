//! The table of parameters: a row per tensor (name, shape, initial values, owner visit; vectors are not decayed). Initialisation,
//! optimiser, checkpoint and counts derive from it. It must never know where a tensor lives.

use super::config::Config;
use crate::program::initial::Kind;

/// One visit of the model: what passes over the wafer at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Visit {
    /// Token and position tables.
    Embed,
    /// Block `i`.
    Layer(usize),
    /// Last norm, head and loss.
    Head,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name in checkpoints, as GPT-2's public checkpoints call it.
    pub name: String,
    /// Rows: outputs of a linear layer, ids of a table, 1 for a vector.
    pub rows: usize,
    /// Columns: inputs of a linear layer, width of a table or vector.
    pub cols: usize,
    /// True for a tensor of one dimension: gains and biases, which are never decayed.
    pub vector: bool,
    /// Initial values.
    pub initial: Kind,
    /// The visit whose backward pass completes its gradient: its first visit in the forward order.
    pub owner: Visit,
}

impl Parameter {
    /// Number of parameters.
    pub fn count(&self) -> u64 {
        self.rows as u64 * self.cols as u64
    }
}

/// A linear layer or a norm: rows of its weight (or gain) and of its bias, where it has one.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// Weight `[out, in]`, or gain.
    pub weight: usize,
    /// Bias.
    pub bias: Option<usize>,
}

/// Rows of the table for one block.
#[derive(Clone, Copy, Debug)]
pub struct LayerRows {
    /// The norm before attention.
    pub norm_1: Affine,
    /// Query, key and value projections in one: `[3 d, d]`.
    pub qkv: Affine,
    /// Output projection of attention: `[d, d]`.
    pub out: Affine,
    /// The norm before the MLP.
    pub norm_2: Affine,
    /// First linear layer of the MLP: `[4 d, d]`.
    pub up: Affine,
    /// Second linear layer of the MLP: `[d, 4 d]`.
    pub down: Affine,
}

/// The table of a model.
#[derive(Clone, Debug)]
pub struct Table {
    /// All rows.
    pub parameters: Vec<Parameter>,
    /// Token table, also the head.
    pub tokens: usize,
    /// Position table.
    pub positions: usize,
    /// Rows of each block.
    pub layers: Vec<LayerRows>,
    /// The last norm.
    pub norm_f: Affine,
}

impl Table {
    /// The table of a configuration, with GPT-2's initial values: normal with deviation `initializer_range` (theirs is
    /// 0.02), projections into the residual stream scaled by `1 / sqrt(2 layers)`, biases 0, gains 1 (Radford et al. 2019,
    /// section 2.3).
    pub fn new(config: &Config) -> Table {
        let (d, normal) = (config.d_model, Kind::Normal { std: config.initializer_range as f32 });
        let residual = config.initializer_range / (2.0 * config.layers as f64).sqrt();
        let residual = Kind::Normal { std: residual as f32 };
        let mut rows = Rows { parameters: Vec::new(), bias: config.bias };
        let tokens = rows.matrix("wte.weight".into(), config.vocab_size, d, normal, Visit::Embed);
        let positions = rows.matrix("wpe.weight".into(), config.context, d, normal, Visit::Embed);
        let layers = (0..config.layers)
            .map(|i| {
                let (at, name) = (Visit::Layer(i), |part: &str| format!("h.{i}.{part}"));
                LayerRows {
                    norm_1: rows.norm(&name("ln_1"), d, at),
                    qkv: rows.linear(&name("attn.c_attn"), 3 * d, d, normal, at),
                    out: rows.linear(&name("attn.c_proj"), d, d, residual, at),
                    norm_2: rows.norm(&name("ln_2"), d, at),
                    up: rows.linear(&name("mlp.c_fc"), 4 * d, d, normal, at),
                    down: rows.linear(&name("mlp.c_proj"), d, 4 * d, residual, at),
                }
            })
            .collect();
        let norm_f = rows.norm("ln_f", d, Visit::Head);
        Table { parameters: rows.parameters, tokens, positions, layers, norm_f }
    }

    /// Number of parameters; the tied head counts once.
    pub fn count(&self) -> u64 {
        self.parameters.iter().map(Parameter::count).sum()
    }

    /// The tensors whose gradient is complete after the backward pass of a visit, in the order of the table.
    pub fn owned(&self, visit: Visit) -> impl Iterator<Item = usize> {
        (0..self.parameters.len()).filter(move |&i| self.parameters[i].owner == visit)
    }
}

struct Rows {
    parameters: Vec<Parameter>,
    bias: bool,
}

impl Rows {
    fn push(&mut self, parameter: Parameter) -> usize {
        self.parameters.push(parameter);
        self.parameters.len() - 1
    }

    fn matrix(&mut self, name: String, rows: usize, cols: usize, initial: Kind, owner: Visit) -> usize {
        self.push(Parameter { name, rows, cols, vector: false, initial, owner })
    }

    fn vector(&mut self, name: String, cols: usize, initial: Kind, owner: Visit) -> usize {
        self.push(Parameter { name, rows: 1, cols, vector: true, initial, owner })
    }

    fn linear(&mut self, name: &str, out: usize, inputs: usize, initial: Kind, owner: Visit) -> Affine {
        let weight = self.matrix(format!("{name}.weight"), out, inputs, initial, owner);
        Affine { weight, bias: self.bias.then(|| self.vector(format!("{name}.bias"), out, Kind::Zero, owner)) }
    }

    fn norm(&mut self, name: &str, d: usize, owner: Visit) -> Affine {
        let weight = self.vector(format!("{name}.weight"), d, Kind::One, owner);
        Affine { weight, bias: self.bias.then(|| self.vector(format!("{name}.bias"), d, Kind::Zero, owner)) }
    }
}
