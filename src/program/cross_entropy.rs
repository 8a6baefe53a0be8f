//! Softmax cross-entropy over chunks of the vocabulary, so that the logits of a whole row never exist at once.
//!
//! For each row: `loss = log(sum_j exp(x_j)) - x_target`. Chunks come left to right; between them a row keeps its
//! running maximum, its sum of `exp(x - maximum)` and its target's logit (the online softmax of Milakov and Gimelshein,
//! arXiv 1805.02867). On the wafer this is a row all-reduce; fused, a workgroup plays a whole row. A logit that is not
//! finite, or a target outside of the vocabulary, makes the loss non-finite. It must never know what made the logits.

use rayon::prelude::*;

use super::{Case, EPS, Fill, Matrix, Program, launch, vector};
use crate::device::{Args, Class, Device, DeviceError, Kernel, Lane, Real, Result, Variant, View, read, write};

/// The target of a row that takes no part: loss 0, gradient 0.
pub const IGNORE: u32 = u32::MAX;
/// Elements of a row of state: maximum (after [`finish`]: log of the sum of exponentials), sum, target's logit,
/// padding.
pub const STATE_STRIDE: usize = 8;
/// Stands for "no logit yet".
const NONE: f64 = f32::MIN as f64;

crate::params! {
    /// Parameters of the forward kernel, which has a tile for each row.
    pub struct ForwardParams {
        /// Columns of the chunk.
        cols: u32,
        /// Vec4 elements of a row of logits.
        row_quads: u32,
        /// Vec4 elements before the first logit.
        offset: u32,
        /// Elements before the first row of state.
        state_offset: u32,
        /// Vocabulary index of the chunk's first column.
        first_col: u32,
        /// 1 for the first chunk of a row: the state starts anew.
        first: u32,
    }
}

crate::params! {
    /// Parameters of the kernel that turns states into losses.
    pub struct FinishParams {
        /// Rows.
        rows: u32,
        /// Elements before the first row of state.
        state_offset: u32,
        /// Elements before the first loss.
        losses_offset: u32,
    }
}

crate::params! {
    /// Parameters of the sum over losses, which is one tile.
    pub struct SumParams {
        /// Number of losses.
        rows: u32,
        /// Elements before the first loss.
        losses_offset: u32,
        /// The scalar to write.
        slot: u32,
        /// 1: add to the scalar.
        accumulate: u32,
        /// Factor of the sum.
        scale: f32,
    }
}

crate::params! {
    /// Parameters of the backward kernel, which has a tile for each row.
    pub struct BackwardParams {
        /// Columns of the chunk.
        cols: u32,
        /// Vec4 elements of a row of logits.
        row_quads: u32,
        /// Vec4 elements before the first logit.
        offset: u32,
        /// Elements before the first row of state.
        state_offset: u32,
        /// Vocabulary index of the chunk's first column.
        first_col: u32,
        /// Factor of the gradient.
        scale: f32,
    }
}

const VARIANTS: &[Variant] = &[
    Variant { name: "row256", classes: &[Class::Gpu], constants: &[("WG", 256)] },
    Variant { name: "row16", classes: &[Class::Software, Class::Native], constants: &[("WG", 16)] },
];

/// The four programs.
pub static PROGRAMS: [&Program; 4] = [&FORWARD, &FINISH, &SUM, &BACKWARD];

/// Takes a chunk into the state: bindings logits, targets, state.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "cross_entropy_forward",
        wgsl: include_str!("../../shaders/cross_entropy.wgsl"),
        bindings: &[read("logits", Lane::Vec4), read("targets", Lane::U32), write("state", Lane::F32)],
        params: ForwardParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 4 * STATE_STRIDE as u32,
        reference_f32: forward_reference,
        reference_f64: forward_reference,
        host: Some(forward_host),
    },
    bound: forward_bound,
    cases: forward_cases,
    fault: ("before + partial[0]", "partial[0]"),
};

/// Turns states into losses: bindings targets, state, losses.
pub static FINISH: Program = Program {
    kernel: Kernel {
        name: "cross_entropy_finish",
        wgsl: include_str!("../../shaders/cross_entropy.wgsl"),
        bindings: &[read("targets", Lane::U32), write("state", Lane::F32), write("losses", Lane::F32)],
        params: FinishParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 0,
        reference_f32: finish_reference,
        reference_f64: finish_reference,
        host: None,
    },
    bound: finish_bound,
    cases: finish_cases,
    fault: ("(m - t) + log_sum", "m - t"),
};

