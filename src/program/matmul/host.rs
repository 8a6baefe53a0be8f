//! The product on CPU threads, by the `gemm` crate.
//!
//! That crate accumulates an element in one register over at most 512 of k and adds the sum to memory, whatever the tile and
//! the number of threads, except on its special paths for thin or tiny operands. So the contraction is cut into chunks of
//! [`PANEL_ROWS`], operands that would take a special path are first widened by zeros, and the work is shared out here:
//! then equal bits come of any partition of the result, of whole launches and of single tiles.
//!
//! A result of few rows whose operands both have k along their rows, a linear layer of a short text, is summed by [`few`], in
//! the same order: packing the weights for `gemm` would take longer than multiplying them.
//!
//! A result of one row whose operands both have k along their rows, which is every linear layer of a model that writes text,
//! reads each weight once: that takes as long as the memory does, and is done by [`dot`] in an order of its own.

mod few;

use std::cell::RefCell;

use super::{MatmulParams, PANEL_ROWS};
use crate::device::Args;
use crate::program::vector;

/// Elements of the result times depth below which a second thread costs more than it saves.
const WORTH_SPLITTING: usize = 64 * 64 * 64;

/// A matrix read in place: element (row, col) is `data[row * down + col * right]`; `data` begins at its first element.
#[derive(Clone, Copy)]
struct Operand<'a> {
    data: &'a [f32],
    down: usize,
    right: usize,
}

impl<'a> Operand<'a> {
    fn from(self, row: usize, col: usize) -> Operand<'a> {
        Operand { data: &self.data[row * self.down + col * self.right..], ..self }
    }

    /// The last element of a `rows x cols` corner must exist; gemm reads through pointers.
    fn covers(&self, rows: usize, cols: usize) -> bool {
        rows > 0 && cols > 0 && (rows - 1) * self.down + (cols - 1) * self.right < self.data.len()
    }
}

/// A rectangle of the result, written through a pointer because rectangles side by side interleave in memory.
#[derive(Clone, Copy)]
struct Target {
    first: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
}

// Safety: a `Target` is made from an exclusive borrow that outlives every use of it, and is only ever divided into
// rectangles that do not meet, each used by one thread.
unsafe impl Send for Target {}

impl Target {
    fn new(data: &mut [f32], stride: usize, rows: usize, cols: usize) -> Target {
        assert!(rows > 0 && cols <= stride && (rows - 1) * stride + cols <= data.len(), "result leaves its buffer");
        Target { first: data.as_mut_ptr(), stride, rows, cols }
    }

    /// The rectangles above and below a row, or left and right of a column.
    fn cut(self, row: usize, col: usize) -> (Target, Target) {
        assert!(row <= self.rows && col <= self.cols && (row == self.rows) != (col == self.cols));
        let head = Target { rows: row, cols: col, ..self };
        let (down, right) = if col == self.cols { (row, 0) } else { (0, col) };
        // Safety: the first element of the second rectangle lies inside this one, because the cut does.
        let first = unsafe { self.first.add(down * self.stride + right) };
        (head, Target { first, rows: self.rows - down, cols: self.cols - right, ..self })
    }

    /// Elements of the rectangle: adds to them or, for `add == false`, sets them.
    fn put(&mut self, row: usize, col: usize, value: f32, add: bool) {
        let x = &mut self.row(row)[col];
        *x = if add { *x + value } else { value };
    }

    fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // Safety: `new` and `cut` keep all rows inside the borrow, and no other rectangle holds these elements.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.cols) }
    }
}

/// The host kernel of all three forms.
pub fn product(args: &mut Args<'_, f32>) {
    let p: MatmulParams = args.params();
    let get = |name: &str| args.variant.get(name) as usize;
    let (tm, tn, kb) = (get("TM"), get("TN"), get("KB"));
    let (a_along, b_along) = (get("A_ALONG") == 1, get("B_ALONG") == 1);
    let (a, b, bias) = (args.read(0), args.read(1), args.read(2));
    let c = args.write(3);
    // As factors, A is M x K and B is K x N.
    let strides = |along: bool, stride: u32| if along { (stride as usize, 1) } else { (1, stride as usize) };
    let (a_down, a_right) = strides(a_along, p.a_stride);
    let (b_right, b_down) = strides(b_along, p.b_stride);
    let left = |base: usize| Operand { data: &a[base..], down: a_down, right: a_right };
    let right = |base: usize| Operand { data: &b[base..], down: b_down, right: b_right };
    let bias = (p.bias == 1).then(|| &bias[p.bias_base as usize..]);
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let lone = m == 1 && a_along && b_along;
    let threads = rayon::current_num_threads();
    if p.in_place == 1 {
        let c = &mut c[p.c_base as usize..];
        let target = Target::new(c, p.c_stride as usize, m, p.c_cols as usize);
        let (a, b) = (left(p.a_base as usize), right(p.b_base as usize));
        let sum = Sum { depth: k, cols: n, add: p.accumulate == 1, bias, end: true, lone };
        return sum.share(target, 0, a, b, threads);
    }
    let depth = (p.last as usize * kb).min(k) - p.first as usize * kb;
    for group in 0..args.groups {
        let (y, x) = (group / p.round_width, group % p.round_width);
        let (row, col) = ((p.first_row + y) as usize * tm, (p.first_col + x) as usize * tn);
        let a = left((p.a_base + y * p.a_tile_y + x * p.a_tile_x) as usize);
        let b = right((p.b_base + y * p.b_tile_y + x * p.b_tile_x) as usize);
        let block = &mut c[p.c_at(row, col)..];
        let target = Target::new(block, p.c_stride as usize, tm.min(m - row), tn.min(p.c_cols as usize - col));
        let add = p.first > 0 || p.accumulate == 1;
        Sum { depth, cols: n, add, bias, end: p.last == p.steps, lone }.share(target, col, a, b, threads);
    }
}

