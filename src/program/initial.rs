//! Initial parameters as a pure function of (seed, tensor, index): the same bits on every device, so that a tensor that
//! was never updated needs no bytes anywhere.
//!
//! Random bits are those of [`philox`](super::philox), all integer. A normal value is a table entry (a quantile of the
//! normal distribution) times the standard deviation. Both factors are rounded to 12 significant bits, so the product is
//! exact in f32 whatever an adapter's rounding. The table has 4096 entries of either sign, is scaled to variance 1 and ends
//! at 3.8 standard deviations.
//!
//! It knows tensors by number only; which tensor starts how is the model's business.

use std::sync::LazyLock;

use rayon::prelude::*;

use super::philox::{PARAMETERS, WORDS, aligned, key, philox, philox_lanes, with_philox};
use super::{Case, Fill, Matrix, Program, launch, vector};
use crate::device::{ALL_CLASSES, Args, Device, Elem, Held, Kernel, Lane, Real, Result, Variant, read, write};

/// What a tensor holds before the first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Zeros: biases; also how gradients are cleared.
    Zero,
    /// Ones: gains.
    One,
    /// Normal values of mean zero.
    Normal {
        /// Standard deviation; rounded to 12 significant bits.
        std: f32,
    },
}

/// The initial values of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Initial {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the tensor in the table of parameters.
    pub tensor: u32,
    /// What it holds.
    pub kind: Kind,
}

crate::params! {
    /// Parameters of the normal kernel.
    pub struct NormalParams {
        /// Rows of the panel.
        rows: u32,
        /// Columns that hold values.
        cols: u32,
        /// Vec4 elements of a row.
        row_quads: u32,
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
        /// Number of the tensor.
        tensor: u32,
        /// Standard deviation, of 12 significant bits.
        deviation: f32,
    }
}

crate::params! {
    /// Parameters of the fill kernel.
    pub struct FillParams {
        /// Rows of the panel.
        rows: u32,
        /// Columns that hold values.
        cols: u32,
        /// Vec4 elements of a row.
        row_quads: u32,
        /// Vec4 elements before the first.
        offset: u32,
        /// The value.
        value: f32,
    }
}

const VARIANTS: &[Variant] =
    &[Variant { name: "run256x4", classes: ALL_CLASSES, constants: &[("WG", 64), ("QUADS", 4)] }];

/// Both programs.
pub static PROGRAMS: [&Program; 2] = [&NORMAL, &FILL];

/// Normal values: bindings table, panel.
pub static NORMAL: Program = Program {
    kernel: Kernel {
        name: "initial_normal",
        wgsl: with_philox!("../../shaders/initial.wgsl"),
        bindings: &[read("table", Lane::F32), write("panel", Lane::Vec4)],
        params: NormalParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: normal_reference,
        reference_f64: normal_reference,
        host: Some(normal_host),
    },
    bound: |args| args.write(1).fill(0.0),
    cases: normal_cases,
    fault: ("0xD2511F53u", "0xD2511F57u"),
};

/// One value everywhere, zero in the padding: binding panel.
pub static FILL: Program = Program {
    kernel: Kernel {
        name: "initial_fill",
        wgsl: with_philox!("../../shaders/initial.wgsl"),
        bindings: &[write("panel", Lane::Vec4)],
        params: FillParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: fill_reference,
        reference_f64: fill_reference,
        host: Some(fill_host),
    },
    bound: |args| args.write(0).fill(0.0),
    cases: fill_cases,
    fault: ("vec4<f32>(p.value)", "vec4<f32>(p.value + 1.0)"),
};

