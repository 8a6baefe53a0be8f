//! The optimiser's first phase: the norm of all gradients, the factor that clips it, and the count of values that are
//! not finite.
//!
//! A tensor's rows are cut into slots of [`ROWS_PER_SLOT`]; each slot is one tile with its own sum of squares and
//! count, and all slots are added in order: fused by one last tile, on the wafer by a line over all tiles, [`BLOCK_SLOTS`] slots
//! a tile, whose last one holds the scalars. Panels begin at multiples of [`GRANULE_ROWS`], so how a tensor is
//! cut into panels cannot change a bit. It knows slots and scalars; it must never know which tensor a panel belongs to.
//!
//! Values that are not finite are found on their bits and counted instead of summed. Where all are finite but their
//! squares add up to more than f32 holds (a norm of 1.8e19), clipping would scale the gradient to nothing in silence:
//! that counts as one value that is not finite. Squares below 1e-38 are lost; such a norm is never clipped.

use rayon::prelude::*;

use super::chain::{Chain, Cut, relay_params};
use super::relay::{Axis, Relay};
use super::schedule::Fabric;
use super::{Case, EPS, Fill, Matrix, Program, launch, vector};
use crate::device::{Args, Class, Device, DeviceError, Held, Kernel, Lane, Real, Result, Variant, View, read, write};
use crate::wafer::Work;

/// Index among the scalars of a step of the loss.
pub const LOSS: usize = 0;
/// Of the norm of all gradients before clipping; where [`NON_FINITE`] counts some, of those that are finite.
pub const GRAD_NORM: usize = 1;
/// Of the factor of the gradients: `min(1, clip / (norm + 1e-6))`.
pub const CLIP_SCALE: usize = 2;
/// Of the number of values that are not finite, loss included: where it is not 0 the step is not taken.
pub const NON_FINITE: usize = 3;
/// Number of scalars of a step.
pub const SCALARS: usize = 64;

/// Panels of a tensor begin at multiples of this many rows.
pub const GRANULE_ROWS: usize = 512;
/// Rows that one tile sums; divides [`GRANULE_ROWS`].
pub const ROWS_PER_SLOT: usize = 16;
/// Slots that a tile adds.
pub const BLOCK_SLOTS: usize = 64;
/// Floats of a slot: sum of squares, count of values that are not finite.
pub const SLOT_FLOATS: usize = 2;

crate::params! {
    /// Parameters of the kernel that has a tile for each slot.
    pub struct PartialParams {
        /// Vec4 elements of the panel.
        quads: u32,
        /// Vec4 elements before the first.
        offset: u32,
        /// Vec4 elements of a slot.
        slot_quads: u32,
        /// The panel's first slot.
        first_slot: u32,
    }
}

relay_params! {
    /// Parameters of the sum over slots, which is one line.
    /// Blocks are measured in slots.
    pub struct FinishParams {
        /// The first slot.
        first: u32,
        /// Number of slots, from the first on, whose squares make the norm.
        norm_slots: u32,
        /// Number of slots, from the first on, that must be finite.
        slots: u32,
        /// Norm to clip to; 0: not at all.
        clip: f32,
    }
}

const VARIANTS: &[Variant] = &[
    Variant {
        name: "slot256",
        classes: &[Class::Gpu],
        constants: &[("WG", 256), ("LOSS", 0), ("GRAD_NORM", 1), ("CLIP_SCALE", 2), ("NON_FINITE", 3)],
    },
    Variant {
        name: "slot16",
        classes: &[Class::Software, Class::Native],
        constants: &[("WG", 16), ("LOSS", 0), ("GRAD_NORM", 1), ("CLIP_SCALE", 2), ("NON_FINITE", 3)],
    },
];

/// Both programs.
pub static PROGRAMS: [&Program; 2] = [&PARTIAL, &FINISH];

/// Sums squares slot by slot: bindings gradient, partials.
pub static PARTIAL: Program = Program {
    kernel: Kernel {
        name: "grad_norm_partial",
        wgsl: include_str!("../../shaders/grad_norm.wgsl"),
        bindings: &[read("gradient", Lane::Vec4), write("partials", Lane::F32)],
        params: PartialParams::FIELDS,
        variants: VARIANTS,
        // Four sums and four counts in each lane.
        held: |v| Held { accumulators: 32 * v.get("WG"), state: 0 },
        reference_f32: partial_reference,
        reference_f64: partial_reference,
        host: Some(partial_host),
    },
    bound: partial_bound,
    cases: partial_cases,
    fault: ("fma(x, x, sum)", "fma(x, x, sum) + vec4<f32>(0.01)"),
};