/// Sums losses into a scalar: bindings losses, scalars.
pub static SUM: Program = Program {
    kernel: Kernel {
        name: "cross_entropy_sum",
        wgsl: include_str!("../../shaders/cross_entropy.wgsl"),
        bindings: &[read("losses", Lane::F32), write("scalars", Lane::F32)],
        params: SumParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 0,
        reference_f32: sum_reference,
        reference_f64: sum_reference,
        host: None,
    },
    bound: sum_bound,
    cases: sum_cases,
    fault: ("i < p.rows", "i + 1u < p.rows"),
};

/// Turns logits into their gradient, in place: bindings targets, state, logits.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "cross_entropy_backward",
        wgsl: include_str!("../../shaders/cross_entropy.wgsl"),
        bindings: &[read("targets", Lane::U32), read("state", Lane::F32), write("logits", Lane::Vec4)],
        params: BackwardParams::FIELDS,
        variants: VARIANTS,
        tile_bytes: |_| 0,
        reference_f32: backward_reference,
        reference_f64: backward_reference,
        host: Some(backward_host),
    },
    bound: backward_bound,
    cases: backward_cases,
    fault: ("(exp(logits[start + q] - lse) - onehot)", "exp(logits[start + q] - lse)"),
};

/// Queues one chunk: `logits` (rows x chunk columns) are those of vocabulary entries `first_col ..`, `targets` one id
/// per row, `state` rows x 3 at stride [`STATE_STRIDE`], begun anew where `first`.
///
/// # Errors
/// [`DeviceError::Usage`] when shapes do not fit; what the device says.
pub fn forward(
    device: &Device,
    logits: &Matrix,
    targets: &View,
    first_col: usize,
    state: &Matrix,
    first: bool,
) -> Result<()> {
    let (offset, row_quads) = logits.row_quads()?;
    let params = ForwardParams {
        cols: logits.cols as u32,
        row_quads,
        offset,
        state_offset: state_offset(state, logits.rows, targets)?,
        first_col: first_col as u32,
        first: first as u32,
    };
    let views = [logits.view.clone(), targets.clone(), state.view.clone()];
    launch(device, &FORWARD.kernel, &params, |_| logits.rows as u32, &views)
}

/// Queues the end of the forward pass: column 0 of `state` becomes the log of the sum of exponentials, `losses`
/// (1 x rows) the loss of each row, 0 where its target is [`IGNORE`].
///
/// # Errors
/// As [`forward`].
pub fn finish(device: &Device, targets: &View, state: &Matrix, losses: &Matrix) -> Result<()> {
    let params = FinishParams {
        rows: state.rows as u32,
        state_offset: state_offset(state, losses.cols, targets)?,
        losses_offset: losses.offset as u32,
    };
    let views = [targets.clone(), state.view.clone(), losses.view.clone()];
    launch(device, &FINISH.kernel, &params, |v| params.rows.div_ceil(v.get("WG")), &views)
}

/// Queues `scalars[slot] = scale * sum of losses`, or `+=` where `accumulate`; the order of additions is fixed.
///
/// # Errors
/// What the device says.
pub fn sum(device: &Device, losses: &Matrix, scale: f32, scalars: &View, slot: usize, accumulate: bool) -> Result<()> {
    let params = SumParams {
        rows: losses.cols as u32,
        losses_offset: losses.offset as u32,
        slot: slot as u32,
        accumulate: accumulate as u32,
        scale,
    };
    launch(device, &SUM.kernel, &params, |_| 1, &[losses.view.clone(), scalars.clone()])
}

/// Queues the gradient of one chunk, in place of its logits: `(softmax - onehot) * scale`, 0 in ignored rows and in the
/// padding. `state` is as [`finish`] left it.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    device: &Device,
    logits: &Matrix,
    targets: &View,
    state: &Matrix,
    first_col: usize,
    scale: f32,
) -> Result<()> {
    let (offset, row_quads) = logits.row_quads()?;
    let params = BackwardParams {
        cols: logits.cols as u32,
        row_quads,
        offset,
        state_offset: state_offset(state, logits.rows, targets)?,
        first_col: first_col as u32,
        scale,
    };
    let views = [targets.clone(), state.view.clone(), logits.view.clone()];
    launch(device, &BACKWARD.kernel, &params, |_| logits.rows as u32, &views)
}

fn state_offset(state: &Matrix, rows: usize, targets: &View) -> Result<u32> {
    if state.rows != rows || state.cols != 3 || targets.len < rows {
        return Err(DeviceError::Usage(format!("cross-entropy of {rows} rows with {state:?}, targets {targets:?}")));
    }
    Ok(4 * state.row_quads()?.0)
}

