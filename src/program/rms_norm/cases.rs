//! What RMS norm is checked on: single elements, rows that fill no quad, long rows, rows of zeros, parts that leave a quad
//! of padding, columns of wider matrices.

use super::{BackwardParams, ForwardParams, GainParams, column_groups, row_groups};
use crate::device::Variant;
use crate::program::chain::Cut;
use crate::program::{Case, Fill, Matrix};

/// What a launch that plays whole lines leaves as it is.
const CARRY: Fill = Fill::Poison { len: 8 };

/// `rows` rows of `parts` parts of `cols` columns. With `at` not 0 they are columns of wider matrices, from there on, with
/// as many columns behind them.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    parts: usize,
    cols: usize,
    at: usize,
}

const fn shape(rows: usize, parts: usize, cols: usize, at: usize) -> Shape {
    Shape { rows, parts, cols, at }
}

const SHAPES: [Shape; 8] = [
    shape(1, 1, 1, 0),
    shape(37, 1, 84, 0),
    shape(5, 1, 10, 0),
    shape(3, 1, 1600, 0),
    shape(9, 3, 4, 0),
    shape(19, 5, 16, 0),
    shape(3, 9, 12, 0),
    shape(21, 3, 8, 12),
];

impl Shape {
    /// Columns of the matrices that hold the rows.
    fn wide(self) -> usize {
        self.parts * self.cols + 2 * self.at
    }

    /// Quads of a row, padding included where it is whole.
    fn quads(self) -> u32 {
        if self.at == 0 { self.stride() } else { (self.parts * self.cols / 4) as u32 }
    }

    /// Quads from row to row.
    fn stride(self) -> u32 {
        quads(self.wide())
    }

    fn offset(self) -> u32 {
        (self.at / 4) as u32
    }

    fn fill(self, scale: f32) -> Fill {
        Fill::Normal { rows: self.rows, cols: self.wide(), stride: 4 * self.stride() as usize, scale, mean: 0.0 }
    }

    fn poison(self) -> Fill {
        Fill::poison(self.rows, self.wide())
    }

    /// Reciprocal roots at random; nothing in the formulas needs them to belong to the x of the case.
    fn roots(self) -> Fill {
        let (rows, cols) = (self.rows, self.parts);
        Fill::Normal { rows, cols, stride: Matrix::stride_for(cols), scale: 0.3, mean: 1.0 }
    }

    fn label(self, more: &str) -> String {
        let Shape { rows, parts, cols, at } = self;
        let place = if at == 0 { String::new() } else { format!(" at column {at}") };
        format!("{rows} x {parts} x {cols}{place}{more}")
    }
}

/// Quads of a padded row.
fn quads(cols: usize) -> u32 {
    Matrix::stride_for(cols) as u32 / 4
}

/// A launch of whole lines of `len`.
fn case<P: bytemuck::Pod + Send + Sync>(
    label: String,
    fills: Vec<Fill>,
    params: P,
    len: u32,
    groups: fn(&P, &Variant) -> u32,
) -> Case {
    let launch = move |v: &Variant| (Cut::whole(len).into_words(&params), groups(&params, v));
    Case { label, fills, launch: Box::new(launch) }
}

pub(super) fn forward() -> Vec<Case> {
    let mut all: Vec<_> = SHAPES.into_iter().map(|shape| (shape, 1.0, "")).collect();
    all.extend([(shape(37, 1, 84, 0), 0.01, ", small"), (shape(2, 2, 8, 0), 0.0, ", zeros")]);
    let case = |(shape, scale, more): (Shape, f32, &str)| {
        let params = ForwardParams {
            rows: shape.rows as u32,
            parts: shape.parts as u32,
            cols: shape.cols as u32,
            quads: shape.quads(),
            eps: 1e-5,
            x_offset: shape.offset(),
            x_stride: shape.stride(),
            gain_offset: 0,
            y_offset: shape.offset(),
            y_stride: shape.stride(),
            stats_offset: 0,
            stats_stride: quads(shape.parts),
            stats_quads: quads(shape.parts),
            ..bytemuck::Zeroable::zeroed()
        };
        let stats = Fill::poison(shape.rows, shape.parts);
        let fills = vec![shape.fill(scale), Fill::matrix(1, shape.cols), shape.poison(), stats, CARRY];
        case(shape.label(more), fills, params, shape.quads(), |p, v| row_groups(p.rows * p.parts, v))
    };
    all.into_iter().map(case).collect()
}

pub(super) fn backward() -> Vec<Case> {
    let case = |(i, shape): (usize, Shape)| {
        let bypassed = i % 2;
        let (offset, stride) = (shape.offset(), shape.stride());
        let params = BackwardParams {
            rows: shape.rows as u32,
            parts: shape.parts as u32,
            cols: shape.cols as u32,
            quads: shape.quads(),
            bypassed: bypassed as u32,
            x_offset: offset,
            x_stride: stride,
            gain_offset: 0,
            stats_offset: 0,
            stats_stride: quads(shape.parts),
            dy_offset: offset,
            dy_stride: stride,
            residual_offset: offset,
            residual_stride: stride,
            dx_offset: offset,
            dx_stride: stride,
            ..bytemuck::Zeroable::zeroed()
        };
        let full = || shape.fill(1.0);
        let fills = vec![full(), Fill::matrix(1, shape.cols), shape.roots(), full(), full(), shape.poison(), CARRY];
        let label = shape.label(["", ", residual"][bypassed]);
        case(label, fills, params, shape.quads(), |p, v| row_groups(p.rows * p.parts, v))
    };
    SHAPES.into_iter().enumerate().map(case).collect()
}

pub(super) fn gain_backward() -> Vec<Case> {
    let more = [shape(300, 1, 20, 0), shape(600, 1, 128, 0), shape(150, 4, 16, 0)];
    let case = |(i, shape): (usize, Shape)| {
        let accumulate = i % 2;
        let (offset, stride) = (shape.offset(), shape.stride());
        let params = GainParams {
            rows: shape.rows as u32,
            parts: shape.parts as u32,
            cols: shape.cols as u32,
            quads: quads(shape.cols),
            accumulate: accumulate as u32,
            x_offset: offset,
            x_stride: stride,
            stats_offset: 0,
            stats_stride: quads(shape.parts),
            dy_offset: offset,
            dy_stride: stride,
            dgain_offset: 0,
            ..bytemuck::Zeroable::zeroed()
        };
        let dgain = [Fill::poison(1, shape.cols), Fill::matrix(1, shape.cols)][accumulate].clone();
        let fills = vec![shape.fill(1.0), shape.roots(), shape.fill(1.0), dgain, CARRY];
        let label = shape.label(["", ", accumulated"][accumulate]);
        case(label, fills, params, shape.rows as u32, |p, v| column_groups(p.quads, v))
    };
    SHAPES.into_iter().chain(more).enumerate().map(case).collect()
}
