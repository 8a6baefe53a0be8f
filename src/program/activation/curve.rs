//! The four curves, one number at a time: the formulas in plain words for the references, the fast ones of the host
//! kernels, and how far an f32 result may lie from the truth. It must never know a matrix, or what multiplies the value
//! of a curve.
//!
//! Every curve is `f(x) = x * c(x)`, so `f'(x) = c(x) + x * c'(x)`, where `c` rises from 0 to 1.

use super::Form;
use crate::device::Real;
use crate::program::{EPS, vector};

const CUBIC: f64 = 0.044715;
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const INVERSE_SQRT_TAU: f64 = 0.398_942_280_401_432_7;

/// `f(x)` and `f'(x)`, with neither 1 + erf nor 1 + tanh, which cancel far out on the left: (1 + erf(z)) / 2 is
/// erfc(-z) / 2, and (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)).
pub(super) fn exact<F: Real>(x: F, form: Form) -> (F, F) {
    let (half, one) = (F::of(0.5), F::one());
    match form {
        Form::Tanh => {
            let two_u = F::of(2.0 * SQRT_2_OVER_PI) * x * (one + F::of(CUBIC) * x * x);
            let two_du = F::of(2.0 * SQRT_2_OVER_PI) * (one + F::of(3.0 * CUBIC) * x * x);
            logistic(x, two_u, two_du)
        }
        Form::Erf => {
            let cdf = half * (-x * F::of(std::f64::consts::FRAC_1_SQRT_2)).erfc();
            let pdf = (-half * x * x).exp() * F::of(INVERSE_SQRT_TAU);
            (x * cdf, cdf + x * pdf)
        }
        Form::Silu => logistic(x, x, one),
        Form::Relu => {
            let step = if x > F::zero() { one } else { F::zero() };
            (x * step, step)
        }
    }
}

/// `x / (1 + exp(-z))` and its derivative, where `dz` is that of `z`.
fn logistic<F: Real>(x: F, z: F, dz: F) -> (F, F) {
    let one = F::one();
    let (plus, minus) = (one / (one + (-z).exp()), one / (one + z.exp()));
    let fall = plus * minus;
    // Where the curve has saturated, x times a slope of exactly 0 is 0, however large the square of x is.
    (x * plus, plus + if fall == F::zero() { fall } else { x * fall * dz })
}

/// [`Form`] as a constant, so that each form is a loop of its own: a branch inside would keep all from being
/// vectorised.
pub(super) const TANH: u32 = Form::Tanh as u32;
/// As [`TANH`].
pub(super) const ERF: u32 = Form::Erf as u32;
/// As [`TANH`].
pub(super) const SILU: u32 = Form::Silu as u32;
/// As [`TANH`].
pub(super) const RELU: u32 = Form::Relu as u32;

/// `c(x)` and `c'(x)`; for both forms of GELU finite x beyond 16 count as 16, where both have saturated.
#[inline(always)]
pub(super) fn parts<const FORM: u32>(x: f32) -> (f32, f32) {
    if FORM == RELU {
        return (if x > 0.0 { 1.0 } else { 0.0 }, 0.0);
    }
    if FORM == SILU {
        let (large, small) = sides(vector::exp(-x.abs()));
        return (if x >= 0.0 { large } else { small }, large * small);
    }
    let a = x.abs().min(16.0);
    if FORM == ERF {
        let e = vector::exp(-0.5 * a * a);
        let tail = e * scaled_tail(a);
        return (if x >= 0.0 { 1.0 - tail } else { tail }, INVERSE_SQRT_TAU as f32 * e);
    }
    let root = SQRT_2_OVER_PI as f32;
    let (large, small) = sides(vector::exp(-2.0 * root * a * (CUBIC as f32 * a).mul_add(a, 1.0)));
    let slope = 2.0 * large * small * root * (3.0 * CUBIC as f32 * a).mul_add(a, 1.0);
    (if x >= 0.0 { large } else { small }, slope)
}

/// `1 / (1 + e)` and `e / (1 + e)`.
#[inline(always)]
fn sides(e: f32) -> (f32, f32) {
    let large = 1.0 / (1.0 + e);
    (large, e * large)
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

/// The least normal float: what lies below it an adapter may take for 0, as operand and as result.
pub(super) const FLUSHED: f64 = f32::MIN_POSITIVE as f64;

/// How far `f(x)` and `f'(x)` may lie from the truth: the errors of their parts, a product, and a product and a sum.
pub(super) fn errors(x: f64, form: Form) -> (f64, f64) {
    let ((cdf, tilt), (value, slope)) = (part_errors(x, form), exact(x, form));
    // Times 0 or 1 nothing is rounded.
    let roundings = if form == Form::Relu { 0.0 } else { 2.0 * EPS };
    (x.abs() * cdf + roundings * value.abs(), cdf + tilt + roundings * slope.abs())
}

/// The same of c(x), and of x times its derivative, for the forms that go through e = exp(-s).
///
/// `exp` itself is good to (3 + 2 s) units in the last place, of 2 EPS each (the Vulkan limit for WGSL adapters; host
/// code is better), and a result below the least normal float may be flushed to 0. A relative error of its argument
/// counts s times.
fn part_errors(x: f64, form: Form) -> (f64, f64) {
    let relative = |s: f64, argument: f64| EPS * (6.0 + (4.0 + argument) * s);
    match form {
        Form::Erf => {
            let a = x.abs().min(40.0);
            let s = 0.5 * a * a;
            let relative = relative(s, 5.0);
            // 1 / (1 + 0.35 a) is good to 6 EPS and enters with an exponent of at most 2.3; nine steps of Horner's rule
            // on terms that sum to at most 2.3 times the result; the polynomial's own error.
            let polynomial = EPS * (14.0 + 9.0 + 1.0);
            let tail = 0.5 * libm::erfc(a * std::f64::consts::FRAC_1_SQRT_2);
            let slope = INVERSE_SQRT_TAU * (-s).exp();
            (
                tail * (relative + polynomial) + 2.0 * EPS * if x < 0.0 { tail } else { 1.0 } + 2.0 * FLUSHED,
                a * slope * (relative + 3.0 * EPS) + 2.0 * FLUSHED,
            )
        }
        // The argument of the exponential is x itself. Beyond 800 the exponential is 0 in f64 as well.
        Form::Silu => {
            let a = x.abs().min(800.0);
            logistic_errors(x, a, a, 1.0, relative(a, 0.0))
        }
        Form::Tanh => {
            let a = x.abs().min(40.0);
            let s = 2.0 * SQRT_2_OVER_PI * a * (1.0 + CUBIC * a * a);
            let ds = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * a * a);
            logistic_errors(x, a, s, ds, relative(s, 5.0))
        }
        Form::Relu => (0.0, 0.0),
    }
}

/// With large = 1 / (1 + e) and small = e / (1 + e): an error of e moves each by e's relative error times small *
/// large; division is good to 2.5 units in the last place. `ds` is the derivative of s.
fn logistic_errors(x: f64, a: f64, s: f64, ds: f64, relative: f64) -> (f64, f64) {
    let (large, small) = (1.0 / (1.0 + (-s).exp()), (-s).exp() / (1.0 + (-s).exp()));
    let division = 7.0 * EPS;
    let cdf = if x < 0.0 { small } else { large };
    (
        small * large * relative + cdf * division + 2.0 * FLUSHED,
        a * small * large * ds * (relative + 2.0 * division + 6.0 * EPS) + 2.0 * FLUSHED * (1.0 + a * ds),
    )
}
