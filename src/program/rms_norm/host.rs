//! RMS norm's kernels for the `host` device: rows in parallel, columns in vectors. They follow the references in the file
//! above by formula only, and are checked against them; neither calls the other.

use super::{BackwardParams, ForwardParams, GainParams, Part, parts_of};
use crate::device::Args;
use crate::program::column_sum::{reduce_columns, settle};
use crate::program::matrix::Rows;
use crate::program::vector::{self, chains};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};

/// Rows of one block of the host kernels.
const HOST_ROWS: u32 = 8;

pub(super) fn forward(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (x, gain, y, stats) = (args.read(0), args.read(1), args.write(2), args.write(3));
    let (rows, kept) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: p.stats_quads });
    let (n, parts) = (p.cols as usize, p.parts as usize);
    let gain = &gain[4 * p.gain_offset as usize..][..n];
    let stats = kept.blocks_mut(stats, (p.stats_offset, p.stats_stride), HOST_ROWS);
    rows.blocks_mut(y, (p.y_offset, p.y_stride), HOST_ROWS).zip(stats).for_each(|((first, y), (_, stats))| {
        for i in 0..HOST_ROWS.min(p.rows - first) {
            let x = rows.row(x, (p.x_offset, p.x_stride), first + i);
            let (y, padding) = rows.row_mut(y, (0, p.y_stride), i).split_at_mut(parts * n);
            let (roots, rest) = kept.row_mut(stats, (0, p.stats_stride), i).split_at_mut(parts);
            vector::dispatch(
                #[inline(always)]
                || {
                    for ((x, y), root) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(roots.iter_mut()) {
                        *root = forward_part(x, gain, p.eps, y);
                    }
                },
            );
            padding.fill(0.0);
            rest.fill(0.0);
        }
    });
}

/// One part of the forward pass: writes y, returns the reciprocal root.
#[inline(always)]
fn forward_part(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let [squares, _] = chains(
        x,
        x,
        x,
        #[inline(always)]
        |x, _, _| [x * x, 0.0],
    );
    let root = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
        *y = x * root * gain;
    }
    root
}

pub(super) fn backward(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let (bound, dx) = (std::array::from_fn(|i| args.read(i)), args.write(5));
    let (rows, n) = (Rows { rows: p.rows, quads: p.quads }, p.cols as usize);
    rows.blocks_mut(dx, (p.dx_offset, p.dx_stride), HOST_ROWS).for_each(|(first, dx)| {
        for i in 0..HOST_ROWS.min(p.rows - first) {
            let (dx, padding) = rows.row_mut(dx, (0, p.dx_stride), i).split_at_mut(p.parts as usize * n);
            for (part, dx) in parts_of(&p, bound, first + i).zip(dx.chunks_exact_mut(n)) {
                vector::dispatch(
                    #[inline(always)]
                    || backward_part(&part, dx),
                );
            }
            padding.fill(0.0);
        }
    });
}

#[inline(always)]
fn backward_part(part: &Part<'_, f32>, dx: &mut [f32]) {
    let Part { x, gain, root, dy, residual } = *part;
    let [leaning, _] = chains(
        x,
        gain,
        dy,
        #[inline(always)]
        |x, gain, dy| [gain * dy * x, 0.0],
    );
    // dx = root * (h - x * root * lean)
    let tilt = leaning * root / x.len() as f32 * root;
    let columns = dx.iter_mut().zip(x).zip(gain).zip(dy);
    match residual {
        Some(residual) => {
            for ((((dx, x), gain), dy), residual) in columns.zip(residual) {
                *dx = residual + root * x.mul_add(-tilt, gain * dy);
            }
        }
        None => {
            for (((dx, x), gain), dy) in columns {
                *dx = root * x.mul_add(-tilt, gain * dy);
            }
        }
    }
}

pub(super) fn gain_backward(args: &mut Args<'_, f32>) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain) = (args.read(0), args.read(1), args.read(2), args.write(3));
    let (n, parts) = (p.cols as usize, p.parts as usize);
    let rows = Rows { rows: p.rows, quads: (p.parts * p.cols).div_ceil(4) };
    let kept = Rows { rows: p.rows, quads: p.parts.div_ceil(4) };
    let dgain = Rows { rows: 1, quads: p.quads }.row_mut(dgain, (p.dgain_offset, 0), 0);
    let mut sums = vec![0.0f32; dgain.len()];
    reduce_columns(
        0..p.rows,
        &mut sums,
        #[inline(always)]
        |r, totals| {
            let x = rows.row(x, (p.x_offset, p.x_stride), r).chunks_exact(n);
            let dy = rows.row(dy, (p.dy_offset, p.dy_stride), r).chunks_exact(n);
            let roots = &kept.row(stats, (p.stats_offset, p.stats_stride), r)[..parts];
            for ((x, dy), root) in x.zip(dy).zip(roots) {
                for ((total, x), dy) in totals.iter_mut().zip(x).zip(dy) {
                    *total = (x * root).mul_add(*dy, *total);
                }
            }
        },
    );
    settle(dgain, &sums, p.accumulate == 1);
}
