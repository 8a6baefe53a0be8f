//! Softmax cross-entropy over chunks of the vocabulary, so that the logits of a whole row never exist at once.
//!
//! For each row: `loss = log(sum_j exp(x_j)) - x_target`. Chunks come left to right; between them a row keeps its
//! running maximum, its sum of `exp(x - maximum)` and its target's logit (the online softmax of Milakov and Gimelshein,
//! arXiv 1805.02867). A logit that is not finite, or a target outside of the vocabulary, makes the loss non-finite.
//!
//! Fused, a workgroup plays a whole row. On the wafer a row of the chunk lies on a row of tiles, [`BLOCK_COLS`] columns a tile,
//! each of which knows the row's target, and the chunk is two passes along it: the maximum, then the sum. The row's state is
//! read where the row begins and written where it ends. The gradient is one number, the log of the sum of exponentials, told
//! to the whole row from where it begins. The sum of losses goes down a column of tiles, [`BLOCK_ROWS`] losses a tile. This
//! must never know what made the logits.

mod bound;
mod cases;
mod host;
mod reference;

use super::chain::{Chain, relay_params};
use super::relay::{Axis, Relay};
use super::schedule::Fabric;
use super::{Matrix, Program, launch};
use crate::device::{Class, Device, DeviceError, Held, Kernel, Lane, Result, Variant, View, read, write};
use crate::wafer::Work;

/// The target of a row that takes no part: loss 0, gradient 0.
pub const IGNORE: u32 = u32::MAX;
/// Elements of a row of state: maximum (after [`finish`]: log of the sum of exponentials), sum, target's logit,
/// padding.
pub const STATE_STRIDE: usize = 8;
/// Columns of a chunk's row on one tile: whole runs of every device's lanes.
pub const BLOCK_COLS: usize = 256;
/// Losses on one tile.
pub const BLOCK_ROWS: usize = 256;
/// Stands for "no logit yet".
const NONE: f64 = f32::MIN as f64;

relay_params! {
    /// Parameters of the forward kernel, whose lines are rows.
    /// Blocks are measured in vec4 elements.
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

relay_params! {
    /// Parameters of the sum over losses, which is one line.
    /// Blocks are measured in losses.
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

relay_params! {
    /// Parameters of the backward kernel, whose lines are rows.
    /// Blocks are measured in vec4 elements.
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

/// Takes a chunk into the state: bindings logits, targets, state, carry.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "cross_entropy_forward",
        wgsl: include_str!("../../shaders/cross_entropy.wgsl"),
        bindings: &[
            read("logits", Lane::Vec4),
            read("targets", Lane::U32),
            write("state", Lane::F32),
            write("carry", Lane::Vec4),
        ],
        params: ForwardParams::FIELDS,
        variants: VARIANTS,
        // Accumulators: in each lane four maxima and four magnitudes, and in the second pass four sums. State: that of the
        // row from chunk to chunk, and what a tile carries.
        held: |v| Held { accumulators: 32 * v.get("WG"), state: 4 * (STATE_STRIDE as u32 + row_carry(v)) },
        reference_f32: reference::forward,
        reference_f64: reference::forward,
        host: Some(host::forward),
    },
    bound: bound::forward,
    cases: cases::forward,
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
        held: |_| Held::NOTHING,
        reference_f32: reference::finish,
        reference_f64: reference::finish,
        host: None,
    },
    bound: bound::finish,
    cases: cases::finish,
    fault: ("(m - t) + log_sum", "m - t"),
};

/// Sums losses into a scalar: bindings losses, scalars, carry.
pub static SUM: Program = Program {
    kernel: Kernel {
        name: "cross_entropy_sum",
        wgsl: include_str!("../../shaders/cross_entropy.wgsl"),
        bindings: &[read("losses", Lane::F32), write("scalars", Lane::F32), write("carry", Lane::F32)],
        params: SumParams::FIELDS,
        variants: VARIANTS,
        // State: what a tile carries, which is each lane's sum; it is its accumulator while it runs.
        held: |v| Held { accumulators: 4 * v.get("WG"), state: 4 * v.get("WG") },
        reference_f32: reference::sum,
        reference_f64: reference::sum,
        host: None,
    },
    bound: bound::sum,
    cases: cases::sum,
    fault: ("i < end", "i + 1u < end"),
};

/// Turns logits into their gradient, in place: bindings targets, state, logits, carry.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "cross_entropy_backward",
        wgsl: include_str!("../../shaders/cross_entropy.wgsl"),
        bindings: &[
            read("targets", Lane::U32),
            read("state", Lane::F32),
            write("logits", Lane::Vec4),
            write("carry", Lane::F32),
        ],
        params: BackwardParams::FIELDS,
        variants: VARIANTS,
        // State: what a tile carries, the logarithm of the row's sum.
        held: |_| Held { accumulators: 0, state: 4 },
        reference_f32: reference::backward,
        reference_f64: reference::backward,
        host: Some(host::backward),
    },
    bound: bound::backward,
    cases: cases::backward,
    fault: ("(exp(logits[start + q] - lse) - onehot)", "exp(logits[start + q] - lse)"),
};

/// Elements that a tile of a row hands on: a vec4 for each lane, and four numbers of the row.
fn row_carry(variant: &Variant) -> u32 {
    4 * (variant.get("WG") + 1)
}

