//! One transformer block, forward and backward face to face: `m = x + out(attention(norm_1(x)))`,
//! `y = m + down(activation(up(norm_2(m))))`. It must never know which block of the model it is, beyond its rows of the
//! table.

use super::activations::{Activations, LayerActivations, Shape};
use super::config::Config;
use super::linear::{self, Completion, NormGradient};
use super::table::LayerRows;
use crate::program::attention::{self, Attention};
use crate::program::schedule::Fabric;
use crate::program::{Matrix, activation, residual_add};
use crate::store::{Result, Store};

/// What the passes of a block have in common.
pub struct Block<'a> {
    /// The model.
    pub config: &'a Config,
    /// Sizes.
    pub shape: &'a Shape,
    /// Rows of the table.
    pub rows: &'a LayerRows,
    /// All activations.
    pub all: &'a Activations,
    /// This block's, of this micro-batch.
    pub kept: &'a LayerActivations,
    /// Residual stream before the block.
    pub x: Matrix,
}

impl Block<'_> {
    /// Fills `kept`; with `y`, also adds up the residual stream after the block.
    pub fn forward(&self, fabric: &Fabric, store: &mut Store, y: Option<&Matrix>) -> Result<()> {
        let (rows, kept, eps, device) = (self.rows, self.kept, self.config.norm_eps, fabric.device());
        let joins = &self.all.gradients.narrow;
        linear::norm(fabric, store, rows.norm_1, eps, &self.x, &kept.norm_1.0, &kept.norm_1.1)?;
        linear::forward(fabric, store, rows.qkv, &kept.norm_1.0, &kept.qkv)?;
        let [q, k, v] = self.heads(&kept.qkv);
        attention::forward(fabric, &self.attention(), &q, &k, &v, &kept.attended, &kept.lse)?;
        linear::forward(fabric, store, rows.out, &kept.attended, joins)?;
        residual_add::run(device, &self.x, joins, &kept.middle)?;
        linear::norm(fabric, store, rows.norm_2, eps, &kept.middle, &kept.norm_2.0, &kept.norm_2.1)?;
        linear::forward(fabric, store, rows.up, &kept.norm_2.0, &kept.up)?;
        activation::forward(device, self.config.activation, &kept.up, &kept.activated)?;
        if let Some(y) = y {
            linear::forward(fabric, store, rows.down, &kept.activated, joins)?;
            residual_add::run(device, &kept.middle, joins, y)?;
        }
        Ok(())
    }

    /// Turns `dx`, the gradient after the block, into the gradient before it, and adds to the block's gradients.
    pub fn backward(&self, fabric: &Fabric, store: &mut Store, dx: &Matrix, done: &mut Completion<'_>) -> Result<()> {
        let (rows, kept, g) = (self.rows, self.kept, &self.all.gradients);
        linear::backward_input(fabric, store, rows.down, dx, &g.wide)?;
        linear::backward_weight(fabric, store, rows.down, &kept.activated, dx, done)?;
        // The activation's output has served: its buffer takes the gradient of the activation's input.
        let d_up = &kept.activated;
        activation::backward(fabric.device(), self.config.activation, &kept.up, &g.wide, d_up)?;
        linear::backward_input(fabric, store, rows.up, d_up, &g.narrow)?;
        linear::backward_weight(fabric, store, rows.up, &kept.norm_2.0, d_up, done)?;
        let norm_2 =
            NormGradient { x: &kept.middle, stats: &kept.norm_2.1, dy: &g.narrow, residual: Some(dx), dx: &g.middle };
        linear::norm_backward(fabric, store, rows.norm_2, &norm_2, done)?;
        linear::backward_input(fabric, store, rows.out, &g.middle, &g.narrow)?;
        linear::backward_weight(fabric, store, rows.out, &kept.attended, &g.middle, done)?;
        let [q, k, v] = self.heads(&kept.qkv);
        let [dq, dk, dv] = self.heads(&g.qkv);
        let (out, d_out, shape) = (&kept.attended, &g.narrow, self.attention());
        attention::backward(fabric, &shape, &q, &k, &v, out, &kept.lse, d_out, &g.delta, &dq, &dk, &dv)?;
        linear::backward_input(fabric, store, rows.qkv, &g.qkv, &g.narrow)?;
        linear::backward_weight(fabric, store, rows.qkv, &kept.norm_1.0, &g.qkv, done)?;
        let norm_1 = NormGradient { x: &self.x, stats: &kept.norm_1.1, dy: &g.narrow, residual: Some(&g.middle), dx };
        linear::norm_backward(fabric, store, rows.norm_1, &norm_1, done)
    }

    fn attention(&self) -> Attention {
        attention_shape(self.config, self.shape.batch, 0, self.shape.seq_len, self.shape.seq_len)
    }

    fn heads(&self, qkv: &Matrix) -> [Matrix; 3] {
        let d = self.config.d_model;
        [0, 1, 2].map(|part| qkv.columns(part * d, d))
    }
}

/// Causal attention of `query_len` queries from position `start` on, over keys and values with `key_value_rows` rows a
/// sequence.
pub fn attention_shape(
    config: &Config,
    batch: usize,
    start: usize,
    query_len: usize,
    key_value_rows: usize,
) -> Attention {
    Attention {
        batch,
        query_heads: config.heads,
        key_value_heads: config.heads,
        head_size: config.head_size(),
        query_len,
        key_value_len: start + query_len,
        query_start: start,
        key_value_rows,
        scale: 1.0 / (config.head_size() as f32).sqrt(),
        causal: true,
        window: None,
        dropout: None,
    }
}
