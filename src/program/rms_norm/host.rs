//! RMS norm's kernels for the `host` device: rows in parallel, columns in vectors. They follow the references by formula
//! only, and are checked against them; neither calls the other. A tile hands on its chains.

use std::ops::Range;

use super::super::layer_norm::host::gather;
use super::super::layer_norm::lines::{Columns, Plan, Written};
use super::{BackwardParams, ForwardParams, GainParams, parts_in};
use crate::device::Args;
use crate::program::chain::{Cut, Stretch};
use crate::program::column_sum::reduce_columns;
use crate::program::matrix::Rows;
use crate::program::vector;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// What the parts of a row share: which passes to run, where a tile stands in the row, and the columns of a whole part.
#[derive(Clone, Copy)]
struct Pass {
    cut: Cut,
    span: Stretch,
    n: f32,
}

pub(super) fn forward(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let cut = Cut::of(&p);
    let (x, gain, y, stats) = (args.read(0), args.read(1), args.write(2), args.write(3));
    let (rows, parts) = (Rows { rows: p.rows, quads: p.quads }, p.parts as usize);
    let gain = &gain[4 * p.gain_offset as usize..][..p.cols as usize];
    let out = Written { cells: y, place: (p.y_offset, p.y_stride), quads: p.quads };
    let stats = Some(Written { cells: stats, place: (p.stats_offset, p.stats_stride), quads: p.stats_quads });
    let lines = Plan { cut, rows: p.rows, sums: 1, out, stats, carry: args.write(4) }.lines(args);
    lines.into_par_iter().for_each(|line| {
        line.play(|at, y, stats, kept| {
            let x = rows.row(x, (p.x_offset, p.x_stride), at.row);
            let (mut y, begins) = (y, at.span.begins());
            let pass = Pass { cut, span: at.span, n: p.cols as f32 };
            vector::dispatch(
                #[inline(always)]
                || {
                    for (part, (columns, inside)) in parts_in(&at, p.parts, p.cols).enumerate() {
                        let (own, rest) = std::mem::take(&mut y).split_at_mut(columns.len());
                        let root = forward_part(pass, &x[columns], &gain[inside], p.eps, own, kept);
                        y = rest;
                        if begins && cut.runs(1) {
                            stats[part] = root;
                        }
                    }
                },
            );
            if cut.runs(1) {
                y.fill(0.0);
                if begins {
                    stats[parts..].fill(0.0);
                }
            }
        })
    });
}

/// A tile's columns of one part of the forward pass: writes y, returns the reciprocal root, in the last pass.
#[inline(always)]
fn forward_part(pass: Pass, x: &[f32], gain: &[f32], eps: f32, y: &mut [f32], kept: &mut [f32]) -> f32 {
    let Pass { cut, span, n } = pass;
    if cut.runs(0) {
        let squares = gather(
            span,
            kept,
            [x; 3],
            #[inline(always)]
            |x, _, _| [x * x],
        );
        kept[0] = squares.map_or(kept[0], |[squares]| squares);
    }
    if !cut.runs(1) {
        return 0.0;
    }
    let root = 1.0 / (kept[0] / n + eps).sqrt();
    for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
        *y = x * root * gain;
    }
    root
}

pub(super) fn backward(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let cut = Cut::of(&p);
    let [x, gain, stats, dy, residual] = std::array::from_fn(|i| args.read(i));
    let rows = Rows { rows: p.rows, quads: p.quads };
    let gain = &gain[4 * p.gain_offset as usize..][..p.cols as usize];
    let out = Written { cells: args.write(5), place: (p.dx_offset, p.dx_stride), quads: p.quads };
    let lines = Plan { cut, rows: p.rows, sums: 1, out, stats: None, carry: args.write(6) }.lines(args);
    lines.into_par_iter().for_each(|line| {
        line.play(|at, mut dx, _, kept| {
            let row = |cells, place| rows.row(cells, place, at.row);
            let (x, dy) = (row(x, (p.x_offset, p.x_stride)), row(dy, (p.dy_offset, p.dy_stride)));
            let residual = (p.bypassed == 1).then(|| row(residual, (p.residual_offset, p.residual_stride)));
            let roots = &stats[4 * (p.stats_offset as usize + at.row as usize * p.stats_stride as usize)..];
            let pass = Pass { cut, span: at.span, n: p.cols as f32 };
            for ((columns, inside), root) in parts_in(&at, p.parts, p.cols).zip(roots) {
                let (own, rest) = dx.split_at_mut(columns.len());
                let residual = residual.map(|residual| &residual[columns.clone()]);
                let (x, gain, dy) = (&x[columns.clone()], &gain[inside], &dy[columns]);
                let part = Part { x, gain, root: *root, dy, residual };
                vector::dispatch(
                    #[inline(always)]
                    || backward_part(pass, part, own, kept),
                );
                dx = rest;
            }
            if cut.runs(1) {
                dx.fill(0.0);
            }
        })
    });
}

/// A tile's columns of one part of the backward pass.
#[derive(Clone, Copy)]
struct Part<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    root: f32,
    dy: &'a [f32],
    residual: Option<&'a [f32]>,
}

#[inline(always)]
fn backward_part(pass: Pass, part: Part<'_>, dx: &mut [f32], kept: &mut [f32]) {
    let (Pass { cut, span, n }, Part { x, gain, root, dy, residual }) = (pass, part);
    if cut.runs(0) {
        let leaning = gather(
            span,
            kept,
            [x, gain, dy],
            #[inline(always)]
            |x, gain, dy| [gain * dy * x],
        );
        kept[0] = leaning.map_or(kept[0], |[leaning]| leaning);
    }
    if !cut.runs(1) {
        return;
    }
    // dx = root * (h - x * root * lean)
    let tilt = kept[0] * root / n * root;
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
    let (x, stats, dy, dgain, carry) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let (n, parts) = (p.cols as usize, p.parts as usize);
    let rows = Rows { rows: p.rows, quads: (p.parts * p.cols).div_ceil(4) };
    let kept = Rows { rows: p.rows, quads: p.parts.div_ceil(4) };
    let sums = Rows { rows: 1, quads: p.quads }.row_mut(dgain, (p.dgain_offset, 0), 0);
    let columns = Columns { cut: Cut::of(&p), rows: p.rows, sums, accumulate: p.accumulate == 1, carry };
    columns.sum(args, |range, columns, totals| {
        // Padding of the gain stays what it is.
        let columns: Range<usize> = columns.start.min(n)..columns.end.min(n);
        reduce_columns(
            range,
            totals,
            #[inline(always)]
            |r, totals| {
                let x = rows.row(x, (p.x_offset, p.x_stride), r).chunks_exact(n);
                let dy = rows.row(dy, (p.dy_offset, p.dy_stride), r).chunks_exact(n);
                let roots = &kept.row(stats, (p.stats_offset, p.stats_stride), r)[..parts];
                for ((x, dy), root) in x.zip(dy).zip(roots) {
                    let (x, dy) = (&x[columns.clone()], &dy[columns.clone()]);
                    for ((total, x), dy) in totals.iter_mut().zip(x).zip(dy) {
                        *total = (x * root).mul_add(*dy, *total);
                    }
                }
            },
        );
    });
}
