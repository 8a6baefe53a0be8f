//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), the optimiser's second phase, in PyTorch's order of operations.
//!
//! ```text
//! g = gradient * clip scale        m = m + (1 - beta1) (g - m)        v = beta2 v + (1 - beta2) g^2
//! w = w (1 - lr decay) - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! What is the same for all elements is computed in f64 on the host and passed as f32. Clip scale and the count of
//! values that are not finite are read on the device, from the scalars that [`grad_norm`](super::grad_norm) wrote:
//! where the count is not 0, nothing is written. It must never know which tensors decay: the caller says so.

use rayon::prelude::*;

use super::grad_norm::{CLIP_SCALE, NON_FINITE, SCALARS};
use super::{Case, EPS, Fill, Matrix, Program, launch, vector};
use crate::device::{
    ALL_CLASSES, Args, Device, DeviceError, Held, Kernel, Lane, Real, Result, Variant, View, read, write,
};

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f32,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f32,
    /// Added to the root of the second moment; above 0.
    pub eps: f32,
    /// Decoupled weight decay; 0 for tensors of one dimension: the caller decides.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u64,
}

crate::params! {
    /// Parameters of the kernel.
    pub struct AdamWParams {
        /// Vec4 elements of the panel.
        quads: u32,
        /// Vec4 elements before the first weight.
        weights_offset: u32,
        /// Vec4 elements before the first gradient.
        gradient_offset: u32,
        /// Vec4 elements before the first element of the first moment.
        m_offset: u32,
        /// Vec4 elements before the first element of the second moment.
        v_offset: u32,
        /// 1 - lr * weight decay.
        decay: f32,
        /// 1 - beta1.
        one_minus_beta1: f32,
        /// beta2.
        beta2: f32,
        /// 1 - beta2.
        one_minus_beta2: f32,
        /// lr / (1 - beta1^step).
        step_size: f32,
        /// 1 / sqrt(1 - beta2^step).
        root_correction: f32,
        /// eps.
        eps: f32,
    }
}

const VARIANTS: &[Variant] = &[Variant {
    name: "run256x4",
    classes: ALL_CLASSES,
    constants: &[("WG", 64), ("QUADS", 4), ("CLIP_SCALE", 2), ("NON_FINITE", 3)],
}];

/// The program.
pub static PROGRAMS: [&Program; 1] = [&APPLY];

/// One step: bindings gradient, scalars, weights, m, v.
pub static APPLY: Program = Program {
    kernel: Kernel {
        name: "adamw_apply",
        wgsl: include_str!("../../shaders/adamw.wgsl"),
        bindings: &[
            read("gradient", Lane::Vec4),
            read("scalars", Lane::F32),
            write("weights", Lane::Vec4),
            write("m", Lane::Vec4),
            write("v", Lane::Vec4),
        ],
        params: AdamWParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: apply_reference,
        reference_f64: apply_reference,
        host: Some(apply_host),
    },
    bound: apply_bound,
    cases,
    fault: ("p.beta2 * v", "p.one_minus_beta2 * v"),
};

/// Queues one step of a row panel: `weights`, `gradient`, `m` and `v` of one shape. Padding stays zero.
///
/// # Errors
/// [`DeviceError::Usage`] when shapes differ or a setting is out of its range; what the device says.
pub fn apply(
    device: &Device,
    hyper: &AdamW,
    weights: &Matrix,
    gradient: &Matrix,
    m: &Matrix,
    v: &Matrix,
    scalars: &View,
) -> Result<()> {
    let shape = |x: &Matrix| (x.rows, x.cols);
    if [gradient, m, v].iter().any(|x| shape(x) != shape(weights)) || scalars.len < SCALARS {
        return Err(DeviceError::Usage(format!("adamw: {weights:?}, {gradient:?}, {m:?}, {v:?}, {scalars:?} differ")));
    }
    let (weights_offset, row_quads) = weights.row_quads()?;
    let params = AdamWParams {
        quads: weights.rows as u32 * row_quads,
        weights_offset,
        gradient_offset: gradient.row_quads()?.0,
        m_offset: m.row_quads()?.0,
        v_offset: v.row_quads()?.0,
        ..hyper.params()?
    };
    let views = [&gradient.view, scalars, &weights.view, &m.view, &v.view].map(View::clone);
    launch(device, &APPLY.kernel, &params, |v| groups(&params, v), &views)
}

