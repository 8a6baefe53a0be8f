//! One transformer block, forward and backward face to face: attention and MLP, each behind a norm, one after the other or
//! side by side on the residual stream. It must never know which block of the model it is, beyond its rows of the table.

use super::activations::{Gradients, LayerActivations, Shape};
use super::config::{Config, Residual};
use super::linear::{self, Completion, NormGradient, Normed};
use super::masks::{Masks, Site};
use super::table::LayerRows;
use crate::device::Transfer;
use crate::program::attention::{self, Attention};
use crate::program::rotary::{self, Rotary};
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
    /// This block's activations, of this micro-batch.
    pub kept: &'a LayerActivations,
    /// Residual stream before the block.
    pub x: Matrix,
    /// What joins the residual stream, before it does.
    pub joins: &'a Matrix,
    /// Residual stream after attention, where the block keeps none.
    pub middle: &'a Matrix,
    /// Cosines and sines by position.
    pub rotary: Option<&'a Matrix>,
    /// What is left out, where something is.
    pub masks: Option<Masks>,
    /// Keys and values that queries see beside their own, and how many.
    pub cache: Option<(&'a [Matrix; 2], usize)>,
}

impl Block<'_> {
    /// Fills `kept`; with `y`, also adds up the residual stream after the block.
    pub fn forward(&self, fabric: &Fabric, store: &mut Store, y: Option<&Matrix>) -> Result<()> {
        let (rows, kept, device, normed) = (self.rows, self.kept, fabric.device(), Normed::of(self.config));
        linear::norm(fabric, store, rows.norm_1, normed, &self.x, &kept.norm_1.0, &kept.norm_1.1)?;
        self.attend(fabric, store)?;
        let middle = kept.middle.as_ref().unwrap_or(self.middle);
        // Side by side, the MLP does not wait for the sum.
        let serial = self.config.residual == Residual::Serial;
        if serial || y.is_some() {
            linear::forward(fabric, store, &[rows.out], &kept.attended, self.joins)?;
            self.leave_out(fabric, Site::Attention, self.joins)?;
            residual_add::run(device, &self.x, self.joins, middle)?;
        }
        let input = match (&rows.norm_2, &kept.norm_2) {
            (Some(norm), Some((normal, stats))) => {
                let x = if serial { middle } else { &self.x };
                linear::norm(fabric, store, *norm, normed, x, normal, stats)?;
                normal
            }
            _ => &kept.norm_1.0,
        };
        linear::forward(fabric, store, &rows.up, input, &kept.up)?;
        match self.config.gated {
            true => activation::gated_forward(device, self.config.activation, &kept.up, &kept.activated)?,
            false => activation::forward(device, self.config.activation, &kept.up, &kept.activated)?,
        }
        if let Some(y) = y {
            linear::forward(fabric, store, &[rows.down], &kept.activated, self.joins)?;
            self.leave_out(fabric, Site::Mlp, self.joins)?;
            residual_add::run(device, middle, self.joins, y)?;
        }
        Ok(())
    }

    /// Queries, keys and values, and what attention makes of them.
    fn attend(&self, fabric: &Fabric, store: &mut Store) -> Result<()> {
        let (kept, device) = (self.kept, fabric.device());
        linear::forward(fabric, store, &self.rows.qkv, &kept.norm_1.0, &kept.qkv)?;
        let [q, k, v] = self.heads(&kept.qkv);
        let mut turned = self.turned(&kept.qkv);
        if let (Some(gains), Some(normal)) = (self.rows.qk_norm, &kept.qk_norm) {
            turned = normal.turned.clone();
            let [normal_q, normal_k] = self.queries_and_keys(&turned);
            let eps = self.config.norm_eps;
            linear::head_norm(fabric, store, gains[0], eps, &q, &normal_q, &normal.query_stats)?;
            linear::head_norm(fabric, store, gains[1], eps, &k, &normal_k, &normal.key_stats)?;
        }
        if let Some(table) = self.rotary {
            rotary::run(device, &self.rotation(), table, &turned, false)?;
        }
        let [q, k] = self.queries_and_keys(&turned);
        let (mut keys, mut values) = (k, v);
        if let Some((cache, start)) = self.cache {
            for (own, cache) in [(&keys, &cache[0]), (&values, &cache[1])] {
                device.copy(&rows_into(own, cache, start))?;
            }
            (keys, values) = (cache[0].clone(), cache[1].clone());
        }
        Ok(attention::forward(fabric, &self.attention(), &q, &keys, &values, &kept.attended, &kept.lse)?)
    }

    /// Turns `dx`, the gradient after the block, into the gradient before it, and adds to the block's gradients.
    pub fn backward(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        g: &Gradients,
        dx: &Matrix,
        done: &mut Completion<'_>,
    ) -> Result<()> {
        let (rows, kept, device, norm) = (self.rows, self.kept, fabric.device(), self.config.norm);
        let narrow = g.narrow(self.config.d_model);
        let joined = self.left_out(fabric, Site::Mlp, dx, g)?;
        linear::backward_input(fabric, store, &[rows.down], &joined, &g.wide, false)?;
        linear::backward_weight(fabric, store, &[rows.down], &kept.activated, &joined, done)?;
        // The nonlinearity's output has served: where it is as wide, its buffer takes the gradient of the input.
        let d_up = g.up.as_ref().unwrap_or(&kept.activated);
        match self.config.gated {
            true => activation::gated_backward(device, self.config.activation, &kept.up, &g.wide, d_up)?,
            false => activation::backward(device, self.config.activation, &kept.up, &g.wide, d_up)?,
        }
        // The gradient of the norm's output; of a norm that attention shares, its part will be added.
        let d_normal = if rows.norm_2.is_some() { &narrow } else { &g.middle };
        linear::backward_input(fabric, store, &rows.up, d_up, d_normal, false)?;
        let input = kept.norm_2.as_ref().map_or(&kept.norm_1.0, |(normal, _)| normal);
        linear::backward_weight(fabric, store, &rows.up, input, d_up, done)?;
        if let (Some(norm_2), Some((_, stats))) = (rows.norm_2, &kept.norm_2) {
            let x = kept.middle.as_ref().unwrap_or(&self.x);
            let gradient = NormGradient { x, stats, dy: &narrow, residual: Some(dx), dx: &g.middle };
            linear::norm_backward(fabric, store, (norm_2, norm), &gradient, done)?;
        }
        let after = if self.config.residual == Residual::Serial { &g.middle } else { dx };
        self.attend_backward(fabric, store, g, after, done)?;
        let (dy, residual) = match rows.norm_2 {
            Some(_) => {
                linear::backward_input(fabric, store, &rows.qkv, &g.qkv, &narrow, false)?;
                (&narrow, &g.middle)
            }
            None => {
                linear::backward_input(fabric, store, &rows.qkv, &g.qkv, &g.middle, true)?;
                // What is read and what is written may not be one buffer.
                device.copy(&rows_into(dx, &narrow, 0))?;
                (&g.middle, &narrow)
            }
        };
        linear::backward_weight(fabric, store, &rows.qkv, &kept.norm_1.0, &g.qkv, done)?;
        let gradient = NormGradient { x: &self.x, stats: &kept.norm_1.1, dy, residual: Some(residual), dx };
        linear::norm_backward(fabric, store, (rows.norm_1, norm), &gradient, done)
    }

    /// From the gradient of what joined the residual stream to that of queries, keys and values, in `g.qkv`.
    fn attend_backward(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        g: &Gradients,
        dy: &Matrix,
        done: &mut Completion<'_>,
    ) -> Result<()> {
        let (rows, kept) = (self.rows, self.kept);
        let d_out = g.narrow(kept.attended.cols);
        let joined = self.left_out(fabric, Site::Attention, dy, g)?;
        linear::backward_input(fabric, store, &[rows.out], &joined, &d_out, false)?;
        linear::backward_weight(fabric, store, &[rows.out], &kept.attended, &joined, done)?;
        let normal = kept.qk_norm.as_ref();
        let [q, k] = self.queries_and_keys(normal.map_or(&kept.qkv, |normal| &normal.turned));
        let [raw_q, raw_k, v] = self.heads(&kept.qkv);
        // Attention wants those of keys and values in one matrix: before the norms they pass through where they will lie.
        let [dq, dk, dv] = self.heads(&g.qkv);
        let (out, shape) = (&kept.attended, self.attention());
        attention::backward(fabric, &shape, &q, &k, &v, out, &kept.lse, &d_out, &g.delta, &dq, &dk, &dv)?;
        let turned = self.turned(&g.qkv);
        if let Some(table) = self.rotary {
            rotary::run(fabric.device(), &self.rotation(), table, &turned, true)?;
        }
        if let (Some(gains), Some(normal), Some(d_normal)) = (rows.qk_norm, normal, &g.turned) {
            fabric.device().copy(&rows_into(&turned, d_normal, 0))?;
            let [d_normal_q, d_normal_k] = self.queries_and_keys(d_normal);
            let query =
                NormGradient { x: &raw_q, stats: &normal.query_stats, dy: &d_normal_q, residual: None, dx: &dq };
            linear::head_norm_backward(fabric, store, gains[0], &query, done)?;
            let key = NormGradient { x: &raw_k, stats: &normal.key_stats, dy: &d_normal_k, residual: None, dx: &dk };
            linear::head_norm_backward(fabric, store, gains[1], &key, done)?;
        }
        Ok(())
    }

    /// Leaves out a part of what will join the residual stream.
    fn leave_out(&self, fabric: &Fabric, site: Site, joins: &Matrix) -> Result<()> {
        Ok(self.masks.map_or(Ok(()), |masks| masks.apply(fabric.device(), site, joins))?)
    }

    /// The gradient of what joined the residual stream, before a part of it was left out: `dy` where none was.
    fn left_out(&self, fabric: &Fabric, site: Site, dy: &Matrix, g: &Gradients) -> Result<Matrix> {
        let (Some(masks), Some(joined)) = (&self.masks, &g.joined) else { return Ok(dy.clone()) };
        fabric.device().copy(&rows_into(dy, joined, 0))?;
        masks.apply(fabric.device(), site, joined)?;
        Ok(joined.clone())
    }

    fn attention(&self) -> Attention {
        let (batch, query_len, config) = (self.shape.batch, self.shape.seq_len, self.config);
        let (start, key_value_rows) = self.cache.map_or((0, query_len), |(cache, start)| (start, cache[0].rows));
        Attention {
            batch,
            query_heads: config.heads,
            key_value_heads: config.key_value_heads(),
            head_size: config.head_size(),
            query_len,
            key_value_len: start + query_len,
            query_start: start,
            key_value_rows,
            scale: 1.0 / (config.head_size() as f32).sqrt(),
            causal: true,
            window: config.window,
            dropout: self.masks.as_ref().map(Masks::of_attention),
        }
    }

    fn rotation(&self) -> Rotary {
        let rotation = self.config.rotary.as_ref().expect("a table is of a model with rotary positions");
        Rotary {
            heads: self.config.heads + self.config.key_value_heads(),
            head_size: self.config.head_size(),
            dims: self.config.rotary_dims(),
            layout: rotation.layout,
            seq_len: self.shape.seq_len,
            start: self.cache.map_or(0, |(_, start)| start),
        }
    }

    /// Queries, keys and values of the matrix in which they lie side by side.
    fn heads(&self, qkv: &Matrix) -> [Matrix; 3] {
        let [q, k, v] = self.config.qkv_widths();
        [qkv.columns(0, q), qkv.columns(q, k), qkv.columns(q + k, v)]
    }

    /// Queries and keys of the matrix in which they lie first.
    fn queries_and_keys(&self, turned: &Matrix) -> [Matrix; 2] {
        let [q, k, _] = self.config.qkv_widths();
        [turned.columns(0, q), turned.columns(q, k)]
    }

    /// The columns that rotary positions turn: queries and keys.
    fn turned(&self, qkv: &Matrix) -> Matrix {
        let [q, k, _] = self.config.qkv_widths();
        qkv.columns(0, q + k)
    }
}

/// The copy of all rows of `from` to rows `start ..` of `to`.
fn rows_into(from: &Matrix, to: &Matrix, start: usize) -> Transfer {
    Transfer {
        source: from.view.buffer.clone(),
        source_offset: from.view.offset + from.offset,
        source_stride: from.stride,
        target: to.view.buffer.clone(),
        target_offset: to.view.offset + to.offset + start * to.stride,
        target_stride: to.stride,
        rows: from.rows,
        cols: from.cols,
    }
}
