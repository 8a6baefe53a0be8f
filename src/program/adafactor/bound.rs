//! How far Adafactor's results at f32 may lie from the oracle: roundings counted formula by formula. WGSL's `sqrt` is a
//! division (2.5 ulp) by an inverse root (2 ulp), nine roundings; a division is five, an inverse root four.

use super::super::EPS;
use super::super::grad_norm::{CLIP_SCALE, NON_FINITE};
use super::reference::{panel, update};
use super::{
    ColumnsParams, FactorParams, FinishParams, INVERSE_MEAN, PassParams, SLOT_ROWS, STEP_SIZE, SumsParams, UPDATE_SIZE,
    WEIGHT_SIZE,
};
use crate::device::Args;

/// Relative error of a square of a clipped gradient: its factors are rounded once each, and so is their product.
const SQUARE: f64 = 3.0 * EPS;
/// Of an element of the update: the clipped gradient 1, the variance's two products 2, halved by a root of nine, a
/// division of five (or an inverse root of four and a product).
const UPDATE: f64 = (1.0 + 1.0 + 9.0 + 5.0) * EPS;

/// All terms are squares: each addition rounds at most the sum.
pub(super) fn sums(args: &mut Args<'_, f64>) {
    let p: SumsParams = args.params();
    let (gradient, clip) = (args.read(0), args.read(1)[CLIP_SCALE]);
    let (row_sums, partials) = (args.write(2), args.write(3));
    let stride = 4 * p.row_quads as usize;
    for (r, row) in panel(gradient, p.gradient_offset, p.rows, p.row_quads).enumerate() {
        let sum: f64 = row.iter().map(|g| (g * clip).powi(2)).sum();
        row_sums[p.first_row as usize + r] = (SQUARE + stride as f64 * EPS) * sum;
        let columns = &mut partials[r / SLOT_ROWS * stride..][..stride];
        if r % SLOT_ROWS == 0 {
            columns.fill(0.0);
        }
        let relative = SQUARE + (p.rows as usize).min(SLOT_ROWS) as f64 * EPS;
        columns.iter_mut().zip(row).for_each(|(bound, g)| *bound += relative * (g * clip).powi(2));
    }
}

/// One rounding a slot, of a sum that never falls.
pub(super) fn columns(args: &mut Args<'_, f64>) {
    let p: ColumnsParams = args.params();
    let stride = 4 * p.row_quads as usize;
    let (partials, sums) = (args.read(0), &mut args.write(1)[..stride]);
    for (c, sum) in sums.iter_mut().enumerate() {
        let total: f64 = (0..p.slots as usize).map(|slot| partials[slot * stride + c].abs()).sum();
        *sum = f64::from(p.slots) * EPS * (total + if p.begins == 1 { 0.0 } else { sum.abs() });
    }
}

/// The mean's product, the difference, its product and the sum round once each. The mean of the rows carries what each is
/// off by.
pub(super) fn factor(args: &mut Args<'_, f64>) {
    let p: FactorParams = args.params();
    let (row_sums, column_sums, scalars) = (args.read(0), args.read(1), args.read(2));
    if scalars[NON_FINITE] != 0.0 {
        return;
    }
    let row = &mut args.write(3)[p.row_offset as usize..][..p.rows as usize];
    let column = &mut args.write(4)[p.column_offset as usize..][..p.cols as usize];
    let factors = args.write(5);
    let weight = f64::from(p.one_minus_beta2);
    let moved = |state: f64, mean: f64| {
        let (distance, after) = (mean - state, state + weight * (mean - state));
        (after, EPS * (weight * (mean + 2.0 * distance.abs()) + after.abs()))
    };
    for (state, sum) in column.iter_mut().zip(column_sums) {
        *state = moved(*state, sum * f64::from(p.inverse_rows)).1;
    }
    if p.is_vector == 1 {
        (row[0], factors[INVERSE_MEAN]) = (0.0, 0.0);
        return;
    }
    let (mut total, mut error) = (0.0, 0.0);
    for (state, sum) in row.iter_mut().zip(row_sums) {
        let (after, bound) = moved(*state, sum * f64::from(p.inverse_cols));
        (total, error) = (total + after, error + bound);
        *state = bound;
    }
    let mean = (total * f64::from(p.inverse_rows)).max(p.eps1.into());
    let relative = error / total.max(f64::MIN_POSITIVE) + (f64::from(p.rows) + 1.0 + 5.0) * EPS;
    factors[INVERSE_MEAN] = relative / mean;
}

