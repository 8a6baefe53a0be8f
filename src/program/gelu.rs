//! GELU, forward and backward, in the tanh form (GPT-2) or the erf form (exact), over any number of elements.
//!
//! `y = x * Phi(x)`; tanh form: `Phi(x) ~ (1 + tanh(u)) / 2`, `u = sqrt(2/pi) * (x + 0.044715 x^3)` (Hendrycks and
//! Gimpel, arXiv 1606.08415). Elementwise: a tile owns a run of elements, nothing crosses tiles.

use super::matrix::Rows;
use super::{Case, EPS, Fill, Matrix, Program, launch, vector};
use crate::device::{Args, Class, Device, Kernel, Lane, Real, Result, Variant, read, write};
use rayon::iter::ParallelIterator;

/// Which formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The tanh approximation, as GPT-2 was trained with.
    Tanh,
    /// The exact form with the error function.
    Erf,
}

crate::params! {
    /// Parameters of the forward kernel; places in quads of four floats.
    pub struct ForwardParams {
        /// Rows: 1 where the matrices lie without gaps.
        rows: u32,
        /// Quads of a row.
        quads: u32,
        /// 1: erf form, 0: tanh form.
        erf: u32,
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
        /// 1: erf form, 0: tanh form.
        erf: u32,
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

/// Both programs.
pub static PROGRAMS: [&Program; 2] = [&FORWARD, &BACKWARD];

/// `y = gelu(x)`: bindings x, y.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "gelu_forward",
        wgsl: include_str!("../../shaders/gelu.wgsl"),
        bindings: &[read("x", Lane::Vec4), write("y", Lane::Vec4)],
        params: ForwardParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 0,
        reference_f32: forward_reference,
        reference_f64: forward_reference,
        host: Some(forward_host),
    },
    bound: forward_bound,
    cases: forward_cases,
    fault: ("0.044715", "0.044"),
};

/// `dx = dy * gelu'(x)`: bindings x, dy, dx.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "gelu_backward",
        wgsl: include_str!("../../shaders/gelu.wgsl"),
        bindings: &[read("x", Lane::Vec4), read("dy", Lane::Vec4), write("dx", Lane::Vec4)],
        params: BackwardParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 0,
        reference_f32: backward_reference,
        reference_f64: backward_reference,
        host: Some(backward_host),
    },
    bound: backward_bound,
    cases: backward_cases,
    fault: ("0.134145", "0.13"),
};

/// Queues `y = gelu(x)`; both of one shape.
///
/// # Panics
/// When the shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn forward(device: &Device, form: Form, x: &Matrix, y: &Matrix) -> Result<()> {
    let (Rows { rows, quads }, erf) = (Rows::flat(&[x, y]), (form == Form::Erf) as u32);
    let ((x_offset, x_stride), (y_offset, y_stride)) = (x.place(), y.place());
    let params = ForwardParams { rows, quads, erf, x_offset, x_stride, y_offset, y_stride };
    launch(device, &FORWARD.kernel, &params, |v| groups(rows, quads, v), &[x.view.clone(), y.view.clone()])
}

/// Queues `dx = dy * gelu'(x)`; all of one shape.
///
/// # Panics
/// When the shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn backward(device: &Device, form: Form, x: &Matrix, dy: &Matrix, dx: &Matrix) -> Result<()> {
    let (Rows { rows, quads }, erf) = (Rows::flat(&[x, dy, dx]), (form == Form::Erf) as u32);
    let (x_offset, x_stride) = x.place();
    let ((dy_offset, dy_stride), (dx_offset, dx_stride)) = (dy.place(), dx.place());
    let params = BackwardParams { rows, quads, erf, x_offset, x_stride, dy_offset, dy_stride, dx_offset, dx_stride };
    let views = [x.view.clone(), dy.view.clone(), dx.view.clone()];
    launch(device, &BACKWARD.kernel, &params, |v| groups(rows, quads, v), &views)
}

