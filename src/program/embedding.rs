//! Embedding: rows of a table gathered by id, and the gradient of the table, panel by panel. Tokens and positions alike;
//! it must never know what an id stands for.
//!
//! A panel holds rows `first_row .. first_row + rows` of the table; ids outside of it are left to the other panels. The
//! gradient needs no atomics: the host sorts the ids ([`Occurrences`]), and a tile owns one id's row, to which it adds the
//! gradients of that id's rows in ascending order. Nothing crosses tiles.

use super::matrix::Rows;
use super::{Case, EPS, Fill, Matrix, Program, launch};
use crate::device::{Args, Class, Device, Held, Kernel, Lane, Real, Result, Variant, View, read, write};
use rayon::iter::ParallelIterator;

crate::params! {
    /// Parameters of the forward kernel; places in quads of four floats.
    pub struct ForwardParams {
        /// Rows of `out`.
        rows: u32,
        /// Quads of a row.
        quads: u32,
        /// 1: add to what `out` holds.
        accumulate: u32,
        /// Id of the panel's first row.
        first_row: u32,
        /// Rows of the panel.
        table_rows: u32,
        /// First quad of the panel.
        table_offset: u32,
        /// Quads from one row of the panel to the next.
        table_stride: u32,
        /// First quad of `out`.
        out_offset: u32,
        /// Quads from one row of `out` to the next.
        out_stride: u32,
    }
}

crate::params! {
    /// Parameters of the backward kernel; places in quads.
    pub struct BackwardParams {
        /// Distinct ids.
        count: u32,
        /// Quads of a row.
        quads: u32,
        /// Id of the panel's first row.
        first_row: u32,
        /// Rows of the panel.
        table_rows: u32,
        /// First quad of `dx`.
        dx_offset: u32,
        /// Quads from one row of `dx` to the next.
        dx_stride: u32,
        /// First quad of the panel.
        table_offset: u32,
        /// Quads from one row of the panel to the next.
        table_stride: u32,
    }
}

const VARIANTS: &[Variant] = &[
    Variant { name: "run64x1", classes: &[Class::Gpu, Class::Native], constants: &[("WG", 64), ("QUADS", 1)] },
    Variant { name: "run8x64", classes: &[Class::Software], constants: &[("WG", 8), ("QUADS", 64)] },
];

/// Both programs.
pub static PROGRAMS: [&Program; 2] = [&FORWARD, &BACKWARD];

/// `out[r] (+)= table[ids[r]]` where the panel holds that row: bindings ids, table, out.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "embedding_forward",
        wgsl: include_str!("../../shaders/embedding.wgsl"),
        bindings: &[read("ids", Lane::U32), read("table", Lane::Vec4), write("out", Lane::Vec4)],
        params: ForwardParams::FIELDS,
        variants: VARIANTS,
        held: |_| Held::NOTHING,
        reference_f32: forward_reference,
        reference_f64: forward_reference,
        host: Some(forward_host),
    },
    bound: forward_bound,
    cases: forward_cases,
    fault: ("ids[row] - p.first_row", "ids[row]"),
};

/// `table_gradient[id] += dx[r]` over the rows r of each id that the panel holds: bindings rows, starts, ids, dx,
/// table_gradient.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "embedding_backward",
        wgsl: include_str!("../../shaders/embedding.wgsl"),
        bindings: &[
            read("rows", Lane::U32),
            read("starts", Lane::U32),
            read("ids", Lane::U32),
            read("dx", Lane::Vec4),
            write("table_gradient", Lane::Vec4),
        ],
        params: BackwardParams::FIELDS,
        variants: VARIANTS,
        // A sum of four floats in each lane.
        held: |v| Held { accumulators: 16 * v.get("WG"), state: 0 },
        reference_f32: backward_reference,
        reference_f64: backward_reference,
        host: Some(backward_host),
    },
    bound: backward_bound,
    cases: backward_cases,
    fault: ("i < end", "i + 1u < end"),
};