/// What is to be summed into each element.
#[derive(Clone, Copy)]
struct Sum<'a> {
    depth: usize,
    /// Columns of the whole result; those of a target beyond them are padding.
    cols: usize,
    /// True: what the target holds is added to.
    add: bool,
    bias: Option<&'a [f32]>,
    /// True: the bias is added and the padding zeroed.
    end: bool,
    /// True: the whole result is one row, and k runs along the rows of both operands.
    lone: bool,
}

impl Sum<'_> {
    /// Shares a target, whose first column is column `col` of the result, between threads: halves of the longer side.
    fn share(self, target: Target, col: usize, a: Operand<'_>, b: Operand<'_>, threads: usize) {
        if threads < 2 || target.rows * target.cols * self.depth < WORTH_SPLITTING {
            return self.compute(target, col, a, b);
        }
        let half = threads / 2;
        let part = |len: usize, unit: usize| (len * half / threads).next_multiple_of(unit).min(len);
        let (row, column) = if target.rows > target.cols {
            (part(target.rows, 8), target.cols)
        } else {
            (target.rows, part(target.cols, 64))
        };
        if (row, column) == (target.rows, target.cols) {
            return self.compute(target, col, a, b);
        }
        let (head, tail) = target.cut(row, column);
        let (a_tail, b_tail, col_tail) =
            if row < target.rows { (a.from(row, 0), b, col) } else { (a, b.from(0, column), col + column) };
        rayon::join(
            move || self.share(head, col, a, b, half),
            move || self.share(tail, col_tail, a_tail, b_tail, threads - half),
        );
    }

    /// One thread's part.
    fn compute(self, mut target: Target, col: usize, a: Operand<'_>, b: Operand<'_>) {
        let cols = target.cols.min(self.cols - col);
        if self.lone {
            dots(&mut target.row(0)[..cols], &a.data[..self.depth], b, self.add);
        } else {
            for k in (0..self.depth).step_by(PANEL_ROWS) {
                let depth = PANEL_ROWS.min(self.depth - k);
                if target.rows <= few::ROWS && a.right == 1 && b.down == 1 && a.down != 1 {
                    few::chunk(Target { cols, ..target }, a.from(0, k), b.from(k, 0), depth, self.add || k > 0);
                    continue;
                }
                spread_chunk(Target { cols, ..target }, a.from(0, k), b.from(k, 0), depth, self.add || k > 0);
            }
        }
        if !self.end || (self.bias.is_none() && cols == target.cols) {
            return;
        }
        for r in 0..target.rows {
            let (body, padding) = target.row(r).split_at_mut(cols);
            if let Some(bias) = self.bias {
                body.iter_mut().zip(&bias[col..]).for_each(|(c, b)| *c += b);
            }
            padding.fill(0.0);
        }
    }
}

/// Sums that a dot product keeps side by side: lane l takes k = l, l + LANES and so on, ascending.
const LANES: usize = 64;

/// Adds to (or, for `add == false`, sets) a lone row: `c[j] (+)= a . column j of b`, chunk by chunk of the contraction, each
/// column of `b` read in one go.
fn dots(c: &mut [f32], a: &[f32], b: Operand<'_>, add: bool) {
    vector::dispatch(
        #[inline(always)]
        || {
            for (j, c) in c.iter_mut().enumerate() {
                let b = &b.data[j * b.right..][..a.len()];
                for (i, (a, b)) in a.chunks(PANEL_ROWS).zip(b.chunks(PANEL_ROWS)).enumerate() {
                    let sum = dot(a, b);
                    *c = if add || i > 0 { *c + sum } else { sum };
                }
            }
        },
    );
}

