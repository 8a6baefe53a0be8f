//! How far an f32 result of each kernel of the cross-entropy may lie from the exact one, from the operation alone.

use super::super::EPS;
use super::{BackwardParams, FinishParams, ForwardParams, NONE, STATE_STRIDE, SumParams};
use crate::device::Args;

/// The columns of the chunk, row by row, of a buffer of logits.
fn rows_of(logits: &[f64], offset: u32, row_quads: u32, cols: u32) -> impl Iterator<Item = &[f64]> {
    logits[4 * offset as usize..].chunks(4 * row_quads as usize).map(move |row| &row[..cols as usize])
}

/// What a chunk of logits does to a row's state: `(maximum, sum)` of the chunk and of what came before.
fn take_in(row: &[f64], before: Option<(f64, f64)>) -> (f64, f64) {
    if row.iter().any(|x| !x.is_finite()) {
        return (0.0, f64::NAN);
    }
    let m = row.iter().copied().fold(before.map_or(NONE, |b| b.0), f64::max);
    let start = before.map_or(0.0, |(m0, s0)| s0 * (m0 - m).exp());
    (m, row.iter().fold(start, |s, &x| s + (x - m).exp()))
}

/// Relative error of `exp(d)` for a rounded difference `d`: WGSL grants `3 + 2|d|` ulp, two roundings each, and the
/// rounding of the difference itself counts `|d|`.
fn exp_error(d: f64) -> f64 {
    EPS * (7.0 + 5.0 * d.abs())
}

/// Absolute error of `log(s)` in WGSL: 3 ulp, but 2^-21 between 0.5 and 2.
fn log_error(s: f64) -> f64 {
    if (0.5..=2.0).contains(&s) { 8.0 * EPS } else { 6.0 * EPS * s.ln().abs() }
}

pub(super) fn forward(args: &mut Args<'_, f64>) {
    let p: ForwardParams = args.params();
    let rows = rows_of(args.read(0), p.offset, p.row_quads, p.cols);
    let state = args.write(2)[p.state_offset as usize..].chunks_mut(STATE_STRIDE).take(args.groups as usize);
    for (state, row) in state.zip(rows) {
        let before = (p.first == 0).then(|| (state[0], state[1]));
        let (m, s) = take_in(row, before);
        let kept = before.map_or(0.0, |(m0, s0)| s0 * (m0 - m).exp() * (exp_error(m0 - m) + EPS));
        let terms: f64 = row.iter().map(|x| (x - m).exp() * exp_error(x - m)).sum();
        state.fill(0.0);
        state[1] = kept + terms + row.len() as f64 * EPS * s;
    }
}

pub(super) fn finish(args: &mut Args<'_, f64>) {
    let p: FinishParams = args.params();
    let state = args.write(1)[p.state_offset as usize..].chunks_mut(STATE_STRIDE);
    let losses = &mut args.write(2)[p.losses_offset as usize..][..p.rows as usize];
    for (state, loss) in state.zip(losses) {
        let (m, s, t) = (state[0], state[1], state[2]);
        *loss = log_error(s) + EPS * (m - t).abs();
        state.fill(0.0);
        state[0] = log_error(s);
    }
}

pub(super) fn sum(args: &mut Args<'_, f64>) {
    let p: SumParams = args.params();
    let losses = &args.read(0)[p.losses_offset as usize..][..p.rows as usize];
    let total: f64 = losses.iter().map(|x| x.abs()).sum::<f64>() * f64::from(p.scale.abs());
    let scalars = args.write(1);
    scalars.fill(0.0);
    scalars[p.slot as usize] = (p.rows + 1) as f64 * EPS * total;
}

pub(super) fn backward(args: &mut Args<'_, f64>) {
    let p: BackwardParams = args.params();
    let state = args.read(1)[p.state_offset as usize..].chunks(STATE_STRIDE);
    let rows = args.write(2)[4 * p.offset as usize..].chunks_mut(4 * p.row_quads as usize).take(args.groups as usize);
    for (row, state) in rows.zip(state) {
        for x in row {
            let softmax = (*x - state[0]).exp();
            *x = f64::from(p.scale.abs()) * (softmax * exp_error(*x - state[0]) + EPS * (1.0 + softmax));
        }
    }
}