/// Queues `out[r] = table[ids[r] - first_row]`, or `+=`, for the rows whose id lies in the panel; the other rows stay as
/// they are. `ids` holds at least one id for each row of `out`.
///
/// # Panics
/// When `out` is of other columns, ids are too few, or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn forward(
    device: &Device,
    ids: &View,
    table: &Matrix,
    first_row: usize,
    out: &Matrix,
    accumulate: bool,
) -> Result<()> {
    assert!(ids.len >= out.rows, "{} ids for {out:?}", ids.len);
    out.rows(0, 1).expect_like(&table.rows(0, 1));
    let Rows { rows, quads } = Rows::of(&[out]);
    let ((table_offset, table_stride), (out_offset, out_stride)) = (table.place(), out.place());
    let params = ForwardParams {
        rows,
        quads,
        accumulate: accumulate as u32,
        first_row: first_row as u32,
        table_rows: table.rows as u32,
        table_offset,
        table_stride,
        out_offset,
        out_stride,
    };
    let views = [ids.clone(), table.view.clone(), out.view.clone()];
    launch(device, &FORWARD.kernel, &params, |v| groups(rows, quads, v), &views)
}

/// Queues `table_gradient[id - first_row] += ` the sum of the rows of `dx` where id occurs, for the first `count` of `ids`
/// that lie in the panel. `rows`, `starts` and `ids` hold an [`Occurrences`] and may be longer.
///
/// # Panics
/// When the panel is of other columns than `dx`, the lists are shorter than `count` asks, or a slice does not lie on
/// multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    device: &Device,
    rows: &View,
    starts: &View,
    ids: &View,
    count: usize,
    dx: &Matrix,
    table_gradient: &Matrix,
    first_row: usize,
) -> Result<()> {
    assert!(ids.len >= count && starts.len > count && rows.len >= count, "{count} ids in {ids:?}, {starts:?}");
    dx.rows(0, 1).expect_like(&table_gradient.rows(0, 1));
    let quads = dx.quads();
    let ((dx_offset, dx_stride), (table_offset, table_stride)) = (dx.place(), table_gradient.place());
    let params = BackwardParams {
        count: count as u32,
        quads,
        first_row: first_row as u32,
        table_rows: table_gradient.rows as u32,
        dx_offset,
        dx_stride,
        table_offset,
        table_stride,
    };
    let views = [rows.clone(), starts.clone(), ids.clone(), dx.view.clone(), table_gradient.view.clone()];
    launch(device, &BACKWARD.kernel, &params, |v| groups(params.count, quads, v), &views)
}

/// Where each id occurs: id `ids[i]` stands in rows `rows[starts[i] .. starts[i + 1]]`, ids and each id's rows ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrences {
    /// Row numbers, grouped by id.
    pub rows: Vec<u32>,
    /// Where the group of each id begins in `rows`, and the end of the last.
    pub starts: Vec<u32>,
    /// The distinct ids.
    pub ids: Vec<u32>,
}

impl Occurrences {
    /// Groups the rows of a batch by their id.
    pub fn of(ids: &[u32]) -> Occurrences {
        // Id and row in one word: an unstable sort of distinct keys is a stable sort by id.
        let mut keys: Vec<u64> = ids.iter().zip(0u64..).map(|(&id, row)| u64::from(id) << 32 | row).collect();
        keys.sort_unstable();
        let mut found = Occurrences { rows: Vec::with_capacity(keys.len()), starts: Vec::new(), ids: Vec::new() };
        for key in keys {
            let id = (key >> 32) as u32;
            if found.ids.last() != Some(&id) {
                found.ids.push(id);
                found.starts.push(found.rows.len() as u32);
            }
            found.rows.push(key as u32);
        }
        found.starts.push(found.rows.len() as u32);
        found
    }
}

fn groups(rows: u32, quads: u32, variant: &Variant) -> u32 {
    rows * quads.div_ceil(variant.get("WG") * variant.get("QUADS"))
}

