//! Dropout, in place: each element is multiplied by `1 / (1 - rate)` with probability `1 - rate`, else by 0. The same
//! call on the gradient is the backward pass, because the factors are a pure function of key, rate and index:
//!
//! ```text
//! factor(key, row * cols + col) = 1 / (1 - rate) where word(key, row * cols + col) >= rate * 2^32, else 0
//! ```
//!
//! The words are those of [`philox`](super::philox), so neither the device, the cut into rows nor the number of threads
//! changes a factor, and nothing is kept between the passes. Two calls that must not drop alike differ in the key. It
//! must never know what it drops, or at which step.

use super::matrix::Rows;
use super::philox::{DROPOUT, aligned, key as words_of, philox, philox_lanes, with_philox};
use super::{Case, Fill, Matrix, Program, launch, vector};
use crate::device::{ALL_CLASSES, Args, Device, Held, Kernel, Lane, Real, Result, Variant, write};
use rayon::iter::ParallelIterator;

/// Elements that share one block of random words.
const BLOCK: usize = 4;

crate::params! {
    /// Parameters; places in quads of four floats.
    pub struct DropoutParams {
        /// Rows.
        rows: u32,
        /// Columns that hold values.
        cols: u32,
        /// Quads of a row.
        quads: u32,
        /// First quad.
        offset: u32,
        /// Quads from one row to the next.
        stride: u32,
        /// Index of the first element, low word.
        first_low: u32,
        /// The same, high word.
        first_high: u32,
        /// Key, low word.
        key_low: u32,
        /// The same, high word.
        key_high: u32,
        /// The least word that keeps an element.
        threshold: u32,
        /// What is kept is multiplied by this.
        scale: f32,
    }
}

/// The program.
pub static PROGRAMS: [&Program; 1] = [&DROP];

/// Multiplies by the factors: binding x.
pub static DROP: Program = Program {
    kernel: Kernel {
        name: "dropout",
        wgsl: with_philox!("../../shaders/dropout.wgsl"),
        bindings: &[write("x", Lane::Vec4)],
        params: DropoutParams::FIELDS,
        variants: &[Variant { name: "run256x4", classes: ALL_CLASSES, constants: &[("WG", 64), ("QUADS", 4)] }],
        held: |_| Held::NOTHING,
        reference_f32: reference,
        reference_f64: reference,
        host: Some(host),
    },
    // One product by an exact factor: no error beyond the rounding of its own store.
    bound: |args| args.write(0).fill(0.0),
    cases,
    fault: ("words >= vec4", "words > ~vec4"),
};

/// Queues dropout of `x` in place; the index of an element is `row * x.cols + col`.
///
/// # Panics
/// When `rate` is not in `[0, 1)`, or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the view does not fit the declaration; what the
/// device says otherwise.
pub fn run(device: &Device, x: &Matrix, key: u64, rate: f32) -> Result<()> {
    run_rows(device, x, 0, key, rate)
}

/// The same for rows `first_row ..` of a larger matrix, which drops what [`run`] on the whole of it drops there.
///
/// # Panics
/// As [`run`].
///
/// # Errors
/// As [`run`].
pub fn run_rows(device: &Device, x: &Matrix, first_row: usize, key: u64, rate: f32) -> Result<()> {
    let (Rows { rows, quads }, (offset, stride)) = (Rows::of(&[x]), x.place());
    let Keep { threshold, scale } = Keep::at(rate);
    if threshold == 0 {
        return Ok(()); // a rate of 0: every factor is 1
    }
    let first = first_row as u64 * x.cols as u64;
    let [key_low, key_high] = words_of(key);
    let params = DropoutParams {
        rows,
        cols: x.cols as u32,
        quads,
        offset,
        stride,
        first_low: first as u32,
        first_high: (first >> 32) as u32,
        key_low,
        key_high,
        threshold,
        scale,
    };
    launch(device, &DROP.kernel, &params, |v| groups(&params, v), std::slice::from_ref(&x.view))
}

/// What the element of index `index` is multiplied by.
///
/// # Panics
/// When `rate` is not in `[0, 1)`.
pub fn factor(key: u64, index: u64, rate: f32) -> f32 {
    Keep::at(rate).factor(block(key, index / BLOCK as u64)[(index % BLOCK as u64) as usize])
}

/// The random words of a block of four elements.
#[inline(always)]
fn block(key: u64, number: u64) -> [u32; BLOCK] {
    philox([number as u32, (number >> 32) as u32, 0, DROPOUT], words_of(key))
}

/// What a rate says of a random word.
#[derive(Clone, Copy)]
struct Keep {
    threshold: u32,
    scale: f32,
}

impl Keep {
    /// Both numbers from f64, where the product is exact: every machine has the same.
    fn at(rate: f32) -> Keep {
        assert!((0.0..1.0).contains(&rate), "a dropout rate of {rate} is not in [0, 1)");
        let rate = f64::from(rate);
        Keep { threshold: (rate * 4_294_967_296.0).ceil() as u32, scale: (1.0 / (1.0 - rate)) as f32 }
    }

    #[inline(always)]
    fn factor(self, word: u32) -> f32 {
        if word >= self.threshold { self.scale } else { 0.0 }
    }
}

impl DropoutParams {
    fn key(&self) -> u64 {
        u64::from(self.key_high) << 32 | u64::from(self.key_low)
    }

    fn keep(&self) -> Keep {
        Keep { threshold: self.threshold, scale: self.scale }
    }

