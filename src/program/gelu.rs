//! GELU, forward and backward, in the tanh form (GPT-2) or the erf form (exact), over any number of elements.
//!
//! `y = x * Phi(x)`; tanh form: `Phi(x) ~ (1 + tanh(u)) / 2`, `u = sqrt(2/pi) * (x + 0.044715 x^3)` (Hendrycks and
//! Gimpel, arXiv 1606.08415). Elementwise: a tile owns a run of elements, nothing crosses tiles.

use super::{Case, EPS, Fill, Matrix, Program, launch};
use crate::device::{ALL_CLASSES, Args, Device, Kernel, Lane, Real, Result, Variant, read, write};

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
    /// Parameters of both kernels.
    pub struct GeluParams {
        /// Number of vec4 elements.
        quads: u32,
        /// 1: erf form, 0: tanh form.
        erf: u32,
    }
}

const VARIANTS: &[Variant] =
    &[Variant { name: "run256x4", classes: ALL_CLASSES, constants: &[("WG", 64), ("QUADS", 4)] }];

/// Both programs.
pub static PROGRAMS: [&Program; 2] = [&FORWARD, &BACKWARD];

/// `y = gelu(x)`: bindings x, y.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "gelu_forward",
        wgsl: include_str!("../../shaders/gelu.wgsl"),
        bindings: &[read("x", Lane::Vec4), write("y", Lane::Vec4)],
        params: GeluParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 0,
        reference_f32: forward_reference,
        reference_f64: forward_reference,
        host: None,
    },
    bound: forward_bound,
    cases: || cases(1),
    fault: ("0.044715", "0.044"),
};

/// `dx = dy * gelu'(x)`: bindings x, dy, dx.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "gelu_backward",
        wgsl: include_str!("../../shaders/gelu.wgsl"),
        bindings: &[read("x", Lane::Vec4), read("dy", Lane::Vec4), write("dx", Lane::Vec4)],
        params: GeluParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 0,
        reference_f32: backward_reference,
        reference_f64: backward_reference,
        host: None,
    },
    bound: backward_bound,
    cases: || cases(2),
    fault: ("0.134145", "0.13"),
};

/// Queues `y = gelu(x)`; both of one shape.
pub fn forward(device: &Device, form: Form, x: &Matrix, y: &Matrix) -> Result<()> {
    let params = params(x, form);
    launch(device, &FORWARD.kernel, &params, |v| groups(&params, v), &[x.view.clone(), y.view.clone()])
}

/// Queues `dx = dy * gelu'(x)`; all of one shape.
pub fn backward(device: &Device, form: Form, x: &Matrix, dy: &Matrix, dx: &Matrix) -> Result<()> {
    let params = params(x, form);
    let views = [x.view.clone(), dy.view.clone(), dx.view.clone()];
    launch(device, &BACKWARD.kernel, &params, |v| groups(&params, v), &views)
}

fn params(x: &Matrix, form: Form) -> GeluParams {
    GeluParams { quads: (x.view.len / 4) as u32, erf: (form == Form::Erf) as u32 }
}

fn groups(params: &GeluParams, variant: &Variant) -> u32 {
    params.quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

const CUBIC: f64 = 0.044715;
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

/// gelu(x) and gelu'(x).
fn gelu<F: Real>(x: F, erf: bool) -> (F, F) {
    let (half, one) = (F::of(0.5), F::one());
    if erf {
        let cdf = half * (one + (x * F::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
        let pdf = (-half * x * x).exp() * F::of(0.398_942_280_401_432_7);
        return (x * cdf, cdf + x * pdf);
    }
    let t = (F::of(SQRT_2_OVER_PI) * x * (one + F::of(CUBIC) * x * x)).tanh();
    let du = F::of(SQRT_2_OVER_PI) * (one + F::of(3.0 * CUBIC) * x * x);
    (half * x * (one + t), half * (one + t) + half * x * (one - t * t) * du)
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: GeluParams = args.params();
    for (y, &x) in args.write(1).iter_mut().zip(args.read(0)) {
        *y = gelu(x, p.erf == 1).0;
    }
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: GeluParams = args.params();
    let dx = args.write(2).iter_mut();
    for ((dx, &x), &dy) in dx.zip(args.read(0)).zip(args.read(1)) {
        *dx = dy * gelu(x, p.erf == 1).1;
    }
}

/// A dozen roundings, each relative to the largest term of the formula; `tanh` and `erf` of an adapter are themselves
/// good to a few units of their argument's error, which the factor |u| carries.
fn terms(x: f64) -> f64 {
    let x = x.abs();
    let u = SQRT_2_OVER_PI * x * (1.0 + CUBIC * x * x);
    16.0 * EPS * (1.0 + x) * (1.0 + u.min(16.0))
}

fn forward_bound(args: &mut Args<'_, f64>) {
    for (b, &x) in args.write(1).iter_mut().zip(args.read(0)) {
        *b = terms(x);
    }
}

fn backward_bound(args: &mut Args<'_, f64>) {
    let b = args.write(2).iter_mut();
    for ((b, &x), &dy) in b.zip(args.read(0)).zip(args.read(1)) {
        *b = dy.abs() * terms(x) * (1.0 + x.abs());
    }
}

fn cases(inputs: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (len, erf) in [(4, 0), (37 * 88, 0), (37 * 88, 1), (4096, 0)] {
        let params = GeluParams { quads: len as u32 / 4, erf };
        let mut fills = vec![Fill::Normal { rows: 1, cols: len, stride: len, scale: 3.0, mean: 0.0 }; inputs];
        fills.push(Fill::Poison { len });
        cases.push(Case {
            label: format!("{len} {}", if erf == 1 { "erf" } else { "tanh" }),
            fills,
            launch: Box::new(move |v| (bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec(), groups(&params, v))),
        });
    }
    cases
}
