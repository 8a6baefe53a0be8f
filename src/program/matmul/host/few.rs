//! Products of a few rows with weights that are read where they lie, each once: `c[m][n] = sum over k of a[m][k] w[n][k]`.
//! The rows are turned into columns of [`LANES`], a small matrix that stays in the cache, and a weight meets a vector of
//! them. An element is summed in one register, k ascending, over a chunk of the contraction, and the sum added to memory: the
//! order of `gemm`, so how the work is cut cannot change a bit. It must never know whose rows they are.

use std::cell::RefCell;

use pulp::{Simd, WithSimd};

use super::{Operand, PANEL_ROWS, Target};

/// Most rows of a result for which this is faster than packing the weights.
pub const ROWS: usize = 96;
/// Rows that meet a weight at once.
const LANES: usize = 16;
/// Weights that meet them before the next are loaded: as many sums as there are registers for.
const WEIGHTS: usize = 6;

thread_local! {
    /// The rows of a chunk as columns; grown once, then kept.
    static COLUMNS: RefCell<Vec<[f32; LANES]>> = const { RefCell::new(Vec::new()) };
}

/// Adds (or, for `add == false`, sets) one chunk of the contraction of both operands' rows.
pub fn chunk(target: Target, a: Operand<'_>, b: Operand<'_>, depth: usize, add: bool) {
    COLUMNS.with_borrow_mut(|columns| {
        columns.resize(columns.len().max(PANEL_ROWS), [0.0; LANES]);
        for first in (0..target.rows).step_by(LANES) {
            let rows = LANES.min(target.rows - first);
            let columns = &mut columns[..depth];
            for (lane, row) in (first..first + LANES).enumerate() {
                match lane < rows {
                    true => {
                        let row = &a.data[row * a.down..][..depth];
                        columns.iter_mut().zip(row).for_each(|(column, x)| column[lane] = *x);
                    }
                    false => columns.iter_mut().for_each(|column| column[lane] = 0.0),
                }
            }
            let place = Place { first, rows };
            pulp::Arch::new().dispatch(Products { target, place, columns, weights: b, add });
        }
    });
}

/// Rows `first .. first + rows` of a target.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    rows: usize,
}

/// The products of up to [`LANES`] rows with all weights, on whatever vectors there are.
struct Products<'a> {
    target: Target,
    place: Place,
    columns: &'a [[f32; LANES]],
    weights: Operand<'a>,
    add: bool,
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Vectors of a column.
        match LANES / S::F32_LANES {
            1 => self.run::<S, 1>(simd),
            2 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<pulp::Scalar, LANES>(pulp::Scalar::new()),
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let whole = self.target.cols / WEIGHTS * WEIGHTS;
        for n in (0..whole).step_by(WEIGHTS) {
            let sums = self.sums::<S, VECTORS, WEIGHTS>(simd, n);
            self.store(n, &sums);
        }
        for n in whole..self.target.cols {
            let sums = self.sums::<S, VECTORS, 1>(simd, n);
            self.store(n, &sums);
        }
    }

    /// The sums of weights `n .. n + N` with each row.
    #[inline(always)]
    fn sums<S: Simd, const VECTORS: usize, const N: usize>(&self, simd: S, n: usize) -> [[f32; LANES]; N] {
        let depth = self.columns.len();
        let weights: [&[f32]; N] = std::array::from_fn(|i| &self.weights.data[(n + i) * self.weights.right..][..depth]);
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; N];
        for (k, column) in self.columns.iter().enumerate() {
            let column = S::as_simd_f32s(column).0;
            let column: [S::f32s; VECTORS] = std::array::from_fn(|v| column[v]);
            for i in 0..N {
                let weight = simd.splat_f32s(weights[i][k]);
                for v in 0..VECTORS {
                    sums[i][v] = simd.mul_add_f32s(column[v], weight, sums[i][v]);
                }
            }
        }
        sums.map(|sums| bytemuck::cast_slice(&sums).try_into().expect("vectors of a column are its lanes"))
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, n: usize, sums: &[[f32; LANES]; N]) {
        let Place { first, rows } = self.place;
        for row in 0..rows {
            for (i, sums) in sums.iter().enumerate() {
                self.target.put(first + row, n + i, sums[row], self.add);
            }
        }
    }
}
