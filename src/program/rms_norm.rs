//! RMS norm over rows, or over the equal parts of each row: `y = x / sqrt(mean(x^2) + eps) * gain` (Zhang and Sennrich,
//! arXiv 1910.07467), its gradient, and that of the gain. It must never know where in a model the norm stands.
//!
//! With one part the row is normalised as a whole. With more, each part is normalised alone, and all share one gain of a
//! part's columns: heads of queries and keys lie side by side in a row so. Forward keeps the reciprocal root of each part
//! for backward. A tile owns whole parts, for the gain whole columns: where rows cross tiles on the wafer's fabric, one
//! workgroup plays the whole row in the route's order.

mod cases;
mod host;

use super::column_sum::groups as column_groups;
use super::layer_norm::{COLUMN_VARIANTS, ROW_VARIANTS, row_groups};
use super::matrix::{Place, Rows};
use super::{EPS, Matrix, Program, launch};
use crate::device::{Args, Device, Kernel, Lane, Real, Result, Variant, read, write};

crate::params! {
    /// Parameters of the forward kernel; places in quads of four floats.
    pub struct ForwardParams {
        /// Number of rows.
        rows: u32,
        /// Parts of a row.
        parts: u32,
        /// Columns of a part: a multiple of 4 where there are several.
        cols: u32,
        /// Quads of a row, padding included.
        quads: u32,
        /// Added to the mean square.
        eps: f32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `gain`.
        gain_offset: u32,
        /// First quad of `y`.
        y_offset: u32,
        /// Quads from one row of `y` to the next.
        y_stride: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
        /// Quads of a row of `stats`, padding included.
        stats_quads: u32,
    }
}

crate::params! {
    /// Parameters of the backward kernel; places in quads.
    pub struct BackwardParams {
        /// Number of rows.
        rows: u32,
        /// Parts of a row.
        parts: u32,
        /// Columns of a part.
        cols: u32,
        /// Quads of a row, padding included.
        quads: u32,
        /// 1: add the gradient that by-passes the norm.
        bypassed: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `gain`.
        gain_offset: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
        /// First quad of `dy`.
        dy_offset: u32,
        /// Quads from one row of `dy` to the next.
        dy_stride: u32,
        /// First quad of `residual`.
        residual_offset: u32,
        /// Quads from one row of `residual` to the next.
        residual_stride: u32,
        /// First quad of `dx`.
        dx_offset: u32,
        /// Quads from one row of `dx` to the next.
        dx_stride: u32,
    }
}

crate::params! {
    /// Parameters of the gain's gradient; places in quads.
    pub struct GainParams {
        /// Number of rows.
        rows: u32,
        /// Parts of a row.
        parts: u32,
        /// Columns of a part.
        cols: u32,
        /// Quads of `dgain`, padding included.
        quads: u32,
        /// 1: add to what `dgain` holds.
        accumulate: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
        /// First quad of `dy`.
        dy_offset: u32,
        /// Quads from one row of `dy` to the next.
        dy_stride: u32,
        /// First quad of `dgain`.
        dgain_offset: u32,
    }
}

const WGSL: &str = include_str!("../../shaders/rms_norm.wgsl");

/// The three programs.
pub static PROGRAMS: [&Program; 3] = [&FORWARD, &BACKWARD, &GAIN_BACKWARD];

/// `y = norm(x) * gain`: bindings x, gain, y, stats.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "rms_norm_forward",
        wgsl: WGSL,
        bindings: &[read("x", Lane::Vec4), read("gain", Lane::Vec4), write("y", Lane::Vec4), write("stats", Lane::F32)],
        params: ForwardParams::FIELDS,
        variants: ROW_VARIANTS,
        tile_bytes: part_bytes,
        reference_f32: forward_reference,
        reference_f64: forward_reference,
        host: Some(host::forward),
    },
    bound: forward_bound,
    cases: cases::forward,
    fault: ("square + p.eps", "square"),
};

