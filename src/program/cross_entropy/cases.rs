//! What the kernels of the cross-entropy are checked on.

use super::super::chain::Cut;
use super::super::{Case, Fill, Matrix};
use super::{BackwardParams, FinishParams, ForwardParams, IGNORE, STATE_STRIDE, SumParams, quads};

/// Rows, columns, first column of a chunk, and whether it is the first one: a row shorter than a vec4, odd widths, rows
/// longer than a workgroup.
const SHAPES: [(usize, usize, u32, u32); 5] =
    [(1, 1, 0, 1), (5, 37, 0, 1), (5, 37, 37, 0), (3, 1030, 2, 1), (4, 130, 20, 0)];

/// Targets inside, before and after the chunk, at its edges, and ignored.
fn target_words(rows: usize, cols: usize, first_col: u32) -> Fill {
    let edges = [first_col, first_col + cols as u32 - 1, IGNORE, first_col.saturating_sub(1), first_col + cols as u32];
    Fill::Words((0..rows).map(|r| edges[r % edges.len()]).collect())
}

/// A state as a chunk before could have left it, behind one row that must stay.
fn state_floats(rows: usize, finished: bool) -> Fill {
    let mut floats = vec![0.0; (rows + 1) * STATE_STRIDE];
    for (r, state) in floats.chunks_mut(STATE_STRIDE).enumerate().skip(1) {
        let m = 2.0 * r as f32 - 1.5;
        state[..3].copy_from_slice(&[if finished { m + 4.5 } else { m }, 1.0 + 7.25 * (r - 1) as f32, m - 1.125]);
    }
    Fill::Floats(floats)
}

fn logits_fill(rows: usize, cols: usize) -> Fill {
    Fill::Normal { rows, cols, stride: Matrix::stride_for(cols), scale: 4.0, mean: 1.0 }
}

/// What a launch that plays whole lines leaves as it is.
const CARRY: Fill = Fill::Poison { len: 8 };

pub(super) fn forward() -> Vec<Case> {
    let case = |(rows, cols, first_col, first)| {
        let row_quads = Matrix::stride_for(cols) as u32 / 4;
        let params = ForwardParams {
            cols: cols as u32,
            row_quads,
            offset: 0,
            state_offset: STATE_STRIDE as u32,
            first_col,
            first,
            ..bytemuck::Zeroable::zeroed()
        };
        Case {
            label: format!("{rows}x{cols} from {first_col}{}", if first == 1 { " first" } else { "" }),
            fills: vec![logits_fill(rows, cols), target_words(rows, cols, first_col), state_floats(rows, false), CARRY],
            launch: Box::new(move |_| (Cut::whole(quads(params.cols)).into_words(&params), rows as u32)),
        }
    };
    SHAPES.into_iter().map(case).collect()
}

pub(super) fn finish() -> Vec<Case> {
    let case = |rows: usize| {
        let params = FinishParams { rows: rows as u32, state_offset: STATE_STRIDE as u32, losses_offset: 3 };
        Case {
            label: format!("{rows} rows"),
            fills: vec![target_words(rows, 30, 1), state_floats(rows, false), Fill::Poison { len: rows + 3 }],
            launch: Box::new(move |v| (params.words(), params.rows.div_ceil(v.get("WG")))),
        }
    };
    [1, 7, 300].into_iter().map(case).collect()
}

pub(super) fn sum() -> Vec<Case> {
    let case = |(rows, accumulate): (usize, u32)| {
        let params = SumParams {
            rows: rows as u32,
            losses_offset: 2,
            slot: 3,
            accumulate,
            scale: 0.013,
            ..bytemuck::Zeroable::zeroed()
        };
        let losses = Fill::Normal { rows: 1, cols: rows + 2, stride: rows + 2, scale: 1.0, mean: 8.0 };
        Case {
            label: format!("{rows} losses{}", if accumulate == 1 { ", accumulated" } else { "" }),
            fills: vec![losses, Fill::Floats(vec![0.5; 8]), CARRY],
            launch: Box::new(move |_| (Cut::whole(params.rows).into_words(&params), 1)),
        }
    };
    [(1, 0), (37, 1), (300, 0)].into_iter().map(case).collect()
}

pub(super) fn backward() -> Vec<Case> {
    let case = |(rows, cols, first_col, _)| {
        let row_quads = Matrix::stride_for(cols) as u32 / 4;
        let state_offset = STATE_STRIDE as u32;
        let params = BackwardParams {
            cols: cols as u32,
            row_quads,
            offset: 0,
            state_offset,
            first_col,
            scale: 0.037,
            ..bytemuck::Zeroable::zeroed()
        };
        Case {
            label: format!("{rows}x{cols} from {first_col}"),
            fills: vec![target_words(rows, cols, first_col), state_floats(rows, true), logits_fill(rows, cols), CARRY],
            launch: Box::new(move |_| (Cut::whole(quads(params.cols)).into_words(&params), rows as u32)),
        }
    };
    SHAPES.into_iter().map(case).collect()
}