/// Queues one chunk: `logits` (rows x chunk columns) are those of vocabulary entries `first_col ..`, `targets` one id
/// per row, `state` rows x 3 at stride [`STATE_STRIDE`], begun anew where `first`.
///
/// # Errors
/// [`DeviceError::Usage`] when shapes do not fit; what the device says.
pub fn forward(
    fabric: &Fabric,
    logits: &Matrix,
    targets: &View,
    first_col: usize,
    state: &Matrix,
    first: bool,
) -> Result<()> {
    fabric.relay(&forward_relay(fabric, logits, targets, first_col, state, first)?)
}

/// [`forward`] as the fabric's scheduler sees it.
///
/// # Errors
/// [`DeviceError::Usage`] when shapes do not fit.
pub fn forward_relay(
    fabric: &Fabric,
    logits: &Matrix,
    targets: &View,
    first_col: usize,
    state: &Matrix,
    first: bool,
) -> Result<impl Relay + use<>> {
    let (offset, row_quads) = logits.row_quads()?;
    let params = ForwardParams {
        cols: logits.cols as u32,
        row_quads,
        offset,
        state_offset: state_offset(state, logits.rows, targets)?,
        first_col: first_col as u32,
        first: first as u32,
        ..bytemuck::Zeroable::zeroed()
    };
    let carry = row_carry(FORWARD.kernel.variant(fabric.device().class())) as usize;
    Ok(Chain {
        gathers: &[u32::MAX; 2],
        carry,
        words: params.words(),
        views: vec![logits.view.clone(), targets.clone(), state.view.clone()],
        ..over_rows(&FORWARD, logits, 2)
    })
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
pub fn sum(fabric: &Fabric, losses: &Matrix, scale: f32, scalars: &View, slot: usize, accumulate: bool) -> Result<()> {
    fabric.relay(&sum_relay(fabric, losses, scale, scalars, slot, accumulate))
}

/// [`sum`] as the fabric's scheduler sees it.
pub fn sum_relay(
    fabric: &Fabric,
    losses: &Matrix,
    scale: f32,
    scalars: &View,
    slot: usize,
    accumulate: bool,
) -> impl Relay + use<> {
    let params = SumParams {
        rows: losses.cols as u32,
        losses_offset: losses.offset as u32,
        slot: slot as u32,
        accumulate: accumulate as u32,
        scale,
        ..bytemuck::Zeroable::zeroed()
    };
    Chain {
        kernel: &SUM.kernel,
        work: Work::Columns { lines: 1, len: losses.cols as u64 },
        axis: Axis::Column,
        lines: 1,
        len: params.rows,
        block_len: BLOCK_ROWS as u32,
        gathers: &[u32::MAX],
        applies: false,
        carry: SUM.kernel.variant(fabric.device().class()).get("WG") as usize,
        words: params.words(),
        views: vec![losses.view.clone(), scalars.clone()],
    }
}

/// Queues the gradient of one chunk, in place of its logits: `(softmax - onehot) * scale`, 0 in ignored rows and in the
/// padding. `state` is as [`finish`] left it.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    fabric: &Fabric,
    logits: &Matrix,
    targets: &View,
    state: &Matrix,
    first_col: usize,
    scale: f32,
) -> Result<()> {
    fabric.relay(&backward_relay(logits, targets, state, first_col, scale)?)
}

/// [`backward`] as the fabric's scheduler sees it.
///
/// # Errors
/// As [`forward_relay`].
pub fn backward_relay(
    logits: &Matrix,
    targets: &View,
    state: &Matrix,
    first_col: usize,
    scale: f32,
) -> Result<impl Relay + use<>> {
    let (offset, row_quads) = logits.row_quads()?;
    let params = BackwardParams {
        cols: logits.cols as u32,
        row_quads,
        offset,
        state_offset: state_offset(state, logits.rows, targets)?,
        first_col: first_col as u32,
        scale,
        ..bytemuck::Zeroable::zeroed()
    };
    Ok(Chain {
        gathers: &[1],
        applies: true,
        carry: 1,
        words: params.words(),
        views: vec![targets.clone(), state.view.clone(), logits.view.clone()],
        ..over_rows(&BACKWARD, logits, 1)
    })
}

/// A relay along the rows of a chunk, to be completed.
fn over_rows(program: &'static Program, logits: &Matrix, sums: u64) -> Chain {
    Chain {
        kernel: &program.kernel,
        work: Work::Rows { lines: logits.rows as u64, len: logits.cols as u64, sums },
        axis: Axis::Row,
        lines: logits.rows as u32,
        len: quads(logits.cols as u32),
        block_len: (BLOCK_COLS / 4) as u32,
        gathers: &[],
        applies: false,
        carry: 0,
        words: Vec::new(),
        views: Vec::new(),
    }
}

/// Vec4 elements that the columns of a chunk take: the length of its rows.
fn quads(cols: u32) -> u32 {
    cols.div_ceil(4)
}

fn state_offset(state: &Matrix, rows: usize, targets: &View) -> Result<u32> {
    if state.rows != rows || state.cols != 3 || targets.len < rows {
        return Err(DeviceError::Usage(format!("cross-entropy of {rows} rows with {state:?}, targets {targets:?}")));
    }
    Ok(4 * state.row_quads()?.0)
}

/// The column of the target in a chunk, if it is there.
fn column(target: u32, first_col: u32, cols: u32) -> Option<usize> {
    let c = target.wrapping_sub(first_col);
    (target != IGNORE && target >= first_col && c < cols).then_some(c as usize)
}