/// Queues the initial values of rows `first_row .. first_row + target.rows` of a tensor as wide as `target`; padding
/// columns become zero. Normal values need the table on the device for the time of the launch: [`TABLE_BYTES`].
///
/// Initial values that bf16 holds are these, rounded: [`round::run`](super::round::run) to the nearest on the same panel,
/// or [`bf16_nearest`](super::round::bf16_nearest) of [`value`]. Zeros and ones are so already.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when `target` is not whole rows or not aligned; what the
/// device says.
pub fn run(device: &Device, initial: &Initial, target: &Matrix, first_row: usize) -> Result<()> {
    let (offset, row_quads) = target.row_quads()?;
    let (rows, cols) = (target.rows as u32, target.cols as u32);
    let groups = |v: &Variant| groups(rows * row_quads, v);
    let value = match initial.kind {
        Kind::Zero => 0.0,
        Kind::One => 1.0,
        Kind::Normal { std } => {
            let table = device.buffer("normal quantiles", Elem::F32, QUANTILES.len())?;
            device.upload(&table.all(), &QUANTILES[..])?;
            let first = first_row as u64 * target.cols as u64;
            let params = NormalParams {
                rows,
                cols,
                row_quads,
                offset,
                first_low: first as u32,
                first_high: (first >> 32) as u32,
                seed_low: initial.seed as u32,
                seed_high: (initial.seed >> 32) as u32,
                tensor: initial.tensor,
                deviation: twelve_bits(std),
            };
            return launch(device, &NORMAL.kernel, &params, groups, &[table.all(), target.view.clone()]);
        }
    };
    let params = FillParams { rows, cols, row_quads, offset, value };
    launch(device, &FILL.kernel, &params, groups, std::slice::from_ref(&target.view))
}

/// One element of a tensor's initial values; `index` is `row * cols + col` in the whole tensor.
pub fn value(initial: &Initial, index: u64) -> f32 {
    match initial.kind {
        Kind::Zero => 0.0,
        Kind::One => 1.0,
        Kind::Normal { std } => {
            let block = philox(counter(index / 4, initial.tensor), key(initial.seed));
            quantile(&QUANTILES, block[(index % 4) as usize]) * twelve_bits(std)
        }
    }
}

/// A pseudo-random word: a pure function of seed and index.
pub fn word(seed: u64, index: u64) -> u32 {
    philox([(index / 4) as u32, (index >> 34) as u32, 0, WORDS], key(seed))[(index % 4) as usize]
}

/// The [`word`]s from `first` on.
#[inline(always)]
pub(super) fn word_run(seed: u64, first: u64, to: &mut [u32]) {
    // What stands before a block of four goes to the end of the one before it, in a run of LANES blocks and one.
    let mut run = [0; 4 * (LANES + 1)];
    let at = (first % 4) as usize;
    for (piece, to) in to.chunks_mut(4 * LANES).enumerate() {
        let block = first / 4 + (piece * LANES) as u64;
        let blocks: [u64; LANES] = std::array::from_fn(
            #[inline(always)]
            |i| block + i as u64,
        );
        let lanes = [blocks.map(|b| b as u32), blocks.map(|b| (b >> 32) as u32), [0; LANES], [WORDS; LANES]];
        let words = philox_lanes(lanes, key(seed));
        for (i, out) in run.as_chunks_mut::<4>().0.iter_mut().enumerate().take(LANES) {
            *out = [words[0][i], words[1][i], words[2][i], words[3][i]];
        }
        if at + to.len() > 4 * LANES {
            let block = block + LANES as u64;
            run[4 * LANES..].copy_from_slice(&philox([block as u32, (block >> 32) as u32, 0, WORDS], key(seed)));
        }
        to.copy_from_slice(&run[at..][..to.len()]);
    }
}

/// A standard normal value: a pure function of seed and index.
pub fn normal(seed: u64, index: u64) -> f64 {
    f64::from(quantile(&QUANTILES, word(seed, index)))
}

/// Bytes of the table of quantiles.
pub const TABLE_BYTES: usize = 4 * ENTRIES;
const ENTRIES: usize = 4096;

