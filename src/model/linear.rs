//! Linear layers and norms over panels: the only place where a model meets the store panel by panel.
//!
//! `y = x W^T + b` with `W` stored `[out, in]`: a panel of rows of `W` gives columns of `y`, takes its part of the
//! contraction in `dx = dy W`, and owns rows of `dW = dy^T x`. Each panel's gradient continues where the micro-batch before
//! left it. It must never know which layer it serves.

use super::config::{Config, Norm};
use super::table::Affine;
use crate::program::matmul::{self, Form, Matmul};
use crate::program::schedule::Fabric;
use crate::program::{Matrix, column_sum, layer_norm, rms_norm};
use crate::store::{Panel, Result, Store};

/// The only panel of a vector.
const VECTOR: Panel = Panel { index: 0, first_row: 0, rows: 1 };

/// Who is told of each panel of a gradient as it becomes complete, while it is still where it was computed.
pub struct Completion<'a> {
    /// Whether this micro-batch is the last one: before it nothing is complete.
    pub last: bool,
    /// Told of tensor and panel.
    pub told: &'a mut dyn FnMut(&mut Store, usize, Panel) -> Result<()>,
}

impl Completion<'_> {
    /// The gradient of a panel is complete, if this micro-batch is the last.
    pub fn panel(&mut self, store: &mut Store, tensor: usize, panel: Panel) -> Result<()> {
        if self.last { (self.told)(store, tensor, panel) } else { Ok(()) }
    }
}

/// `y = x W^T + b`, the outputs of several layers side by side.
pub fn forward(fabric: &Fabric, store: &mut Store, layers: &[Affine], x: &Matrix, y: &Matrix) -> Result<()> {
    for (layer, y) in side_by_side(store, layers, y) {
        for panel in store.panels(layer.weight) {
            store.begin_operation();
            let weight = store.weight(layer.weight, panel)?;
            let bias = bias(store, layer, panel.first_row, panel.rows)?;
            let c = y.columns(panel.first_row, panel.rows);
            let product = Matmul { form: Form::NT, a: x, b: &weight, c: &c, bias: bias.as_ref(), accumulate: false };
            matmul::run(fabric, &product)?;
        }
    }
    Ok(())
}

/// `dx = dy W`, or added to it; the gradients of several layers' outputs lie side by side in `dy`.
pub fn backward_input(
    fabric: &Fabric,
    store: &mut Store,
    layers: &[Affine],
    dy: &Matrix,
    dx: &Matrix,
    mut accumulate: bool,
) -> Result<()> {
    for (layer, dy) in side_by_side(store, layers, dy) {
        for panel in store.panels(layer.weight) {
            store.begin_operation();
            let weight = store.weight(layer.weight, panel)?;
            let a = dy.columns(panel.first_row, panel.rows);
            matmul::run(fabric, &Matmul { form: Form::NN, a: &a, b: &weight, c: dx, bias: None, accumulate })?;
            accumulate = true;
        }
    }
    Ok(())
}

/// `dW += dy^T x`, `db += column sums of dy`; the gradients of several layers' outputs lie side by side in `dy`.
pub fn backward_weight(
    fabric: &Fabric,
    store: &mut Store,
    layers: &[Affine],
    x: &Matrix,
    dy: &Matrix,
    done: &mut Completion<'_>,
) -> Result<()> {
    for (layer, dy) in side_by_side(store, layers, dy) {
        for panel in store.panels(layer.weight) {
            store.begin_operation();
            let (gradient, fresh) = store.gradient(layer.weight, panel)?;
            let a = dy.columns(panel.first_row, panel.rows);
            let product = Matmul { form: Form::TN, a: &a, b: x, c: &gradient, bias: None, accumulate: !fresh };
            matmul::run(fabric, &product)?;
            done.panel(store, layer.weight, panel)?;
        }
        backward_bias(fabric, store, layer, &dy, done)?;
    }
    Ok(())
}

/// A part of the bias of a layer, where it has one.
pub fn bias(store: &mut Store, layer: Affine, first: usize, rows: usize) -> Result<Option<Matrix>> {
    layer.bias.map(|bias| Ok(store.weight(bias, VECTOR)?.columns(first, rows))).transpose()
}

/// Each layer with the columns of its output.
fn side_by_side(store: &Store, layers: &[Affine], y: &Matrix) -> Vec<(Affine, Matrix)> {
    let mut first = 0;
    let part = |layer: &Affine| {
        let cols = store.tensors()[layer.weight].rows;
        first += cols;
        (*layer, y.columns(first - cols, cols))
    };
    let parts = layers.iter().map(part).collect();
    assert_eq!(first, y.cols, "outputs of {layers:?} side by side");
    parts
}

