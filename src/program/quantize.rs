//! Block-wise 8-bit values (the idea of Dettmers, Lewis, Shleifer and Zettlemoyer, arXiv 2110.02861): each value becomes
//! the nearest on a grid of 256 codes times the largest magnitude of its block. A panel is rounded in place to what its
//! codes say; codes and scales themselves are made only where they are stored.
//!
//! ```text
//! scale = max |x| of 256 neighbours in a row          y = table[nearest code] * scale, one product at f32
//! ```
//!
//! The grids are octaves below 1, each cut evenly: 16, 8 or 4 values an octave, finest at the top. [`Table::Unsigned`] has
//! 0 and 255 values down to 7.5e-8 (7.1 decades), [`Table::Signed`] 0 and 127 of either sign down to 2.3e-5. Values have at
//! most 5 significant bits, so the middle of two neighbours is exact, and a value lies on its side of the middle by one
//! product and one comparison, in f32, on every device. Quotients are only guesses of the cell. Thus y quantised again is y,
//! bit for bit: the largest of a block stays the largest, and neighbours stay apart. For that no product may be subnormal,
//! so a block whose scale lies below [`TINY`] is zero. A block that is not finite is left as it is; stored, all of it is
//! NaN. It must never know whether a panel is a first or a second moment: the table says which.

use std::sync::LazyLock;

use rayon::prelude::*;

use super::{Case, Fill, Matrix, Program, launch, vector};
use crate::device::{Args, Class, Device, Held, Kernel, Lane, Real, Result, Variant, write};

/// Which grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// 0 and 127 values of either sign: first moments, momentum.
    Signed,
    /// 0 and 255 positive values: second moments. What is negative counts as 0.
    Unsigned,
}

/// Columns of a block; the last block of a row may have fewer.
pub const BLOCK: usize = 256;
/// A block whose largest magnitude is less (2^-100) is zero.
pub const TINY: f32 = 1.0 / (1u128 << 100) as f32;

crate::params! {
    /// Parameters of the kernel.
    pub struct QuantizeParams {
        /// Rows of the panel.
        rows: u32,
        /// Vec4 elements of a row.
        row_quads: u32,
        /// Blocks of a row.
        row_blocks: u32,
        /// Vec4 elements before the first.
        offset: u32,
        /// The last octave below 1 that is cut into 16.
        fine: u32,
        /// The last octave below 1 that is cut into 8; the others into 4.
        middle: u32,
        /// Bits of the smallest positive value.
        smallest: u32,
        /// 1: values of either sign.
        is_signed: u32,
        /// Bits of the least scale that counts.
        tiny: u32,
    }
}

const VARIANTS: &[Variant] = &[
    Variant { name: "block64", classes: &[Class::Gpu], constants: &[("WG", 64), ("QUADS", 64)] },
    Variant { name: "block8", classes: &[Class::Software, Class::Native], constants: &[("WG", 8), ("QUADS", 64)] },
];

/// The program.
pub static PROGRAMS: [&Program; 1] = [&QUANTIZE];

/// Rounds to the grid in place: binding panel.
pub static QUANTIZE: Program = Program {
    kernel: Kernel {
        name: "quantize",
        wgsl: include_str!("../../shaders/quantize.wgsl"),
        bindings: &[write("panel", Lane::Vec4)],
        params: QuantizeParams::FIELDS,
        variants: VARIANTS,
        // The largest of four magnitudes in each lane.
        held: |v| Held { accumulators: 16 * v.get("WG"), state: 0 },
        reference_f32: reference,
        reference_f64: reference,
        host: Some(host),
    },
    bound: |args| args.write(0).fill(0.0),
    cases,
    fault: ("floor + (cell >> one)", "floor + cell"),
};

/// Queues the rounding of a panel of whole rows to the grid of its blocks. Padding stays zero.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when `panel` is not whole rows or not aligned; what the
/// device says.
pub fn run(device: &Device, table: Table, panel: &Matrix) -> Result<()> {
    let (offset, row_quads) = panel.row_quads()?;
    let params = QuantizeParams { rows: panel.rows as u32, offset, ..table.params(row_quads) };
    launch(device, &QUANTIZE.kernel, &params, |_| params.groups(), std::slice::from_ref(&panel.view))
}

