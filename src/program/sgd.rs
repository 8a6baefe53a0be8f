//! Stochastic gradient descent with momentum, the optimiser's second phase, as `torch.optim.SGD` computes it (no
//! dampening, no Nesterov).
//!
//! ```text
//! g = gradient * clip scale + decay * w        m = mu * m + g, in the first step m = g        w = w - lr * m
//! ```
//!
//! Weight decay is coupled: it goes through the momentum. Clip scale and the count of values that are not finite are read
//! on the device, from the scalars that [`grad_norm`](super::grad_norm) wrote: where the count is not 0, nothing is
//! written. It must never know which tensors decay: the caller says so.

use rayon::prelude::*;

use super::grad_norm::{CLIP_SCALE, NON_FINITE, SCALARS};
use super::{Case, EPS, Fill, Matrix, Program, launch, vector};
use crate::device::{
    ALL_CLASSES, Args, Device, DeviceError, Held, Kernel, Lane, Real, Result, Variant, View, read, write,
};

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f32,
    /// What is kept of the momentum, in [0, 1); 0: plain gradient descent, which never reads the momentum.
    pub momentum: f32,
    /// Coupled weight decay; 0 for tensors of one dimension: the caller decides.
    pub weight_decay: f32,
    /// Number of this step, from 1; the first does not read the momentum.
    pub step: u64,
}

crate::params! {
    /// Parameters of the kernel.
    pub struct SgdParams {
        /// Vec4 elements of the panel.
        quads: u32,
        /// Vec4 elements before the first weight.
        weights_offset: u32,
        /// Vec4 elements before the first gradient.
        gradient_offset: u32,
        /// Vec4 elements before the first element of the momentum.
        momentum_offset: u32,
        /// Learning rate.
        lr: f32,
        /// mu.
        momentum: f32,
        /// Weight decay.
        weight_decay: f32,
        /// 1: the momentum is not read.
        plain: u32,
    }
}

const VARIANTS: &[Variant] = &[Variant {
    name: "run256x4",
    classes: ALL_CLASSES,
    constants: &[("WG", 64), ("QUADS", 4), ("CLIP_SCALE", 2), ("NON_FINITE", 3)],
}];

/// The program.
pub static PROGRAMS: [&Program; 1] = [&APPLY];

/// One step: bindings gradient, scalars, weights, momentum.
pub static APPLY: Program = Program {
    kernel: Kernel {
        name: "sgd_apply",
        wgsl: include_str!("../../shaders/sgd.wgsl"),
        bindings: &[
            read("gradient", Lane::Vec4),
            read("scalars", Lane::F32),
            write("weights", Lane::Vec4),
            write("momentum", Lane::Vec4),
        ],
        params: SgdParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: apply_reference,
        reference_f64: apply_reference,
        host: Some(apply_host),
    },
    bound: apply_bound,
    cases,
    fault: ("vec4<f32>(p.momentum)", "vec4<f32>(1.0)"),
};

/// Queues one step of a row panel: `weights`, `gradient` and `momentum` of one shape. Padding stays zero.
///
/// # Errors
/// [`DeviceError::Usage`] when shapes differ or a setting is out of its range; what the device says.
pub fn apply(
    device: &Device,
    hyper: &Sgd,
    weights: &Matrix,
    gradient: &Matrix,
    momentum: &Matrix,
    scalars: &View,
) -> Result<()> {
    let shape = |x: &Matrix| (x.rows, x.cols);
    if [gradient, momentum].iter().any(|x| shape(x) != shape(weights)) || scalars.len < SCALARS {
        return Err(DeviceError::Usage(format!("sgd: {weights:?}, {gradient:?}, {momentum:?}, {scalars:?} differ")));
    }
    let (weights_offset, row_quads) = weights.row_quads()?;
    let params = SgdParams {
        quads: weights.rows as u32 * row_quads,
        weights_offset,
        gradient_offset: gradient.row_quads()?.0,
        momentum_offset: momentum.row_quads()?.0,
        ..hyper.params()?
    };
    let views = [&gradient.view, scalars, &weights.view, &momentum.view].map(View::clone);
    launch(device, &APPLY.kernel, &params, |v| groups(&params, v), &views)
}

fn groups(params: &SgdParams, variant: &Variant) -> u32 {
    params.quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

impl Sgd {
    /// The words that do not depend on the panel.
    fn params(&self) -> Result<SgdParams> {
        let finite = [self.lr, self.weight_decay].iter().all(|x| x.is_finite());
        if !finite || !(0.0..1.0).contains(&self.momentum) || self.step == 0 {
            return Err(DeviceError::Usage(format!("sgd: a setting is out of its range: {self:?}")));
        }
        Ok(SgdParams {
            lr: self.lr,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            plain: (self.step == 1 || self.momentum == 0.0) as u32,
            ..bytemuck::Zeroable::zeroed()
        })
    }
}

/// One element: weight and momentum after the step.
fn step<F: Real>(p: &SgdParams, clip: F, [w, g, m]: [F; 3]) -> [F; 2] {
    let of = |x: f32| F::of(x.into());
    let g = g * clip + of(p.weight_decay) * w;
    let m = if p.plain == 1 { g } else { of(p.momentum) * m + g };
    [w - of(p.lr) * m, m]
}

/// Three slices of a launch, and the clip scale; `None` where the step is not to be taken.
type Panel<'a, F> = (&'a [F], &'a mut [F], &'a mut [F], F);

