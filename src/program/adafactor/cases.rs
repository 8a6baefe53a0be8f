//! What Adafactor's programs are checked on: one element, odd shapes, slots with a short last one, panels that begin inside
//! a tensor, vectors, clipped and unclipped steps.

use super::super::grad_norm::{CLIP_SCALE, SCALARS, slots};
use super::super::{Case, Fill, Matrix};
use super::{
    Adafactor, ColumnsParams, FACTORS, FactorParams, FinishParams, INVERSE_MEAN, PassParams, SLOT_ROWS, STEP_SIZE,
    SumsParams, apply_groups,
};
use crate::device::Variant;

const HYPER: Adafactor =
    Adafactor { lr: 0.01, beta2_decay: -0.8, eps1: None, eps2: 1e-3, clip_threshold: 1.0, weight_decay: 0.1, step: 7 };

fn scalars(clip: f32) -> Fill {
    let mut scalars = vec![0.0; SCALARS];
    scalars[CLIP_SCALE] = clip;
    Fill::Floats(scalars)
}

/// Squares of normal values around a size: moments and sums are not negative. Zero from `len` on to a multiple of 8.
fn squares(len: usize, size: f32, seed: u64) -> Vec<f32> {
    let words = Fill::Normal { rows: 1, cols: len, stride: Matrix::stride_for(len), scale: 1.0, mean: 0.0 }.words(seed);
    words.into_iter().map(|x| size * f32::from_bits(x).powi(2)).collect()
}

fn row_quads(cols: usize) -> u32 {
    Matrix::stride_for(cols) as u32 / 4
}

pub(super) fn sums() -> Vec<Case> {
    let case = |(rows, cols, first_row, clip): (usize, usize, usize, f32)| {
        let params = SumsParams {
            rows: rows as u32,
            row_quads: row_quads(cols),
            gradient_offset: 0,
            first_row: first_row as u32,
        };
        let partials = slots(rows) * Matrix::stride_for(cols);
        Case {
            label: format!("{rows}x{cols} at row {first_row}, clip {clip}"),
            fills: vec![
                Fill::matrix(rows, cols),
                scalars(clip),
                Fill::Poison { len: (first_row + rows).next_multiple_of(4) },
                Fill::Poison { len: partials },
            ],
            launch: Box::new(move |_| (params.words(), slots(rows) as u32)),
        }
    };
    [(1, 1, 0, 1.0), (5, 37, 0, 0.37), (16, 8, 32, 1.0), (37, 84, 16, 1e-3), (1, 1030, 0, 1.0)].map(case).into()
}

pub(super) fn columns() -> Vec<Case> {
    let case = |(count, cols, begins): (usize, usize, u32)| {
        let params = ColumnsParams { slots: count as u32, row_quads: row_quads(cols), begins };
        let partials = (0..count as u64).flat_map(|slot| squares(cols, 1.0, slot)).collect();
        let sums = if begins == 1 { Fill::poison(1, cols) } else { Fill::Floats(squares(cols, 3.0, 99)) };
        Case {
            label: format!("{count} slots of {cols}{}", if begins == 1 { "" } else { ", accumulated" }),
            fills: vec![Fill::Floats(partials), sums],
            launch: Box::new(move |v: &Variant| (params.words(), params.row_quads.div_ceil(v.get("WG")))),
        }
    };
    [(1, 1, 1), (3, 37, 1), (3, 37, 0), (32, 300, 0)].map(case).into()
}

pub(super) fn factor() -> Vec<Case> {
    let case = |(rows, cols, step, size): (usize, usize, u64, f32)| {
        let params = FactorParams {
            rows: rows as u32,
            cols: cols as u32,
            row_offset: 4,
            column_offset: 8,
            inverse_rows: 1.0 / rows as f32,
            inverse_cols: 1.0 / cols as f32,
            one_minus_beta2: Adafactor { step, ..HYPER }.words().expect("settings of a case are valid").one_minus_beta2,
            eps1: HYPER.eps1(),
            is_vector: (rows == 1) as u32,
        };
        let state = |len: usize, before: usize, seed: u64| {
            let state = if step == 1 { vec![0.0; Matrix::stride_for(len)] } else { squares(len, size, seed) };
            Fill::Floats([vec![0.0; before], state].concat())
        };
        Case {
            label: format!("{rows}x{cols} step {step}, size {size:e}"),
            fills: vec![
                Fill::Floats(squares(rows, size * cols as f32, 1)),
                Fill::Floats(squares(cols, size * rows as f32, 2)),
                scalars(1.0),
                state(rows, 4, 3),
                state(cols, 8, 4),
                Fill::Poison { len: FACTORS },
            ],
            launch: Box::new(move |_| (params.words(), 1)),
        }
    };
    // The last mean lies below eps1.
    [(1, 1, 1, 1.0), (1, 37, 9, 0.1), (5, 37, 1, 1.0), (37, 20, 7, 0.1), (300, 70, 1000, 1e-9)].map(case).into()
}