/// Adds the slots and derives the scalars of the step: bindings partials, scalars, carry.
pub static FINISH: Program = Program {
    kernel: Kernel {
        name: "grad_norm_finish",
        wgsl: include_str!("../../shaders/grad_norm.wgsl"),
        bindings: &[read("partials", Lane::F32), write("scalars", Lane::F32), write("carry", Lane::F32)],
        params: FinishParams::FIELDS,
        variants: VARIANTS,
        // State: what a tile carries, which is each lane's sums; they are its accumulators while it runs.
        held: |v| Held { accumulators: 4 * carry(v), state: 4 * carry(v) },
        reference_f32: finish_reference,
        reference_f64: finish_reference,
        host: None,
    },
    bound: finish_bound,
    cases: finish_cases,
    fault: ("norm + 1e-6", "norm + 1e-2"),
};

/// Slots of a tensor: [`SLOT_FLOATS`] floats each in the partials.
pub fn slots(rows: usize) -> usize {
    rows.div_ceil(ROWS_PER_SLOT)
}

/// Queues the sums of a row panel that begins at row `r` of its tensor, a multiple of [`GRANULE_ROWS`]; `first_slot` is
/// the tensor's first slot plus `slots(r)`.
///
/// # Errors
/// [`DeviceError::Usage`] when the gradient is not a panel of whole rows or the slots leave `partials`; what the
/// device says.
pub fn partial(device: &Device, gradient: &Matrix, partials: &View, first_slot: usize) -> Result<()> {
    let (offset, row_quads) = gradient.row_quads()?;
    let slots = slots(gradient.rows);
    if (first_slot + slots) * SLOT_FLOATS > partials.len {
        return Err(DeviceError::Usage(format!("grad_norm: slots {first_slot}+{slots} leave {partials:?}")));
    }
    let params = PartialParams {
        quads: gradient.rows as u32 * row_quads,
        offset,
        slot_quads: ROWS_PER_SLOT as u32 * row_quads,
        first_slot: first_slot as u32,
    };
    launch(device, &PARTIAL.kernel, &params, |_| slots as u32, &[gradient.view.clone(), partials.clone()])
}

/// The slots that the end of the phase looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The first.
    pub first: usize,
    /// How many, from the first on, make the norm.
    pub norm: usize,
    /// How many, from the first on, must be finite: at least as many.
    pub finite: usize,
}

impl Slots {
    /// The first `slots`, for both.
    pub fn all(slots: usize) -> Slots {
        Slots { first: 0, norm: slots, finite: slots }
    }
}

/// Queues the end of the phase, after the `partial` of every panel: slots of `partials` and the loss in `scalars` give
/// [`GRAD_NORM`], [`CLIP_SCALE`] and [`NON_FINITE`]. The formula is that of `torch.nn.utils.clip_grad_norm_`; `clip` 0
/// leaves the gradients as they are.
///
/// # Errors
/// [`DeviceError::Usage`] when `clip` is negative or not finite, or a view is too short; what the device says.
pub fn finish(fabric: &Fabric, partials: &View, slots: Slots, clip: f32, scalars: &View) -> Result<()> {
    fabric.relay(&finish_relay(fabric, partials, slots, clip, scalars)?)
}

/// [`finish`] as the fabric's scheduler sees it.
///
/// # Errors
/// [`DeviceError::Usage`] as [`finish`].
pub fn finish_relay(
    fabric: &Fabric,
    partials: &View,
    slots: Slots,
    clip: f32,
    scalars: &View,
) -> Result<impl Relay + use<>> {
    let valid = clip.is_finite() && clip >= 0.0 && slots.norm <= slots.finite;
    if !valid || (slots.first + slots.finite) * SLOT_FLOATS > partials.len || scalars.len < SCALARS {
        return Err(DeviceError::Usage(format!("grad_norm: clip {clip}, {slots:?}, {partials:?}, {scalars:?}")));
    }
    let [first, norm_slots, slots] = [slots.first, slots.norm, slots.finite].map(|n| n as u32);
    let params = FinishParams { first, norm_slots, slots, clip, ..bytemuck::Zeroable::zeroed() };
    Ok(Chain {
        kernel: &FINISH.kernel,
        work: Work::Grid { len: slots.into() },
        axis: Axis::Grid,
        lines: 1,
        len: slots,
        block_len: BLOCK_SLOTS as u32,
        gathers: &[u32::MAX],
        applies: false,
        carry: carry(FINISH.kernel.variant(fabric.device().class())) as usize,
        words: params.words(),
        views: vec![partials.clone(), scalars.clone()],
    })
}

