//! Gated activations: `y = f(g) * u`, where the gate `g` is the first half of the columns of `x` and `u` the second:
//! SwiGLU, GEGLU, ReGLU (Shazeer, arXiv 2002.05202). Backward: `dg = dy * u * f'(g)`, `du = dy * f(g)`, laid out as
//! `x`.
//!
//! A tile owns a run of elements of one row of `y` and reads both halves. It must never know a curve by its formula.

use super::curve::{ERF, FLUSHED, RELU, SILU, TANH, errors, exact, parts};
use super::{BackwardParams, EDGES, Form, ForwardParams, VARIANTS, groups};
use crate::device::{Args, Device, Held, Kernel, Lane, Real, Result, read, write};
use crate::program::matrix::Rows;
use crate::program::{Case, EPS, Fill, Matrix, Program, launch, vector};
use rayon::iter::ParallelIterator;

/// `y = f(g) * u`: bindings x, y. Rows and quads are those of `y`.
pub static GATED_FORWARD: Program = Program {
    kernel: Kernel {
        name: "gated_forward",
        wgsl: include_str!("../../../shaders/activation.wgsl"),
        bindings: &[read("x", Lane::Vec4), write("y", Lane::Vec4)],
        params: ForwardParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: forward_reference,
        reference_f64: forward_reference,
        host: Some(forward_host),
    },
    bound: forward_bound,
    cases: forward_cases,
    fault: ("x[at + p.quads]", "x[at]"),
};

/// `dg = dy * u * f'(g)`, `du = dy * f(g)`: bindings x, dy, dx. Rows and quads are those of `dy`.
pub static GATED_BACKWARD: Program = Program {
    kernel: Kernel {
        name: "gated_backward",
        wgsl: include_str!("../../../shaders/activation.wgsl"),
        bindings: &[read("x", Lane::Vec4), read("dy", Lane::Vec4), write("dx", Lane::Vec4)],
        params: BackwardParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: backward_reference,
        reference_f64: backward_reference,
        host: Some(backward_host),
    },
    bound: backward_bound,
    cases: backward_cases,
    fault: ("dv * x[at + p.quads]", "dv * x[at]"),
};

/// Queues `y = f(g) * u`; `x` is `[rows, 2 * cols]`, `g` in its first `cols` columns and `u` in the others, and `y` is
/// `[rows, cols]`.
///
/// # Panics
/// When the shapes do not fit, `cols` is no multiple of 4 or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn gated_forward(device: &Device, form: Form, x: &Matrix, y: &Matrix) -> Result<()> {
    let (Rows { rows, quads }, form) = (halved(&[x], y), form as u32);
    let ((x_offset, x_stride), (y_offset, y_stride)) = (x.place(), y.place());
    let params = ForwardParams { rows, quads, form, x_offset, x_stride, y_offset, y_stride };
    let views = [x.view.clone(), y.view.clone()];
    launch(device, &GATED_FORWARD.kernel, &params, |v| groups(rows, quads, v), &views)
}

/// Queues `dg = dy * u * f'(g)` and `du = dy * f(g)`; `x` and `dx` are `[rows, 2 * cols]`, `dy` is `[rows, cols]`, and
/// `dx` lies in another buffer than `x`.
///
/// # Panics
/// As [`gated_forward`].
///
/// # Errors
/// As [`gated_forward`].
pub fn gated_backward(device: &Device, form: Form, x: &Matrix, dy: &Matrix, dx: &Matrix) -> Result<()> {
    let (Rows { rows, quads }, form) = (halved(&[x, dx], dy), form as u32);
    let (x_offset, x_stride) = x.place();
    let ((dy_offset, dy_stride), (dx_offset, dx_stride)) = (dy.place(), dx.place());
    let params = BackwardParams { rows, quads, form, x_offset, x_stride, dy_offset, dy_stride, dx_offset, dx_stride };
    let views = [x.view.clone(), dy.view.clone(), dx.view.clone()];
    launch(device, &GATED_BACKWARD.kernel, &params, |v| groups(rows, quads, v), &views)
}

/// The rows of `single`, without padding: the halves of the others have none between them.
fn halved(doubles: &[&Matrix], single: &Matrix) -> Rows {
    for double in doubles {
        let fits = (double.rows, double.cols) == (single.rows, 2 * single.cols);
        assert!(fits, "{double:?} is not as long and twice as wide as {single:?}");
    }
    for m in doubles.iter().chain([&single]) {
        let whole = [m.offset, m.stride, single.cols].iter().all(|n| n.is_multiple_of(4));
        assert!(whole, "{m:?} in halves of {} columns does not lie on multiples of 4", single.cols);
    }
    Rows { rows: single.rows as u32, quads: (single.cols / 4) as u32 }
}