/// The columns of the chunk, row by row, of a buffer of logits.
fn rows_of<F>(logits: &[F], offset: u32, row_quads: u32, cols: u32) -> impl Iterator<Item = &[F]> {
    logits[4 * offset as usize..].chunks(4 * row_quads as usize).map(move |row| &row[..cols as usize])
}

/// The column of the target in a chunk, if it is there.
fn column(target: u32, first_col: u32, cols: u32) -> Option<usize> {
    let c = target.wrapping_sub(first_col);
    (target != IGNORE && target >= first_col && c < cols).then_some(c as usize)
}

/// What a chunk of logits does to a row's state: `(maximum, sum)` of the chunk and of what came before.
fn take_in<F: Real>(row: &[F], before: Option<(F, F)>) -> (F, F) {
    if row.iter().any(|x| !x.is_finite()) {
        return (F::zero(), F::nan());
    }
    let m = row.iter().copied().fold(before.map_or(F::of(NONE), |b| b.0), F::max);
    let start = before.map_or(F::zero(), |(m0, s0)| s0 * (m0 - m).exp());
    (m, row.iter().fold(start, |s, &x| s + (x - m).exp()))
}

fn forward_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: ForwardParams = args.params();
    let (logits, targets) = (args.read(0), args.ids(1));
    let state = args.write(2)[p.state_offset as usize..].chunks_mut(STATE_STRIDE).take(args.groups as usize);
    for ((state, row), &target) in state.zip(rows_of(logits, p.offset, p.row_quads, p.cols)).zip(targets) {
        let before = (p.first == 0).then(|| (state[0], state[1]));
        if p.first == 1 {
            state.fill(F::zero());
            state[2] = F::of(NONE);
        }
        (state[0], state[1]) = take_in(row, before);
        if let Some(c) = column(target, p.first_col, p.cols) {
            state[2] = row[c];
        }
    }
}

fn finish_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: FinishParams = args.params();
    let targets = args.ids(0);
    let state = args.write(1)[p.state_offset as usize..].chunks_mut(STATE_STRIDE);
    let losses = &mut args.write(2)[p.losses_offset as usize..][..p.rows as usize];
    for ((state, &target), loss) in state.zip(targets).zip(losses) {
        let (m, log_sum, t) = (state[0], state[1].ln(), state[2]);
        let unseen = t == F::of(NONE);
        *loss = match target {
            IGNORE => F::zero(),
            _ if unseen => F::nan(),
            _ => (m - t) + log_sum,
        };
        state[0] = m + log_sum;
    }
}

fn sum_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: SumParams = args.params();
    let losses = &args.read(0)[p.losses_offset as usize..][..p.rows as usize];
    let total = F::of(p.scale.into()) * losses.iter().copied().sum::<F>();
    let slot = &mut args.write(1)[p.slot as usize];
    *slot = if p.accumulate == 1 { *slot + total } else { total };
}

fn backward_reference<F: Real>(args: &mut Args<'_, F>) {
    let p: BackwardParams = args.params();
    let (targets, state) = (args.ids(0), &args.read(1)[p.state_offset as usize..]);
    let rows = args.write(2)[4 * p.offset as usize..].chunks_mut(4 * p.row_quads as usize).take(args.groups as usize);
    for ((row, &target), state) in rows.zip(targets).zip(state.chunks(STATE_STRIDE)) {
        let hit = column(target, p.first_col, p.cols);
        for (c, x) in row.iter_mut().enumerate() {
            let onehot = if hit == Some(c) { F::one() } else { F::zero() };
            let live = c < p.cols as usize && target != IGNORE;
            *x = if live { ((*x - state[0]).exp() - onehot) * F::of(p.scale.into()) } else { F::zero() };
        }
    }
}

/// Partial sums of a row on the host: independent of the number of threads.
const LANES: usize = 32;
/// Elements whose exponentials are computed before they are added: short enough for the first cache.
const BLOCK: usize = 256;