/// The row of a panel that holds an id.
fn entry(id: u32, first_row: u32, table_rows: u32) -> Option<u32> {
    id.checked_sub(first_row).filter(|&entry| entry < table_rows)
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: ForwardParams = args.params();
    let (ids, table, out, rows) = (args.ids(0), args.read(1), args.write(2), Rows { rows: p.rows, quads: p.quads });
    for r in 0..p.rows {
        let Some(entry) = entry(ids[r as usize], p.first_row, p.table_rows) else { continue };
        let out = rows.row_mut(out, (p.out_offset, p.out_stride), r);
        for (out, &value) in out.iter_mut().zip(rows.row(table, (p.table_offset, p.table_stride), entry)) {
            *out = if p.accumulate == 1 { *out + value } else { value };
        }
    }
}

/// A copy, or one correctly rounded addition: nothing beyond the rounding of the store.
fn forward_bound(args: &mut Args<'_, f64>) {
    args.write(2).fill(0.0);
}

fn forward_host(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (ids, table, out, rows) = (args.ids(0), args.read(1), args.write(2), Rows { rows: p.rows, quads: p.quads });
    rows.blocks_mut(out, (p.out_offset, p.out_stride), HOST_ROWS).for_each(|(first, out)| {
        for i in 0..HOST_ROWS.min(p.rows - first) {
            let Some(entry) = entry(ids[(first + i) as usize], p.first_row, p.table_rows) else { continue };
            let out = rows.row_mut(out, (0, p.out_stride), i);
            let values = rows.row(table, (p.table_offset, p.table_stride), entry);
            if p.accumulate == 1 {
                out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
            } else {
                out.copy_from_slice(values);
            }
        }
    });
}

/// Rows that one piece of host work takes.
const HOST_ROWS: u32 = 16;

/// Goes through the ids of the panel: `add` takes one term, `merge` brings the sum of so many to what the gradient held;
/// `rest` sees the rows of the panel that have no id.
fn each_gradient<F: Real>(
    args: &mut Args<'_, F>,
    add: impl Fn(F, F) -> F,
    merge: impl Fn(F, F, usize) -> F,
    rest: impl Fn(&mut [F]),
) {
    let p: BackwardParams = args.params();
    let (list, starts, ids, dx, table) = (args.ids(0), args.ids(1), args.ids(2), args.read(3), args.write(4));
    let (ids, rows) = (&ids[..p.count as usize], Rows { rows: p.count, quads: p.quads });
    for entry in 0..p.table_rows {
        let gradient = rows.row_mut(table, (p.table_offset, p.table_stride), entry);
        let Ok(i) = ids.binary_search(&(p.first_row + entry)) else {
            rest(gradient);
            continue;
        };
        let occurrences = &list[starts[i] as usize..starts[i + 1] as usize];
        for (c, gradient) in gradient.iter_mut().enumerate() {
            let terms = occurrences.iter().map(|&r| rows.row(dx, (p.dx_offset, p.dx_stride), r)[c]);
            *gradient = merge(*gradient, terms.fold(F::zero(), &add), occurrences.len());
        }
    }
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    each_gradient(args, |total, x| total + x, |old, total, _| old + total, |_| {});
}

/// A sum of n terms in order is off by at most n EPS of the sum of absolute values. What has no id stays as it is.
fn backward_bound(args: &mut Args<'_, f64>) {
    let error = |old: f64, total: f64, n: usize| EPS * (n as f64 * total + old.abs());
    each_gradient(args, |total, x| total + x.abs(), error, |row| row.fill(0.0));
}

