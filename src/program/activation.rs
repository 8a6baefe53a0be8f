//! Activations, forward and backward, over any number of elements: GELU in the tanh form (GPT-2) or the erf form
//! (exact), SiLU, ReLU. [`gated_forward`] and [`gated_backward`] multiply one half of the columns by the curve of the
//! other.
//!
//! `f(x) = x * c(x)`. GELU: `c = Phi`; its tanh form: `Phi(x) ~ (1 + tanh(u)) / 2`,
//! `u = sqrt(2/pi) * (x + 0.044715 x^3)` (Hendrycks and Gimpel, arXiv 1606.08415). SiLU: `c(x) = 1 / (1 + exp(-x))`.
//! ReLU: `c(x)` is 1 for `x > 0`, else 0, and so is its derivative: 0 at 0. Elementwise: a tile owns a run of elements,
//! nothing crosses tiles. What is not finite does not become 0 unseen: it is multiplied, never chosen away. It must
//! never know what comes before or after.

mod curve;
mod gated;

use self::curve::{ERF, RELU, SILU, TANH, errors, exact, parts};
use super::matrix::Rows;
use super::{Case, Fill, Matrix, Program, launch, vector};
use crate::device::{Args, Class, Device, Held, Kernel, Lane, Real, Result, Variant, read, write};
use rayon::iter::ParallelIterator;

pub use gated::{GATED_BACKWARD, GATED_FORWARD, gated_backward, gated_forward};

/// Which formula. A kernel knows a form by its place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// GELU by the tanh approximation, as GPT-2 was trained with.
    Tanh,
    /// GELU in the exact form with the error function.
    Erf,
    /// SiLU, also called swish; with a gate, SwiGLU.
    Silu,
    /// ReLU; its derivative at 0 is 0.
    Relu,
}

impl Form {
    /// Every form, in the order of the numbers that kernels know them by.
    pub const ALL: [Form; 4] = [Form::Tanh, Form::Erf, Form::Silu, Form::Relu];
}

crate::params! {
    /// Parameters of the forward kernel; places in quads of four floats.
    pub struct ForwardParams {
        /// Rows: 1 where the matrices lie without gaps.
        rows: u32,
        /// Quads of a row.
        quads: u32,
        /// Place in [`Form::ALL`].
        form: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `y`.
        y_offset: u32,
        /// Quads from one row of `y` to the next.
        y_stride: u32,
    }
}

crate::params! {
    /// Parameters of the backward kernel; places in quads.
    pub struct BackwardParams {
        /// Rows: 1 where the matrices lie without gaps.
        rows: u32,
        /// Quads of a row.
        quads: u32,
        /// Place in [`Form::ALL`].
        form: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `dy`.
        dy_offset: u32,
        /// Quads from one row of `dy` to the next.
        dy_stride: u32,
        /// First quad of `dx`.
        dx_offset: u32,
        /// Quads from one row of `dx` to the next.
        dx_stride: u32,
    }
}

const VARIANTS: &[Variant] = &[
    Variant { name: "run256x4", classes: &[Class::Gpu, Class::Native], constants: &[("WG", 64), ("QUADS", 4)] },
    Variant { name: "run128x4", classes: &[Class::Software], constants: &[("WG", 8), ("QUADS", 16)] },
];

/// All four programs.
pub static PROGRAMS: [&Program; 4] = [&FORWARD, &BACKWARD, &GATED_FORWARD, &GATED_BACKWARD];

/// `y = f(x)`: bindings x, y.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "activation_forward",
        wgsl: include_str!("../../shaders/activation.wgsl"),
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
    fault: ("0.044715", "0.044"),
};

/// `dx = dy * f'(x)`: bindings x, dy, dx.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "activation_backward",
        wgsl: include_str!("../../shaders/activation.wgsl"),
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
    fault: ("0.134145", "0.13"),
};

