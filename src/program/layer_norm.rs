//! Layer norm over rows: `y = (x - mean) / sqrt(variance + eps) * gain (+ bias)`, its gradient, and that of the gain (that
//! of the bias is a column sum of dy). It must never know where in a model the norm stands.
//!
//! Mean, then variance of the differences from it (two passes: no cancellation of large squares). Forward keeps mean and
//! reciprocal standard deviation of each row for backward. A tile owns whole rows, for the gain whole columns: where rows
//! cross tiles on the wafer's fabric, one workgroup plays the whole row in the route's order.

mod cases;
mod host;

use super::column_sum::{groups as column_groups, tile_bytes as column_bytes};
use super::matrix::{Place, Rows};
use super::{EPS, Matrix, Program, launch};
use crate::device::{Args, Class, Device, Kernel, Lane, Real, Result, Variant, read, write};

crate::params! {
    /// Parameters of the forward kernel; places in quads of four floats.
    pub struct ForwardParams {
        /// Number of rows.
        rows: u32,
        /// Columns that count.
        cols: u32,
        /// Quads of a row, padding included.
        quads: u32,
        /// Added to the variance.
        eps: f32,
        /// 1: there is a bias.
        biased: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `gain`.
        gain_offset: u32,
        /// First quad of `bias`.
        bias_offset: u32,
        /// First quad of `y`.
        y_offset: u32,
        /// Quads from one row of `y` to the next.
        y_stride: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
    }
}

crate::params! {
    /// Parameters of the backward kernel; places in quads.
    pub struct BackwardParams {
        /// Number of rows.
        rows: u32,
        /// Columns that count.
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
        /// Quads of a row, padding included.
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

/// Tiles of whole rows. On a software adapter a barrier costs more than a lane that reads a row alone.
pub(super) const ROW_VARIANTS: &[Variant] = &[
    Variant {
        name: "rows4x32",
        classes: &[Class::Gpu, Class::Native],
        constants: &[("WG", 128), ("LANES", 32), ("ROW", 1), ("TREE", 1)],
    },
    Variant {
        name: "rows8x1",
        classes: &[Class::Software],
        constants: &[("WG", 8), ("LANES", 1), ("ROW", 1), ("TREE", 0)],
    },
];

/// Tiles of whole columns, as those of a column sum.
pub(super) const COLUMN_VARIANTS: &[Variant] = &[
    Variant {
        name: "quads4x64",
        classes: &[Class::Gpu, Class::Native],
        constants: &[("WG", 256), ("QUADS", 4), ("SLOTS", 64), ("BLOCK", 8), ("SPLIT", 1), ("ROW", 0)],
    },
    Variant {
        name: "quads8x1",
        classes: &[Class::Software],
        constants: &[("WG", 8), ("QUADS", 8), ("SLOTS", 1), ("BLOCK", 32), ("SPLIT", 0), ("ROW", 0)],
    },
];

const WGSL: &str = include_str!("../../shaders/layer_norm.wgsl");

/// The three programs.
pub static PROGRAMS: [&Program; 3] = [&FORWARD, &BACKWARD, &GAIN_BACKWARD];

/// `y = norm(x) * gain (+ bias)`: bindings x, gain, bias, y, stats.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "layer_norm_forward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("gain", Lane::Vec4),
            read("bias", Lane::Vec4),
            write("y", Lane::Vec4),
            write("stats", Lane::Vec4),
        ],
        params: ForwardParams::FIELDS,
        variants: ROW_VARIANTS,
        tile_bytes: row_bytes,
        reference_f32: forward_reference,
        reference_f64: forward_reference,
        host: Some(host::forward),
    },
    bound: forward_bound,
    cases: cases::forward,
    fault: ("variance + p.eps", "variance"),
};

/// `dx = the gradient through the norm (+ residual)`: bindings x, gain, stats, dy, residual, dx.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "layer_norm_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("gain", Lane::Vec4),
            read("stats", Lane::Vec4),
            read("dy", Lane::Vec4),
            read("residual", Lane::Vec4),
            write("dx", Lane::Vec4),
        ],
        params: BackwardParams::FIELDS,
        variants: ROW_VARIANTS,
        tile_bytes: row_bytes,
        reference_f32: backward_reference,
        reference_f64: backward_reference,
        host: Some(host::backward),
    },
    bound: backward_bound,
    cases: cases::backward,
    fault: ("h - sums.x", "h"),
};

/// `dgain (+)= column sums of dy * norm(x)`: bindings x, stats, dy, dgain.
pub static GAIN_BACKWARD: Program = Program {
    kernel: Kernel {
        name: "layer_norm_gain_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("stats", Lane::Vec4),
            read("dy", Lane::Vec4),
            write("dgain", Lane::Vec4),
        ],
        params: GainParams::FIELDS,
        variants: COLUMN_VARIANTS,
        tile_bytes: column_bytes,
        reference_f32: gain_reference,
        reference_f64: gain_reference,
        host: Some(host::gain_backward),
    },
    bound: gain_bound,
    cases: cases::gain_backward,
    fault: ("- moments.x)", ")"),
};