/// Elements that a tile hands on: three sums for each lane.
fn carry(variant: &Variant) -> u32 {
    3 * variant.get("WG")
}

/// The slots of a launch: the elements of each, and where its results go.
fn slots_of<'a, F>(p: &PartialParams, gradient: &'a [F], partials: &'a mut [F]) -> (&'a [F], &'a mut [F], usize) {
    let panel = &gradient[4 * p.offset as usize..][..4 * p.quads as usize];
    let count = p.quads.div_ceil(p.slot_quads) as usize;
    let partials = &mut partials[SLOT_FLOATS * p.first_slot as usize..][..SLOT_FLOATS * count];
    (panel, partials, 4 * p.slot_quads as usize)
}

fn partial_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: PartialParams = args.params();
    let (panel, partials, slot) = slots_of(&p, args.read(0), args.write(1));
    for (out, run) in partials.chunks_mut(SLOT_FLOATS).zip(panel.chunks(slot)) {
        let finite = || run.iter().filter(|x| x.is_finite());
        out[0] = finite().map(|&x| x * x).sum();
        out[1] = F::of((run.len() - finite().count()) as f64);
    }
}

fn finish_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: FinishParams = args.params();
    let (cut, len) = (Cut::of(&p), carry(args.variant) as usize);
    let (partials, scalars, carry) = (&args.read(0)[SLOT_FLOATS * p.first as usize..], args.write(1), args.write(2));
    for tile in 0..args.groups as usize {
        let span = cut.span(tile, p.slots);
        let mut own = [F::zero(); 3];
        let sums = cut.slot(carry, &mut own, tile, len);
        if span.begins() {
            sums.fill(F::zero());
        }
        for slot in span.from..span.to {
            let (square, bad) = (partials[SLOT_FLOATS * slot], partials[SLOT_FLOATS * slot + 1]);
            sums[0] += square;
            sums[1] += bad;
            sums[2] += if slot < p.norm_slots as usize { square } else { F::zero() };
        }
        if span.ends {
            derive(p.clip, [sums[0], sums[1], sums[2]], scalars);
        }
    }
}

/// The scalars of a step from the sum of all squares, the count of values that are not finite, and the sum of the squares that
/// make the norm.
fn derive<F: Real>(clip: f32, [mut total, mut bad, norm]: [F; 3], scalars: &mut [F]) {
    let largest = F::of(f32::MAX.into());
    if !scalars[LOSS].is_finite() {
        bad += F::one();
    }
    if total > largest {
        (total, bad) = (largest, bad + F::one());
    }
    let (norm, clip) = (norm.min(total).sqrt(), F::of(clip.into()));
    scalars[GRAD_NORM] = norm;
    scalars[CLIP_SCALE] = if clip > F::zero() { F::one().min(clip / (norm + F::of(1e-6))) } else { F::one() };
    scalars[NON_FINITE] = bad;
}

/// Partial sums of a slot on the host.
const LANES: usize = 32;

/// Sum of squares of the finite values, and the number of the others.
#[inline(always)]
fn sum_slot(run: &[f32]) -> (f32, u32) {
    let (mut sums, mut counts) = ([0.0f32; LANES], [0u32; LANES]);
    let (runs, rest) = run.as_chunks::<LANES>();
    for run in runs {
        for i in 0..LANES {
            let finite = run[i].to_bits() & 0x7fff_ffff < 0x7f80_0000;
            let x = if finite { run[i] } else { 0.0 };
            sums[i] = x.mul_add(x, sums[i]);
            counts[i] += !finite as u32;
        }
    }
    // A slot is whole rows of a multiple of 8 elements: what is left is short.
    for &x in rest.iter() {
        let finite = x.is_finite();
        sums[0] += if finite { x * x } else { 0.0 };
        counts[0] += !finite as u32;
    }
    (sums.iter().sum(), counts.iter().sum())
}

fn partial_host(args: &mut Args<'_, f32>) {
    let p: PartialParams = args.params();
    let (panel, partials, slot) = slots_of(&p, args.read(0), args.write(1));
    partials.par_chunks_mut(SLOT_FLOATS).zip(panel.par_chunks(slot)).for_each(|(out, run)| {
        let (sum, count) = vector::dispatch(
            #[inline(always)]
            || sum_slot(run),
        );
        out.copy_from_slice(&[sum, count as f32]);
    });
}