/// `dx = the gradient through the norm (+ residual)`: bindings x, gain, stats, dy, residual, dx.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "rms_norm_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("gain", Lane::Vec4),
            read("stats", Lane::F32),
            read("dy", Lane::Vec4),
            read("residual", Lane::Vec4),
            write("dx", Lane::Vec4),
        ],
        params: BackwardParams::FIELDS,
        variants: ROW_VARIANTS,
        tile_bytes: part_bytes,
        reference_f32: backward_reference,
        reference_f64: backward_reference,
        host: Some(host::backward),
    },
    bound: backward_bound,
    cases: cases::backward,
    fault: ("h - normal * lean", "h"),
};

/// `dgain (+)= sums over rows and parts of dy * norm(x)`: bindings x, stats, dy, dgain.
pub static GAIN_BACKWARD: Program = Program {
    kernel: Kernel {
        name: "rms_norm_gain_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("stats", Lane::F32),
            read("dy", Lane::Vec4),
            write("dgain", Lane::Vec4),
        ],
        params: GainParams::FIELDS,
        variants: COLUMN_VARIANTS,
        tile_bytes: super::column_sum::tile_bytes,
        reference_f32: gain_reference,
        reference_f64: gain_reference,
        host: Some(host::gain_backward),
    },
    bound: gain_bound,
    cases: cases::gain_backward,
    fault: ("stats[kept + part]", "stats[kept]"),
};

/// One sum of four floats in each lane.
fn part_bytes(variant: &Variant) -> u32 {
    variant.get("WG") * 16
}