pub(super) fn partial(args: &mut Args<'_, f64>) {
    let p: PassParams = args.params();
    let (gradient, weights, clip) = (args.read(0), args.read(1), args.read(2)[CLIP_SCALE]);
    let (row, column, factors) = (args.read(3), args.read(4), args.read(5));
    let slots = &mut args.write(6)[2 * p.first_slot as usize..];
    let column = &column[4 * p.column_offset as usize..];
    let rows = panel(gradient, p.gradient_offset, p.rows, p.row_quads);
    let rows = rows.zip(panel(weights, p.weights_offset, p.rows, p.row_quads));
    let additions = EPS * f64::from(4 * p.row_quads) * (p.rows as usize).min(SLOT_ROWS) as f64;
    for (r, (g, w)) in rows.enumerate() {
        let slot = &mut slots[2 * (r / SLOT_ROWS)..][..2];
        if r % SLOT_ROWS == 0 {
            slot.fill(0.0);
        }
        let scale = row[p.row_first as usize + r] * factors[INVERSE_MEAN];
        let updates: f64 = g.iter().zip(column).map(|(g, c)| update(&p, g * clip, scale, *c).powi(2)).sum();
        slot[0] += (2.0 * UPDATE + EPS + additions) * updates;
        slot[1] += (EPS + additions) * w.iter().map(|w| w * w).sum::<f64>();
    }
}

/// Sums of m slots keep half of their m roundings, and of the mean's product, under a root of nine.
pub(super) fn finish(args: &mut Args<'_, f64>) {
    let p: FinishParams = args.params();
    let slots = args.read(0).chunks(2).take(p.slots as usize);
    let factors = args.write(1);
    let (updates, squares) = slots.fold((0.0, 0.0), |(u, w), slot| (u + slot[0], w + slot[1]));
    let size = |sum: f64| (sum * f64::from(p.inverse_count)).sqrt();
    let relative = EPS * (0.5 * (f64::from(p.slots) + 1.0) + 9.0);
    let alpha = size(squares).max(p.eps2.into()) * f64::from(p.rho);
    let step_size = alpha / (size(updates) * f64::from(p.inverse_threshold)).max(1.0);
    // Both sizes, a product each, and the division.
    factors[STEP_SIZE] = (2.0 * relative + (1.0 + 1.0 + 5.0) * EPS) * step_size;
    (factors[UPDATE_SIZE], factors[WEIGHT_SIZE]) = (relative * size(updates), relative * size(squares));
}

/// The update through the step's size, its product, the decay's and the sum.
pub(super) fn apply(args: &mut Args<'_, f64>) {
    let p: PassParams = args.params();
    let (gradient, scalars) = (args.read(0), args.read(1));
    let (row, column, factors) = (args.read(2), args.read(3), args.read(4));
    if scalars[NON_FINITE] != 0.0 {
        return;
    }
    let stride = 4 * p.row_quads as usize;
    let weights = args.write(5)[4 * p.weights_offset as usize..].chunks_exact_mut(stride);
    let column = &column[4 * p.column_offset as usize..];
    for (r, (g, w)) in panel(gradient, p.gradient_offset, p.rows, p.row_quads).zip(weights).enumerate() {
        let scale = row[p.row_first as usize + r] * factors[INVERSE_MEAN];
        for ((w, g), column) in w.iter_mut().zip(g).zip(column) {
            let step = factors[STEP_SIZE] * update(&p, g * scalars[CLIP_SCALE], scale, *column);
            let decayed = *w * f64::from(p.decay);
            *w = (UPDATE + EPS) * step.abs() + EPS * (decayed.abs() + (decayed - step).abs());
        }
    }
}
