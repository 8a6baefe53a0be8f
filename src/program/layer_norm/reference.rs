//! The plain references of layer norm, at any float: one running sum a row or column, which is also what a tile hands on.
//! They must share no arithmetic with the host kernels.

use super::lines::{Columns, Plan, Written};
use super::{BackwardParams, ForwardParams, GainParams};
use crate::device::{Args, Real};
use crate::program::chain::Cut;
use crate::program::matrix::Rows;

pub(super) fn forward<F: Real>(args: &mut Args<'_, F>) {
    let p: ForwardParams = args.params();
    let cut = Cut::of(&p);
    let (x, gain, bias, y, stats) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let (rows, n, eps) = (Rows { rows: p.rows, quads: p.quads }, F::of(p.cols.into()), F::of(p.eps.into()));
    let gain = rows.row(gain, (p.gain_offset, 0), 0);
    let bias = (p.biased == 1).then(|| rows.row(bias, (p.bias_offset, 0), 0));
    let out = Written { cells: y, place: (p.y_offset, p.y_stride), quads: p.quads };
    let stats = Some(Written { cells: stats, place: (p.stats_offset, p.stats_stride), quads: 2 });
    for line in (Plan { cut, rows: p.rows, sums: 1, out, stats, carry: args.write(5) }).lines(args) {
        line.play(|at, y, stats, kept| {
            let columns = at.columns(p.cols);
            let x = &rows.row(x, (p.x_offset, p.x_stride), at.row)[columns.clone()];
            if cut.runs(0) {
                let before = if at.span.begins() { F::zero() } else { kept[0] };
                kept[0] = x.iter().fold(before, |sum, &x| sum + x);
            }
            let mean = kept[0] / n;
            if cut.runs(1) {
                let before = if at.span.begins() { F::zero() } else { kept[1] };
                kept[1] = x.iter().fold(before, |squares, &x| squares + (x - mean) * (x - mean));
            }
            if cut.runs(2) {
                let rstd = F::one() / (kept[1] / n + eps).sqrt();
                y.fill(F::zero());
                for ((y, &x), c) in y.iter_mut().zip(x).zip(columns) {
                    *y = (x - mean) * rstd * gain[c] + bias.map_or(F::zero(), |b| b[c]);
                }
                if at.span.begins() {
                    stats.fill(F::zero());
                    (stats[0], stats[1]) = (mean, rstd);
                }
            }
        });
    }
}

pub(super) fn backward<F: Real>(args: &mut Args<'_, F>) {
    let p: BackwardParams = args.params();
    let cut = Cut::of(&p);
    let [x, gain, stats, dy, residual] = std::array::from_fn(|i| args.read(i));
    let (rows, pair, n) =
        (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 1 }, F::of(p.cols.into()));
    let gain = rows.row(gain, (p.gain_offset, 0), 0);
    let out = Written { cells: args.write(5), place: (p.dx_offset, p.dx_stride), quads: p.quads };
    for line in (Plan { cut, rows: p.rows, sums: 2, out, stats: None, carry: args.write(6) }).lines(args) {
        line.play(|at, dx, _, kept| {
            let row = |cells, place| rows.row(cells, place, at.row);
            let (x, dy) = (row(x, (p.x_offset, p.x_stride)), row(dy, (p.dy_offset, p.dy_stride)));
            let moments = pair.row(stats, (p.stats_offset, p.stats_stride), at.row);
            let (mean, rstd) = (moments[0], moments[1]);
            let normal = |c: usize| ((x[c] - mean) * rstd, gain[c] * dy[c]);
            if cut.runs(0) {
                let before = if at.span.begins() { (F::zero(), F::zero()) } else { (kept[0], kept[1]) };
                (kept[0], kept[1]) = at.columns(p.cols).fold(before, |(plain, leaning), c| {
                    let (normal, h) = normal(c);
                    (plain + h, leaning + h * normal)
                });
            }
            if cut.runs(1) {
                let (plain, leaning) = (kept[0] / n, kept[1] / n);
                let residual = (p.bypassed == 1).then(|| row(residual, (p.residual_offset, p.residual_stride)));
                dx.fill(F::zero());
                for (dx, c) in dx.iter_mut().zip(at.columns(p.cols)) {
                    let (normal, h) = normal(c);
                    *dx = rstd * (h - plain - normal * leaning) + residual.map_or(F::zero(), |g| g[c]);
                }
            }
        });
    }
}

pub(super) fn gain_backward<F: Real>(args: &mut Args<'_, F>) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain, carry) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let (rows, pair) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 1 });
    let sums = rows.row_mut(dgain, (p.dgain_offset, 0), 0);
    let columns = Columns { cut: Cut::of(&p), rows: p.rows, sums, accumulate: p.accumulate == 1, carry };
    columns.sum(args, |range, columns, totals| {
        for r in range {
            let moments = pair.row(stats, (p.stats_offset, p.stats_stride), r);
            let x = rows.row(x, (p.x_offset, p.x_stride), r);
            let dy = rows.row(dy, (p.dy_offset, p.dy_stride), r);
            for (total, c) in totals.iter_mut().zip(columns.clone()) {
                *total += dy[c] * ((x[c] - moments[0]) * moments[1]);
            }
        }
    });
}