/// Quantiles of the half normal distribution at the middles of equal parts, scaled to variance 1 and rounded to 12
/// significant bits. From `libm`, which computes the same on every machine; a test holds the bits.
static QUANTILES: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut x = 0.0f64;
    let exact: Vec<f64> = (0..ENTRIES)
        .map(|k| {
            let tail = (ENTRIES as f64 - k as f64 - 0.5) / (2 * ENTRIES) as f64;
            // The tail is convex and falls, so Newton's steps from the entry before come from the left and stay there.
            for _ in 0..8 {
                let density = libm::exp(-0.5 * x * x) * 0.398_942_280_401_432_7;
                x += (0.5 * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2) - tail) / density;
            }
            x
        })
        .collect();
    let variance = exact.iter().map(|x| x * x).sum::<f64>() / ENTRIES as f64;
    exact.iter().map(|x| twelve_bits((x / variance.sqrt()) as f32)).collect()
});

/// Rounds to 12 significant bits, half away from zero.
fn twelve_bits(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0x800) & !0xfff)
}

/// The entry that a random word picks: 12 high bits for the size, the lowest for the sign.
#[inline(always)]
fn quantile(table: &[f32], word: u32) -> f32 {
    f32::from_bits(table[(word >> 20) as usize].to_bits() | (word << 31))
}

fn counter(block: u64, tensor: u32) -> [u32; 4] {
    [block as u32, (block >> 32) as u32, tensor, PARAMETERS]
}

fn groups(quads: u32, variant: &Variant) -> u32 {
    quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

impl NormalParams {
    fn first(&self) -> u64 {
        u64::from(self.first_high) << 32 | u64::from(self.first_low)
    }

    fn key(&self) -> [u32; 2] {
        [self.seed_low, self.seed_high]
    }

    /// The value of one element of the tensor, by the table given.
    fn value(&self, table: &[f32], index: u64) -> f32 {
        let block = philox(counter(index / 4, self.tensor), self.key());
        quantile(table, block[(index % 4) as usize]) * self.deviation
    }
}

fn normal_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: NormalParams = args.params();
    let table: Vec<f32> = args.read(0).iter().map(|x| x.wide() as f32).collect();
    let (cols, stride) = (p.cols as usize, 4 * p.row_quads as usize);
    let rows = args.write(1)[4 * p.offset as usize..].chunks_mut(stride).take(p.rows as usize);
    for (r, row) in rows.enumerate() {
        for (c, x) in row.iter_mut().enumerate() {
            let index = p.first() + (r * cols + c) as u64;
            *x = if c < cols { F::of(f64::from(p.value(&table, index))) } else { F::zero() };
        }
    }
}

/// Blocks of random words that the host computes side by side.
const LANES: usize = 16;

/// The elements of [`LANES`] blocks from `block` on.
#[inline(always)]
fn normal_run(p: &NormalParams, table: &[f32; ENTRIES], block: u64, out: &mut [f32; 4 * LANES]) {
    let blocks: [u64; LANES] = std::array::from_fn(
        #[inline(always)]
        |i| block + i as u64,
    );
    let counters = [blocks.map(|b| b as u32), blocks.map(|b| (b >> 32) as u32), [p.tensor; LANES], [PARAMETERS; LANES]];
    let words = philox_lanes(counters, p.key());
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        for (j, x) in out.iter_mut().enumerate() {
            *x = quantile(table, words[j][i]) * p.deviation;
        }
    }
}