fn groups(params: &AdamWParams, variant: &Variant) -> u32 {
    params.quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

impl AdamW {
    /// The words that do not depend on the panel.
    fn params(&self) -> Result<AdamWParams> {
        let fits = (0.0..1.0).contains(&self.beta1)
            && (0.0..1.0).contains(&self.beta2)
            && self.eps > 0.0
            && [self.eps, self.lr, self.weight_decay].iter().all(|x| x.is_finite())
            && self.step > 0;
        if !fits {
            return Err(DeviceError::Usage(format!("adamw: a setting is out of its range: {self:?}")));
        }
        let [lr, beta1, beta2, weight_decay] = [self.lr, self.beta1, self.beta2, self.weight_decay].map(decimal);
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        Ok(AdamWParams {
            decay: (1.0 - lr * weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / correction(beta1)) as f32,
            root_correction: correction(beta2).sqrt().recip() as f32,
            eps: self.eps,
            ..bytemuck::Zeroable::zeroed()
        })
    }
}

/// The decimal number that was meant by an f32 setting: 0.999 as f32 is 0.99900001, which would make `1 - beta2` wrong
/// by 1e-5 of itself.
pub(super) fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(x.into())
}

/// One element: weight, first and second moment after the step.
fn step<F: Real>(p: &AdamWParams, clip: F, [w, g, m, v]: [F; 4]) -> [F; 3] {
    let of = |x: f32| F::of(x.into());
    let g = g * clip;
    let m = m + of(p.one_minus_beta1) * (g - m);
    let v = of(p.beta2) * v + of(p.one_minus_beta2) * g * g;
    let denominator = v.sqrt() * of(p.root_correction) + of(p.eps);
    [w * of(p.decay) - of(p.step_size) * (m / denominator), m, v]
}

/// Four slices of a launch, and the clip scale; `None` where the step is not to be taken.
type Panel<'a, F> = (&'a [F], &'a mut [F], &'a mut [F], &'a mut [F], F);

fn panel<'a, F: Real>(p: &AdamWParams, args: &mut Args<'a, F>) -> Option<Panel<'a, F>> {
    let (gradient, scalars) = (args.read(0), args.read(1));
    let (w, m, v) = (args.write(2), args.write(3), args.write(4));
    let part = |x: &'a mut [F], offset: u32| &mut x[4 * offset as usize..][..4 * p.quads as usize];
    (scalars[NON_FINITE] == F::zero()).then(|| {
        let gradient = &gradient[4 * p.gradient_offset as usize..][..4 * p.quads as usize];
        let (w, m, v) = (part(w, p.weights_offset), part(m, p.m_offset), part(v, p.v_offset));
        (gradient, w, m, v, scalars[CLIP_SCALE])
    })
}

fn apply_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: AdamWParams = args.params();
    let Some((gradient, w, m, v, clip)) = panel(&p, args) else { return };
    for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(gradient) {
        [*w, *m, *v] = step(&p, clip, [*w, g, *m, *v]);
    }
}

/// Elements that one task of the host takes.
const RUN: usize = 1 << 14;