fn groups(rows: u32, quads: u32, variant: &Variant) -> u32 {
    rows * quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

const CUBIC: f64 = 0.044715;
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const INVERSE_SQRT_TAU: f64 = 0.398_942_280_401_432_7;

/// gelu(x) and gelu'(x), with neither 1 + erf nor 1 + tanh, which cancel far out on the left: (1 + erf(z)) / 2 is
/// erfc(-z) / 2, and (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)).
fn gelu<F: Real>(x: F, erf: bool) -> (F, F) {
    let (half, one) = (F::of(0.5), F::one());
    if erf {
        let cdf = half * (-x * F::of(std::f64::consts::FRAC_1_SQRT_2)).erfc();
        let pdf = (-half * x * x).exp() * F::of(INVERSE_SQRT_TAU);
        return (x * cdf, cdf + x * pdf);
    }
    let two_u = F::of(2.0 * SQRT_2_OVER_PI) * x * (one + F::of(CUBIC) * x * x);
    let (plus, minus) = (one / (one + (-two_u).exp()), one / (one + two_u.exp()));
    let two_du = F::of(2.0 * SQRT_2_OVER_PI) * (one + F::of(3.0 * CUBIC) * x * x);
    let fall = plus * minus;
    // Where tanh has saturated, x times a slope of exactly 0 is 0, however large the square of x is.
    (x * plus, plus + if fall == F::zero() { fall } else { x * fall * two_du })
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    forward_rows(args, |x, erf| gelu(x, erf).0);
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    backward_rows(args, |x, dy, erf| dy * gelu(x, erf).1);
}

fn forward_rows<F: Real>(args: &mut Args<'_, F>, value: impl Fn(F, bool) -> F) {
    let p: ForwardParams = args.params();
    let (x, y, rows) = (args.read(0), args.write(1), p.extent());
    for r in 0..p.rows {
        let y = rows.row_mut(y, (p.y_offset, p.y_stride), r).iter_mut();
        y.zip(rows.row(x, (p.x_offset, p.x_stride), r)).for_each(|(y, &x)| *y = value(x, p.erf == 1));
    }
}

fn backward_rows<F: Real>(args: &mut Args<'_, F>, value: impl Fn(F, F, bool) -> F) {
    let p: BackwardParams = args.params();
    let (x, dy, dx, rows) = (args.read(0), args.read(1), args.write(2), p.extent());
    for r in 0..p.rows {
        let (x, dy) = (rows.row(x, (p.x_offset, p.x_stride), r), rows.row(dy, (p.dy_offset, p.dy_stride), r));
        let dx = rows.row_mut(dx, (p.dx_offset, p.dx_stride), r).iter_mut();
        dx.zip(x).zip(dy).for_each(|((dx, &x), &dy)| *dx = value(x, dy, p.erf == 1));
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

fn forward_host(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (x, y, rows) = (args.read(0), args.write(1), p.extent());
    let arch = pulp::Arch::new();
    rows.pieces_mut(y, (p.y_offset, p.y_stride)).for_each(|(i, y)| {
        let x = rows.piece(x, (p.x_offset, p.x_stride), i, y.len());
        // One loop a form: a branch inside would keep either from being vectorised.
        if p.erf == 1 {
            arch.dispatch(|| y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * parts::<true>(x).0));
        } else {
            arch.dispatch(|| y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * parts::<false>(x).0));
        }
    });
}

fn backward_host(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let (x, dy, dx, rows) = (args.read(0), args.read(1), args.write(2), p.extent());
    let arch = pulp::Arch::new();
    rows.pieces_mut(dx, (p.dx_offset, p.dx_stride)).for_each(|(i, dx)| {
        let x = rows.piece(x, (p.x_offset, p.x_stride), i, dx.len());
        let dy = rows.piece(dy, (p.dy_offset, p.dy_stride), i, dx.len());
        if p.erf == 1 {
            arch.dispatch(|| backward_piece::<true>(x, dy, dx));
        } else {
            arch.dispatch(|| backward_piece::<false>(x, dy, dx));
        }
    });
}

#[inline(always)]
fn backward_piece<const ERF: bool>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        let (cdf, slope) = parts::<ERF>(x);
        *dx = dy * x.mul_add(slope, cdf);
    }
}

/// Phi(x) and its derivative in either form; finite x beyond 16 count as 16, where both have saturated.
#[inline(always)]
fn parts<const ERF: bool>(x: f32) -> (f32, f32) {
    let a = x.abs().min(16.0);
    if ERF {
        let e = vector::exp(-0.5 * a * a);
        let tail = e * scaled_tail(a);
        return (if x >= 0.0 { 1.0 - tail } else { tail }, INVERSE_SQRT_TAU as f32 * e);
    }
    let root = SQRT_2_OVER_PI as f32;
    let e = vector::exp(-2.0 * root * a * (CUBIC as f32 * a).mul_add(a, 1.0));
    let large = 1.0 / (1.0 + e);
    let small = e * large;
    let slope = 2.0 * large * small * root * (3.0 * CUBIC as f32 * a).mul_add(a, 1.0);
    (if x >= 0.0 { large } else { small }, slope)
}

/// Phi(-a) * exp(a^2 / 2) for 0 <= a <= 16: a minimax polynomial in 1 / (1 + 0.35 a), relative error 4e-8 up to 13.5,
/// beyond which exp(-a^2 / 2) is 0.
#[inline(always)]
fn scaled_tail(a: f32) -> f32 {
    const C: [f32; 9] = [
        0.139_621_57,
        0.139_859_08,
        0.119_852_43,
        0.105_432_97,
        -0.022_937_22,
        0.158_929_41,
        -0.255_504_67,
        0.143_872_29,
        -0.029_125_877,
    ];
    let t = 1.0 / a.mul_add(0.35, 1.0);
    t * C.iter().rev().fold(0.0, |h: f32, &c| h.mul_add(t, c))
}