/// Two sums of four floats in each lane.
fn row_bytes(variant: &Variant) -> u32 {
    variant.get("WG") * 32
}

/// Tiles that cover `rows` rows.
pub(super) fn row_groups(rows: u32, variant: &Variant) -> u32 {
    rows.div_ceil(variant.get("WG") / variant.get("LANES"))
}

/// Queues `y = (x - mean) * rstd * gain (+ bias)`. `x` and `y` are of one shape, `gain` and `bias` one row of it; `stats`
/// (rows x 2) receives mean and rstd of each row.
///
/// # Panics
/// When shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn forward(
    device: &Device,
    x: &Matrix,
    gain: &Matrix,
    bias: Option<&Matrix>,
    eps: f32,
    y: &Matrix,
    stats: &Matrix,
) -> Result<()> {
    let biased = bias.is_some() as u32;
    // Without a bias, the gain stands in its place for reading and is not read there.
    let bias = bias.unwrap_or(gain);
    let Rows { rows, quads } = Rows::of(&[x, y]);
    expect_row(gain, x);
    expect_row(bias, x);
    expect_stats(stats, x);
    let ((x_offset, x_stride), (y_offset, y_stride)) = (x.place(), y.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = ForwardParams {
        rows,
        cols: x.cols as u32,
        quads,
        eps,
        biased,
        x_offset,
        x_stride,
        gain_offset: gain.place().0,
        bias_offset: bias.place().0,
        y_offset,
        y_stride,
        stats_offset,
        stats_stride,
    };
    let views = [x, gain, bias, y, stats].map(|m| m.view.clone());
    launch(device, &FORWARD.kernel, &params, |v| row_groups(rows, v), &views)
}

/// Queues `dx = the gradient through the norm (+ residual)`. `x`, `dy`, `residual` and `dx` are of one shape, `dx` is no
/// buffer of the others; `stats` is what [`forward`] wrote. `residual` is the gradient that by-passes the norm.
///
/// # Panics
/// When shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn backward(
    device: &Device,
    x: &Matrix,
    gain: &Matrix,
    stats: &Matrix,
    dy: &Matrix,
    residual: Option<&Matrix>,
    dx: &Matrix,
) -> Result<()> {
    let bypassed = residual.is_some() as u32;
    // Without one, dy stands in its place for reading and is not read there.
    let residual = residual.unwrap_or(dy);
    let Rows { rows, quads } = Rows::of(&[x, dy, residual, dx]);
    expect_row(gain, x);
    expect_stats(stats, x);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let ((residual_offset, residual_stride), (dx_offset, dx_stride)) = (residual.place(), dx.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = BackwardParams {
        rows,
        cols: x.cols as u32,
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
    launch(device, &BACKWARD.kernel, &params, |v| row_groups(rows, v), &views)
}

/// Queues `dgain (+)= column sums of dy * (x - mean) * rstd`; `dgain` is one row, `stats` is what [`forward`] wrote.
///
/// # Panics
/// When shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn gain_backward(
    device: &Device,
    x: &Matrix,
    stats: &Matrix,
    dy: &Matrix,
    dgain: &Matrix,
    accumulate: bool,
) -> Result<()> {
    let Rows { rows, quads } = Rows::of(&[x, dy]);
    expect_row(dgain, x);
    expect_stats(stats, x);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = GainParams {
        rows,
        quads,
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
    launch(device, &GAIN_BACKWARD.kernel, &params, |v| column_groups(quads, v), &views)
}

fn expect_row(row: &Matrix, x: &Matrix) {
    assert!(row.rows == 1, "{row:?} is not one row");
    row.expect_like(&x.rows(0, 1));
}

fn expect_stats(stats: &Matrix, x: &Matrix) {
    assert!(
        (stats.rows, stats.cols, stats.quads()) == (x.rows, 2, 2),
        "{stats:?} does not hold mean and rstd of the rows of {x:?}"
    );
}

/// Goes through the rows: `norm` writes the columns of one row of y and returns its two stats.
fn forward_rows<F: Real>(args: &mut Args<'_, F>, norm: impl Fn(&[F], &[F], Option<&[F]>, F, &mut [F]) -> [F; 2]) {
    let p: ForwardParams = args.params();
    let (x, gain, bias, y, stats) = (args.read(0), args.read(1), args.read(2), args.write(3), args.write(4));
    let (rows, pair, n) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 2 }, p.cols as usize);
    let gain = &rows.row(gain, (p.gain_offset, 0), 0)[..n];
    let bias = (p.biased == 1).then(|| &rows.row(bias, (p.bias_offset, 0), 0)[..n]);
    for r in 0..p.rows {
        let y = rows.row_mut(y, (p.y_offset, p.y_stride), r);
        let x = &rows.row(x, (p.x_offset, p.x_stride), r)[..n];
        let kept = pair.row_mut(stats, (p.stats_offset, p.stats_stride), r);
        kept.fill(F::zero());
        kept[..2].copy_from_slice(&norm(x, gain, bias, F::of(p.eps as f64), &mut y[..n]));
        y[n..].fill(F::zero());
    }
}