/// The largest value of a row, and the largest of its bits without signs, by which a value that is not finite is seen.
#[inline(always)]
fn largest(row: &[f32]) -> (f32, u32) {
    let (mut m, mut bits) = ([f32::MIN; LANES], [0u32; LANES]);
    let (runs, rest) = row.as_chunks::<LANES>();
    for run in runs {
        for i in 0..LANES {
            m[i] = if run[i] > m[i] { run[i] } else { m[i] };
            bits[i] = bits[i].max(run[i].to_bits() & 0x7fff_ffff);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        m[i] = if x > m[i] { x } else { m[i] };
        bits[i] = bits[i].max(x.to_bits() & 0x7fff_ffff);
    }
    (m.into_iter().fold(f32::MIN, f32::max), bits.into_iter().fold(0, u32::max))
}

/// The sum of `exp(x - m)`.
#[inline(always)]
fn sum_of_exp(row: &[f32], m: f32) -> f32 {
    let (mut sums, mut terms) = ([0.0f32; LANES], [0.0f32; BLOCK]);
    for block in row.chunks(BLOCK) {
        let terms = &mut terms[..block.len()];
        for (term, &x) in terms.iter_mut().zip(block) {
            *term = vector::exp(x - m);
        }
        for run in terms.chunks(LANES) {
            for (sum, &term) in sums.iter_mut().zip(run) {
                *sum += term;
            }
        }
    }
    sums.iter().sum()
}

#[inline(always)]
fn take_in_fast(row: &[f32], before: Option<(f32, f32)>) -> (f32, f32) {
    let (m, bits) = largest(row);
    if bits > f32::MAX.to_bits() {
        return (0.0, f32::NAN);
    }
    match before {
        None => (m, sum_of_exp(row, m)),
        Some((m0, s0)) => {
            let m = m.max(m0);
            (m, s0 * vector::exp(m0 - m) + sum_of_exp(row, m))
        }
    }
}

fn forward_host(args: &mut Args<'_, f32>) {
    let p: ForwardParams = args.params();
    let (logits, targets) = (&args.read(0)[4 * p.offset as usize..], args.ids(1));
    let state = &mut args.write(2)[p.state_offset as usize..][..args.groups as usize * STATE_STRIDE];
    state.par_chunks_mut(STATE_STRIDE).zip(logits.par_chunks(4 * p.row_quads as usize)).zip(targets).for_each(
        |((state, row), &target)| {
            let row = &row[..p.cols as usize];
            let before = (p.first == 0).then(|| (state[0], state[1]));
            if p.first == 1 {
                state.fill(0.0);
                state[2] = f32::MIN;
            }
            (state[0], state[1]) = vector::dispatch(
                #[inline(always)]
                || take_in_fast(row, before),
            );
            if let Some(c) = column(target, p.first_col, p.cols) {
                state[2] = row[c];
            }
        },
    );
}

fn backward_host(args: &mut Args<'_, f32>) {
    let p: BackwardParams = args.params();
    let (targets, state) = (args.ids(0), &args.read(1)[p.state_offset as usize..]);
    let (stride, cols) = (4 * p.row_quads as usize, p.cols as usize);
    let logits = &mut args.write(2)[4 * p.offset as usize..][..args.groups as usize * stride];
    logits.par_chunks_mut(stride).zip(targets).zip(state.par_chunks(STATE_STRIDE)).for_each(
        |((row, &target), state)| {
            row[cols..].fill(0.0);
            if target == IGNORE {
                return row.fill(0.0);
            }
            let hit = column(target, p.first_col, p.cols).map(|c| (c, row[c]));
            vector::dispatch(|| row[..cols].iter_mut().for_each(|x| *x = vector::exp(*x - state[0]) * p.scale));
            if let Some((c, x)) = hit {
                row[c] = (vector::exp(x - state[0]) - 1.0) * p.scale;
            }
        },
    );
}

/// Relative error of `exp(d)` for a rounded difference `d`: WGSL grants `3 + 2|d|` ulp, two roundings each, and the
/// rounding of the difference itself counts `|d|`.
fn exp_error(d: f64) -> f64 {
    EPS * (7.0 + 5.0 * d.abs())
}

/// Absolute error of `log(s)` in WGSL: 3 ulp, but 2^-21 between 0.5 and 2.
fn log_error(s: f64) -> f64 {
    if (0.5..=2.0).contains(&s) { 8.0 * EPS } else { 6.0 * EPS * s.ln().abs() }
}

fn forward_bound(args: &mut Args<'_, f64>) {
    let p: ForwardParams = args.params();
    let rows = rows_of(args.read(0), p.offset, p.row_quads, p.cols);
    let state = args.write(2)[p.state_offset as usize..].chunks_mut(STATE_STRIDE).take(args.groups as usize);
    for (state, row) in state.zip(rows) {
        let before = (p.first == 0).then(|| (state[0], state[1]));
        let (m, s) = take_in(row, before);
        let kept = before.map_or(0.0, |(m0, s0)| s0 * (m0 - m).exp() * (exp_error(m0 - m) + EPS));
        let terms: f64 = row.iter().map(|x| (x - m).exp() * exp_error(x - m)).sum();
        state.fill(0.0);
        state[1] = kept + terms + row.len() as f64 * EPS * s;
    }
}

fn finish_bound(args: &mut Args<'_, f64>) {
    let p: FinishParams = args.params();
    let state = args.write(1)[p.state_offset as usize..].chunks_mut(STATE_STRIDE);
    let losses = &mut args.write(2)[p.losses_offset as usize..][..p.rows as usize];
    for (state, loss) in state.zip(losses) {
        let (m, s, t) = (state[0], state[1], state[2]);
        *loss = log_error(s) + EPS * (m - t).abs();
        state.fill(0.0);
        state[0] = log_error(s);
    }
}

fn sum_bound(args: &mut Args<'_, f64>) {
    let p: SumParams = args.params();
    let losses = &args.read(0)[p.losses_offset as usize..][..p.rows as usize];
    let total: f64 = losses.iter().map(|x| x.abs()).sum::<f64>() * f64::from(p.scale.abs());
    let scalars = args.write(1);
    scalars.fill(0.0);
    scalars[p.slot as usize] = (p.rows + 1) as f64 * EPS * total;
}

fn backward_bound(args: &mut Args<'_, f64>) {
    let p: BackwardParams = args.params();
    let state = args.read(1)[p.state_offset as usize..].chunks(STATE_STRIDE);
    let rows = args.write(2)[4 * p.offset as usize..].chunks_mut(4 * p.row_quads as usize).take(args.groups as usize);
    for (row, state) in rows.zip(state) {
        for x in row {
            let softmax = (*x - state[0]).exp();
            *x = f64::from(p.scale.abs()) * (softmax * exp_error(*x - state[0]) + EPS * (1.0 + softmax));
        }
    }
}

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

fn words<P: bytemuck::Pod>(params: &P) -> Vec<u32> {
    bytemuck::cast_slice(bytemuck::bytes_of(params)).to_vec()
}

fn forward_cases() -> Vec<Case> {
    let case = |(rows, cols, first_col, first)| {
        let row_quads = Matrix::stride_for(cols) as u32 / 4;
        let params = ForwardParams {
            cols: cols as u32,
            row_quads,
            offset: 0,
            state_offset: STATE_STRIDE as u32,
            first_col,
            first,
        };
        Case {
            label: format!("{rows}x{cols} from {first_col}{}", if first == 1 { " first" } else { "" }),
            fills: vec![logits_fill(rows, cols), target_words(rows, cols, first_col), state_floats(rows, false)],
            launch: Box::new(move |_| (words(&params), rows as u32)),
        }
    };
    SHAPES.into_iter().map(case).collect()
}

fn finish_cases() -> Vec<Case> {
    let case = |rows: usize| {
        let params = FinishParams { rows: rows as u32, state_offset: STATE_STRIDE as u32, losses_offset: 3 };
        Case {
            label: format!("{rows} rows"),
            fills: vec![target_words(rows, 30, 1), state_floats(rows, false), Fill::Poison { len: rows + 3 }],
            launch: Box::new(move |v| (words(&params), params.rows.div_ceil(v.get("WG")))),
        }
    };
    [1, 7, 300].into_iter().map(case).collect()
}

fn sum_cases() -> Vec<Case> {
    let case = |(rows, accumulate): (usize, u32)| {
        let params = SumParams { rows: rows as u32, losses_offset: 2, slot: 3, accumulate, scale: 0.013 };
        let losses = Fill::Normal { rows: 1, cols: rows + 2, stride: rows + 2, scale: 1.0, mean: 8.0 };
        Case {
            label: format!("{rows} losses{}", if accumulate == 1 { ", accumulated" } else { "" }),
            fills: vec![losses, Fill::Floats(vec![0.5; 8])],
            launch: Box::new(move |_| (words(&params), 1)),
        }
    };
    [(1, 0), (37, 1), (300, 0)].into_iter().map(case).collect()
}

fn backward_cases() -> Vec<Case> {
    let case = |(rows, cols, first_col, _)| {
        let row_quads = Matrix::stride_for(cols) as u32 / 4;
        let state_offset = STATE_STRIDE as u32;
        let params = BackwardParams { cols: cols as u32, row_quads, offset: 0, state_offset, first_col, scale: 0.037 };
        Case {
            label: format!("{rows}x{cols} from {first_col}"),
            fills: vec![target_words(rows, cols, first_col), state_floats(rows, true), logits_fill(rows, cols)],
            launch: Box::new(move |_| (words(&params), rows as u32)),
        }
    };
    SHAPES.into_iter().map(case).collect()
}
