//! Layer norm's kernels for the `host` device: rows in parallel, columns in vectors. They follow the references by formula
//! only, and are checked against them; neither calls the other. A tile hands on its chains.

use super::lines::{Columns, Plan, Written};
use super::{BackwardParams, ForwardParams, GainParams};
use crate::device::Args;
use crate::program::chain::{Cut, Stretch};
use crate::program::column_sum::reduce_columns;
use crate::program::matrix::Rows;
use crate::program::vector::{CHAINS, chain, meet};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// A pass over one tile's part of a row: begins the row's chains, or goes on with those that it keeps behind its first four
/// numbers. Where the row ends, gives the sums.
#[inline(always)]
pub fn gather<const N: usize>(
    span: Stretch,
    kept: &mut [f32],
    [a, b, c]: [&[f32]; 3],
    terms: impl Fn(f32, f32, f32) -> [f32; N],
) -> Option<[f32; N]> {
    let mut sums = [[0.0f32; CHAINS]; N];
    let chains = &mut kept[4..].as_chunks_mut::<CHAINS>().0[..N];
    if !span.begins() {
        sums.copy_from_slice(chains);
    }
    chain(&mut sums, a, b, c, terms);
    if span.ends {
        return Some(meet(sums));
    }
    chains.copy_from_slice(&sums);
    None
}

pub(super) fn forward(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let cut = Cut::of(&p);
    let (x, gain, bias, y, stats) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let rows = Rows { rows: p.rows, quads: p.quads };
    let gain = rows.row(gain, (p.gain_offset, 0), 0);
    let bias = (p.biased == 1).then(|| rows.row(bias, (p.bias_offset, 0), 0));
    let out = Written { cells: y, place: (p.y_offset, p.y_stride), quads: p.quads };
    let stats = Some(Written { cells: stats, place: (p.stats_offset, p.stats_stride), quads: 2 });
    let lines = Plan { cut, rows: p.rows, sums: 1, out, stats, carry: args.write(5) }.lines(args);
    let arch = pulp::Arch::new();
    lines.into_par_iter().for_each(|line| {
        line.play(|at, y, stats, kept| {
            let columns = at.columns(p.cols);
            let (y, padding) = y.split_at_mut(columns.len());
            let x = &rows.row(x, (p.x_offset, p.x_stride), at.row)[columns.clone()];
            let (gain, bias) = (&gain[columns.clone()], bias.map(|bias| &bias[columns]));
            let (n, eps) = (p.cols as f32, p.eps);
            let [mean, rstd] = arch.dispatch(ForwardBlock { cut, span: at.span, x, gain, bias, n, eps, y, kept });
            if cut.runs(2) {
                padding.fill(0.0);
                if at.span.begins() {
                    stats.copy_from_slice(&[mean, rstd, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
                }
            }
        })
    });
}

/// One tile's part of a row of the forward pass; writes y, returns mean and rstd, in the last pass. A type of its own, not a
/// closure: the shim through which a closure is called need not be inlined, and then it stays scalar code.
struct ForwardBlock<'a> {
    cut: Cut,
    span: Stretch,
    x: &'a [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    /// Columns of the whole row.
    n: f32,
    eps: f32,
    y: &'a mut [f32],
    /// Mean, sum of squares; chains.
    kept: &'a mut [f32],
}

impl pulp::NullaryFnOnce for ForwardBlock<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn call(self) -> [f32; 2] {
        let ForwardBlock { cut, span, x, gain, bias, n, eps, y, kept } = self;
        if cut.runs(0) {
            let sum = gather(
                span,
                kept,
                [x; 3],
                #[inline(always)]
                |x, _, _| [x],
            );
            kept[0] = sum.map_or(kept[0], |[sum]| sum / n);
        }
        let mean = kept[0];
        if cut.runs(1) {
            let squares = gather(
                span,
                kept,
                [x; 3],
                #[inline(always)]
                |x, _, _| [(x - mean) * (x - mean)],
            );
            kept[1] = squares.map_or(kept[1], |[squares]| squares);
        }
        if !cut.runs(2) {
            return [0.0; 2];
        }
        let rstd = 1.0 / (kept[1] / n + eps).sqrt();
        match bias {
            Some(bias) => {
                for (((y, x), gain), bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
                    *y = ((x - mean) * rstd).mul_add(*gain, *bias);
                }
            }
            None => {
                for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
                    *y = (x - mean) * rstd * gain;
                }
            }
        }
        [mean, rstd]
    }
}

