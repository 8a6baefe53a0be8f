//! The plain references of RMS norm, at any float: one running sum a part or column, which is also what a tile hands on.
//! They must share no arithmetic with the host kernels.

use super::super::layer_norm::lines::{Columns, Plan, Written};
use super::{BackwardParams, ForwardParams, GainParams, parts_in};
use crate::device::{Args, Real};
use crate::program::chain::Cut;
use crate::program::matrix::Rows;

pub(super) fn forward<F: Real>(args: &mut Args<'_, F>) {
    let p: ForwardParams = args.params();
    let cut = Cut::of(&p);
    let (x, gain, y, stats) = (args.read(0), args.read(1), args.write(2), args.write(3));
    let (rows, n, eps) = (Rows { rows: p.rows, quads: p.quads }, F::of(p.cols.into()), F::of(p.eps.into()));
    let gain = &gain[4 * p.gain_offset as usize..][..p.cols as usize];
    let out = Written { cells: y, place: (p.y_offset, p.y_stride), quads: p.quads };
    let stats = Some(Written { cells: stats, place: (p.stats_offset, p.stats_stride), quads: p.stats_quads });
    for line in (Plan { cut, rows: p.rows, sums: 1, out, stats, carry: args.write(4) }).lines(args) {
        line.play(|at, y, stats, kept| {
            let x = rows.row(x, (p.x_offset, p.x_stride), at.row);
            if cut.runs(1) {
                y.fill(F::zero());
            }
            for (part, (columns, inside)) in parts_in(&at, p.parts, p.cols).enumerate() {
                let x = &x[columns];
                if cut.runs(0) {
                    let before = if at.span.begins() { F::zero() } else { kept[0] };
                    kept[0] = x.iter().fold(before, |squares, &x| squares + x * x);
                }
                if cut.runs(1) {
                    let root = F::one() / (kept[0] / n + eps).sqrt();
                    let y = &mut y[part * p.cols as usize..];
                    for ((y, &x), &gain) in y.iter_mut().zip(x).zip(&gain[inside]) {
                        *y = x * root * gain;
                    }
                    if at.span.begins() {
                        stats[part] = root;
                    }
                }
            }
            if cut.runs(1) && at.span.begins() {
                stats[p.parts as usize..].fill(F::zero());
            }
        });
    }
}

pub(super) fn backward<F: Real>(args: &mut Args<'_, F>) {
    let p: BackwardParams = args.params();
    let cut = Cut::of(&p);
    let [x, gain, stats, dy, residual] = std::array::from_fn(|i| args.read(i));
    let (rows, n) = (Rows { rows: p.rows, quads: p.quads }, F::of(p.cols.into()));
    let gain = &gain[4 * p.gain_offset as usize..][..p.cols as usize];
    let out = Written { cells: args.write(5), place: (p.dx_offset, p.dx_stride), quads: p.quads };
    for line in (Plan { cut, rows: p.rows, sums: 1, out, stats: None, carry: args.write(6) }).lines(args) {
        line.play(|at, dx, _, kept| {
            let row = |cells, place| rows.row(cells, place, at.row);
            let (x, dy) = (row(x, (p.x_offset, p.x_stride)), row(dy, (p.dy_offset, p.dy_stride)));
            let residual = (p.bypassed == 1).then(|| row(residual, (p.residual_offset, p.residual_stride)));
            let roots = &stats[4 * (p.stats_offset as usize + at.row as usize * p.stats_stride as usize)..];
            if cut.runs(1) {
                dx.fill(F::zero());
            }
            for (part, (columns, inside)) in parts_in(&at, p.parts, p.cols).enumerate() {
                let root = roots[part];
                let terms = columns.zip(inside).map(|(c, i)| (c, x[c] * root, gain[i] * dy[c]));
                if cut.runs(0) {
                    let before = if at.span.begins() { F::zero() } else { kept[0] };
                    kept[0] = terms.clone().fold(before, |sum, (_, normal, h)| sum + h * normal);
                }
                if cut.runs(1) {
                    let lean = kept[0] / n;
                    for (dx, (c, normal, h)) in dx[part * p.cols as usize..].iter_mut().zip(terms) {
                        *dx = root * (h - normal * lean) + residual.map_or(F::zero(), |g| g[c]);
                    }
                }
            }
        });
    }
}

pub(super) fn gain_backward<F: Real>(args: &mut Args<'_, F>) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain, carry) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let at = |offset: u32, stride: u32, r: u32| 4 * (offset as usize + r as usize * stride as usize);
    let sums = Rows { rows: 1, quads: p.quads }.row_mut(dgain, (p.dgain_offset, 0), 0);
    let columns = Columns { cut: Cut::of(&p), rows: p.rows, sums, accumulate: p.accumulate == 1, carry };
    columns.sum(args, |range, columns, totals| {
        for r in range {
            for part in 0..p.parts as usize {
                let root = stats[at(p.stats_offset, p.stats_stride, r) + part];
                let x = &x[at(p.x_offset, p.x_stride, r) + part * p.cols as usize..][..p.cols as usize];
                let dy = &dy[at(p.dy_offset, p.dy_stride, r) + part * p.cols as usize..][..p.cols as usize];
                // Padding of the gain stays what it is.
                for (total, c) in totals.iter_mut().zip(columns.clone()).filter(|(_, c)| *c < p.cols as usize) {
                    *total += dy[c] * (x[c] * root);
                }
            }
        }
    });
}
