//! Rounds a panel of f32 in place to values that bf16 holds, to the nearest (ties to even) or stochastically: up or down
//! with the probability that keeps the mean. All integer arithmetic on the bits, so every device gives the same.
//!
//! ```text
//! nearest:     high half of |x| + 0x7fff + (bit 16 of |x|)      stochastic:  high half of |x| + 16 random bits
//! ```
//!
//! The random bits of an element are a pure function of (seed, step, stream, index in its whole tensor): Philox4x32-10
//! (see [`philox`](super::philox)) gives the bits of eight neighbours at once, so neither the cut into panels nor the
//! number of threads changes a bit. What bf16 holds already stays as it is; NaN stays NaN (quiet), infinity infinity. Where
//! rounding to the nearest leaves the range the result is infinite, as of any conversion; stochastic rounding stops at the
//! largest finite value. It must never know whether a panel is a weight or a moment: the stream says which.

use rayon::prelude::*;

use super::philox::{ROUNDING, aligned, philox, philox_lanes, with_philox};
use super::{Case, Fill, Matrix, Program, launch, vector};
use crate::device::{ALL_CLASSES, Args, Device, DeviceError, Held, Kernel, Lane, Real, Result, Variant, write};

/// How to round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To the nearest value, ties to even.
    Nearest,
    /// Up or down at random, so that the mean of many roundings is the value.
    Stochastic {
        /// Seed of the run.
        seed: u64,
        /// Number of the step, below 2^48.
        step: u64,
        /// Names tensor and role: two panels of one step that must not round alike differ in it.
        stream: u32,
    },
}

/// A rounding of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// How.
    pub mode: Mode,
}

/// Elements of a tensor that is rounded stochastically: at most this many.
pub const ELEMENTS_MAX: u64 = 1 << 43;
const STEPS_MAX: u64 = 1 << 48;

/// Elements that share one block of random words, sixteen bits each.
const BLOCK: usize = 8;

crate::params! {
    /// Parameters of the kernel that rounds to the nearest.
    pub struct NearestParams {
        /// Pieces of eight elements.
        pieces: u32,
        /// Vec4 elements before the first.
        offset: u32,
    }
}

crate::params! {
    /// Parameters of the kernel that rounds stochastically.
    pub struct StochasticParams {
        /// Pieces of eight elements.
        pieces: u32,
        /// Pieces of a row.
        row_pieces: u32,
        /// Columns that hold values.
        cols: u32,
        /// Vec4 elements before the first.
        offset: u32,
        /// Index of the panel's first element in its tensor, low word.
        first_low: u32,
        /// The same, high word.
        first_high: u32,
        /// Seed, low word.
        seed_low: u32,
        /// Seed, high word.
        seed_high: u32,
        /// Step, low word.
        step_low: u32,
        /// Tensor and role.
        stream: u32,
        /// Last word of the counter for a block below 2^32: the tag, and above it the high bits of the step.
        tag: u32,
    }
}

const VARIANTS: &[Variant] =
    &[Variant { name: "run64x2", classes: ALL_CLASSES, constants: &[("WG", 64), ("PIECES", 2)] }];

/// Both programs.
pub static PROGRAMS: [&Program; 2] = [&NEAREST, &STOCHASTIC];

/// To the nearest: binding panel.
pub static NEAREST: Program = Program {
    kernel: Kernel {
        name: "round_nearest",
        wgsl: with_philox!("../../shaders/round.wgsl"),
        bindings: &[write("panel", Lane::Vec4)],
        params: NearestParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: nearest_reference,
        reference_f64: nearest_reference,
        host: Some(nearest_host),
    },
    bound: |args| args.write(0).fill(0.0),
    cases: nearest_cases,
    fault: ("+ 0x7fffu", "+ 0x8000u"),
};

/// Stochastically: binding panel.
pub static STOCHASTIC: Program = Program {
    kernel: Kernel {
        name: "round_stochastic",
        wgsl: with_philox!("../../shaders/round.wgsl"),
        bindings: &[write("panel", Lane::Vec4)],
        params: StochasticParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: stochastic_reference,
        reference_f64: stochastic_reference,
        host: Some(stochastic_host),
    },
    bound: |args| args.write(0).fill(0.0),
    cases: stochastic_cases,
    fault: ("0xD2511F53u", "0xD2511F57u"),
};

