//! The stepwise programs and the relays, each with operands of its own, played on whatever fabric is given: several blocks each
//! way, several steps, odd edges. It must never know which schedule plays it.

use super::schedules::Play;
use crate::device::{Device, Elem, Result};
use crate::program::attention::{self, Attention};
use crate::program::cross_entropy::{self, BLOCK_COLS, BLOCK_ROWS, IGNORE};
use crate::program::grad_norm::{self, BLOCK_SLOTS, SCALARS, SLOT_FLOATS, Slots};
use crate::program::matmul::{self, Form, Matmul};
use crate::program::schedule::Fabric;
use crate::program::{Fill, Matrix, column_sum, layer_norm, rms_norm};

/// Every stepwise program and every relay with a play of it.
pub fn plays() -> Vec<(&'static str, Play<'static>)> {
    vec![
        ("matmul_nt", &|fabric| Ok(product(fabric, Form::NT)?)),
        ("matmul_nn", &|fabric| Ok(product(fabric, Form::NN)?)),
        ("matmul_tn", &|fabric| Ok(product(fabric, Form::TN)?)),
        ("attention_forward", &|fabric| Ok(attend(fabric)?.0)),
        ("attention_backward", &|fabric| Ok(attend(fabric)?.1)),
        ("cross_entropy_forward", &|fabric| Ok(entropy(fabric)?.0)),
        ("cross_entropy_backward", &|fabric| Ok(entropy(fabric)?.1)),
        ("cross_entropy_sum", &|fabric| Ok(loss(fabric)?)),
        ("column_sum", &|fabric| Ok(columns(fabric)?)),
        ("grad_norm_finish", &|fabric| Ok(norm(fabric)?)),
        ("layer_norm_forward", &|fabric| Ok(layer_norms(fabric)?.0)),
        ("layer_norm_backward", &|fabric| Ok(layer_norms(fabric)?.1)),
        ("layer_norm_gain_backward", &|fabric| Ok(layer_norms(fabric)?.2)),
        ("rms_norm_forward", &|fabric| Ok(rms_norms(fabric)?.0)),
        ("rms_norm_backward", &|fabric| Ok(rms_norms(fabric)?.1)),
        ("rms_norm_gain_backward", &|fabric| Ok(rms_norms(fabric)?.2)),
    ]
}

/// A product of 3 x 2 blocks and 3 steps, none of the last ones whole, onto a C that holds something, with a bias row.
fn product(fabric: &Fabric, form: Form) -> Result<Vec<f32>> {
    let device = fabric.device();
    let variant = form.program().kernel.variant(device.class());
    let size = |name| variant.get(name) as usize;
    let (m, n, k) = (2 * size("TM") + 5, size("TN") + 11, 2 * size("KB") + 3);
    let (a, b) = match form {
        Form::NT => ((m, k), (n, k)),
        Form::NN => ((m, k), (k, n)),
        Form::TN => ((k, m), (k, n)),
    };
    let (a, b) = (filled(device, 1, a.0, a.1)?, filled(device, 2, b.0, b.1)?);
    let (c, bias) = (filled(device, 3, m, n)?, filled(device, 4, 1, n)?);
    matmul::run(fabric, &Matmul { form, a: &a, b: &b, c: &c, bias: Some(&bias), accumulate: true })?;
    c.download(device)
}

/// Causal attention with grouped heads: every output of the forward pass, and every one of the backward pass after it.
fn attend(fabric: &Fabric) -> Result<(Vec<f32>, Vec<f32>)> {
    let shape = Attention {
        batch: 2,
        query_heads: 4,
        key_value_heads: 2,
        head_size: 24,
        query_len: 77,
        key_value_len: 77,
        query_start: 0,
        key_value_rows: 77,
        scale: 0.2,
        causal: true,
        window: None,
        dropout: None,
    };
    let device = fabric.device();
    let rows = shape.batch * shape.query_len;
    let (wide, narrow) = (shape.query_heads * shape.head_size, shape.key_value_heads * shape.head_size);
    let (q, d_out) = (filled(device, 5, rows, wide)?, filled(device, 6, rows, wide)?);
    let (k, v) = (filled(device, 7, rows, narrow)?, filled(device, 8, rows, narrow)?);
    let (out, dq) = (Matrix::new(device, "out", rows, wide)?, Matrix::new(device, "dq", rows, wide)?);
    let scalars = |name| Matrix::new(device, name, shape.batch * shape.query_heads, shape.query_len);
    let (lse, delta) = (scalars("lse")?, scalars("delta")?);
    let both = Matrix::new(device, "dk and dv", rows, 2 * narrow)?;
    let (dk, dv) = (both.columns(0, narrow), both.columns(narrow, narrow));
    attention::forward(fabric, &shape, &q, &k, &v, &out, &lse)?;
    attention::backward(fabric, &shape, &q, &k, &v, &out, &lse, &d_out, &delta, &dq, &dk, &dv)?;
    let outputs = |matrices: &[&Matrix]| -> Result<Vec<f32>> {
        Ok(matrices.iter().map(|matrix| matrix.download(device)).collect::<Result<Vec<_>>>()?.concat())
    };
    Ok((outputs(&[&out, &lse])?, outputs(&[&delta, &dq, &both])?))
}