impl Rows {
    /// Rows of both halves.
    fn double(self) -> Rows {
        Rows { quads: 2 * self.quads, ..self }
    }

    /// Floats of one half.
    fn half(self) -> usize {
        4 * self.quads as usize
    }
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    forward_rows(args, |g, u, form| exact(g, form).0 * u);
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    backward_rows(args, |g, u, dy, form| {
        let (value, slope) = exact(g, form);
        (dy * u * slope, dy * value)
    });
}

fn forward_rows<F: Real>(args: &mut Args<'_, F>, value: impl Fn(F, F, Form) -> F) {
    let p: ForwardParams = args.params();
    let (x, y, rows) = (args.read(0), args.write(1), p.extent());
    for r in 0..p.rows {
        let (g, u) = rows.double().row(x, (p.x_offset, p.x_stride), r).split_at(rows.half());
        let y = rows.row_mut(y, (p.y_offset, p.y_stride), r).iter_mut();
        y.zip(g).zip(u).for_each(|((y, &g), &u)| *y = value(g, u, Form::ALL[p.form as usize]));
    }
}

fn backward_rows<F: Real>(args: &mut Args<'_, F>, value: impl Fn(F, F, F, Form) -> (F, F)) {
    let p: BackwardParams = args.params();
    let (x, dy, dx, rows) = (args.read(0), args.read(1), args.write(2), p.extent());
    for r in 0..p.rows {
        let (g, u) = rows.double().row(x, (p.x_offset, p.x_stride), r).split_at(rows.half());
        let dy = rows.row(dy, (p.dy_offset, p.dy_stride), r);
        let dx = rows.double().row_mut(dx, (p.dx_offset, p.dx_stride), r);
        let (dg, du) = dx.split_at_mut(rows.half());
        for ((((dg, du), &g), &u), &dy) in dg.iter_mut().zip(du).zip(g).zip(u).zip(dy) {
            (*dg, *du) = value(g, u, dy, Form::ALL[p.form as usize]);
        }
    }
}

/// The loop of a form over a row: g and u, y.
type ForwardRow = fn((&[f32], &[f32]), &mut [f32]);
/// The same: g and u, dy, dg and du.
type BackwardRow = fn((&[f32], &[f32]), &[f32], (&mut [f32], &mut [f32]));

fn forward_host(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (x, y, rows) = (args.read(0), args.write(1), p.extent());
    let loops: [ForwardRow; 4] = [forward_row::<TANH>, forward_row::<ERF>, forward_row::<SILU>, forward_row::<RELU>];
    let row = loops[p.form as usize];
    rows.blocks_mut(y, (p.y_offset, p.y_stride), 1).for_each(|(r, y)| {
        let x = rows.double().row(x, (p.x_offset, p.x_stride), r);
        row(x.split_at(rows.half()), &mut y[..rows.half()]);
    });
}

fn forward_row<const FORM: u32>((g, u): (&[f32], &[f32]), y: &mut [f32]) {
    vector::dispatch(
        #[inline(always)]
        || y.iter_mut().zip(g).zip(u).for_each(|((y, &g), &u)| *y = g * parts::<FORM>(g).0 * u),
    );
}

fn backward_host(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let (x, dy, dx, rows) = (args.read(0), args.read(1), args.write(2), p.extent());
    let loops: [BackwardRow; 4] =
        [backward_row::<TANH>, backward_row::<ERF>, backward_row::<SILU>, backward_row::<RELU>];
    let row = loops[p.form as usize];
    rows.double().blocks_mut(dx, (p.dx_offset, p.dx_stride), 1).for_each(|(r, dx)| {
        let x = rows.double().row(x, (p.x_offset, p.x_stride), r);
        let dy = rows.row(dy, (p.dy_offset, p.dy_stride), r);
        row(x.split_at(rows.half()), dy, dx[..2 * rows.half()].split_at_mut(rows.half()));
    });
}

fn backward_row<const FORM: u32>((g, u): (&[f32], &[f32]), dy: &[f32], (dg, du): (&mut [f32], &mut [f32])) {
    vector::dispatch(
        #[inline(always)]
        || {
            for ((((dg, du), &g), &u), &dy) in dg.iter_mut().zip(du.iter_mut()).zip(g).zip(u).zip(dy) {
                let (cdf, slope) = parts::<FORM>(g);
                (*dg, *du) = (dy * u * g.mul_add(slope, cdf), dy * (g * cdf));
            }
        },
    );
}