fn partial_bound(args: &mut Args<'_, f64>) {
    let p: PartialParams = args.params();
    let (panel, partials, slot) = slots_of(&p, args.read(0), args.write(1));
    for (out, run) in partials.chunks_mut(SLOT_FLOATS).zip(panel.chunks(slot)) {
        let sum: f64 = run.iter().filter(|x| x.is_finite()).map(|x| x * x).sum();
        out.copy_from_slice(&[run.len() as f64 * EPS * sum, 0.0]);
    }
}

/// The sum adds one rounding a slot, half of which is left in the root; WGSL's `sqrt` is a division (2.5 ulp) by an
/// inverse root (2 ulp): nine roundings. The clip scale adds a rounded sum, the constant and a division.
fn finish_bound(args: &mut Args<'_, f64>) {
    let p: FinishParams = args.params();
    let slots = args.read(0).chunks(SLOT_FLOATS).skip(p.first as usize).take(p.norm_slots as usize);
    let total: f64 = slots.map(|slot| slot[0]).sum();
    let norm = total.min(f32::MAX.into()).sqrt();
    let relative = EPS * (0.5 * f64::from(p.norm_slots) + 9.0);
    let scalars = args.write(1);
    scalars.fill(0.0);
    scalars[GRAD_NORM] = relative * norm;
    scalars[CLIP_SCALE] = (relative + 7.0 * EPS) * f64::from(p.clip) / (norm + 1e-6);
}

fn words<P: bytemuck::Pod>(params: &P) -> Vec<u32> {
    bytemuck::cast_slice(bytemuck::bytes_of(params)).to_vec()
}

/// Panels of one value, of less than a slot, of slots with a short last one, and one with values that are not finite.
fn partial_cases() -> Vec<Case> {
    let case = |(rows, cols, planted): (usize, usize, bool)| {
        let row_quads = Matrix::stride_for(cols) as u32 / 4;
        let params = PartialParams {
            quads: rows as u32 * row_quads,
            offset: 0,
            slot_quads: ROWS_PER_SLOT as u32 * row_quads,
            first_slot: 3,
        };
        let gradient = Fill::matrix(rows, cols);
        let gradient = if planted {
            let mut words = gradient.words(1);
            let last = words.len() - 8;
            [(0, f32::NAN), (9, f32::INFINITY), (last, f32::NEG_INFINITY)]
                .iter()
                .for_each(|(i, x)| words[*i] = x.to_bits());
            Fill::Words(words)
        } else {
            gradient
        };
        Case {
            label: format!("{rows}x{cols}{}", if planted { ", not all finite" } else { "" }),
            fills: vec![gradient, Fill::Poison { len: SLOT_FLOATS * (3 + slots(rows)) }],
            launch: Box::new(move |_| (words(&params), slots(rows) as u32)),
        }
    };
    [(1, 1, false), (5, 37, false), (1, 1030, false), (37, 12, false), (40, 20, true)].into_iter().map(case).collect()
}

fn finish_cases() -> Vec<Case> {
    let case = |(first, norm_slots, slots, clip, loss): (usize, usize, usize, f32, f32)| {
        let partials =
            (0..(first + slots) * SLOT_FLOATS).map(|i| if i % 2 == 0 { 0.01 + i as f32 } else { (i % 5 / 4) as f32 });
        let mut scalars = vec![0.25; SCALARS];
        scalars[LOSS] = loss;
        let [first_slot, norm_len, len] = [first, norm_slots, slots].map(|n| n as u32);
        let zero = bytemuck::Zeroable::zeroed();
        let params = FinishParams { first: first_slot, norm_slots: norm_len, slots: len, clip, ..zero };
        Case {
            label: format!("slots {first}+{norm_slots} of {slots}, clip {clip}, loss {loss}"),
            // The last is the carry, which a launch over all slots leaves as it is.
            fills: vec![Fill::Floats(partials.collect()), Fill::Floats(scalars), Fill::Poison { len: 8 }],
            launch: Box::new(move |_| (Cut::whole(params.slots).into_words(&params), 1)),
        }
    };
    let whole = [(1, 0.0, 2.0), (1, 0.05, 2.0), (1, 5.0, 2.0), (37, 1.0, 3.0), (300, 1.0, 3.0)];
    let whole = whole.map(|(slots, clip, loss)| (0, slots, slots, clip, loss));
    whole.into_iter().chain([(5, 20, 90, 1.0, 3.0), (1, 1, 2, 1.0, 3.0)]).map(case).collect()
}
