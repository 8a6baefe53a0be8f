//! Column sum: `sum[c] (+)= dy[0, c] + dy[1, c] + ...`, the gradient of a bias. It must never know what the rows are.
//!
//! Two levels: blocks of rows are summed alone, then the blocks' sums, in an order that depends on the shape and the
//! variant only. A tile owns a few columns, whole; nothing crosses tiles.

use super::matrix::Rows;
use super::{Case, EPS, Fill, Matrix, Program, launch};
use crate::device::{Args, Class, Device, Kernel, Lane, Real, Result, Variant, read, write};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;
use std::ops::Range;

crate::params! {
    /// Parameters; places in quads of four floats.
    pub struct ColumnSumParams {
        /// Rows of `dy`.
        rows: u32,
        /// Quads of a row.
        quads: u32,
        /// 1: add to what `sum` holds.
        accumulate: u32,
        /// First quad of `dy`.
        dy_offset: u32,
        /// Quads from one row of `dy` to the next.
        dy_stride: u32,
        /// First quad of `sum`.
        sum_offset: u32,
    }
}

/// Shapes of a tile that reduces columns: `QUADS` quads by `SLOTS` row slots.
pub(super) const VARIANTS: &[Variant] = &[
    Variant {
        name: "quads4x64",
        classes: &[Class::Gpu, Class::Native],
        constants: &[("WG", 256), ("QUADS", 4), ("SLOTS", 64), ("BLOCK", 8), ("SPLIT", 1)],
    },
    Variant {
        name: "quads8x1",
        classes: &[Class::Software],
        constants: &[("WG", 8), ("QUADS", 8), ("SLOTS", 1), ("BLOCK", 32), ("SPLIT", 0)],
    },
];

/// The program.
pub static PROGRAMS: [&Program; 1] = [&SUM];

/// `sum (+)= column sums of dy`: bindings dy, sum.
pub static SUM: Program = Program {
    kernel: Kernel {
        name: "column_sum",
        wgsl: include_str!("../../shaders/column_sum.wgsl"),
        bindings: &[read("dy", Lane::Vec4), write("sum", Lane::Vec4)],
        params: ColumnSumParams::FIELDS,
        variants: VARIANTS,
        tile_bytes,
        reference_f32: reference,
        reference_f64: reference,
        host: Some(host),
    },
    bound,
    cases,
    fault: ("block + BLOCK", "block + BLOCK - 1u"),
};

/// Two sums of four floats in each lane.
pub(super) fn tile_bytes(variant: &Variant) -> u32 {
    variant.get("WG") * 32
}

/// Tiles that cover `quads` quads of columns.
pub(super) fn groups(quads: u32, variant: &Variant) -> u32 {
    quads.div_ceil(variant.get("QUADS"))
}

/// Queues `out (+)= column sums of dy`; `out` is 1 x n.
///
/// # Panics
/// When `out` has other columns, or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn run(device: &Device, dy: &Matrix, out: &Matrix, accumulate: bool) -> Result<()> {
    assert!(out.rows == 1, "{out:?} is not one row");
    out.expect_like(&dy.rows(0, 1));
    let Rows { rows, quads } = Rows::of(&[dy]);
    let (dy_offset, dy_stride) = dy.place();
    let accumulate = accumulate as u32;
    let params = ColumnSumParams { rows, quads, accumulate, dy_offset, dy_stride, sum_offset: out.place().0 };
    launch(device, &SUM.kernel, &params, |v| groups(quads, v), &[dy.view.clone(), out.view.clone()])
}

fn reference<F: Real>(args: &mut Args<'_, F>) {
    sums(args, |total, x| total + x, |old, total| old + total);
}

/// Any order of n additions is off by at most (n - 1) EPS of the sum of absolute values; one more adds to what was there.
fn bound(args: &mut Args<'_, f64>) {
    let p: ColumnSumParams = args.params();
    sums(args, |total, x| total + x.abs(), |old, total| EPS * (f64::from(p.rows) * total + old.abs()));
}

/// Goes down each column with `add`, then merges with what `sum` held (0 when it does not accumulate).
fn sums<F: Real>(args: &mut Args<'_, F>, add: impl Fn(F, F) -> F, merge: impl Fn(F, F) -> F) {
    let p: ColumnSumParams = args.params();
    let (dy, sum, rows) = (args.read(0), args.write(1), Rows { rows: p.rows, quads: p.quads });
    for (c, sum) in rows.row_mut(sum, (p.sum_offset, 0), 0).iter_mut().enumerate() {
        let column = (0..p.rows).map(|r| rows.row(dy, (p.dy_offset, p.dy_stride), r)[c]);
        let old = if p.accumulate == 1 { *sum } else { F::zero() };
        *sum = merge(old, column.fold(F::zero(), &add));
    }
}

