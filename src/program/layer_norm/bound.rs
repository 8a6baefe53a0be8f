//! How far an f32 result of layer norm may lie from the oracle: counted from the operations, whole rows and columns at a time.

use super::{BackwardParams, ForwardParams, GainParams};
use crate::device::Args;
use crate::program::EPS;
use crate::program::matrix::{Place, Rows};

/// Goes through the rows: `norm` writes the columns of one row of y and returns its two stats.
fn forward_rows(args: &mut Args<'_, f64>, norm: impl Fn(&[f64], &[f64], Option<&[f64]>, f64, &mut [f64]) -> [f64; 2]) {
    let p: ForwardParams = args.params();
    let (x, gain, bias, y, stats) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let (rows, pair, n) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 2 }, p.cols as usize);
    let gain = &rows.row(gain, (p.gain_offset, 0), 0)[..n];
    let bias = (p.biased == 1).then(|| &rows.row(bias, (p.bias_offset, 0), 0)[..n]);
    for r in 0..p.rows {
        let y = rows.row_mut(y, (p.y_offset, p.y_stride), r);
        let x = &rows.row(x, (p.x_offset, p.x_stride), r)[..n];
        let kept = pair.row_mut(stats, (p.stats_offset, p.stats_stride), r);
        kept.fill(0.0);
        kept[..2].copy_from_slice(&norm(x, gain, bias, f64::from(p.eps), &mut y[..n]));
        y[n..].fill(0.0);
    }
}

fn moments(x: &[f64], eps: f64) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().copied().sum::<f64>() / n;
    let variance = x.iter().map(|&x| (x - mean) * (x - mean)).sum::<f64>() / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Sums of n terms in any order are off by n EPS of the sum of absolute values; division is good to 5 EPS, and so is sqrt.
/// The error of the mean shifts every difference alike: as the true differences sum to 0, it enters the variance squared.
pub(super) fn forward(args: &mut Args<'_, f64>) {
    forward_rows(args, |x, gain, bias, eps, y| {
        let n = x.len() as f64;
        let (mean, rstd) = moments(x, eps);
        let mean_error = EPS * (n * x.iter().map(|x| x.abs()).sum::<f64>() / n + 5.0 * mean.abs());
        let variance = (1.0 / (rstd * rstd) - eps).max(0.0);
        let variance_error = EPS * (n + 9.0) * variance + mean_error * mean_error;
        let relative = 0.5 * (variance_error * rstd * rstd + EPS) + 10.0 * EPS;
        for (c, y) in y.iter_mut().enumerate() {
            let (scaled, bias) = ((x[c] - mean) * rstd * gain[c], bias.map_or(0.0, |b| b[c]));
            *y = (rstd * gain[c]).abs() * mean_error
                + scaled.abs() * (relative + 3.0 * EPS)
                + EPS * (scaled + bias).abs();
        }
        [mean_error, rstd * relative]
    });
}

/// One row of the backward pass.
struct Row<'a> {
    x: &'a [f64],
    gain: &'a [f64],
    mean: f64,
    rstd: f64,
    dy: &'a [f64],
    residual: Option<&'a [f64]>,
}

/// The row at `r`, its columns only.
fn row_at<'a>(p: &BackwardParams, bound: [&'a [f64]; 5], r: u32) -> Row<'a> {
    let [x, gain, stats, dy, residual] = bound;
    let rows = Rows { rows: p.rows, quads: p.quads };
    let cut = |cells: &'a [f64], place: Place, r| &rows.row(cells, place, r)[..p.cols as usize];
    let moments = Rows { rows: p.rows, quads: 1 }.row(stats, (p.stats_offset, p.stats_stride), r);
    Row {
        x: cut(x, (p.x_offset, p.x_stride), r),
        gain: cut(gain, (p.gain_offset, 0), 0),
        mean: moments[0],
        rstd: moments[1],
        dy: cut(dy, (p.dy_offset, p.dy_stride), r),
        residual: (p.bypassed == 1).then(|| cut(residual, (p.residual_offset, p.residual_stride), r)),
    }
}

fn backward_rows(args: &mut Args<'_, f64>, differentiate: impl Fn(Row<'_>, &mut [f64])) {
    let p: BackwardParams = args.params();
    let (bound, dx) = (std::array::from_fn(|i| args.read(i)), args.write(5));
    let rows = Rows { rows: p.rows, quads: p.quads };
    for r in 0..p.rows {
        let (dx, padding) = rows.row_mut(dx, (p.dx_offset, p.dx_stride), r).split_at_mut(p.cols as usize);
        differentiate(row_at(&p, bound, r), dx);
        padding.fill(0.0);
    }
}

impl Row<'_> {
    /// The normalised x and the gradient that reaches it, at column c.
    fn normal(&self, c: usize) -> (f64, f64) {
        ((self.x[c] - self.mean) * self.rstd, self.gain[c] * self.dy[c])
    }

    /// Means over the row of `h` and of `h * normal`, each through `f`.
    fn means(&self, f: fn(f64) -> f64) -> (f64, f64) {
        let n = self.x.len() as f64;
        let (plain, leaning) = (0..self.x.len()).fold((0.0, 0.0), |(plain, leaning), c| {
            let (normal, h) = self.normal(c);
            (plain + f(h), leaning + f(h * normal))
        });
        (plain / n, leaning / n)
    }
}

/// The stats are inputs here, so the differences from the mean carry one rounding each; the two sums n more.
pub(super) fn backward(args: &mut Args<'_, f64>) {
    backward_rows(args, |row, dx| {
        let n = row.x.len() as f64;
        let ((plain, leaning), (plain_terms, leaning_terms)) = (row.means(|x| x), row.means(f64::abs));
        for (c, dx) in dx.iter_mut().enumerate() {
            let (normal, h) = row.normal(c);
            let sums = EPS * ((n + 6.0) * plain_terms + (n + 9.0) * normal.abs() * leaning_terms);
            let terms = h.abs() + plain.abs() + (normal * leaning).abs();
            let through = row.rstd * (h - plain - normal * leaning);
            let residual = row.residual.map_or(0.0, |g| g[c]);
            *dx = row.rstd.abs() * (sums + 6.0 * EPS * terms) + EPS * (through.abs() + (through + residual).abs());
        }
    });
}

/// Three roundings a term, as many additions as there are terms, and one that adds to what was there.
pub(super) fn gain_backward(args: &mut Args<'_, f64>) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain) = (args.read(0), args.read(1), args.read(2), args.write(3));
    let (rows, pair) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 1 });
    for (c, dgain) in rows.row_mut(dgain, (p.dgain_offset, 0), 0).iter_mut().enumerate() {
        let terms = (0..p.rows).map(|r| {
            let moments = pair.row(stats, (p.stats_offset, p.stats_stride), r);
            let normal = (rows.row(x, (p.x_offset, p.x_stride), r)[c] - moments[0]) * moments[1];
            (rows.row(dy, (p.dy_offset, p.dy_stride), r)[c] * normal).abs()
        });
        let old = if p.accumulate == 1 { dgain.abs() } else { 0.0 };
        *dgain = EPS * ((f64::from(p.rows) + 3.0) * terms.sum::<f64>() + old);
    }
}