/// Which norm, and its epsilon.
#[derive(Clone, Copy, Debug)]
pub struct Normed {
    /// Which.
    pub norm: Norm,
    /// Added under the root.
    pub eps: f32,
}

impl Normed {
    /// The norm of a model.
    pub fn of(config: &Config) -> Normed {
        Normed { norm: config.norm, eps: config.norm_eps }
    }
}

/// `y = norm(x) * gain + bias`; `stats` keeps what the backward pass needs of each row.
pub fn norm(
    fabric: &Fabric,
    store: &mut Store,
    norm: Affine,
    of: Normed,
    x: &Matrix,
    y: &Matrix,
    stats: &Matrix,
) -> Result<()> {
    store.begin_operation();
    let gain = store.weight(norm.weight, VECTOR)?;
    let bias = norm.bias.map(|bias| store.weight(bias, VECTOR)).transpose()?;
    match of.norm {
        Norm::Layer => layer_norm::forward(fabric, x, &gain, bias.as_ref(), of.eps, y, stats)?,
        Norm::Rms => rms_norm::forward(fabric, x, &gain, 1, of.eps, y, stats)?,
    }
    Ok(())
}

/// `y = norm(x) * gain`, head by head.
pub fn head_norm(
    fabric: &Fabric,
    store: &mut Store,
    gain: usize,
    eps: f32,
    x: &Matrix,
    y: &Matrix,
    stats: &Matrix,
) -> Result<()> {
    store.begin_operation();
    let gain = store.weight(gain, VECTOR)?;
    Ok(rms_norm::forward(fabric, x, &gain, stats.cols, eps, y, stats)?)
}

/// The operands of the backward pass of a norm.
pub struct NormGradient<'a> {
    /// Its input.
    pub x: &'a Matrix,
    /// What its forward pass kept.
    pub stats: &'a Matrix,
    /// Gradient of its output.
    pub dy: &'a Matrix,
    /// Gradient that by-passes it along the residual stream.
    pub residual: Option<&'a Matrix>,
    /// Gradient of its input.
    pub dx: &'a Matrix,
}

/// `dx = norm backward (+ residual)`, gradients of gain and bias added.
pub fn norm_backward(
    fabric: &Fabric,
    store: &mut Store,
    (norm, which): (Affine, Norm),
    g: &NormGradient<'_>,
    done: &mut Completion<'_>,
) -> Result<()> {
    if which == Norm::Rms {
        return head_norm_backward(fabric, store, norm.weight, g, done);
    }
    store.begin_operation();
    let (d_gain, fresh) = store.gradient(norm.weight, VECTOR)?;
    layer_norm::gain_backward(fabric, g.x, g.stats, g.dy, &d_gain, !fresh)?;
    done.panel(store, norm.weight, VECTOR)?;
    backward_bias(fabric, store, norm, g.dy, done)?;
    store.begin_operation();
    let gain = store.weight(norm.weight, VECTOR)?;
    Ok(layer_norm::backward(fabric, g.x, &gain, g.stats, g.dy, g.residual, g.dx)?)
}

/// The same of an RMS norm, head by head: as many heads as there are statistics of a row.
pub fn head_norm_backward(
    fabric: &Fabric,
    store: &mut Store,
    gain: usize,
    g: &NormGradient<'_>,
    done: &mut Completion<'_>,
) -> Result<()> {
    store.begin_operation();
    let heads = g.stats.cols;
    let (d_gain, fresh) = store.gradient(gain, VECTOR)?;
    rms_norm::gain_backward(fabric, g.x, heads, g.stats, g.dy, &d_gain, !fresh)?;
    done.panel(store, gain, VECTOR)?;
    store.begin_operation();
    let gain = store.weight(gain, VECTOR)?;
    Ok(rms_norm::backward(fabric, g.x, &gain, heads, g.stats, g.dy, g.residual, g.dx)?)
}

fn backward_bias(
    fabric: &Fabric,
    store: &mut Store,
    layer: Affine,
    dy: &Matrix,
    done: &mut Completion<'_>,
) -> Result<()> {
    if let Some(bias) = layer.bias {
        store.begin_operation();
        let (gradient, fresh) = store.gradient(bias, VECTOR)?;
        column_sum::run(fabric, dy, &gradient, !fresh)?;
        done.panel(store, bias, VECTOR)?;
    }
    Ok(())
}