/// The order of additions is that of [`LANES`], which then meet in halves.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        lanes = add_products(lanes, a, b);
    }
    if !a_rest.is_empty() {
        // Widened by zeros, so that no lane is ever picked by a number: then all of them stay in registers.
        let widened = |rest: &[f32]| {
            let mut wide = [0.0f32; LANES];
            wide[..rest.len()].copy_from_slice(rest);
            wide
        };
        lanes = add_products(lanes, &widened(a_rest), &widened(b_rest));
    }
    for half in [32, 16, 8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

#[inline(always)]
fn add_products(mut lanes: [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    for l in 0..LANES {
        lanes[l] = a[l].mul_add(b[l], lanes[l]);
    }
    lanes
}

thread_local! {
    /// Rows and columns copied further apart; grown once, then kept.
    static SPREADS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
    /// Widened operands and result of a chunk that is too thin or too small; grown once, then kept.
    static SCRATCH: RefCell<[Vec<f32>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
}

/// Floats of a page: columns that lie a multiple of it apart fall on the same few lines of a cache.
const PAGE: usize = 1024;
/// Floats by which such columns are spread, when they are copied: a cache line.
const SPREAD: usize = 16;

/// The same, where `gemm` would pack many rows or columns that fall on the same lines of the cache, and lose each before it has
/// read it: they are first copied further apart, one after another. The values are the same, and so are the sums.
fn spread_chunk(target: Target, a: Operand<'_>, b: Operand<'_>, depth: usize, add: bool) {
    let clash =
        |along: usize, across: usize, count: usize| along == 1 && across.is_multiple_of(PAGE) && count >= SPREAD;
    SPREADS.with_borrow_mut(|[rows, columns]| {
        let right = depth + SPREAD;
        let a = match clash(a.right, a.down, target.rows) {
            true => Operand { data: spread(rows, a.data, a.down, target.rows, depth), down: right, right: 1 },
            false => a,
        };
        let b = match clash(b.down, b.right, target.cols) {
            true => Operand { data: spread(columns, b.data, b.right, target.cols, depth), down: 1, right },
            false => b,
        };
        chunk(target, a, b, depth, add);
    });
}

/// Copies `count` runs of `depth` floats that lie `apart`, to lie [`SPREAD`] more than their length apart.
fn spread<'a>(to: &'a mut Vec<f32>, from: &[f32], apart: usize, count: usize, depth: usize) -> &'a [f32] {
    let wide = depth + SPREAD;
    to.resize(to.len().max(count * wide), 0.0);
    for (i, run) in to.chunks_exact_mut(wide).take(count).enumerate() {
        run[..depth].copy_from_slice(&from[i * apart..][..depth]);
    }
    to
}

/// Adds (or, for `add == false`, sets) one chunk of the contraction, through wider operands where gemm would leave its
/// main path: a result of one row or column, one of up to 16 x 16, a depth up to 2.
fn chunk(target: Target, a: Operand<'_>, b: Operand<'_>, depth: usize, add: bool) {
    let rows = target.rows.max(2);
    let cols = target.cols.max(257usize.div_ceil(rows));
    let deep = depth.max(3);
    if (rows, cols, deep) == (target.rows, target.cols, depth) {
        return multiply(target, a, b, depth, add);
    }
    SCRATCH.with_borrow_mut(|[left, right, result]| {
        let a = widen(left, a, (target.rows, depth), (rows, deep));
        let b = widen(right, b, (depth, target.cols), (deep, cols));
        let mut target = target;
        if (rows, cols) == (target.rows, target.cols) {
            return multiply(target, a, b, deep, add);
        }
        result.resize(result.len().max(rows * cols), 0.0);
        if add {
            for r in 0..target.rows {
                result[r * cols..][..target.cols].copy_from_slice(target.row(r));
            }
        }
        multiply(Target::new(result, cols, rows, cols), a, b, deep, add);
        for r in 0..target.rows {
            let cols_kept = target.cols;
            target.row(r).copy_from_slice(&result[r * cols..][..cols_kept]);
        }
    });
}

/// The operand itself when it is large enough, else a copy with zeros to the right and below, laid out the same way.
fn widen<'a>(scratch: &'a mut Vec<f32>, from: Operand<'a>, have: (usize, usize), want: (usize, usize)) -> Operand<'a> {
    if have == want {
        return from;
    }
    let (down, right) = if from.right == 1 { (want.1, 1) } else { (1, want.0) };
    scratch.clear();
    scratch.resize(want.0 * want.1, 0.0);
    for r in 0..have.0 {
        for c in 0..have.1 {
            scratch[r * down + c * right] = from.data[r * from.down + c * from.right];
        }
    }
    Operand { data: scratch, down, right }
}

/// `target (+)= a b` on the calling thread, on gemm's main path.
fn multiply(target: Target, a: Operand<'_>, b: Operand<'_>, depth: usize, add: bool) {
    let (rows, cols) = (target.rows, target.cols);
    assert!(a.covers(rows, depth) && b.covers(depth, cols), "an operand of a product leaves its buffer");
    // Safety: the strides and extents given to gemm stay inside `a` and `b` (asserted) and inside the rectangle of
    // `target`, which this thread alone holds; a launch never binds a buffer for reading and for writing.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            depth,
            target.first,
            1,
            target.stride as isize,
            add,
            a.data.as_ptr(),
            a.right as isize,
            a.down as isize,
            b.data.as_ptr(),
            b.right as isize,
            b.down as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
