//! Column sum: `sum[c] (+)= dy[0, c] + dy[1, c] + ...`, the gradient of a bias. It must never know what the rows are.
//!
//! Two levels: blocks of rows are summed alone, then the blocks' sums, in an order that depends on the shape and the
//! variant only. Fused, a tile plays a few columns, whole. On the wafer they are a line of tiles down it, [`BLOCK_ROWS`] rows a
//! tile; the last one writes the sums.

use super::chain::{Chain, Cut, relay_params};
use super::matrix::Rows;
use super::relay::{Axis, Relay};
use super::schedule::Fabric;
use super::{Case, EPS, Fill, Matrix, Program};
use crate::device::{Args, Class, Held, Kernel, Lane, Real, Result, Variant, read, write};
use crate::wafer::Work;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;
use std::ops::Range;

relay_params! {
    /// Parameters; places in quads of four floats.
    /// Blocks are measured in rows.
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

/// `sum (+)= column sums of dy`: bindings dy, sum, carry.
pub static SUM: Program = Program {
    kernel: Kernel {
        name: "column_sum",
        wgsl: include_str!("../../shaders/column_sum.wgsl"),
        bindings: &[read("dy", Lane::Vec4), write("sum", Lane::Vec4), write("carry", Lane::Vec4)],
        params: ColumnSumParams::FIELDS,
        variants: VARIANTS,
        // State: what a tile carries, in WGSL four floats a lane; native code carries less.
        held: |v| Held { accumulators: accumulators(v), state: 16 * v.get("WG") },
        reference_f32: reference,
        reference_f64: reference,
        host: Some(host),
    },
    bound,
    cases,
    fault: ("block + BLOCK", "block + BLOCK - 1u"),
};

/// Bytes of two sums of four floats in each lane: of a block of rows, and of all its blocks.
pub(super) fn accumulators(variant: &Variant) -> u32 {
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
pub fn run(fabric: &Fabric, dy: &Matrix, out: &Matrix, accumulate: bool) -> Result<()> {
    fabric.relay(&relay(fabric, dy, out, accumulate))
}

/// [`run`] as the fabric's scheduler sees it.
///
/// # Panics
/// As [`run`].
pub fn relay(fabric: &Fabric, dy: &Matrix, out: &Matrix, accumulate: bool) -> impl Relay + use<> {
    assert!(out.rows == 1, "{out:?} is not one row");
    out.expect_like(&dy.rows(0, 1));
    let Rows { rows, quads } = Rows::of(&[dy]);
    let (dy_offset, dy_stride) = dy.place();
    let params = ColumnSumParams {
        rows,
        quads,
        accumulate: accumulate as u32,
        dy_offset,
        dy_stride,
        sum_offset: out.place().0,
        ..bytemuck::Zeroable::zeroed()
    };
    let class = fabric.device().class();
    let variant = SUM.kernel.variant(class);
    Chain {
        kernel: &SUM.kernel,
        work: Work::Columns { lines: dy.cols as u64, len: dy.rows as u64 },
        axis: Axis::Column,
        lines: groups(quads, variant),
        len: rows,
        block_len: BLOCK_ROWS,
        gathers: &[u32::MAX],
        applies: false,
        carry: if class == Class::Native { native_carry(variant) } else { 4 * variant.get("WG") as usize },
        words: params.words(),
        views: vec![dy.view.clone(), out.view.clone()],
    }
}

/// Elements that native code hands on: a sum for each column of a tile. WGSL hands on a vec4 for each lane.
fn native_carry(variant: &Variant) -> usize {
    4 * variant.get("QUADS") as usize
}

impl ColumnSumParams {
    /// The columns of a line.
    fn columns(&self, line: usize, variant: &Variant) -> Range<usize> {
        let width = native_carry(variant);
        line * width..((line + 1) * width).min(4 * self.quads as usize)
    }
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
    let (cut, rows, slot) = (Cut::of(&p), Rows { rows: p.rows, quads: p.quads }, native_carry(args.variant));
    let (dy, sum, carry) = (args.read(0), args.write(1), args.write(2));
    let sum = rows.row_mut(sum, (p.sum_offset, 0), 0);
    for tile in 0..args.groups as usize {
        let span = cut.span(tile, p.rows);
        let columns = p.columns(span.line, args.variant);
        let mut own = vec![F::zero(); slot];
        let totals = &mut cut.slot(carry, &mut own, tile, slot)[..columns.len()];
        if span.begins() {
            totals.fill(F::zero());
        }
        for r in span.from..span.to {
            let row = &rows.row(dy, (p.dy_offset, p.dy_stride), r as u32)[columns.clone()];
            totals.iter_mut().zip(row).for_each(|(total, &x)| *total = add(*total, x));
        }
        if span.ends {
            for (sum, &total) in sum[columns].iter_mut().zip(&*totals) {
                *sum = merge(if p.accumulate == 1 { *sum } else { F::zero() }, total);
            }
        }
    }
}

fn host(args: &mut Args<'_, f32>) {
    let p: ColumnSumParams = args.params();
    let (cut, rows, slot) = (Cut::of(&p), Rows { rows: p.rows, quads: p.quads }, native_carry(args.variant));
    let (dy, sum, carry) = (args.read(0), args.write(1), args.write(2));
    let sum = rows.row_mut(sum, (p.sum_offset, 0), 0);
    let add = |range: Range<usize>, columns: &Range<usize>, totals: &mut [f32]| {
        reduce_columns(range.start as u32..range.end as u32, totals, |r, sums| {
            let row = &rows.row(dy, (p.dy_offset, p.dy_stride), r)[columns.clone()];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        });
    };
    if cut.carried == 0 {
        let mut totals = vec![0.0f32; sum.len()];
        add(0..p.rows as usize, &(0..sum.len()), &mut totals);
        return settle(sum, &totals, p.accumulate == 1);
    }
    for (tile, totals) in carry.chunks_mut(slot).take(args.groups as usize).enumerate() {
        let span = cut.span(tile, p.rows);
        let columns = p.columns(span.line, args.variant);
        let totals = &mut totals[..columns.len()];
        if span.begins() {
            totals.fill(0.0);
        }
        add(span.from..span.to, &columns, totals);
        if span.ends {
            settle(&mut sum[columns], totals, p.accumulate == 1);
        }
    }
}

/// Rows that a tile of a column relay owns, and rows of one block of the host reduce: the division never depends on the
/// number of threads, and a cut between tiles is one between blocks.
pub const BLOCK_ROWS: u32 = 64;

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
            ..bytemuck::Zeroable::zeroed()
        };
        let sum = if accumulate == 1 { Fill::matrix(1, cols) } else { Fill::poison(1, cols) };
        let label = format!("{rows} x {cols}{}", if accumulate == 1 { ", accumulated" } else { "" });
        cases.push(case(label, [Fill::matrix(rows, cols), sum], params));
    }
    let params = ColumnSumParams {
        rows: 9,
        quads: 3,
        dy_offset: 2,
        dy_stride: 10,
        sum_offset: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    cases.push(case("columns 8..20 of 9 x 40".into(), [Fill::matrix(9, 40), Fill::poison(1, 16)], params));
    cases
}

/// The last binding is the carry, which a launch over whole columns leaves as it is.
fn case(label: String, [dy, sum]: [Fill; 2], params: ColumnSumParams) -> Case {
    let words = Cut::whole(params.rows).into_words(&params);
    let launch = Box::new(move |v: &Variant| (words.clone(), groups(params.quads, v)));
    Case { label, fills: vec![dy, sum, Fill::Poison { len: 8 }], launch }
}
