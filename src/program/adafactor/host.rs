//! Adafactor on the host: one pass over a panel each, eight elements side by side, a slot to a task, so that neither the
//! number of threads nor the cut into panels changes an order of additions.

use rayon::prelude::*;

use super::super::grad_norm::{CLIP_SCALE, NON_FINITE};
use super::super::vector;
use super::{ColumnsParams, INVERSE_MEAN, PassParams, SLOT_ROWS, STEP_SIZE, SumsParams};
use crate::device::Args;

/// Elements side by side; a row is a multiple of it.
const LANES: usize = 8;
type Eight = [f32; LANES];

fn eights(row: &[f32]) -> &[Eight] {
    row.as_chunks().0
}

pub(super) fn sums(args: &mut Args<'_, f32>) {
    let p: SumsParams = args.params();
    let (gradient, clip) = (args.read(0), args.read(1)[CLIP_SCALE]);
    let (row_sums, partials) = (args.write(2), args.write(3));
    let (rows, stride) = (p.rows as usize, 4 * p.row_quads as usize);
    let gradient = &gradient[4 * p.gradient_offset as usize..][..rows * stride];
    let row_sums = &mut row_sums[p.first_row as usize..][..rows];
    let slots = row_sums.par_chunks_mut(SLOT_ROWS).zip(partials.par_chunks_mut(stride));
    slots.zip(gradient.par_chunks(SLOT_ROWS * stride)).for_each(|((row_sums, columns), slot)| {
        vector::dispatch(
            #[inline(always)]
            || {
                columns.fill(0.0);
                for (row_sum, row) in row_sums.iter_mut().zip(slot.chunks_exact(stride)) {
                    *row_sum = sums_of_row(row, clip, columns);
                }
            },
        );
    });
}

/// The row's sum of squares; adds the squares to those of the columns.
#[inline(always)]
fn sums_of_row(row: &[f32], clip: f32, columns: &mut [f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (columns, g) in columns.as_chunks_mut::<LANES>().0.iter_mut().zip(eights(row)) {
        for i in 0..LANES {
            let g = g[i] * clip;
            columns[i] = g.mul_add(g, columns[i]);
            sums[i] = g.mul_add(g, sums[i]);
        }
    }
    sums.iter().sum()
}

/// Columns that one task takes.
const COLUMNS: usize = 1024;

pub(super) fn columns(args: &mut Args<'_, f32>) {
    let p: ColumnsParams = args.params();
    let stride = 4 * p.row_quads as usize;
    let (partials, sums) = (args.read(0), &mut args.write(1)[..stride]);
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
        vector::dispatch(
            #[inline(always)]
            || {
                if p.begins == 1 {
                    sums.fill(0.0);
                }
                for slot in partials.chunks_exact(stride).take(p.slots as usize) {
                    sums.iter_mut().zip(&slot[i * COLUMNS..]).for_each(|(sum, x)| *sum += x);
                }
            },
        );
    });
}

/// One element of the update; `g` is clipped.
#[inline(always)]
fn update(p: &PassParams, g: f32, scale: f32, column: f32) -> f32 {
    let variance = scale * column;
    let variance = if variance > p.eps1_squared { variance } else { p.eps1_squared };
    g / variance.sqrt()
}

pub(super) fn partial(args: &mut Args<'_, f32>) {
    let p: PassParams = args.params();
    let (gradient, weights, clip) = (args.read(0), args.read(1), args.read(2)[CLIP_SCALE]);
    let (row, column, factors) = (args.read(3), args.read(4), args.read(5));
    let (rows, stride) = (p.rows as usize, 4 * p.row_quads as usize);
    let gradient = &gradient[4 * p.gradient_offset as usize..][..rows * stride];
    let weights = &weights[4 * p.weights_offset as usize..][..rows * stride];
    let row = &row[p.row_first as usize..][..rows];
    let column = &column[4 * p.column_offset as usize..][..stride];
    let sums = &mut args.write(6)[2 * p.first_slot as usize..][..2 * rows.div_ceil(SLOT_ROWS)];
    let slots = gradient.par_chunks(SLOT_ROWS * stride).zip(weights.par_chunks(SLOT_ROWS * stride));
    let slots = slots.zip(row.par_chunks(SLOT_ROWS));
    sums.par_chunks_mut(2).zip(slots).for_each(|(sums, ((g, w), row))| {
        vector::dispatch(
            #[inline(always)]
            || {
                let (mut updates, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
                for ((g, w), row) in g.chunks_exact(stride).zip(w.chunks_exact(stride)).zip(row) {
                    let scale = row * factors[INVERSE_MEAN];
                    // Two loops: both sums in one are not made vectors.
                    for (g, column) in eights(g).iter().zip(eights(column)) {
                        for i in 0..LANES {
                            let u = update(&p, g[i] * clip, scale, column[i]);
                            updates[i] = u.mul_add(u, updates[i]);
                        }
                    }
                    for w in eights(w) {
                        for i in 0..LANES {
                            squares[i] = w[i].mul_add(w[i], squares[i]);
                        }
                    }
                }
                sums.copy_from_slice(&[updates.iter().sum(), squares.iter().sum()]);
            },
        );
    });
}

pub(super) fn apply(args: &mut Args<'_, f32>) {
    let p: PassParams = args.params();
    let (gradient, scalars) = (args.read(0), args.read(1));
    let (row, column, factors) = (args.read(2), args.read(3), args.read(4));
    if scalars[NON_FINITE] != 0.0 {
        return;
    }
    let (rows, stride) = (p.rows as usize, 4 * p.row_quads as usize);
    let weights = &mut args.write(5)[4 * p.weights_offset as usize..][..rows * stride];
    let gradient = &gradient[4 * p.gradient_offset as usize..][..rows * stride];
    let row = &row[p.row_first as usize..][..rows];
    let column = &column[4 * p.column_offset as usize..][..stride];
    let (clip, step_size) = (scalars[CLIP_SCALE], factors[STEP_SIZE]);
    let slots = gradient.par_chunks(SLOT_ROWS * stride).zip(row.par_chunks(SLOT_ROWS));
    weights.par_chunks_mut(SLOT_ROWS * stride).zip(slots).for_each(|(w, (g, row))| {
        vector::dispatch(
            #[inline(always)]
            || {
                for ((w, g), row) in w.chunks_exact_mut(stride).zip(g.chunks_exact(stride)).zip(row) {
                    let scale = row * factors[INVERSE_MEAN];
                    for ((w, g), column) in w.iter_mut().zip(g).zip(column) {
                        let u = update(&p, g * clip, scale, *column);
                        *w = (-step_size).mul_add(u, *w * p.decay);
                    }
                }
            },
        );
    });
}