/// Queues `y = x * r * gain`, `r = 1 / sqrt(mean(x^2) + eps)` over each of the `parts` equal parts of a row. `x` and `y`
/// are of one shape and not one buffer, `gain` is one row of a part's columns; `stats` (rows x parts) receives r.
///
/// # Panics
/// When shapes differ, or a slice or a part of several does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn forward(
    device: &Device,
    x: &Matrix,
    gain: &Matrix,
    parts: usize,
    eps: f32,
    y: &Matrix,
    stats: &Matrix,
) -> Result<()> {
    let Rows { rows, quads } = Rows::of(&[x, y]);
    let cols = part_cols(x, parts);
    expect_gain(gain, cols, quads - (parts as u32 - 1) * (cols / 4));
    expect_stats(stats, x, parts);
    let ((x_offset, x_stride), (y_offset, y_stride)) = (x.place(), y.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = ForwardParams {
        rows,
        parts: parts as u32,
        cols,
        quads,
        eps,
        x_offset,
        x_stride,
        gain_offset: gain.place().0,
        y_offset,
        y_stride,
        stats_offset,
        stats_stride,
        stats_quads: stats.quads(),
    };
    let views = [x, gain, y, stats].map(|m| m.view.clone());
    launch(device, &FORWARD.kernel, &params, |v| row_groups(rows * params.parts, v), &views)
}

/// Queues `dx = the gradient through the norm (+ residual)`. `x`, `dy`, `residual` and `dx` are of one shape, `dx` is no
/// buffer of the others; `stats` is what [`forward`] wrote. `residual` is the gradient that by-passes the norm.
///
/// # Panics
/// When shapes differ, or a slice or a part of several does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
#[allow(clippy::too_many_arguments)] // each is an operand of the formula
pub fn backward(
    device: &Device,
    x: &Matrix,
    gain: &Matrix,
    parts: usize,
    stats: &Matrix,
    dy: &Matrix,
    residual: Option<&Matrix>,
    dx: &Matrix,
) -> Result<()> {
    let bypassed = residual.is_some() as u32;
    // Without one, dy stands in its place for reading and is not read there.
    let residual = residual.unwrap_or(dy);
    let Rows { rows, quads } = Rows::of(&[x, dy, residual, dx]);
    let cols = part_cols(x, parts);
    expect_gain(gain, cols, quads - (parts as u32 - 1) * (cols / 4));
    expect_stats(stats, x, parts);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let ((residual_offset, residual_stride), (dx_offset, dx_stride)) = (residual.place(), dx.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = BackwardParams {
        rows,
        parts: parts as u32,
        cols,
        quads,
        bypassed,
        x_offset,
        x_stride,
        gain_offset: gain.place().0,
        stats_offset,
        stats_stride,
        dy_offset,
        dy_stride,
        residual_offset,
        residual_stride,
        dx_offset,
        dx_stride,
    };
    let views = [x, gain, stats, dy, residual, dx].map(|m| m.view.clone());
    launch(device, &BACKWARD.kernel, &params, |v| row_groups(rows * params.parts, v), &views)
}

/// Queues `dgain (+)= sums over rows and parts of dy * x * r`; `dgain` is one row of a part's columns, `stats` is what
/// [`forward`] wrote. Rows come in blocks, in ascending order, and inside a row its parts do.
///
/// # Panics
/// When shapes differ, or a slice or a part of several does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn gain_backward(
    device: &Device,
    x: &Matrix,
    parts: usize,
    stats: &Matrix,
    dy: &Matrix,
    dgain: &Matrix,
    accumulate: bool,
) -> Result<()> {
    let Rows { rows, .. } = Rows::of(&[x, dy]);
    let cols = part_cols(x, parts);
    expect_gain(dgain, cols, cols.div_ceil(4));
    expect_stats(stats, x, parts);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = GainParams {
        rows,
        parts: parts as u32,
        cols,
        quads: dgain.quads(),
        accumulate: accumulate as u32,
        x_offset,
        x_stride,
        stats_offset,
        stats_stride,
        dy_offset,
        dy_stride,
        dgain_offset: dgain.place().0,
    };
    let views = [x, stats, dy, dgain].map(|m| m.view.clone());
    launch(device, &GAIN_BACKWARD.kernel, &params, |v| column_groups(params.quads, v), &views)
}

/// Columns of one of the parts.
fn part_cols(x: &Matrix, parts: usize) -> u32 {
    let equal = parts > 0 && x.cols.is_multiple_of(parts);
    assert!(equal && (parts == 1 || (x.cols / parts).is_multiple_of(4)), "{x:?} in {parts} parts of whole quads");
    (x.cols / parts) as u32
}

/// `quads`: what a kernel reads of the gain at most, the padding of a row's last part included.
fn expect_gain(gain: &Matrix, cols: u32, quads: u32) {
    let fits = (gain.rows, gain.cols) == (1, cols as usize) && gain.quads() >= quads;
    assert!(fits, "{gain:?} is not one row of {cols} columns in {quads} quads");
}

fn expect_stats(stats: &Matrix, x: &Matrix, parts: usize) {
    let fits = (stats.rows, stats.cols) == (x.rows, parts) && 4 * stats.quads() as usize >= parts;
    assert!(fits, "{stats:?} does not hold {parts} roots for a row of {x:?}");
}

/// Goes through the parts: `norm` writes the columns of one part of y and returns what `stats` keeps of it.
fn forward_parts<F: Real>(args: &mut Args<'_, F>, norm: impl Fn(&[F], &[F], F, &mut [F]) -> F) {
    let p: ForwardParams = args.params();
    let (x, gain, y, stats) = (args.read(0), args.read(1), args.write(2), args.write(3));
    let (rows, kept) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: p.stats_quads });
    let (n, eps) = (p.cols as usize, F::of(p.eps.into()));
    let gain = &gain[4 * p.gain_offset as usize..][..n];
    for r in 0..p.rows {
        let x = rows.row(x, (p.x_offset, p.x_stride), r);
        let y = rows.row_mut(y, (p.y_offset, p.y_stride), r);
        let stats = kept.row_mut(stats, (p.stats_offset, p.stats_stride), r);
        y.fill(F::zero());
        stats.fill(F::zero());
        let parts = x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(stats);
        for ((x, y), root) in parts.take(p.parts as usize) {
            *root = norm(x, gain, eps, y);
        }
    }
}

/// The mean square of a part, and the reciprocal root of that and `eps`.
fn moments<F: Real>(x: &[F], eps: F) -> (F, F) {
    let square = x.iter().map(|&x| x * x).sum::<F>() / F::of(x.len() as f64);
    (square, F::one() / (square + eps).sqrt())
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    forward_parts(args, |x, gain, eps, y| {
        let (_, root) = moments(x, eps);
        for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
            *y = x * root * gain;
        }
        root
    });
}

/// A sum of n squares in any order is off by n EPS of itself, division by 5 more, and adding eps by one of the whole; the
/// root halves a relative error, and a reciprocal root is good to 4 EPS (2 units in the last place).
fn forward_bound(args: &mut Args<'_, f64>) {
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
struct Part<'a, F> {
    x: &'a [F],
    gain: &'a [F],
    root: F,
    dy: &'a [F],
    residual: Option<&'a [F]>,
}

