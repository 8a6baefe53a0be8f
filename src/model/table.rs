//! The table of parameters: a row per tensor (name, shape, initial values, owner visit; vectors are not decayed). Initialisation,
//! optimiser, checkpoint and counts derive from it. It must never know where a tensor lives.

use super::config::{Config, Norm, Residual};
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

/// Which way a visit is passed, or that it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// From tokens to the loss.
    Forward,
    /// Back from the loss; what was not kept is computed again in it.
    Backward,
    /// What the visit owns is updated.
    Update,
}

impl Visit {
    /// What a pass of the visit is called in a ledger.
    pub fn phase(self, pass: Pass) -> String {
        let pass = match pass {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
            Pass::Update => "update",
        };
        match self {
            Visit::Embed => format!("embed, {pass}"),
            Visit::Layer(i) => format!("layer {i}, {pass}"),
            Visit::Head => format!("head, {pass}"),
        }
    }
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name in checkpoints: as GPT-2's public ones call it, and in their manner what GPT-2 has not.
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
#[derive(Clone, Debug)]
pub struct LayerRows {
    /// The norm before attention; also before the MLP where they share one.
    pub norm_1: Affine,
    /// Projections to queries, keys and values, whose outputs lie side by side: one, or three.
    pub qkv: Vec<Affine>,
    /// Gains of the norms of queries and of keys, where there are such.
    pub qk_norm: Option<[usize; 2]>,
    /// Output projection of attention.
    pub out: Affine,
    /// The norm before the MLP, where it has its own.
    pub norm_2: Option<Affine>,
    /// Projections into the MLP, whose outputs lie side by side: one, or gate and value.
    pub up: Vec<Affine>,
    /// The projection out of the MLP.
    pub down: Affine,
}

/// The table of a model.
#[derive(Clone, Debug)]
pub struct Table {
    /// All rows.
    pub parameters: Vec<Parameter>,
    /// Token table.
    pub tokens: usize,
    /// Position table, where positions are learned.
    pub positions: Option<usize>,
    /// Rows of each block.
    pub layers: Vec<LayerRows>,
    /// The last norm.
    pub norm_f: Affine,
    /// The head: the token table where they are tied.
    pub head: Affine,
}

impl Table {
    /// The table of a configuration, with GPT-2's initial values: normal with deviation `initializer_range` (theirs is
    /// 0.02), projections into the residual stream scaled by `1 / sqrt(2 layers)`, biases 0, gains 1 (Radford et al. 2019,
    /// section 2.3).
    pub fn new(config: &Config) -> Table {
        let (d, normal) = (config.d_model, Kind::Normal { std: config.initializer_range as f32 });
        let mut rows = Rows { parameters: Vec::new(), config };
        let tokens = rows.matrix("wte.weight".into(), config.vocab_size, d, normal, Visit::Embed);
        let learned = config.rotary.is_none();
        let positions = learned.then(|| rows.matrix("wpe.weight".into(), config.context, d, normal, Visit::Embed));
        let layers = (0..config.layers).map(|i| rows.layer(i)).collect();
        let norm_f = rows.norm("ln_f", d, Visit::Head);
        let head = match config.tied {
            true => Affine { weight: tokens, bias: None },
            false => rows.linear("lm_head", config.vocab_size, d, normal, config.head_bias, Visit::Head),
        };
        Table { parameters: rows.parameters, tokens, positions, layers, norm_f, head }
    }

    /// Number of parameters; a tied head counts once.
    pub fn count(&self) -> u64 {
        self.parameters.iter().map(Parameter::count).sum()
    }

    /// The tensors whose gradient is complete after the backward pass of a visit, in the order of the table.
    pub fn owned(&self, visit: Visit) -> impl Iterator<Item = usize> {
        (0..self.parameters.len()).filter(move |&i| self.parameters[i].owner == visit)
    }
}

struct Rows<'a> {
    parameters: Vec<Parameter>,
    config: &'a Config,
}

impl Rows<'_> {
    /// The rows of block `i`, in the order of its forward pass.
    fn layer(&mut self, i: usize) -> LayerRows {
        let (config, at, name) = (self.config, Visit::Layer(i), |part: &str| format!("h.{i}.{part}"));
        let (d, d_ff, bias) = (config.d_model, config.d_ff(), config.bias);
        let normal = Kind::Normal { std: config.initializer_range as f32 };
        let residual = config.initializer_range / (2.0 * config.layers as f64).sqrt();
        let residual = Kind::Normal { std: residual as f32 };
        let (qkv_bias, out_bias) = (config.qkv_bias.unwrap_or(bias), config.out_bias.unwrap_or(bias));
        let (widths, head_size) = (config.qkv_widths(), config.head_size());
        let norm_1 = self.norm(&name("ln_1"), d, at);
        let qkv: Vec<(&str, usize)> = match config.split_qkv {
            true => ["attn.q", "attn.k", "attn.v"].into_iter().zip(widths).collect(),
            false => vec![("attn.c_attn", widths.iter().sum())],
        };
        let ups: &[&str] = if config.gated { &["mlp.gate", "mlp.c_fc"] } else { &["mlp.c_fc"] };
        LayerRows {
            norm_1,
            qkv: qkv.into_iter().map(|(part, out)| self.linear(&name(part), out, d, normal, qkv_bias, at)).collect(),
            qk_norm: config.qk_norm.then(|| {
                ["attn.q_norm", "attn.k_norm"]
                    .map(|part| self.vector(format!("{}.weight", name(part)), head_size, Kind::One, at))
            }),
            out: self.linear(&name("attn.c_proj"), d, widths[0], residual, out_bias, at),
            norm_2: (config.residual != Residual::Shared).then(|| self.norm(&name("ln_2"), d, at)),
            up: ups.iter().map(|part| self.linear(&name(part), d_ff, d, normal, bias, at)).collect(),
            down: self.linear(&name("mlp.c_proj"), d, d_ff, residual, bias, at),
        }
    }

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

    fn linear(&mut self, name: &str, out: usize, inputs: usize, initial: Kind, bias: bool, owner: Visit) -> Affine {
        let weight = self.matrix(format!("{name}.weight"), out, inputs, initial, owner);
        Affine { weight, bias: bias.then(|| self.vector(format!("{name}.bias"), out, Kind::Zero, owner)) }
    }

    fn norm(&mut self, name: &str, d: usize, owner: Visit) -> Affine {
        let weight = self.vector(format!("{name}.weight"), d, Kind::One, owner);
        let bias = self.config.bias && self.config.norm == Norm::Layer;
        Affine { weight, bias: bias.then(|| self.vector(format!("{name}.bias"), d, Kind::Zero, owner)) }
    }
}