/// Queues the rounding of a panel that begins at row `first_row` of its tensor. Zeros of the padding stay zero.
///
/// # Errors
/// [`DeviceError::Usage`] when `panel` is not whole rows or not aligned, or, for stochastic rounding, when the tensor has
/// more than [`ELEMENTS_MAX`] elements up to the panel's end or the step does not fit; what the device says.
pub fn run(device: &Device, round: &Round, panel: &Matrix, first_row: usize) -> Result<()> {
    let (offset, row_quads) = panel.row_quads()?;
    let row_pieces = row_quads / 2;
    let pieces = panel.rows as u32 * row_pieces;
    let groups = |v: &Variant| groups(pieces, v);
    let views = std::slice::from_ref(&panel.view);
    let Mode::Stochastic { seed, step, stream } = round.mode else {
        return launch(device, &NEAREST.kernel, &NearestParams { pieces, offset }, groups, views);
    };
    let first = first_row as u64 * panel.cols as u64;
    if first + (panel.rows * panel.cols) as u64 > ELEMENTS_MAX || step >= STEPS_MAX {
        return Err(DeviceError::Usage(format!("round: {panel:?} at row {first_row} of step {step} is out of range")));
    }
    let params = StochasticParams {
        pieces,
        row_pieces,
        cols: panel.cols as u32,
        offset,
        first_low: first as u32,
        first_high: (first >> 32) as u32,
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        step_low: step as u32,
        stream,
        tag: ROUNDING | ((step >> 32) as u32) << 16,
    };
    launch(device, &STOCHASTIC.kernel, &params, groups, views)
}

/// The value of bf16 nearest to `x`, ties to even.
#[inline(always)]
pub fn bf16_nearest(x: f32) -> f32 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    finished(x, magnitude + 0x7fff + (magnitude >> 16 & 1))
}

/// The value of bf16 above or below `x` that 16 random bits pick.
#[inline(always)]
fn bf16_stochastic(x: f32, random: u32) -> f32 {
    let rounded = (x.to_bits() & 0x7fff_ffff) + random;
    finished(x, rounded.min(0x7f7f_ffff))
}

/// The high half of what was rounded, where `x` is finite; infinity and NaN, made quiet, else.
#[inline(always)]
fn finished(x: f32, rounded: u32) -> f32 {
    let (magnitude, sign) = (x.to_bits() & 0x7fff_ffff, x.to_bits() & 0x8000_0000);
    let quiet = if magnitude > 0x7f80_0000 { magnitude | 0x0040_0000 } else { magnitude };
    let kept = if magnitude >= 0x7f80_0000 { quiet } else { rounded };
    f32::from_bits(kept & 0xffff_0000 | sign)
}

fn groups(pieces: u32, variant: &Variant) -> u32 {
    pieces.div_ceil(variant.get("WG") * variant.get("PIECES"))
}

fn nearest_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: NearestParams = args.params();
    for x in &mut args.write(0)[4 * p.offset as usize..][..BLOCK * p.pieces as usize] {
        *x = F::of(f64::from(bf16_nearest(x.wide() as f32)));
    }
}

/// Elements that one task of the host takes.
const RUN: usize = 1 << 14;

fn nearest_host(args: &mut Args<'_, f32>) {
    let p: NearestParams = args.params();
    let panel = &mut args.write(0)[4 * p.offset as usize..][..BLOCK * p.pieces as usize];
    panel.par_chunks_mut(RUN).for_each(|run| {
        vector::dispatch(
            #[inline(always)]
            || run.iter_mut().for_each(|x| *x = bf16_nearest(*x)),
        );
    });
}

impl StochasticParams {
    fn first(&self) -> u64 {
        u64::from(self.first_high) << 32 | u64::from(self.first_low)
    }

    fn key(&self) -> [u32; 2] {
        [self.seed_low, self.seed_high]
    }

    /// Random words of a block of eight elements.
    fn random(&self, block: u64) -> [u32; 4] {
        philox([block as u32, self.step_low, self.stream, self.tag | ((block >> 32) as u32) << 8], self.key())
    }
}

/// The sixteen bits of one element of a block.
fn part(words: [u32; 4], index: u64) -> u32 {
    let k = (index % BLOCK as u64) as usize;
    words[k / 2] >> (16 * (k % 2)) & 0xffff
}

/// The panel's rows, padding included, with the index of each row's first element.
fn stochastic_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: StochasticParams = args.params();
    let panel = &mut args.write(0)[4 * p.offset as usize..][..BLOCK * p.pieces as usize];
    for (r, row) in panel.chunks_mut(BLOCK * p.row_pieces as usize).enumerate() {
        let first = p.first() + r as u64 * u64::from(p.cols);
        for (index, x) in (first..).zip(row) {
            let random = part(p.random(index / BLOCK as u64), index);
            *x = F::of(f64::from(bf16_stochastic(x.wide() as f32, random)));
        }
    }
}

/// Blocks of random words that the host computes side by side.
const LANES: usize = 16;
/// Elements of them.
const LANE_ELEMENTS: usize = LANES * BLOCK;

/// The elements of [`LANES`] blocks from `block` on.
#[inline(always)]
fn stochastic_lanes(p: &StochasticParams, block: u64, out: &mut [f32; LANE_ELEMENTS]) {
    let (mut low, mut high) = ([0u32; LANES], [0u32; LANES]);
    for i in 0..LANES {
        let block = block + i as u64;
        (low[i], high[i]) = (block as u32, p.tag | ((block >> 32) as u32) << 8);
    }
    let words = philox_lanes([low, [p.step_low; LANES], [p.stream; LANES], high], p.key());
    // Blocks one after the other, as the elements lie: then the additions are vectors of neighbours.
    let mut random = [0u32; LANES * BLOCK / 2];
    for i in 0..LANES {
        for j in 0..4 {
            random[4 * i + j] = words[j][i];
        }
    }
    for (pair, word) in out.as_chunks_mut::<2>().0.iter_mut().zip(random) {
        *pair = [bf16_stochastic(pair[0], word & 0xffff), bf16_stochastic(pair[1], word >> 16)];
    }
}