/// Queues `y = f(x)`; both of one shape.
///
/// # Panics
/// When the shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn forward(device: &Device, form: Form, x: &Matrix, y: &Matrix) -> Result<()> {
    let (Rows { rows, quads }, form) = (Rows::flat(&[x, y]), form as u32);
    let ((x_offset, x_stride), (y_offset, y_stride)) = (x.place(), y.place());
    let params = ForwardParams { rows, quads, form, x_offset, x_stride, y_offset, y_stride };
    launch(device, &FORWARD.kernel, &params, |v| groups(rows, quads, v), &[x.view.clone(), y.view.clone()])
}

/// Queues `dx = dy * f'(x)`; all of one shape.
///
/// # Panics
/// When the shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn backward(device: &Device, form: Form, x: &Matrix, dy: &Matrix, dx: &Matrix) -> Result<()> {
    let (Rows { rows, quads }, form) = (Rows::flat(&[x, dy, dx]), form as u32);
    let (x_offset, x_stride) = x.place();
    let ((dy_offset, dy_stride), (dx_offset, dx_stride)) = (dy.place(), dx.place());
    let params = BackwardParams { rows, quads, form, x_offset, x_stride, dy_offset, dy_stride, dx_offset, dx_stride };
    let views = [x.view.clone(), dy.view.clone(), dx.view.clone()];
    launch(device, &BACKWARD.kernel, &params, |v| groups(rows, quads, v), &views)
}

fn groups(rows: u32, quads: u32, variant: &Variant) -> u32 {
    rows * quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    forward_rows(args, |x, form| exact(x, form).0);
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    backward_rows(args, |x, dy, form| dy * exact(x, form).1);
}

fn forward_rows<F: Real>(args: &mut Args<'_, F>, value: impl Fn(F, Form) -> F) {
    let p: ForwardParams = args.params();
    let (x, y, rows) = (args.read(0), args.write(1), p.extent());
    for r in 0..p.rows {
        let y = rows.row_mut(y, (p.y_offset, p.y_stride), r).iter_mut();
        y.zip(rows.row(x, (p.x_offset, p.x_stride), r)).for_each(|(y, &x)| *y = value(x, Form::ALL[p.form as usize]));
    }
}

fn backward_rows<F: Real>(args: &mut Args<'_, F>, value: impl Fn(F, F, Form) -> F) {
    let p: BackwardParams = args.params();
    let (x, dy, dx, rows) = (args.read(0), args.read(1), args.write(2), p.extent());
    for r in 0..p.rows {
        let (x, dy) = (rows.row(x, (p.x_offset, p.x_stride), r), rows.row(dy, (p.dy_offset, p.dy_stride), r));
        let dx = rows.row_mut(dx, (p.dx_offset, p.dx_stride), r).iter_mut();
        dx.zip(x).zip(dy).for_each(|((dx, &x), &dy)| *dx = value(x, dy, Form::ALL[p.form as usize]));
    }
}

impl ForwardParams {
    fn extent(&self) -> Rows {
        Rows { rows: self.rows, quads: self.quads }
    }
}

impl BackwardParams {
    fn extent(&self) -> Rows {
        Rows { rows: self.rows, quads: self.quads }
    }
}

/// The loop of a form over a piece: x, y.
type ForwardPiece = fn(&[f32], &mut [f32]);
/// The same: x, dy, dx.
type BackwardPiece = fn(&[f32], &[f32], &mut [f32]);

fn forward_host(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (x, y, rows) = (args.read(0), args.write(1), p.extent());
    let pieces: [ForwardPiece; 4] =
        [forward_piece::<TANH>, forward_piece::<ERF>, forward_piece::<SILU>, forward_piece::<RELU>];
    let piece = pieces[p.form as usize];
    rows.pieces_mut(y, (p.y_offset, p.y_stride)).for_each(|(i, y)| {
        piece(rows.piece(x, (p.x_offset, p.x_stride), i, y.len()), y);
    });
}

fn forward_piece<const FORM: u32>(x: &[f32], y: &mut [f32]) {
    vector::dispatch(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * parts::<FORM>(x).0),
    );
}