fn host(args: &mut Args<'_, f32>) {
    let p: ColumnSumParams = args.params();
    let (dy, sum, rows) = (args.read(0), args.write(1), Rows { rows: p.rows, quads: p.quads });
    let sum = rows.row_mut(sum, (p.sum_offset, 0), 0);
    let mut totals = vec![0.0f32; sum.len()];
    reduce_columns(0..p.rows, &mut totals, |r, sums| {
        let row = rows.row(dy, (p.dy_offset, p.dy_stride), r);
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    });
    settle(sum, &totals, p.accumulate == 1);
}

/// Rows that a tile of a column relay owns, and rows of one block of the host reduce: the division never depends on the
/// number of threads, and a cut between tiles is one between blocks.
pub(super) const BLOCK_ROWS: u32 = 64;

/// Adds to `totals`, one element a column, what `rows` contribute: `add_row(r, sums)` adds that of row r to such a row. Blocks of
/// [`BLOCK_ROWS`] rows are summed in parallel, each in order; their sums are added to the totals in order. So a range that
/// begins with a block goes on with the totals of the rows before it as if there had been no cut.
#[inline(always)]
pub(super) fn reduce_columns(rows: Range<u32>, totals: &mut [f32], add_row: impl Fn(u32, &mut [f32]) + Sync) {
    assert!(rows.start.is_multiple_of(BLOCK_ROWS), "rows {rows:?} begin inside a block");
    if totals.is_empty() {
        return;
    }
    let arch = pulp::Arch::new();
    let blocks = rows.len().div_ceil(BLOCK_ROWS as usize);
    let mut partial = vec![0.0f32; blocks * totals.len()];
    partial.par_chunks_mut(totals.len()).enumerate().for_each(|(block, sums)| {
        let first = rows.start + block as u32 * BLOCK_ROWS;
        arch.dispatch(Block { rows: first..rows.end.min(first + BLOCK_ROWS), sums, add_row: &add_row });
    });
    for sums in partial.chunks(totals.len()) {
        totals.iter_mut().zip(sums).for_each(|(total, x)| *total += x);
    }
}

/// `sum (+)= totals`, at the end of a reduce.
pub(super) fn settle<F: Real>(sum: &mut [F], totals: &[F], accumulate: bool) {
    for (sum, &total) in sum.iter_mut().zip(totals) {
        *sum = if accumulate { *sum + total } else { total };
    }
}

/// One block of a column reduce. A type of its own, not a closure: the shim through which a closure is called need not be
/// inlined, and then it stays scalar code.
struct Block<'a, F> {
    rows: Range<u32>,
    sums: &'a mut [f32],
    add_row: &'a F,
}

impl<F: Fn(u32, &mut [f32])> pulp::NullaryFnOnce for Block<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for r in self.rows {
            (self.add_row)(r, self.sums);
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, cols, accumulate) in [(1, 1, 0), (37, 84, 0), (37, 84, 1), (300, 20, 1), (1000, 128, 0)] {
        let stride = Matrix::stride_for(cols) as u32 / 4;
        let params = ColumnSumParams {
            rows: rows as u32,
            quads: stride,
            accumulate,
            dy_offset: 0,
            dy_stride: stride,
            sum_offset: 0,
        };
        let sum = if accumulate == 1 { Fill::matrix(1, cols) } else { Fill::poison(1, cols) };
        let label = format!("{rows} x {cols}{}", if accumulate == 1 { ", accumulated" } else { "" });
        cases.push(case(label, [Fill::matrix(rows, cols), sum], params));
    }
    let params = ColumnSumParams { rows: 9, quads: 3, accumulate: 0, dy_offset: 2, dy_stride: 10, sum_offset: 1 };
    cases.push(case("columns 8..20 of 9 x 40".into(), [Fill::matrix(9, 40), Fill::poison(1, 16)], params));
    cases
}

fn case(label: String, fills: [Fill; 2], params: ColumnSumParams) -> Case {
    let words = bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec();
    Case { label, fills: fills.into(), launch: Box::new(move |v| (words.clone(), groups(params.quads, v))) }
}