/// Blocks, and so scales, of a row of `cols` columns.
pub fn blocks(cols: usize) -> usize {
    cols.div_ceil(BLOCK)
}

/// Codes and scales of one row without padding: [`decode_row`] of them is what [`run`] makes of the row, bit for bit.
///
/// # Panics
/// When there is not one code an element and one scale a block.
pub fn encode_row(table: Table, row: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    assert!(codes.len() == row.len() && scales.len() == blocks(row.len()), "{} elements", row.len());
    let grid = table.params(0);
    for ((row, codes), scale) in row.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
        vector::dispatch(
            #[inline(always)]
            || {
                *scale = match grid.scale(row) {
                    Scale::Tiny => 0.0,
                    Scale::NotFinite => f32::NAN,
                    Scale::Of(scale) => scale,
                };
                if *scale > 0.0 {
                    let inverse = inverse(*scale);
                    for (code, &x) in codes.iter_mut().zip(row) {
                        *code = grid.code(grid.nearest(x, *scale, inverse), x);
                    }
                } else {
                    codes.fill(if grid.is_signed == 1 { ZERO_SIGNED } else { 0 });
                }
            },
        );
    }
}

/// The values of one row's codes and scales.
///
/// # Panics
/// When there is not one code an element and one scale a block.
pub fn decode_row(table: Table, codes: &[u8], scales: &[f32], row: &mut [f32]) {
    assert!(codes.len() == row.len() && scales.len() == blocks(row.len()), "{} elements", row.len());
    let values = table.values();
    for ((row, codes), scale) in row.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(scales) {
        row.iter_mut().zip(codes).for_each(|(x, code)| *x = values[usize::from(*code)] * scale);
    }
}

/// Code of 0 among signed values.
const ZERO_SIGNED: u8 = 127;

impl Table {
    /// What each code stands for, in ascending order. Signed values have one code less: the last two are both 1.
    pub fn values(self) -> &'static [f32; 256] {
        match self {
            Table::Signed => &SIGNED,
            Table::Unsigned => &UNSIGNED,
        }
    }

    /// The grid, and the shape of a panel of `row_quads`.
    fn params(self, row_quads: u32) -> QuantizeParams {
        let (is_signed, fine, middle) = match self {
            Table::Signed => (1, 4, 8),
            Table::Unsigned => (0, 8, u32::MAX),
        };
        QuantizeParams {
            rows: 0,
            row_quads,
            row_blocks: row_quads.div_ceil(BLOCK as u32 / 4),
            offset: 0,
            fine,
            middle,
            smallest: self.smallest().to_bits(),
            is_signed,
            tiny: TINY.to_bits(),
        }
    }

    /// The last positive value from 1 down.
    fn smallest(self) -> f32 {
        match self {
            Table::Signed => 1.5 / (1u32 << 16) as f32,
            Table::Unsigned => 1.25 / (1u32 << 24) as f32,
        }
    }

    /// The positive values, from 1 down.
    fn positive(self) -> Vec<f32> {
        let grid = self.params(0);
        let octave = |e: u32| {
            let cuts = 16 >> grid.coarser(e);
            (0..cuts).rev().map(move |i| (1.0 + i as f32 / cuts as f32) / (1u64 << e) as f32)
        };
        let values = std::iter::once(1.0).chain((1..40).flat_map(octave));
        values.take_while(|x| *x >= self.smallest()).collect()
    }
}

static UNSIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut values = Table::Unsigned.positive();
    values.push(0.0);
    values.reverse();
    values.try_into().expect("the unsigned grid has 256 values")
});

static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let positive = Table::Signed.positive();
    let ascending = positive.iter().rev();
    let all = positive.iter().map(|x| -x).chain([0.0]).chain(ascending.copied()).chain([1.0]);
    all.collect::<Vec<_>>().try_into().expect("the signed grid has 255 values")
});

/// What the values of a block are multiples of.
enum Scale {
    Tiny,
    NotFinite,
    Of(f32),
}

/// Multiplied with a magnitude and 2^-8: its ratio to the scale, to a few ulp. Neither factor is subnormal.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    1.0 / (scale * 0.003_906_25)
}

impl QuantizeParams {
    fn groups(&self) -> u32 {
        self.rows * self.row_blocks
    }

