//! How far an f32 result of RMS norm may lie from the oracle: counted from the operations, whole parts and columns at a time.

use super::{BackwardParams, ForwardParams, GainParams};
use crate::device::Args;
use crate::program::EPS;
use crate::program::matrix::{Place, Rows};

/// Goes through the parts: `norm` writes the columns of one part of y and returns what `stats` keeps of it.
fn forward_parts(args: &mut Args<'_, f64>, norm: impl Fn(&[f64], &[f64], f64, &mut [f64]) -> f64) {
    let p: ForwardParams = args.params();
    let (x, gain, y, stats) = (args.read(0), args.read(1), args.write(2), args.write(3));
    let (rows, kept) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: p.stats_quads });
    let (n, eps) = (p.cols as usize, f64::from(p.eps));
    let gain = &gain[4 * p.gain_offset as usize..][..n];
    for r in 0..p.rows {
        let x = rows.row(x, (p.x_offset, p.x_stride), r);
        let y = rows.row_mut(y, (p.y_offset, p.y_stride), r);
        let stats = kept.row_mut(stats, (p.stats_offset, p.stats_stride), r);
        y.fill(0.0);
        stats.fill(0.0);
        let parts = x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(stats);
        for ((x, y), root) in parts.take(p.parts as usize) {
            *root = norm(x, gain, eps, y);
        }
    }
}

/// The mean square of a part, and the reciprocal root of that and `eps`.
fn moments(x: &[f64], eps: f64) -> (f64, f64) {
    let square = x.iter().map(|&x| x * x).sum::<f64>() / x.len() as f64;
    (square, 1.0 / (square + eps).sqrt())
}

/// A sum of n squares in any order is off by n EPS of itself, division by 5 more, and adding eps by one of the whole; the
/// root halves a relative error, and a reciprocal root is good to 4 EPS (2 units in the last place).
pub(super) fn forward(args: &mut Args<'_, f64>) {
    forward_parts(args, |x, gain, eps, y| {
        let (square, root) = moments(x, eps);
        let square_error = EPS * (x.len() as f64 + 5.0) * square;
        let relative = 0.5 * (square_error * root * root + EPS) + 4.0 * EPS;
        for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
            *y = (x * root * gain).abs() * (relative + 2.0 * EPS);
        }
        root * relative
    });
}

/// One part of the backward pass.
struct Part<'a> {
    x: &'a [f64],
    gain: &'a [f64],
    root: f64,
    dy: &'a [f64],
    residual: Option<&'a [f64]>,
}

/// The parts of row `r`, from the slices of x, gain, stats, dy and residual.
fn parts_of<'a>(p: &BackwardParams, bound: [&'a [f64]; 5], r: u32) -> impl Iterator<Item = Part<'a>> {
    let [x, gain, stats, dy, residual] = bound;
    let (rows, n, bypassed) = (Rows { rows: p.rows, quads: p.quads }, p.cols as usize, p.bypassed == 1);
    let cut = |cells: &'a [f64], place: Place| rows.row(cells, place, r).chunks_exact(n);
    let gain = &gain[4 * p.gain_offset as usize..][..n];
    let roots = &stats[4 * (p.stats_offset as usize + r as usize * p.stats_stride as usize)..][..p.parts as usize];
    let (x, dy) = (cut(x, (p.x_offset, p.x_stride)), cut(dy, (p.dy_offset, p.dy_stride)));
    let residual = cut(residual, (p.residual_offset, p.residual_stride));
    x.zip(dy).zip(residual).zip(roots).map(move |(((x, dy), residual), &root)| Part {
        x,
        gain,
        root,
        dy,
        residual: bypassed.then_some(residual),
    })
}

fn backward_parts(args: &mut Args<'_, f64>, differentiate: impl Fn(Part<'_>, &mut [f64])) {
    let p: BackwardParams = args.params();
    let (bound, dx) = (std::array::from_fn(|i| args.read(i)), args.write(5));
    let rows = Rows { rows: p.rows, quads: p.quads };
    for r in 0..p.rows {
        let dx = rows.row_mut(dx, (p.dx_offset, p.dx_stride), r);
        dx.fill(0.0);
        parts_of(&p, bound, r).zip(dx.chunks_exact_mut(p.cols as usize)).for_each(|(part, dx)| differentiate(part, dx));
    }
}

impl Part<'_> {
    /// The normalised x and the gradient that reaches it, at column c.
    fn normal(&self, c: usize) -> (f64, f64) {
        (self.x[c] * self.root, self.gain[c] * self.dy[c])
    }

    /// Mean over the part of `h * normal`, each through `f`.
    fn mean(&self, f: fn(f64) -> f64) -> f64 {
        let terms = (0..self.x.len()).map(|c| {
            let (normal, h) = self.normal(c);
            f(h * normal)
        });
        terms.sum::<f64>() / self.x.len() as f64
    }
}

/// The roots are inputs here. A term of the mean carries 3 roundings, its sum n, and division by n 5 EPS; then `h` carries
/// one, `normal * lean` two, and their difference, its product with the root and the last sum one each.
pub(super) fn backward(args: &mut Args<'_, f64>) {
    backward_parts(args, |part, dx| {
        let (lean, terms) = (part.mean(|x| x), part.mean(f64::abs));
        for (c, dx) in dx.iter_mut().enumerate() {
            let (normal, h) = part.normal(c);
            let mean = EPS * (part.x.len() as f64 + 8.0) * normal.abs() * terms;
            let inner = EPS * (h.abs() + 2.0 * (normal * lean).abs() + (h - normal * lean).abs());
            let through = part.root * (h - normal * lean);
            let whole = through + part.residual.map_or(0.0, |g| g[c]);
            *dx = part.root.abs() * (mean + inner) + EPS * (through.abs() + whole.abs());
        }
    });
}

/// Two roundings a term, as many additions as there are terms, and one that adds to what was there.
pub(super) fn gain_backward(args: &mut Args<'_, f64>) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain) = (args.read(0), args.read(1), args.read(2), args.write(3));
    let at = |(offset, stride): Place, r: u32| 4 * (offset as usize + r as usize * stride as usize);
    let whole = Rows { rows: 1, quads: p.quads };
    let n = f64::from(p.rows) * f64::from(p.parts);
    for (c, dgain) in whole.row_mut(dgain, (p.dgain_offset, 0), 0).iter_mut().enumerate() {
        let rows = if c < p.cols as usize { p.rows } else { 0 };
        let terms = (0..rows * p.parts).map(|i| {
            let (r, part) = (i / p.parts, (i % p.parts) as usize);
            let c = part * p.cols as usize + c;
            let root = stats[at((p.stats_offset, p.stats_stride), r) + part];
            (dy[at((p.dy_offset, p.dy_stride), r) + c] * (x[at((p.x_offset, p.x_stride), r) + c] * root)).abs()
        });
        let old = if p.accumulate == 1 { dgain.abs() } else { 0.0 };
        *dgain = EPS * ((n + 3.0) * terms.sum::<f64>() + old);
    }
}