fn backward_host(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let (x, dy, dx, rows) = (args.read(0), args.read(1), args.write(2), p.extent());
    let pieces: [BackwardPiece; 4] =
        [backward_piece::<TANH>, backward_piece::<ERF>, backward_piece::<SILU>, backward_piece::<RELU>];
    let piece = pieces[p.form as usize];
    rows.pieces_mut(dx, (p.dx_offset, p.dx_stride)).for_each(|(i, dx)| {
        let x = rows.piece(x, (p.x_offset, p.x_stride), i, dx.len());
        piece(x, rows.piece(dy, (p.dy_offset, p.dy_stride), i, dx.len()), dx);
    });
}

fn backward_piece<const FORM: u32>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    vector::dispatch(
        #[inline(always)]
        || {
            for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                let (cdf, slope) = parts::<FORM>(x);
                *dx = dy * x.mul_add(slope, cdf);
            }
        },
    );
}

fn forward_bound(args: &mut Args<'_, f64>) {
    forward_rows(args, |x, form| errors(x, form).0);
}

fn backward_bound(args: &mut Args<'_, f64>) {
    backward_rows(args, |x, dy, form| dy.abs() * errors(x, form).1);
}

/// What an f32 handles worst, in either sign: where the curves saturate, where exponentials and inputs are subnormal.
pub(super) const EDGES: [f32; 24] = [
    0.0, -0.0, 1e-40, -1e-40, 1e-20, 5.5, -5.5, 9.0, -9.0, 13.0, -13.0, 14.5, -14.5, 20.0, -20.0, 87.0, -87.0, 95.0,
    -95.0, 110.0, -110.0, 1e30, -1e30, 1e-3,
];

/// (label, fill of x, rows, quads of a row, quads from row to row): a whole matrix, odd shapes, edges, a column slice.
fn shapes() -> Vec<(&'static str, Fill, Rows, u32)> {
    let wide = |len| Fill::Normal { rows: 1, cols: len, stride: len, scale: 3.0, mean: 0.0 };
    let line = |quads| Rows { rows: 1, quads };
    vec![
        ("4", wide(4), line(1), 1),
        ("37 x 84", Fill::matrix(37, 84), line(37 * 22), 37 * 22),
        ("37 x 88, wide", wide(37 * 88), line(37 * 22), 37 * 22),
        ("4096, wide", wide(4096), line(1024), 1024),
        ("edges", Fill::Floats(EDGES.to_vec()), line(6), 6),
        ("columns 8..24 of 5 x 88", wide(5 * 88), Rows { rows: 5, quads: 4 }, 22),
    ]
}

fn forward_cases() -> Vec<Case> {
    cases(
        |x, len| vec![x, Fill::Poison { len }],
        |Rows { rows, quads }, form, offset, stride| {
            let (x_offset, x_stride, y_offset, y_stride) = (offset, stride, offset, stride);
            ForwardParams { rows, quads, form, x_offset, x_stride, y_offset, y_stride }.words()
        },
    )
}

fn backward_cases() -> Vec<Case> {
    cases(
        |x, len| vec![x, Fill::Normal { rows: 1, cols: len, stride: len, scale: 1.0, mean: 0.0 }, Fill::Poison { len }],
        |Rows { rows, quads }, form, offset, stride| {
            let ((x_offset, x_stride), (dy_offset, dy_stride)) = ((offset, stride), (offset, stride));
            let (dx_offset, dx_stride) = (offset, stride);
            BackwardParams { rows, quads, form, x_offset, x_stride, dy_offset, dy_stride, dx_offset, dx_stride }.words()
        },
    )
}

fn cases(fills: fn(Fill, usize) -> Vec<Fill>, words: fn(Rows, u32, u32, u32) -> Vec<u32>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (label, x, rows, stride) in shapes() {
        for form in Form::ALL {
            let len = x.words(0).len();
            let offset = if rows.rows > 1 { 2 } else { 0 };
            let words = words(rows, form as u32, offset, stride);
            cases.push(Case {
                label: format!("{label}, {form:?}"),
                fills: fills(x.clone(), len),
                launch: Box::new(move |v| (words.clone(), groups(rows.rows, rows.quads, v))),
            });
        }
    }
    cases
}