    /// Index of the first element of a row.
    fn first(&self, row: u32) -> u64 {
        (u64::from(self.first_high) << 32 | u64::from(self.first_low)) + u64::from(row) * u64::from(self.cols)
    }

    fn extent(&self) -> Rows {
        Rows { rows: self.rows, quads: self.quads }
    }
}

fn groups(p: &DropoutParams, variant: &Variant) -> u32 {
    (p.rows * p.quads).div_ceil(variant.get("WG") * variant.get("QUADS"))
}

fn reference<F: Real>(args: &mut Args<'_, F>) {
    let p: DropoutParams = args.params();
    let x = args.write(0);
    for r in 0..p.rows {
        let row = &mut p.extent().row_mut(x, (p.offset, p.stride), r)[..p.cols as usize];
        for (index, x) in (p.first(r)..).zip(row) {
            let word = block(p.key(), index / BLOCK as u64)[(index % BLOCK as u64) as usize];
            *x *= F::of(f64::from(p.keep().factor(word)));
        }
    }
}

/// Blocks of random words that the host computes side by side.
const LANES: usize = 16;
/// Elements of them.
const LANE_ELEMENTS: usize = LANES * BLOCK;
/// Elements that one task of the host takes, or a row where that is more.
const RUN: usize = 1 << 14;

fn host(args: &mut Args<'_, f32>) {
    let p: DropoutParams = args.params();
    let (cols, stride) = (p.cols as usize, 4 * p.stride as usize);
    let rows = (RUN / stride).max(1) as u32;
    p.extent().blocks_mut(args.write(0), (p.offset, p.stride), rows).for_each(|(first_row, cells)| {
        vector::dispatch(
            #[inline(always)]
            || {
                // Rows without padding are one run.
                if cols == stride {
                    return drop_run(&p, p.first(first_row), cells);
                }
                for (row, cells) in (first_row..).zip(cells.chunks_mut(stride)) {
                    drop_run(&p, p.first(row), &mut cells[..cols]);
                }
            },
        );
    });
}

/// Elements that begin at an index: whole groups of lanes where blocks begin with them, else block by block.
#[inline(always)]
fn drop_run(p: &DropoutParams, first: u64, run: &mut [f32]) {
    let ([(start, head), (end, tail)], (number, groups)) = aligned::<BLOCK, LANE_ELEMENTS>(first, run);
    drop_block(p, start, head);
    for (i, group) in groups.iter_mut().enumerate() {
        drop_lanes(p, number + (i * LANES) as u64, group);
    }
    for (i, block) in tail.chunks_mut(BLOCK).enumerate() {
        drop_block(p, end + (i * BLOCK) as u64, block);
    }
}

/// Elements of one block.
#[inline(always)]
fn drop_block(p: &DropoutParams, first: u64, elements: &mut [f32]) {
    let words = block(p.key(), first / BLOCK as u64);
    for (x, word) in elements.iter_mut().zip(&words[(first % BLOCK as u64) as usize..]) {
        *x *= p.keep().factor(*word);
    }
}

/// The elements of [`LANES`] blocks from block `number` on.
#[inline(always)]
fn drop_lanes(p: &DropoutParams, number: u64, elements: &mut [f32; LANE_ELEMENTS]) {
    let (mut low, mut high) = ([0u32; LANES], [0u32; LANES]);
    for i in 0..LANES {
        let number = number + i as u64;
        (low[i], high[i]) = (number as u32, (number >> 32) as u32);
    }
    let words = philox_lanes([low, high, [0; LANES], [DROPOUT; LANES]], words_of(p.key()));
    for (i, quad) in elements.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        for (j, x) in quad.iter_mut().enumerate() {
            *x *= p.keep().factor(words[j][i]);
        }
    }
}

/// (rows, columns, first index, rate), and columns 8..24 of a wider matrix. Odd widths put a block of four across the end
/// of a row; the last indices cross the high word of index and block.
fn cases() -> Vec<Case> {
    let whole = |rows: usize, cols: usize, first: u64, rate: f32| {
        let stride = Matrix::stride_for(cols);
        let words = [vec![0; 8], Fill::matrix(rows, cols).words(7), vec![0; 8]].concat();
        let stride = stride as u32 / 4;
        case(format!("{rows}x{cols} from {first} at {rate}"), words, (rows, cols, stride), (stride, 2), first, rate)
    };
    let mut cases = vec![
        whole(1, 1, 0, 0.5),
        whole(3, 37, 5, 0.1),
        whole(5, 130, 1 << 40, 0.25),
        whole(3, 128, 0, 0.999),
        whole(7, 8, 0xffff_fff4, 0.5),
        whole(2, 333, 4 * 0xffff_fff0 + 2, 0.5),
    ];
    let words = Fill::matrix(5, 88).words(7);
    cases.push(case("columns 8..24 of 5 x 88".into(), words, (5, 16, 4), (22, 2), 3, 0.1));
    cases
}

fn case(
    label: String,
    words: Vec<u32>,
    (rows, cols, quads): (usize, usize, u32),
    (stride, offset): (u32, u32),
    first: u64,
    rate: f32,
) -> Case {
    let Keep { threshold, scale } = Keep::at(rate);
    let params = DropoutParams {
        rows: rows as u32,
        cols: cols as u32,
        quads,
        offset,
        stride,
        first_low: first as u32,
        first_high: (first >> 32) as u32,
        key_low: 0x1234_5678,
        key_high: 0x9abc_def0,
        threshold,
        scale,
    };
    Case { label, fills: vec![Fill::Words(words)], launch: Box::new(move |v| (params.words(), groups(&params, v))) }
}
