//! Adafactor's plain references, written from the formula and nothing else.

use super::super::grad_norm::{CLIP_SCALE, NON_FINITE};
use super::{
    ColumnsParams, FactorParams, FinishParams, INVERSE_MEAN, PassParams, SLOT_ROWS, STEP_SIZE, SumsParams, UPDATE_SIZE,
    WEIGHT_SIZE,
};
use crate::device::{Args, Real};

pub(super) fn of<F: Real>(x: f32) -> F {
    F::of(x.into())
}

/// Rows of a panel.
pub(super) fn panel<F>(cells: &[F], offset: u32, rows: u32, row_quads: u32) -> std::slice::ChunksExact<'_, F> {
    let stride = 4 * row_quads as usize;
    cells[4 * offset as usize..][..rows as usize * stride].chunks_exact(stride)
}

pub(super) fn sums<F: Real>(args: &mut Args<'_, F>) {
    let p: SumsParams = args.params();
    let (gradient, clip) = (args.read(0), args.read(1)[CLIP_SCALE]);
    let (row_sums, partials) = (args.write(2), args.write(3));
    let stride = 4 * p.row_quads as usize;
    for (r, row) in panel(gradient, p.gradient_offset, p.rows, p.row_quads).enumerate() {
        let columns = &mut partials[r / SLOT_ROWS * stride..][..stride];
        if r % SLOT_ROWS == 0 {
            columns.fill(F::zero());
        }
        row_sums[p.first_row as usize + r] = row.iter().map(|&g| (g * clip).powi(2)).sum();
        columns.iter_mut().zip(row).for_each(|(sum, &g)| *sum += (g * clip).powi(2));
    }
}

pub(super) fn columns<F: Real>(args: &mut Args<'_, F>) {
    let p: ColumnsParams = args.params();
    let stride = 4 * p.row_quads as usize;
    let (partials, sums) = (args.read(0), &mut args.write(1)[..stride]);
    if p.begins == 1 {
        sums.fill(F::zero());
    }
    for slot in partials.chunks_exact(stride).take(p.slots as usize) {
        sums.iter_mut().zip(slot).for_each(|(sum, &x)| *sum += x);
    }
}

pub(super) fn factor<F: Real>(args: &mut Args<'_, F>) {
    let p: FactorParams = args.params();
    let (row_sums, column_sums, scalars) = (args.read(0), args.read(1), args.read(2));
    if scalars[NON_FINITE] != F::zero() {
        return;
    }
    let row = &mut args.write(3)[p.row_offset as usize..][..p.rows as usize];
    let column = &mut args.write(4)[p.column_offset as usize..][..p.cols as usize];
    let factors = args.write(5);
    let moved = |state: F, mean: F| state + of::<F>(p.one_minus_beta2) * (mean - state);
    for (state, &sum) in column.iter_mut().zip(column_sums) {
        *state = moved(*state, sum * of(p.inverse_rows));
    }
    if p.is_vector == 1 {
        (row[0], factors[INVERSE_MEAN]) = (F::one(), F::one());
        return;
    }
    for (state, &sum) in row.iter_mut().zip(row_sums) {
        *state = moved(*state, sum * of(p.inverse_cols));
    }
    let mean = row.iter().copied().sum::<F>() * of(p.inverse_rows);
    factors[INVERSE_MEAN] = F::one() / mean.max(of(p.eps1));
}

/// One element of the update.
pub(super) fn update<F: Real>(p: &PassParams, gradient: F, scale: F, column: F) -> F {
    gradient / (scale * column).max(of(p.eps1_squared)).sqrt()
}

pub(super) fn partial<F: Real>(args: &mut Args<'_, F>) {
    let p: PassParams = args.params();
    let (gradient, weights, clip) = (args.read(0), args.read(1), args.read(2)[CLIP_SCALE]);
    let (row, column, factors) = (args.read(3), args.read(4), args.read(5));
    let slots = &mut args.write(6)[2 * p.first_slot as usize..];
    let column = &column[4 * p.column_offset as usize..];
    let rows = panel(gradient, p.gradient_offset, p.rows, p.row_quads);
    let rows = rows.zip(panel(weights, p.weights_offset, p.rows, p.row_quads));
    for (r, (g, w)) in rows.enumerate() {
        let slot = &mut slots[2 * (r / SLOT_ROWS)..][..2];
        if r % SLOT_ROWS == 0 {
            slot.fill(F::zero());
        }
        let scale = row[p.row_first as usize + r] * factors[INVERSE_MEAN];
        slot[0] += g.iter().zip(column).map(|(&g, &column)| update(&p, g * clip, scale, column).powi(2)).sum();
        slot[1] += w.iter().map(|w| w.powi(2)).sum();
    }
}

pub(super) fn finish<F: Real>(args: &mut Args<'_, F>) {
    let p: FinishParams = args.params();
    let slots = args.read(0).chunks(2).take(p.slots as usize);
    let factors = args.write(1);
    let (updates, squares) = slots.fold((F::zero(), F::zero()), |(u, w), slot| (u + slot[0], w + slot[1]));
    let size = |sum: F| (sum * of(p.inverse_count)).sqrt();
    let (update_size, weight_size) = (size(updates), size(squares));
    let alpha = weight_size.max(of(p.eps2)) * of(p.rho);
    factors[STEP_SIZE] = alpha / F::one().max(update_size * of(p.inverse_threshold));
    (factors[UPDATE_SIZE], factors[WEIGHT_SIZE]) = (update_size, weight_size);
}

pub(super) fn apply<F: Real>(args: &mut Args<'_, F>) {
    let p: PassParams = args.params();
    let (gradient, scalars) = (args.read(0), args.read(1));
    let (row, column, factors) = (args.read(2), args.read(3), args.read(4));
    if scalars[NON_FINITE] != F::zero() {
        return;
    }
    let stride = 4 * p.row_quads as usize;
    let weights = args.write(5)[4 * p.weights_offset as usize..].chunks_exact_mut(stride);
    let column = &column[4 * p.column_offset as usize..];
    for (r, (g, w)) in panel(gradient, p.gradient_offset, p.rows, p.row_quads).zip(weights).enumerate() {
        let scale = row[p.row_first as usize + r] * factors[INVERSE_MEAN];
        for ((w, &g), &column) in w.iter_mut().zip(g).zip(column) {
            let u = update(&p, g * scalars[CLIP_SCALE], scale, column);
            *w = *w * of(p.decay) - factors[STEP_SIZE] * u;
        }
    }
}
