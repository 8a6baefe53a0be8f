//! What layer norm is checked on: single elements, rows that fill no quad, long rows, small variances, large means.

use super::{BackwardParams, ForwardParams, GainParams, column_groups, row_groups};
use crate::device::Variant;
use crate::program::chain::Cut;
use crate::program::{Case, Fill, Matrix};

/// What a launch that plays whole lines leaves as it is.
const CARRY: Fill = Fill::Poison { len: 8 };

/// Quads of a padded row.
fn width(cols: usize) -> u32 {
    Matrix::stride_for(cols) as u32 / 4
}

/// Mean and rstd of rows, at random; nothing in the formulas needs them to belong to the x of the case.
fn stats(rows: usize) -> Fill {
    Fill::Normal { rows, cols: 2, stride: 8, scale: 0.3, mean: 1.0 }
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
    let shapes = [
        (1, 1, 1.0, 0.0, 0),
        (37, 84, 1.0, 0.0, 1),
        (37, 84, 0.01, 0.1, 0),
        (9, 10, 2.0, 9.0, 1),
        (3, 1600, 1.0, 0.5, 1),
    ];
    shapes
        .into_iter()
        .map(|(rows, cols, scale, mean, biased)| {
            let (stride, row_count) = (width(cols), rows as u32);
            let params = ForwardParams {
                rows: row_count,
                cols: cols as u32,
                quads: stride,
                eps: 1e-5,
                biased,
                x_offset: 0,
                x_stride: stride,
                gain_offset: 0,
                bias_offset: 0,
                y_offset: 0,
                y_stride: stride,
                stats_offset: 0,
                stats_stride: 2,
                ..bytemuck::Zeroable::zeroed()
            };
            let x = Fill::Normal { rows, cols, stride: 4 * stride as usize, scale, mean };
            let row = || Fill::matrix(1, cols);
            let fills = vec![x, row(), row(), Fill::poison(rows, cols), Fill::poison(rows, 2), CARRY];
            let label = format!("{rows} x {cols}, {mean} +- {scale}{}", if biased == 1 { ", bias" } else { "" });
            case(label, fills, params, stride, |p, v| row_groups(p.rows, v))
        })
        .collect()
}

pub(super) fn backward() -> Vec<Case> {
    [(1, 1, 0), (37, 84, 0), (37, 84, 1), (9, 10, 1), (3, 1600, 1)]
        .into_iter()
        .map(|(rows, cols, bypassed)| {
            let (stride, row_count) = (width(cols), rows as u32);
            let params = BackwardParams {
                rows: row_count,
                cols: cols as u32,
                quads: stride,
                bypassed,
                x_offset: 0,
                x_stride: stride,
                gain_offset: 0,
                stats_offset: 0,
                stats_stride: 2,
                dy_offset: 0,
                dy_stride: stride,
                residual_offset: 0,
                residual_stride: stride,
                dx_offset: 0,
                dx_stride: stride,
                ..bytemuck::Zeroable::zeroed()
            };
            let full = || Fill::matrix(rows, cols);
            let fills =
                vec![full(), Fill::matrix(1, cols), stats(rows), full(), full(), Fill::poison(rows, cols), CARRY];
            let label = format!("{rows} x {cols}{}", if bypassed == 1 { ", residual" } else { "" });
            case(label, fills, params, stride, |p, v| row_groups(p.rows, v))
        })
        .collect()
}

pub(super) fn gain_backward() -> Vec<Case> {
    [(1, 1, 0), (37, 84, 0), (37, 84, 1), (300, 20, 1), (600, 128, 0)]
        .into_iter()
        .map(|(rows, cols, accumulate)| {
            let stride = width(cols);
            let params = GainParams {
                rows: rows as u32,
                quads: stride,
                accumulate,
                x_offset: 0,
                x_stride: stride,
                stats_offset: 0,
                stats_stride: 2,
                dy_offset: 0,
                dy_stride: stride,
                dgain_offset: 0,
                ..bytemuck::Zeroable::zeroed()
            };
            let dgain = if accumulate == 1 { Fill::matrix(1, cols) } else { Fill::poison(1, cols) };
            let fills = vec![Fill::matrix(rows, cols), stats(rows), Fill::matrix(rows, cols), dgain, CARRY];
            let label = format!("{rows} x {cols}{}", if accumulate == 1 { ", accumulated" } else { "" });
            case(label, fills, params, rows as u32, |p, v| column_groups(p.quads, v))
        })
        .collect()
}