/// One tile's part of a row of the backward pass.
struct BackwardBlock<'a> {
    cut: Cut,
    span: Stretch,
    x: &'a [f32],
    gain: &'a [f32],
    mean: f32,
    rstd: f32,
    dy: &'a [f32],
    residual: Option<&'a [f32]>,
    /// Columns of the whole row.
    n: f32,
    dx: &'a mut [f32],
    /// The two sums; chains.
    kept: &'a mut [f32],
}

pub(super) fn backward(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let cut = Cut::of(&p);
    let [x, gain, stats, dy, residual] = std::array::from_fn(|i| args.read(i));
    let (rows, pair) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 1 });
    let gain = rows.row(gain, (p.gain_offset, 0), 0);
    let out = Written { cells: args.write(5), place: (p.dx_offset, p.dx_stride), quads: p.quads };
    let lines = Plan { cut, rows: p.rows, sums: 2, out, stats: None, carry: args.write(6) }.lines(args);
    let arch = pulp::Arch::new();
    lines.into_par_iter().for_each(|line| {
        line.play(|at, dx, _, kept| {
            let columns = at.columns(p.cols);
            let (dx, padding) = dx.split_at_mut(columns.len());
            let part = |cells, place| &rows.row(cells, place, at.row)[columns.clone()];
            let moments = pair.row(stats, (p.stats_offset, p.stats_stride), at.row);
            arch.dispatch(BackwardBlock {
                cut,
                span: at.span,
                x: part(x, (p.x_offset, p.x_stride)),
                gain: &gain[columns.clone()],
                mean: moments[0],
                rstd: moments[1],
                dy: part(dy, (p.dy_offset, p.dy_stride)),
                residual: (p.bypassed == 1).then(|| part(residual, (p.residual_offset, p.residual_stride))),
                n: p.cols as f32,
                dx,
                kept,
            });
            if cut.runs(1) {
                padding.fill(0.0);
            }
        })
    });
}

impl pulp::NullaryFnOnce for BackwardBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let BackwardBlock { cut, span, x, gain, mean, rstd, dy, residual, n, dx, kept } = self;
        if cut.runs(0) {
            let sums = gather(
                span,
                kept,
                [x, gain, dy],
                #[inline(always)]
                |x, gain, dy| [gain * dy, gain * dy * (x - mean)],
            );
            [kept[0], kept[1]] = sums.unwrap_or([kept[0], kept[1]]);
        }
        if !cut.runs(1) {
            return;
        }
        // dx = rstd * (h - plain - (x - mean) * rstd * leaning)
        let (plain, tilt) = (kept[0] / n, kept[1] * rstd / n * rstd);
        let through = Through { mean, rstd, plain, tilt };
        let columns = dx.iter_mut().zip(x).zip(gain).zip(dy);
        match residual {
            Some(residual) => {
                for ((((dx, x), gain), dy), residual) in columns.zip(residual) {
                    *dx = residual + through.at(*x, *gain, *dy);
                }
            }
            None => {
                for (((dx, x), gain), dy) in columns {
                    *dx = through.at(*x, *gain, *dy);
                }
            }
        }
    }
}

/// What one row shares between its columns.
struct Through {
    mean: f32,
    rstd: f32,
    plain: f32,
    tilt: f32,
}

impl Through {
    /// The gradient through the norm at one column. A method, as only those can be told to inline into vector code.
    #[inline(always)]
    fn at(&self, x: f32, gain: f32, dy: f32) -> f32 {
        self.rstd * (x - self.mean).mul_add(-self.tilt, gain.mul_add(dy, -self.plain))
    }
}

pub(super) fn gain_backward(args: &mut Args<'_, f32>) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain, carry) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let (rows, pair) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 1 });
    let sums = rows.row_mut(dgain, (p.dgain_offset, 0), 0);
    let columns = Columns { cut: Cut::of(&p), rows: p.rows, sums, accumulate: p.accumulate == 1, carry };
    columns.sum(args, |range, columns, totals| {
        reduce_columns(
            range,
            totals,
            #[inline(always)]
            |r, totals| {
                let moments = pair.row(stats, (p.stats_offset, p.stats_stride), r);
                let (mean, rstd) = (moments[0], moments[1]);
                let x = &rows.row(x, (p.x_offset, p.x_stride), r)[columns.clone()];
                let dy = &rows.row(dy, (p.dy_offset, p.dy_stride), r)[columns.clone()];
                for ((total, x), dy) in totals.iter_mut().zip(x).zip(dy) {
                    *total = ((x - mean) * rstd).mul_add(*dy, *total);
                }
            },
        );
    });
}