    /// How many times fewer than 16 values an octave has, as a power of two.
    #[inline(always)]
    fn coarser(&self, octave: u32) -> u32 {
        (octave > self.fine) as u32 + (octave > self.middle) as u32
    }

    /// Bits of the magnitude; what the unsigned grid does not have is zero.
    #[inline(always)]
    fn magnitude(&self, x: f32) -> u32 {
        let magnitude = x.to_bits() & 0x7fff_ffff;
        let dropped = (self.is_signed == 0) & (x.to_bits() != magnitude) & (magnitude < 0x7f80_0000);
        if dropped { 0 } else { magnitude }
    }

    #[inline(always)]
    fn scale(&self, block: &[f32]) -> Scale {
        let mut largest = 0;
        for &x in block {
            largest = largest.max(self.magnitude(x));
        }
        match f32::from_bits(largest) {
            scale if !scale.is_finite() => Scale::NotFinite,
            scale if scale < TINY => Scale::Tiny,
            scale => Scale::Of(scale),
        }
    }

    /// The nearest positive value of the grid or 0, as bits: two neighbours by a guess, one of them by the product with
    /// their middle.
    #[inline(always)]
    fn nearest(&self, x: f32, scale: f32, inverse: f32) -> u32 {
        let magnitude = f32::from_bits(self.magnitude(x));
        let ratio = magnitude * inverse * 0.003_906_25;
        let ratio = (if ratio < 1.0 { ratio } else { 1.0 }).to_bits();
        let cell = 1 << (19 + self.coarser(127u32.wrapping_sub(ratio >> 23)));
        let floor = ratio & !(cell - 1);
        let below = ratio < self.smallest;
        let low = if below { 0 } else { floor };
        let high = if below { self.smallest } else { floor + cell };
        let middle = if below { self.smallest - 0x0080_0000 } else { floor + cell / 2 };
        if magnitude >= f32::from_bits(middle) * scale { high } else { low }
    }

    /// The value that a block's element becomes.
    #[inline(always)]
    fn value(&self, nearest: u32, x: f32, scale: f32) -> f32 {
        let value = f32::from_bits(nearest) * scale;
        if nearest == 0 { 0.0 } else { f32::from_bits(value.to_bits() | x.to_bits() & 0x8000_0000) }
    }

    /// The code of a value of the grid with the sign of `x`: its place, counted from 1 down.
    #[inline(always)]
    fn code(&self, nearest: u32, x: f32) -> u8 {
        let octave = 127u32.wrapping_sub(nearest >> 23).max(1);
        let coarser = self.coarser(octave);
        // Values of the octaves above: 16 in each of the first, 8 in the next, 4 in the others.
        let above = |last: u32| (octave - 1).min(last);
        let before = 4 * (above(u32::MAX) + above(self.middle) + 2 * above(self.fine));
        let before = if self.is_signed == 1 { before } else { 8 * (above(u32::MAX) + above(self.fine)) };
        let place = before + (16 >> coarser) - (nearest >> (19 + coarser) & (15 >> coarser));
        let place = if nearest == 0x3f80_0000 { 0 } else { place };
        let count = if self.is_signed == 1 { 127u32.wrapping_sub(place) } else { 255u32.wrapping_sub(place) };
        let count = if nearest == 0 { 0 } else { count };
        let negative = x.to_bits() >> 31 == 1;
        (if self.is_signed == 0 {
            count
        } else if negative {
            127u32.wrapping_sub(count)
        } else {
            127 + count
        }) as u8
    }
}

/// All comparisons with the middles of neighbours, one by one.
fn reference<F: Real>(args: &mut Args<'_, F>) {
    let p: QuantizeParams = args.params();
    let table = if p.is_signed == 1 { Table::Signed } else { Table::Unsigned };
    let mut grid = table.positive();
    grid.push(0.0);
    let (rows, stride) = (p.rows as usize, 4 * p.row_quads as usize);
    for row in args.write(0)[4 * p.offset as usize..][..rows * stride].chunks_mut(stride) {
        for block in row.chunks_mut(BLOCK) {
            // Decisions are those of f32, whatever the precision of the memory.
            let narrow: Vec<f32> = block.iter().map(|x| x.wide() as f32).collect();
            let magnitude = |x: f32| if table == Table::Unsigned && x < 0.0 { 0.0 } else { x.abs() };
            let scale = narrow.iter().map(|x| magnitude(*x)).fold(0.0, f32::max);
            if narrow.iter().any(|x| !x.is_finite()) {
                continue;
            }
            for (out, &x) in block.iter_mut().zip(&narrow) {
                let reached = |pair: &&[f32]| magnitude(x) >= 0.5 * (pair[0] + pair[1]) * scale;
                let value = grid.windows(2).find(reached).map_or(0.0, |pair| pair[0]) * scale;
                let value = if scale < TINY || value == 0.0 { 0.0 } else { value.copysign(x) };
                *out = F::of(value.into());
            }
        }
    }
}