/// How far Phi(x) and x times its derivative, as either form computes them, may lie from the truth.
///
/// Everything goes through e = exp(-s). Its argument carries a relative error of 5 EPS; `exp` itself is good to
/// (3 + 2 s) units in the last place, of 2 EPS each (the Vulkan limit for WGSL adapters; host code is better), and a
/// result below the least normal float may be flushed to 0.
fn part_errors(x: f64, erf: bool) -> (f64, f64) {
    let a = x.abs().min(40.0);
    let u = SQRT_2_OVER_PI * a * (1.0 + CUBIC * a * a);
    let s = if erf { 0.5 * a * a } else { 2.0 * u };
    let relative = EPS * (6.0 + 9.0 * s);
    let flushed = 2.0 * f64::from(f32::MIN_POSITIVE);
    if erf {
        // 1 / (1 + 0.35 a) is good to 6 EPS and enters with an exponent of at most 2.3; nine steps of Horner's rule on
        // terms that sum to at most 2.3 times the result; the polynomial's own error.
        let polynomial = EPS * (14.0 + 9.0 + 1.0);
        let tail = 0.5 * libm::erfc(a * std::f64::consts::FRAC_1_SQRT_2);
        let slope = INVERSE_SQRT_TAU * (-s).exp();
        return (
            tail * (relative + polynomial) + 2.0 * EPS * if x < 0.0 { tail } else { 1.0 } + flushed,
            a * slope * (relative + 3.0 * EPS) + flushed,
        );
    }
    // With large = 1 / (1 + e) and small = e / (1 + e): an error of e moves each by e's relative error times small * large;
    // division is good to 2.5 units in the last place.
    let (large, small) = (1.0 / (1.0 + (-s).exp()), (-s).exp() / (1.0 + (-s).exp()));
    let division = 7.0 * EPS;
    let du = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * a * a);
    let cdf = if x < 0.0 { small } else { large };
    (
        small * large * relative + cdf * division + flushed,
        a * 2.0 * small * large * du * (relative + 2.0 * division + 6.0 * EPS) + flushed * (1.0 + a * du),
    )
}

fn forward_bound(args: &mut Args<'_, f64>) {
    forward_rows(args, |x, erf| x.abs() * part_errors(x, erf).0 + 2.0 * EPS * gelu(x, erf).0.abs());
}

fn backward_bound(args: &mut Args<'_, f64>) {
    backward_rows(args, |x, dy, erf| {
        let (cdf, tilt) = part_errors(x, erf);
        dy.abs() * (cdf + tilt + 2.0 * EPS * gelu(x, erf).1.abs())
    });
}

/// (label, fill of x, rows, quads of a row, quads from row to row): a whole matrix, odd shapes, edges, a column slice.
fn shapes() -> Vec<(&'static str, Fill, Rows, u32)> {
    let wide = |len| Fill::Normal { rows: 1, cols: len, stride: len, scale: 3.0, mean: 0.0 };
    let edges = [0.0, -0.0, 1e-40, -1e-40, 1e-20, 5.5, -5.5, 9.0, -9.0, 13.0, -13.0, 14.5, -14.5, 1e30, -1e30, 1e-3];
    let line = |quads| Rows { rows: 1, quads };
    vec![
        ("4", wide(4), line(1), 1),
        ("37 x 84", Fill::matrix(37, 84), line(37 * 22), 37 * 22),
        ("37 x 88, wide", wide(37 * 88), line(37 * 22), 37 * 22),
        ("4096, wide", wide(4096), line(1024), 1024),
        ("edges", Fill::Floats(edges.to_vec()), line(4), 4),
        ("columns 8..24 of 5 x 88", wide(5 * 88), Rows { rows: 5, quads: 4 }, 22),
    ]
}

fn forward_cases() -> Vec<Case> {
    cases(
        |x, len| vec![x, Fill::Poison { len }],
        |rows, erf, offset, stride| {
            let Rows { rows, quads } = rows;
            let (x_offset, x_stride, y_offset, y_stride) = (offset, stride, offset, stride);
            bytemuck::cast_slice(bytemuck::bytes_of(&ForwardParams {
                rows,
                quads,
                erf,
                x_offset,
                x_stride,
                y_offset,
                y_stride,
            }))
            .to_vec()
        },
    )
}

fn backward_cases() -> Vec<Case> {
    cases(
        |x, len| vec![x, Fill::Normal { rows: 1, cols: len, stride: len, scale: 1.0, mean: 0.0 }, Fill::Poison { len }],
        |rows, erf, offset, stride| {
            let Rows { rows, quads } = rows;
            let (x_offset, x_stride, dy_offset, dy_stride) = (offset, stride, offset, stride);
            let params = BackwardParams {
                rows,
                quads,
                erf,
                x_offset,
                x_stride,
                dy_offset,
                dy_stride,
                dx_offset: offset,
                dx_stride: stride,
            };
            bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec()
        },
    )
}

fn cases(fills: fn(Fill, usize) -> Vec<Fill>, words: fn(Rows, u32, u32, u32) -> Vec<u32>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (label, x, rows, stride) in shapes() {
        for (erf, form) in [(0, "tanh"), (1, "erf")] {
            let len = x.words(0).len();
            let offset = if rows.rows > 1 { 2 } else { 0 };
            let words = words(rows, erf, offset, stride);
            cases.push(Case {
                label: format!("{label}, {form}"),
                fills: fills(x.clone(), len),
                launch: Box::new(move |v| (words.clone(), groups(rows.rows, rows.quads, v))),
            });
        }
    }
    cases
}