fn normal_host(args: &mut Args<'_, f32>) {
    let p: NormalParams = args.params();
    let table: &[f32; ENTRIES] = args.read(0).try_into().expect("the table of quantiles has 4096 entries");
    let (cols, stride) = (p.cols as usize, 4 * p.row_quads as usize);
    let panel = &mut args.write(1)[4 * p.offset as usize..][..p.rows as usize * stride];
    panel.par_chunks_mut(stride).enumerate().for_each(|(r, row)| {
        row[cols..].fill(0.0);
        let first = p.first() + (r * cols) as u64;
        let ([(start, head), (end, tail)], (block, runs)) = aligned::<4, { 4 * LANES }>(first, &mut row[..cols]);
        vector::dispatch(
            #[inline(always)]
            || {
                for (run, out) in runs.iter_mut().enumerate() {
                    normal_run(&p, table, block + (run * LANES) as u64, out);
                }
            },
        );
        for (i, x) in (start..).zip(head).chain((end..).zip(tail)) {
            *x = p.value(table, i);
        }
    });
}

fn fill_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: FillParams = args.params();
    let rows = args.write(0)[4 * p.offset as usize..].chunks_mut(4 * p.row_quads as usize).take(p.rows as usize);
    for row in rows {
        let (values, padding) = row.split_at_mut(p.cols as usize);
        values.fill(F::of(f64::from(p.value)));
        padding.fill(F::zero());
    }
}

fn fill_host(args: &mut Args<'_, f32>) {
    let p: FillParams = args.params();
    let stride = 4 * p.row_quads as usize;
    let panel = &mut args.write(0)[4 * p.offset as usize..][..p.rows as usize * stride];
    if p.value == 0.0 {
        panel.par_chunks_mut(1 << 16).for_each(|run| run.fill(0.0));
        return;
    }
    panel.par_chunks_mut(stride).for_each(|row| {
        row[..p.cols as usize].fill(p.value);
        row[p.cols as usize..].fill(0.0);
    });
}

fn normal_cases() -> Vec<Case> {
    // Odd widths put a block of four across the end of a row; the last index crosses the high word.
    [(1, 1, 0u64), (3, 37, 5), (5, 130, 1 << 40), (7, 8, 0xffff_fff0)]
        .into_iter()
        .map(|(rows, cols, first)| {
            let stride = Matrix::stride_for(cols);
            let params = NormalParams {
                rows: rows as u32,
                cols: cols as u32,
                row_quads: stride as u32 / 4,
                offset: 2,
                first_low: first as u32,
                first_high: (first >> 32) as u32,
                seed_low: 0x1234_5678,
                seed_high: 0x9abc_def0,
                tensor: 3,
                deviation: twelve_bits(0.02),
            };
            Case {
                label: format!("{rows}x{cols} from {first}"),
                fills: vec![Fill::Floats(QUANTILES.clone()), Fill::Poison { len: rows * stride + 16 }],
                launch: Box::new(move |v| (words(&params), groups(params.rows * params.row_quads, v))),
            }
        })
        .collect()
}

fn fill_cases() -> Vec<Case> {
    [(1, 1, 0.0f32), (3, 37, 1.0), (2, 1300, 1.0)]
        .into_iter()
        .map(|(rows, cols, value)| {
            let row_quads = Matrix::stride_for(cols) as u32 / 4;
            let params = FillParams { rows: rows as u32, cols: cols as u32, row_quads, offset: 2, value };
            Case {
                label: format!("{rows}x{cols} of {value}"),
                fills: vec![Fill::Poison { len: rows * 4 * row_quads as usize + 16 }],
                launch: Box::new(move |v| (words(&params), groups(params.rows * params.row_quads, v))),
            }
        })
        .collect()
}

fn words<P: bytemuck::Pod>(params: &P) -> Vec<u32> {
    bytemuck::cast_slice(bytemuck::bytes_of(params)).to_vec()
}

#[cfg(test)]
mod tests {
    use super::{word, word_run};

    #[test]
    fn a_run_holds_the_words_one_by_one() {
        for first in [0, 1, 62, 63, (1 << 34) - 70, u64::MAX - 300] {
            let mut run = [0; 201];
            word_run(7, first, &mut run);
            (first..).zip(run).for_each(|(index, got)| assert_eq!(got, word(7, index), "{index}"));
        }
    }
}