/// Elements that one task of the host takes: whole blocks.
const RUN: usize = 1 << 14;

fn host(args: &mut Args<'_, f32>) {
    let p: QuantizeParams = args.params();
    let (rows, stride) = (p.rows as usize, 4 * p.row_quads as usize);
    let panel = &mut args.write(0)[4 * p.offset as usize..][..rows * stride];
    // Whole rows to a task; a row alone is cut between blocks.
    let (task, width) = if rows == 1 { (RUN, RUN) } else { ((RUN / stride).max(1) * stride, stride) };
    panel.par_chunks_mut(task).for_each(|rows| {
        vector::dispatch(
            #[inline(always)]
            || {
                // A copy of its own, which no store to the panel can change: else the loops are not made vectors.
                let grid = p;
                for row in rows.chunks_mut(width) {
                    for block in row.chunks_mut(BLOCK) {
                        host_block(&grid, block);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn host_block(p: &QuantizeParams, block: &mut [f32]) {
    match p.scale(block) {
        Scale::NotFinite => {}
        Scale::Tiny => block.fill(0.0),
        Scale::Of(scale) => {
            let inverse = inverse(scale);
            for x in block.iter_mut() {
                *x = p.value(p.nearest(*x, scale, inverse), *x, scale);
            }
        }
    }
}

/// The value of a case at an index, from a normal one.
type ValueFn = fn(u64, f32) -> f32;

/// Normal values, values of many sizes, those of the grid and the middles between them, blocks that are zero or tiny.
fn cases() -> Vec<Case> {
    let case = |(rows, cols, table, fill): (usize, usize, Table, ValueFn)| {
        let stride = Matrix::stride_for(cols);
        let params = QuantizeParams { rows: rows as u32, offset: 2, ..table.params(stride as u32 / 4) };
        let words = Fill::matrix(rows, cols).words(8);
        let values = words.iter().enumerate().map(|(i, word)| {
            let x = if table == Table::Unsigned { f32::from_bits(*word).powi(2) } else { f32::from_bits(*word) };
            // Padding stays what it was.
            if i % stride < cols { fill(i as u64, x) } else { 0.0 }
        });
        let values = [vec![0.0; 8], values.collect(), vec![0.0; 8]].concat();
        Case {
            label: format!("{rows}x{cols} {table:?}"),
            fills: vec![Fill::Floats(values)],
            launch: Box::new(move |_| (params.words(), params.groups())),
        }
    };
    let many_sizes = |i: u64, x: f32| x * (-((i * 7 % 29) as f32)).exp2();
    let middles = |i: u64, x: f32| {
        let values = (if x < 0.0 { Table::Signed } else { Table::Unsigned }).values();
        let at = (i * 37 % 255) as usize;
        if i.is_multiple_of(256) { 3.0 } else { 1.5 * (values[at] + values[at + (i % 2) as usize]) }
    };
    let tiny = |i: u64, x: f32| x * if (i / 256).is_multiple_of(2) { 1e-32 } else { 1e-28 };
    [
        (1, 1, Table::Signed, (|_, x| x) as ValueFn),
        (3, 37, Table::Signed, |_, x| x),
        (2, 600, Table::Signed, many_sizes),
        (3, 300, Table::Unsigned, many_sizes),
        (5, 512, Table::Unsigned, middles),
        (5, 512, Table::Signed, middles),
        (2, 1000, Table::Signed, tiny),
        (1, 40, Table::Unsigned, |_, _| 0.0),
    ]
    .into_iter()
    .map(case)
    .collect()
}