fn panel<'a, F: Real>(p: &SgdParams, args: &mut Args<'a, F>) -> Option<Panel<'a, F>> {
    let (gradient, scalars) = (args.read(0), args.read(1));
    let (w, m) = (args.write(2), args.write(3));
    let len = 4 * p.quads as usize;
    (scalars[NON_FINITE] == F::zero()).then(|| {
        let gradient = &gradient[4 * p.gradient_offset as usize..][..len];
        let w = &mut w[4 * p.weights_offset as usize..][..len];
        let m = &mut m[4 * p.momentum_offset as usize..][..len];
        (gradient, w, m, scalars[CLIP_SCALE])
    })
}

fn apply_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: SgdParams = args.params();
    let Some((gradient, w, m, clip)) = panel(&p, args) else { return };
    for ((w, m), &g) in w.iter_mut().zip(m).zip(gradient) {
        [*w, *m] = step(&p, clip, [*w, g, *m]);
    }
}

/// Elements that one task of the host takes.
const RUN: usize = 1 << 14;

fn apply_host(args: &mut Args<'_, f32>) {
    let p: SgdParams = args.params();
    let Some((gradient, w, m, clip)) = panel(&p, args) else { return };
    let runs = w.par_chunks_mut(RUN).zip(m.par_chunks_mut(RUN)).zip(gradient.par_chunks(RUN));
    runs.for_each(|((w, m), g)| {
        vector::dispatch(
            #[inline(always)]
            || {
                for ((w, m), &g) in w.iter_mut().zip(m.iter_mut()).zip(g) {
                    let g = p.weight_decay.mul_add(*w, g * clip);
                    *m = if p.plain == 1 { g } else { p.momentum.mul_add(*m, g) };
                    *w = (-p.lr).mul_add(*m, *w);
                }
            },
        );
    });
}

/// Each product and each sum is rounded once; what the momentum is off by reaches the weight through lr.
fn element_bound(p: &SgdParams, clip: f64, [w, g, m]: [f64; 3]) -> [f64; 2] {
    let [w1, m1] = step(p, clip, [w, g, m]);
    let (decay, kept) = ((f64::from(p.weight_decay) * w).abs(), (f64::from(p.momentum) * m).abs());
    let total = g.abs() * clip.abs() + decay;
    let m_error = EPS * (total + total + if p.plain == 1 { 0.0 } else { kept + m1.abs() });
    let lr = f64::from(p.lr.abs());
    [lr * m_error + EPS * (lr * m1.abs() + w1.abs()), m_error]
}

fn apply_bound(args: &mut Args<'_, f64>) {
    let p: SgdParams = args.params();
    let Some((gradient, w, m, clip)) = panel(&p, args) else { return };
    for ((w, m), &g) in w.iter_mut().zip(m).zip(gradient) {
        [*w, *m] = element_bound(&p, clip, [*w, g, *m]);
    }
}

fn cases() -> Vec<Case> {
    let hyper = Sgd { lr: 0.01, momentum: 0.9, weight_decay: 0.1, step: 1 };
    let case = |(rows, cols, hyper, clip): (usize, usize, Sgd, f32)| {
        let quads = (rows * Matrix::stride_for(cols) / 4) as u32;
        let params = SgdParams { quads, ..hyper.params().expect("settings of a case are valid") };
        let mut scalars = vec![0.0; SCALARS];
        scalars[CLIP_SCALE] = clip;
        let fill = |scale| Fill::Normal { rows, cols, stride: Matrix::stride_for(cols), scale, mean: 0.0 };
        // Where the momentum is not read, it must be written: poison.
        let momentum = if params.plain == 1 { Fill::poison(rows, cols) } else { fill(0.1) };
        Case {
            label: format!("{rows}x{cols} step {}, momentum {}, clip {clip}", hyper.step, hyper.momentum),
            fills: vec![fill(0.1), Fill::Floats(scalars), fill(1.0), momentum],
            launch: Box::new(move |v| (params.words(), groups(&params, v))),
        }
    };
    let later = Sgd { step: 1000, ..hyper };
    let plain = Sgd { momentum: 0.0, lr: 0.5, step: 3, ..hyper };
    let free = Sgd { weight_decay: 0.0, step: 2, ..hyper };
    [(1, 1, hyper, 1.0), (3, 37, later, 0.37), (5, 130, free, 1.0), (2, 600, plain, 1e-3), (4, 20, later, 1.0)]
        .into_iter()
        .map(case)
        .collect()
}