/// The error of f(g) times u, the rounding of the product; and g or f(g) may have been flushed before it, u at it.
fn forward_bound(args: &mut Args<'_, f64>) {
    forward_rows(args, |g, u, form| product_error(u, exact(g, form).0, errors(g, form).0));
}

fn backward_bound(args: &mut Args<'_, f64>) {
    backward_rows(args, |g, u, dy, form| {
        let ((value, slope), (value_error, slope_error)) = (exact(g, form), errors(g, form));
        let dyu = EPS * (dy * u).abs() + FLUSHED; // of the product dy * u, which the slope multiplies
        (product_error(dy * u, slope, slope_error) + slope.abs() * dyu, product_error(dy, value, value_error))
    });
}

/// How far the product of an exact number and a value with an error lies from the truth.
fn product_error(exact: f64, value: f64, error: f64) -> f64 {
    exact.abs() * (error + 2.0 * FLUSHED) + value.abs() * FLUSHED + EPS * (exact * value).abs()
}

/// Where the rows of a matrix lie: floats, offset and stride in quads.
type Layout = (usize, u32, u32);

/// (label, rows, layout of x, layout of y): whole matrices, an odd width, more than one tile a row, column slices.
fn shapes() -> Vec<(&'static str, Rows, Layout, Layout)> {
    let whole = |rows: u32, quads: u32| {
        let stride = |quads: u32| Matrix::stride_for(4 * quads as usize);
        let layout = |quads: u32| (rows as usize * stride(quads), 0, stride(quads) as u32 / 4);
        (Rows { rows, quads }, layout(2 * quads), layout(quads))
    };
    let shape = |label, (rows, x, y)| (label, rows, x, y);
    vec![
        shape("1 x 4", whole(1, 1)),
        shape("37 x 84", whole(37, 21)),
        shape("3 x 1100", whole(3, 275)),
        ("columns 8..40 of 5 x 88 to 8..24 of 5 x 24", Rows { rows: 5, quads: 4 }, (5 * 88, 2, 22), (5 * 24, 2, 6)),
    ]
}

fn forward_cases() -> Vec<Case> {
    cases(|rows, form, (x, x_offset, x_stride), (y, y_offset, y_stride)| {
        let Rows { rows, quads } = rows;
        let params = ForwardParams { rows, quads, form, x_offset, x_stride, y_offset, y_stride };
        (params.words(), vec![wide(x), Fill::Poison { len: y }])
    })
}

fn backward_cases() -> Vec<Case> {
    cases(|rows, form, (x, x_offset, x_stride), (y, dy_offset, dy_stride)| {
        let (Rows { rows, quads }, dx_offset, dx_stride) = (rows, x_offset, x_stride);
        let params =
            BackwardParams { rows, quads, form, x_offset, x_stride, dy_offset, dy_stride, dx_offset, dx_stride };
        (params.words(), vec![wide(x), wide(y), Fill::Poison { len: x }])
    })
}

fn wide(len: usize) -> Fill {
    Fill::Normal { rows: 1, cols: len, stride: len, scale: 3.0, mean: 0.0 }
}

/// Parameter words and contents of the bindings: from rows, form, layouts of x and y.
type Setup = fn(Rows, u32, Layout, Layout) -> (Vec<u32>, Vec<Fill>);

fn cases(setup: Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |label: &str, form: Form, rows: Rows, (words, fills): (Vec<u32>, Vec<Fill>)| {
        cases.push(Case {
            label: format!("{label}, {form:?}"),
            fills,
            launch: Box::new(move |v| (words.clone(), groups(rows.rows, rows.quads, v))),
        });
    };
    for form in Form::ALL {
        for (label, rows, x, y) in shapes() {
            add(label, form, rows, setup(rows, form as u32, x, y));
        }
        let (quads, len) = (EDGES.len() as u32 / 4, EDGES.len());
        let rows = Rows { rows: 1, quads };
        let (words, mut fills) = setup(rows, form as u32, (2 * len, 0, 2 * quads), (len, 0, quads));
        fills[0] = Fill::Floats(EDGES.into_iter().chain((0..len).map(|i| 0.7 * (i as f32 - 11.0))).collect());
        add("edges", form, rows, (words, fills));
    }
    cases
}