/// The parts of row `r`, from the slices of x, gain, stats, dy and residual.
fn parts_of<'a, F: Real>(p: &BackwardParams, bound: [&'a [F]; 5], r: u32) -> impl Iterator<Item = Part<'a, F>> {
    let [x, gain, stats, dy, residual] = bound;
    let (rows, n, bypassed) = (Rows { rows: p.rows, quads: p.quads }, p.cols as usize, p.bypassed == 1);
    let cut = |cells: &'a [F], place: Place| rows.row(cells, place, r).chunks_exact(n);
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

fn backward_parts<F: Real>(args: &mut Args<'_, F>, differentiate: impl Fn(Part<'_, F>, &mut [F])) {
    let p: BackwardParams = args.params();
    let (bound, dx) = (std::array::from_fn(|i| args.read(i)), args.write(5));
    let rows = Rows { rows: p.rows, quads: p.quads };
    for r in 0..p.rows {
        let dx = rows.row_mut(dx, (p.dx_offset, p.dx_stride), r);
        dx.fill(F::zero());
        parts_of(&p, bound, r).zip(dx.chunks_exact_mut(p.cols as usize)).for_each(|(part, dx)| differentiate(part, dx));
    }
}

impl<F: Real> Part<'_, F> {
    /// The normalised x and the gradient that reaches it, at column c.
    fn normal(&self, c: usize) -> (F, F) {
        (self.x[c] * self.root, self.gain[c] * self.dy[c])
    }

    /// Mean over the part of `h * normal`, each through `f`.
    fn mean(&self, f: fn(F) -> F) -> F {
        let terms = (0..self.x.len()).map(|c| {
            let (normal, h) = self.normal(c);
            f(h * normal)
        });
        terms.sum::<F>() / F::of(self.x.len() as f64)
    }
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    backward_parts(args, |part, dx| {
        let lean = part.mean(|x| x);
        for (c, dx) in dx.iter_mut().enumerate() {
            let (normal, h) = part.normal(c);
            *dx = part.root * (h - normal * lean) + part.residual.map_or(F::zero(), |g| g[c]);
        }
    });
}

/// The roots are inputs here. A term of the mean carries 3 roundings, its sum n, and division by n 5 EPS; then `h` carries
/// one, `normal * lean` two, and their difference, its product with the root and the last sum one each.
fn backward_bound(args: &mut Args<'_, f64>) {
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

/// Goes down each column of all parts with `add`, then merges with what `dgain` held (0 when it does not accumulate).
fn gain_columns<F: Real>(args: &mut Args<'_, F>, add: impl Fn(F, F) -> F, merge: impl Fn(F, F) -> F) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain) = (args.read(0), args.read(1), args.read(2), args.write(3));
    let at = |(offset, stride): Place, r: u32| 4 * (offset as usize + r as usize * stride as usize);
    let whole = Rows { rows: 1, quads: p.quads };
    for (c, dgain) in whole.row_mut(dgain, (p.dgain_offset, 0), 0).iter_mut().enumerate() {
        let rows = if c < p.cols as usize { p.rows } else { 0 };
        let column = (0..rows * p.parts).map(|i| {
            let (r, part) = (i / p.parts, (i % p.parts) as usize);
            let c = part * p.cols as usize + c;
            let root = stats[at((p.stats_offset, p.stats_stride), r) + part];
            dy[at((p.dy_offset, p.dy_stride), r) + c] * (x[at((p.x_offset, p.x_stride), r) + c] * root)
        });
        let old = if p.accumulate == 1 { *dgain } else { F::zero() };
        *dgain = merge(old, column.fold(F::zero(), &add));
    }
}

fn gain_reference<F: Real>(args: &mut Args<'_, F>) {
    gain_columns(args, |total, term| total + term, |old, total| old + total);
}

/// Two roundings a term, as many additions as there are terms, and one that adds to what was there.
fn gain_bound(args: &mut Args<'_, f64>) {
    let p: GainParams = args.params();
    let n = f64::from(p.rows) * f64::from(p.parts);
    gain_columns(args, |total, term| total + term.abs(), |old, total| EPS * ((n + 3.0) * total + old.abs()));
}