/// Two chunks of a vocabulary, targets in both and one left out: the state after both, and the gradients.
fn entropy(fabric: &Fabric) -> Result<(Vec<f32>, Vec<f32>)> {
    let device = fabric.device();
    let (wide, narrow) = (2 * BLOCK_COLS + 37, BLOCK_COLS + 6);
    let ids = [0, wide as u32 - 1, IGNORE, wide as u32, (wide + narrow) as u32 - 1, 300];
    let targets = device.buffer("targets", Elem::U32, ids.len())?.all();
    device.upload(&targets, &ids)?;
    let chunks = [(0, filled(device, 9, ids.len(), wide)?), (wide, filled(device, 10, ids.len(), narrow)?)];
    let (state, losses) = (Matrix::new(device, "state", ids.len(), 3)?, Matrix::new(device, "losses", 1, ids.len())?);
    for (first, logits) in &chunks {
        cross_entropy::forward(fabric, logits, &targets, *first, &state, *first == 0)?;
    }
    let forward = state.download(device)?;
    cross_entropy::finish(device, &targets, &state, &losses)?;
    let mut gradients = Vec::new();
    for (first, logits) in &chunks {
        cross_entropy::backward(fabric, logits, &targets, &state, *first, 0.3)?;
        gradients.extend(logits.download(device)?);
    }
    Ok((forward, gradients))
}

/// The sum of some blocks of losses, added to what was there.
fn loss(fabric: &Fabric) -> Result<Vec<f32>> {
    let device = fabric.device();
    let (losses, scalars) = (filled(device, 11, 1, 3 * BLOCK_ROWS + 5)?, filled(device, 12, 1, 8)?);
    cross_entropy::sum(fabric, &losses, 0.25, &scalars.view, 2, true)?;
    scalars.download(device)
}

/// Column sums of several lines of several blocks, added to what was there.
fn columns(fabric: &Fabric) -> Result<Vec<f32>> {
    let device = fabric.device();
    let (dy, sum) = (filled(device, 13, 300, 84)?, filled(device, 14, 1, 84)?);
    column_sum::run(fabric, &dy, &sum, true)?;
    sum.download(device)
}

/// The scalars of a step whose slots are some blocks and a part of one.
fn norm(fabric: &Fabric) -> Result<Vec<f32>> {
    let device = fabric.device();
    let slots = 5 * BLOCK_SLOTS + 9;
    let partials = device.buffer("partials", Elem::F32, slots * SLOT_FLOATS)?.all();
    let floats: Vec<f32> = (0..slots).flat_map(|i| [0.01 + (i % 97) as f32 / 7.0, (i % 50 / 49) as f32]).collect();
    device.upload(&partials, &floats)?;
    let scalars = device.buffer("scalars", Elem::F32, SCALARS)?.all();
    let slots = Slots { first: 0, norm: slots - 70, finite: slots };
    grad_norm::finish(fabric, &partials, slots, 1.0, &scalars)?;
    device.download(&scalars)
}

/// Rows of layer norm of several lines and blocks, with a bias and a gradient that by-passes them: what the forward pass
/// leaves, the gradient of the rows, and that of the gain, added to what was there.
fn layer_norms(fabric: &Fabric) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
    let device = fabric.device();
    let (rows, cols) = (150, 300);
    let [x, dy, y, dx] = [15, 16, 17, 18].map(|seed| filled(device, seed, rows, cols));
    let [gain, bias, dgain] = [19, 20, 21].map(|seed| filled(device, seed, 1, cols));
    let (x, dy, y, dx, gain, bias, dgain) = (x?, dy?, y?, dx?, gain?, bias?, dgain?);
    let stats = Matrix::new(device, "stats", rows, 2)?;
    layer_norm::forward(fabric, &x, &gain, Some(&bias), 1e-5, &y, &stats)?;
    layer_norm::backward(fabric, &x, &gain, &stats, &dy, Some(&y), &dx)?;
    layer_norm::gain_backward(fabric, &x, &stats, &dy, &dgain, true)?;
    let forward = [y.download(device)?, stats.download(device)?].concat();
    Ok((forward, dx.download(device)?, dgain.download(device)?))
}

/// The same of RMS norm: of whole rows, then of rows of three parts.
fn rms_norms(fabric: &Fabric) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
    let device = fabric.device();
    let (rows, cols) = (150, 300);
    let mut all = (Vec::new(), Vec::new(), Vec::new());
    for parts in [1, 3] {
        let [x, dy, y, dx] = [22, 23, 24, 25].map(|seed| filled(device, seed, rows, cols));
        let [gain, dgain] = [26, 27].map(|seed| filled(device, seed, 1, cols / parts));
        let (x, dy, y, dx, gain, dgain) = (x?, dy?, y?, dx?, gain?, dgain?);
        let stats = Matrix::new(device, "stats", rows, parts)?;
        rms_norm::forward(fabric, &x, &gain, parts, 1e-5, &y, &stats)?;
        rms_norm::backward(fabric, &x, &gain, parts, &stats, &dy, Some(&y), &dx)?;
        rms_norm::gain_backward(fabric, &x, parts, &stats, &dy, &dgain, true)?;
        all.0.extend([y.download(device)?, stats.download(device)?].concat());
        all.1.extend(dx.download(device)?);
        all.2.extend(dgain.download(device)?);
    }
    Ok(all)
}

fn filled(device: &Device, seed: u64, rows: usize, cols: usize) -> Result<Matrix> {
    let matrix = Matrix::new(device, "operand", rows, cols)?;
    device.upload(&matrix.view, &Fill::matrix(rows, cols).words(seed))?;
    Ok(matrix)
}