/// Panel and state of a pass: rows, columns, the panel's first row, step, size of gradients.
type Pass = (usize, usize, usize, u64, f32);
const PASSES: [Pass; 5] =
    [(1, 1, 0, 1, 1.0), (1, 37, 0, 3, 0.1), (5, 37, 16, 7, 0.1), (37, 84, 32, 100, 1e-3), (20, 12, 0, 7, 1e-8)];

/// Parameters, and contents of gradient, weights, row, column and factors.
fn pass((rows, cols, first_row, step, size): Pass) -> (PassParams, [Fill; 5]) {
    let fill = |scale| Fill::Normal { rows, cols, stride: Matrix::stride_for(cols), scale, mean: 0.0 };
    let hyper = Adafactor { step, ..HYPER };
    let params = PassParams {
        rows: rows as u32,
        row_quads: row_quads(cols),
        gradient_offset: 0,
        weights_offset: 0,
        row_first: 8 + first_row as u32,
        column_offset: 2,
        first_slot: (first_row / SLOT_ROWS) as u32,
        eps1_squared: hyper.eps1().powi(2),
        decay: hyper.words().expect("settings of a case are valid").decay,
    };
    let state = |len: usize, seed: u64| Fill::Floats([vec![0.0; 8], squares(len, size * size, seed)].concat());
    let mut factors = vec![0.0; FACTORS];
    (factors[INVERSE_MEAN], factors[STEP_SIZE]) = ((size * size).recip().min(1e7), 0.01);
    (params, [fill(size), fill(1.0), state(first_row + rows, 5), state(cols, 6), Fill::Floats(factors)])
}

fn label((rows, cols, first_row, _, size): Pass) -> String {
    format!("{rows}x{cols} at row {first_row}, size {size:e}")
}

pub(super) fn partial() -> Vec<Case> {
    let case = |shape: Pass| {
        let (params, [gradient, weights, row, column, factors]) = pass(shape);
        let count = slots(shape.0);
        let sums = Fill::Poison { len: 2 * (params.first_slot as usize + count) };
        Case {
            label: label(shape),
            fills: vec![gradient, weights, scalars(0.37), row, column, factors, sums],
            launch: Box::new(move |_| (params.words(), count as u32)),
        }
    };
    PASSES.map(case).into()
}

pub(super) fn finish() -> Vec<Case> {
    let case = |(count, update, weight): (usize, f32, f32)| {
        let params = FinishParams {
            slots: count as u32,
            inverse_count: 1.0 / (count as f32 * 500.0),
            ..HYPER.words().expect("settings of a case are valid").finish
        };
        let sums =
            (0..2 * count).map(|i| 500.0 * if i % 2 == 0 { update } else { weight } * (1.0 + (i % 5) as f32 / 8.0));
        let factors = [vec![f32::from_bits(super::super::check::POISON)], vec![0.0; FACTORS - 1]].concat();
        Case {
            label: format!("{count} slots, update {update}, weights {weight:e}"),
            fills: vec![Fill::Floats(sums.collect()), Fill::Floats(factors)],
            launch: Box::new(move |_| (params.words(), 1)),
        }
    };
    // Clipped or not, weights below eps2 or not.
    [(1, 4.0, 0.01), (3, 0.25, 0.01), (37, 4.0, 1e-8), (300, 1.0, 1.0)].map(case).into()
}

pub(super) fn apply() -> Vec<Case> {
    let case = |shape: Pass| {
        let (params, [gradient, weights, row, column, factors]) = pass(shape);
        Case {
            label: label(shape),
            fills: vec![gradient, scalars(0.37), row, column, factors, weights],
            launch: Box::new(move |v| (params.words(), apply_groups(&params, v))),
        }
    };
    PASSES.map(case).into()
}