fn backward_host(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let (list, starts, ids, dx, table) = (args.ids(0), args.ids(1), args.ids(2), args.read(3), args.write(4));
    let ids = &ids[..p.count as usize];
    let (rows, panel) = (Rows { rows: p.count, quads: p.quads }, Rows { rows: p.table_rows, quads: p.quads });
    let arch = pulp::Arch::new();
    // Pieces of the panel, so that each thread writes rows of its own: the ids of a piece are neighbours in the list.
    panel.blocks_mut(table, (p.table_offset, p.table_stride), HOST_ROWS).for_each_init(
        || vec![0.0f32; 4 * p.quads as usize],
        |total, (first, table)| {
            let from = p.first_row + first;
            let to = p.first_row + p.table_rows.min(first + HOST_ROWS);
            let mine = ids.partition_point(|&id| id < from)..ids.partition_point(|&id| id < to);
            for i in mine {
                total.fill(0.0);
                let gradient = panel.row_mut(table, (0, p.table_stride), ids[i] - from);
                arch.dispatch(|| {
                    for &r in &list[starts[i] as usize..starts[i + 1] as usize] {
                        let row = rows.row(dx, (p.dx_offset, p.dx_stride), r);
                        total.iter_mut().zip(row).for_each(|(total, x)| *total += x);
                    }
                    gradient.iter_mut().zip(&*total).for_each(|(gradient, total)| *gradient += total);
                });
            }
        },
    );
}

fn forward_cases() -> Vec<Case> {
    // rows, columns, ids below, panel of the table, accumulated
    [(1, 1, 1, 0..1, 0), (37, 84, 11, 0..11, 0), (37, 84, 11, 4..9, 1), (100, 20, 40, 10..30, 0), (3, 1600, 5, 0..5, 1)]
        .into_iter()
        .map(|(rows, cols, below, panel, accumulate)| {
            let stride = Matrix::stride_for(cols) as u32 / 4;
            let params = ForwardParams {
                rows: rows as u32,
                quads: stride,
                accumulate,
                first_row: panel.start,
                table_rows: panel.len() as u32,
                table_offset: 0,
                table_stride: stride,
                out_offset: 0,
                out_stride: stride,
            };
            let out = if accumulate == 1 { Fill::matrix(rows, cols) } else { Fill::poison(rows, cols) };
            Case {
                label: format!(
                    "{rows} x {cols}, rows {panel:?} of {below}{}",
                    if accumulate == 1 { ", accumulated" } else { "" }
                ),
                fills: vec![Fill::Ids { len: rows, below }, Fill::matrix(panel.len(), cols), out],
                launch: words(params, move |v| groups(params.rows, params.quads, v)),
            }
        })
        .collect()
}

fn backward_cases() -> Vec<Case> {
    [(1, 1, 1, 0..1), (37, 84, 11, 0..11), (37, 84, 11, 4..9), (100, 20, 40, 10..30), (3, 1600, 5, 0..5)]
        .into_iter()
        .map(|(rows, cols, below, panel)| {
            let stride = Matrix::stride_for(cols) as u32 / 4;
            let found = Occurrences::of(&Fill::Ids { len: rows, below }.words(7));
            let params = BackwardParams {
                count: found.ids.len() as u32,
                quads: stride,
                first_row: panel.start,
                table_rows: panel.len() as u32,
                dx_offset: 0,
                dx_stride: stride,
                table_offset: 0,
                table_stride: stride,
            };
            // The lists lie in buffers for as many ids as there are rows; what is behind their ends must not matter.
            let filled = |mut list: Vec<u32>, len| {
                list.resize(len, u32::MAX);
                Fill::Words(list)
            };
            Case {
                label: format!("{rows} x {cols}, rows {panel:?} of {below}"),
                fills: vec![
                    filled(found.rows, rows),
                    filled(found.starts, rows + 1),
                    filled(found.ids, rows),
                    Fill::matrix(rows, cols),
                    Fill::matrix(panel.len(), cols),
                ],
                launch: words(params, move |v| groups(params.count, params.quads, v)),
            }
        })
        .collect()
}

type LaunchFn = Box<dyn Fn(&Variant) -> (Vec<u32>, u32) + Send + Sync>;

fn words<P: bytemuck::Pod + Send + Sync>(
    params: P,
    groups: impl Fn(&Variant) -> u32 + Send + Sync + 'static,
) -> LaunchFn {
    Box::new(move |v| (bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec(), groups(v)))
}