fn apply_host(args: &mut Args<'_, f32>) {
    let p: AdamWParams = args.params();
    let Some((gradient, w, m, v, clip)) = panel(&p, args) else { return };
    let runs = w.par_chunks_mut(RUN).zip(m.par_chunks_mut(RUN)).zip(v.par_chunks_mut(RUN));
    runs.zip(gradient.par_chunks(RUN)).for_each(|(((w, m), v), g)| {
        vector::dispatch(
            #[inline(always)]
            || {
                for (((w, m), v), &g) in w.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(g) {
                    let g = g * clip;
                    *m = p.one_minus_beta1.mul_add(g - *m, *m);
                    *v = (g * g).mul_add(p.one_minus_beta2, p.beta2 * *v);
                    let denominator = v.sqrt().mul_add(p.root_correction, p.eps);
                    *w = *w * p.decay - p.step_size * (*m / denominator);
                }
            },
        );
    });
}

/// Roundings of each formula in turn. WGSL's `sqrt` is a division (2.5 ulp) by an inverse root (2 ulp), nine roundings;
/// a division is five. A second moment may be flushed to zero where it is subnormal.
fn element_bound(p: &AdamWParams, clip: f64, [w, g, m, v]: [f64; 4]) -> [f64; 3] {
    let [w1, m1, v1] = step(p, clip, [w, g, m, v]);
    let (c1, c2) = (f64::from(p.one_minus_beta1), f64::from(p.one_minus_beta2));
    let g = (g * clip).abs();
    let m_error = EPS * (c1 * g + 2.0 * c1 * (g + m.abs()) + m1.abs());
    let v_error = EPS * (f64::from(p.beta2) * v + 5.0 * c2 * g * g + v1) + f64::from(f32::MIN_POSITIVE);
    let root = v1.sqrt();
    let root_error = 9.0 * EPS * root + v_error / (root + v_error.sqrt());
    let correction = f64::from(p.root_correction);
    let denominator = root * correction + f64::from(p.eps);
    let relative = correction * root_error / denominator + 8.0 * EPS;
    let step_size = f64::from(p.step_size.abs());
    let update = step_size * (m1.abs() * relative + m_error) / denominator;
    [update + EPS * (w * f64::from(p.decay)).abs() + EPS * w1.abs(), m_error, v_error]
}

fn apply_bound(args: &mut Args<'_, f64>) {
    let p: AdamWParams = args.params();
    let Some((gradient, w, m, v, clip)) = panel(&p, args) else { return };
    for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(gradient) {
        [*w, *m, *v] = element_bound(&p, clip, [*w, g, *m, *v]);
    }
}

fn cases() -> Vec<Case> {
    let hyper = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1 };
    let case = |(rows, cols, hyper, clip): (usize, usize, AdamW, f32)| {
        let quads = (rows * Matrix::stride_for(cols) / 4) as u32;
        let params = AdamWParams { quads, ..hyper.params().expect("settings of a case are valid") };
        let mut scalars = vec![0.0; SCALARS];
        scalars[CLIP_SCALE] = clip;
        let fill = |scale| Fill::Normal { rows, cols, stride: Matrix::stride_for(cols), scale, mean: 0.0 };
        // A second moment is not negative: squares of other values.
        let v = fill(0.1).words(7).into_iter().map(|x| f32::from_bits(x).powi(2)).collect();
        let v = if hyper.step == 1 { Fill::Floats(vec![0.0; 4 * quads as usize]) } else { Fill::Floats(v) };
        Case {
            label: format!("{rows}x{cols} step {}, clip {clip}", hyper.step),
            fills: vec![fill(0.1), Fill::Floats(scalars), fill(1.0), fill(0.1), v],
            launch: Box::new(move |v| (bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec(), groups(&params, v))),
        }
    };
    let later = AdamW { step: 1000, ..hyper };
    let plain = AdamW { weight_decay: 0.0, eps: 1e-3, step: 3, ..hyper };
    [(1, 1, hyper, 1.0), (3, 37, hyper, 0.37), (5, 130, later, 1.0), (2, 600, plain, 1e-3)]
        .into_iter()
        .map(case)
        .collect()
}