fn moments<F: Real>(x: &[F], eps: F) -> (F, F) {
    let n = F::of(x.len() as f64);
    let mean = x.iter().copied().sum::<F>() / n;
    let variance = x.iter().map(|&x| (x - mean) * (x - mean)).sum::<F>() / n;
    (mean, F::one() / (variance + eps).sqrt())
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    forward_rows(args, |x, gain, bias, eps, y| {
        let (mean, rstd) = moments(x, eps);
        for (c, y) in y.iter_mut().enumerate() {
            *y = (x[c] - mean) * rstd * gain[c] + bias.map_or(F::zero(), |b| b[c]);
        }
        [mean, rstd]
    });
}

/// Sums of n terms in any order are off by n EPS of the sum of absolute values; division is good to 5 EPS, and so is sqrt.
/// The error of the mean shifts every difference alike: as the true differences sum to 0, it enters the variance squared.
fn forward_bound(args: &mut Args<'_, f64>) {
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
struct Row<'a, F> {
    x: &'a [F],
    gain: &'a [F],
    mean: F,
    rstd: F,
    dy: &'a [F],
    residual: Option<&'a [F]>,
}

/// The row at `r`, its columns only.
fn row_at<'a, F: Real>(p: &BackwardParams, bound: [&'a [F]; 5], r: u32) -> Row<'a, F> {
    let [x, gain, stats, dy, residual] = bound;
    let rows = Rows { rows: p.rows, quads: p.quads };
    let cut = |cells: &'a [F], place: Place, r| &rows.row(cells, place, r)[..p.cols as usize];
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

fn backward_rows<F: Real>(args: &mut Args<'_, F>, differentiate: impl Fn(Row<'_, F>, &mut [F])) {
    let p: BackwardParams = args.params();
    let (bound, dx) = (std::array::from_fn(|i| args.read(i)), args.write(5));
    let rows = Rows { rows: p.rows, quads: p.quads };
    for r in 0..p.rows {
        let (dx, padding) = rows.row_mut(dx, (p.dx_offset, p.dx_stride), r).split_at_mut(p.cols as usize);
        differentiate(row_at(&p, bound, r), dx);
        padding.fill(F::zero());
    }
}

impl<F: Real> Row<'_, F> {
    /// The normalised x and the gradient that reaches it, at column c.
    fn normal(&self, c: usize) -> (F, F) {
        ((self.x[c] - self.mean) * self.rstd, self.gain[c] * self.dy[c])
    }

    /// Means over the row of `h` and of `h * normal`, each through `f`.
    fn means(&self, f: fn(F) -> F) -> (F, F) {
        let n = F::of(self.x.len() as f64);
        let (plain, leaning) = (0..self.x.len()).fold((F::zero(), F::zero()), |(plain, leaning), c| {
            let (normal, h) = self.normal(c);
            (plain + f(h), leaning + f(h * normal))
        });
        (plain / n, leaning / n)
    }
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    backward_rows(args, |row, dx| {
        let (plain, leaning) = row.means(|x| x);
        for (c, dx) in dx.iter_mut().enumerate() {
            let (normal, h) = row.normal(c);
            *dx = row.rstd * (h - plain - normal * leaning) + row.residual.map_or(F::zero(), |g| g[c]);
        }
    });
}

/// The stats are inputs here, so the differences from the mean carry one rounding each; the two sums n more.
fn backward_bound(args: &mut Args<'_, f64>) {
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

/// Goes down each column with `add`, then merges with what `dgain` held (0 when it does not accumulate).
fn gain_columns<F: Real>(args: &mut Args<'_, F>, add: impl Fn(F, F) -> F, merge: impl Fn(F, F) -> F) {
    let p: GainParams = args.params();
    let (x, stats, dy, dgain) = (args.read(0), args.read(1), args.read(2), args.write(3));
    let (rows, pair) = (Rows { rows: p.rows, quads: p.quads }, Rows { rows: p.rows, quads: 1 });
    for (c, dgain) in rows.row_mut(dgain, (p.dgain_offset, 0), 0).iter_mut().enumerate() {
        let column = (0..p.rows).map(|r| {
            let moments = pair.row(stats, (p.stats_offset, p.stats_stride), r);
            let normal = (rows.row(x, (p.x_offset, p.x_stride), r)[c] - moments[0]) * moments[1];
            rows.row(dy, (p.dy_offset, p.dy_stride), r)[c] * normal
        });
        let old = if p.accumulate == 1 { *dgain } else { F::zero() };
        *dgain = merge(old, column.fold(F::zero(), &add));
    }
}

fn gain_reference<F: Real>(args: &mut Args<'_, F>) {
    gain_columns(args, |total, term| total + term, |old, total| old + total);
}

fn gain_bound(args: &mut Args<'_, f64>) {
    let p: GainParams = args.params();
    let n = f64::from(p.rows);
    gain_columns(args, |total, term| total + term.abs(), |old, total| EPS * ((n + 3.0) * total + old.abs()));
}