/// A run of elements that begins at `first`: whole groups of lanes where blocks begin with them, else block by block.
#[inline(always)]
fn stochastic_run(p: &StochasticParams, first: u64, run: &mut [f32]) {
    let ([(start, head), (end, tail)], (block, groups)) = aligned::<BLOCK, LANE_ELEMENTS>(first, run);
    stochastic_block(p, start, head);
    for (i, group) in groups.iter_mut().enumerate() {
        stochastic_lanes(p, block + (i * LANES) as u64, group);
    }
    for (i, block) in tail.chunks_mut(BLOCK).enumerate() {
        stochastic_block(p, end + (i * BLOCK) as u64, block);
    }
}

/// Elements of one block.
#[inline(always)]
fn stochastic_block(p: &StochasticParams, first: u64, elements: &mut [f32]) {
    let words = p.random(first / BLOCK as u64);
    for (index, x) in (first..).zip(elements) {
        *x = bf16_stochastic(*x, part(words, index));
    }
}

fn stochastic_host(args: &mut Args<'_, f32>) {
    let p: StochasticParams = args.params();
    let stride = BLOCK * p.row_pieces as usize;
    let panel = &mut args.write(0)[4 * p.offset as usize..][..BLOCK * p.pieces as usize];
    // Rows without padding lie in the tensor as one run; the others go one by one, some to a task.
    let dense = stride == p.cols as usize;
    let rows = (RUN / stride).max(1);
    let task = if dense { RUN } else { rows * stride };
    panel.par_chunks_mut(task).enumerate().for_each(|(i, run)| {
        vector::dispatch(
            #[inline(always)]
            || {
                if dense {
                    stochastic_run(&p, p.first() + (i * RUN) as u64, run);
                } else {
                    for (r, row) in run.chunks_mut(stride).enumerate() {
                        stochastic_run(&p, p.first() + (i * rows + r) as u64 * u64::from(p.cols), row);
                    }
                }
            },
        );
    });
}

/// Normal values of many sizes, among them what is special about the format: representable values, ties of both kinds,
/// subnormals, the largest values of either format, infinity.
fn values(rows: usize, cols: usize) -> Vec<u32> {
    let special = [
        0x3f80_0000u32,
        0xbf80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x0000_0001,
        0x8000_ffff,
        0x0080_0000,
        0x7f7f_0000,
        0xff7f_7fff,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x8000_0000,
    ];
    let stride = Matrix::stride_for(cols);
    let mut words = vec![0; 8 + rows * stride + 8];
    let normal = Fill::Normal { rows, cols, stride, scale: 1.0, mean: 0.0 }.words(5);
    words[8..][..rows * stride].copy_from_slice(&normal);
    for (i, word) in special.into_iter().enumerate().take(cols / 2) {
        words[8 + 2 * i] = word;
    }
    words
}

fn nearest_cases() -> Vec<Case> {
    [(1, 1), (3, 37), (2, 600)]
        .into_iter()
        .map(|(rows, cols)| {
            let pieces = (rows * Matrix::stride_for(cols) / BLOCK) as u32;
            let params = NearestParams { pieces, offset: 2 };
            Case {
                label: format!("{rows}x{cols}"),
                fills: vec![Fill::Words(values(rows, cols))],
                launch: Box::new(move |v| (params.words(), groups(pieces, v))),
            }
        })
        .collect()
}

fn stochastic_cases() -> Vec<Case> {
    // Odd widths put a block of eight across the end of a row; the last indices cross the high word of index and block.
    [(1, 1, 0u64), (3, 37, 5), (5, 200, 1 << 40), (7, 8, 0xffff_fff4), (2, 640, 8 * 0xffff_fff8)]
        .into_iter()
        .map(|(rows, cols, first)| {
            let row_pieces = (Matrix::stride_for(cols) / BLOCK) as u32;
            let params = StochasticParams {
                pieces: rows as u32 * row_pieces,
                row_pieces,
                cols: cols as u32,
                offset: 2,
                first_low: first as u32,
                first_high: (first >> 32) as u32,
                seed_low: 0x1234_5678,
                seed_high: 0x9abc_def0,
                step_low: 77,
                stream: 3,
                tag: ROUNDING | 5 << 16,
            };
            Case {
                label: format!("{rows}x{cols} from {first}"),
                fills: vec![Fill::Words(values(rows, cols))],
                launch: Box::new(move |v| (params.words(), groups(params.pieces, v))),
            }
        })
        .collect()
}
