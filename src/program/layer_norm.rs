//! Layer norm over rows: `y = (x - mean) / sqrt(variance + eps) * gain (+ bias)`, its gradient, and that of the gain (that
//! of the bias is a column sum of dy). It must never know where in a model the norm stands.
//!
//! Mean, then variance of the differences from it (two passes: no cancellation of large squares). Forward keeps mean and
//! reciprocal standard deviation of each row for backward.
//!
//! All three are relays. A line of the first two is a few rows, a block 128 of their columns: sum, then squares go from block
//! to block of a row forward (both sums backward in one pass), in the order of the row, and then every block uses them. A line of
//! the gain's gradient is a few columns, a block 64 of their rows, and the last block writes.

mod bound;
mod cases;
pub(super) mod host;
pub(super) mod lines;
mod reference;

use super::chain::{Chain, relay_params};
use super::column_sum::{BLOCK_ROWS, groups as column_groups};
use super::matrix::Rows;
use super::relay::{Axis, Relay};
use super::schedule::Fabric;
use super::{Matrix, Program};
use crate::device::{Class, Kernel, Lane, Result, Variant, read, write};
use crate::wafer::Work;
pub use lines::ROW_BLOCK;
use lines::{column_carry, column_held, line_rows, row_carry, row_held};

relay_params! {
    /// Parameters of the forward kernel; places in quads of four floats.
    /// Blocks are measured in quads.
    pub struct ForwardParams {
        /// Number of rows.
        rows: u32,
        /// Columns that count.
        cols: u32,
        /// Quads of a row, padding included.
        quads: u32,
        /// Added to the variance.
        eps: f32,
        /// 1: there is a bias.
        biased: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `gain`.
        gain_offset: u32,
        /// First quad of `bias`.
        bias_offset: u32,
        /// First quad of `y`.
        y_offset: u32,
        /// Quads from one row of `y` to the next.
        y_stride: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
    }
}

relay_params! {
    /// Parameters of the backward kernel; places in quads.
    /// Blocks are measured in quads.
    pub struct BackwardParams {
        /// Number of rows.
        rows: u32,
        /// Columns that count.
        cols: u32,
        /// Quads of a row, padding included.
        quads: u32,
        /// 1: add the gradient that by-passes the norm.
        bypassed: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `gain`.
        gain_offset: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
        /// First quad of `dy`.
        dy_offset: u32,
        /// Quads from one row of `dy` to the next.
        dy_stride: u32,
        /// First quad of `residual`.
        residual_offset: u32,
        /// Quads from one row of `residual` to the next.
        residual_stride: u32,
        /// First quad of `dx`.
        dx_offset: u32,
        /// Quads from one row of `dx` to the next.
        dx_stride: u32,
    }
}

relay_params! {
    /// Parameters of the gain's gradient; places in quads.
    /// Blocks are measured in rows.
    pub struct GainParams {
        /// Number of rows.
        rows: u32,
        /// Quads of a row, padding included.
        quads: u32,
        /// 1: add to what `dgain` holds.
        accumulate: u32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
        /// First quad of `dy`.
        dy_offset: u32,
        /// Quads from one row of `dy` to the next.
        dy_stride: u32,
        /// First quad of `dgain`.
        dgain_offset: u32,
    }
}

/// Tiles of whole rows. On a software adapter a barrier costs more than a lane that reads a row alone.
pub(super) const ROW_VARIANTS: &[Variant] = &[
    Variant {
        name: "rows4x32",
        classes: &[Class::Gpu, Class::Native],
        constants: &[("WG", 128), ("LANES", 32), ("ROW", 1), ("TREE", 1)],
    },
    Variant {
        name: "rows8x1",
        classes: &[Class::Software],
        constants: &[("WG", 8), ("LANES", 1), ("ROW", 1), ("TREE", 0)],
    },
];

/// Tiles of whole columns, as those of a column sum.
pub(super) const COLUMN_VARIANTS: &[Variant] = &[
    Variant {
        name: "quads4x64",
        classes: &[Class::Gpu, Class::Native],
        constants: &[("WG", 256), ("QUADS", 4), ("SLOTS", 64), ("BLOCK", 8), ("SPLIT", 1), ("ROW", 0)],
    },
    Variant {
        name: "quads8x1",
        classes: &[Class::Software],
        constants: &[("WG", 8), ("QUADS", 8), ("SLOTS", 1), ("BLOCK", 32), ("SPLIT", 0), ("ROW", 0)],
    },
];

const WGSL: &str = include_str!("../../shaders/layer_norm.wgsl");

/// The three programs.
pub static PROGRAMS: [&Program; 3] = [&FORWARD, &BACKWARD, &GAIN_BACKWARD];

/// `y = norm(x) * gain (+ bias)`: bindings x, gain, bias, y, stats, carry.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "layer_norm_forward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("gain", Lane::Vec4),
            read("bias", Lane::Vec4),
            write("y", Lane::Vec4),
            write("stats", Lane::Vec4),
            write("carry", Lane::Vec4),
        ],
        params: ForwardParams::FIELDS,
        variants: ROW_VARIANTS,
        held: |v| row_held(v, 1),
        reference_f32: reference::forward,
        reference_f64: reference::forward,
        host: Some(host::forward),
    },
    bound: bound::forward,
    cases: cases::forward,
    fault: ("variance + p.eps", "variance"),
};

/// `dx = the gradient through the norm (+ residual)`: bindings x, gain, stats, dy, residual, dx, carry.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "layer_norm_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("gain", Lane::Vec4),
            read("stats", Lane::Vec4),
            read("dy", Lane::Vec4),
            read("residual", Lane::Vec4),
            write("dx", Lane::Vec4),
            write("carry", Lane::Vec4),
        ],
        params: BackwardParams::FIELDS,
        variants: ROW_VARIANTS,
        held: |v| row_held(v, 2),
        reference_f32: reference::backward,
        reference_f64: reference::backward,
        host: Some(host::backward),
    },
    bound: bound::backward,
    cases: cases::backward,
    fault: ("h - sums.x", "h"),
};

/// `dgain (+)= column sums of dy * norm(x)`: bindings x, stats, dy, dgain, carry.
pub static GAIN_BACKWARD: Program = Program {
    kernel: Kernel {
        name: "layer_norm_gain_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("stats", Lane::Vec4),
            read("dy", Lane::Vec4),
            write("dgain", Lane::Vec4),
            write("carry", Lane::Vec4),
        ],
        params: GainParams::FIELDS,
        variants: COLUMN_VARIANTS,
        held: column_held,
        reference_f32: reference::gain_backward,
        reference_f64: reference::gain_backward,
        host: Some(host::gain_backward),
    },
    bound: bound::gain_backward,
    cases: cases::gain_backward,
    fault: ("- moments.x)", ")"),
};

/// Tiles that cover `rows` rows.
pub(super) fn row_groups(rows: u32, variant: &Variant) -> u32 {
    rows.div_ceil(line_rows(variant))
}

/// Queues `y = (x - mean) * rstd * gain (+ bias)`. `x` and `y` are of one shape, `gain` and `bias` one row of it; `stats`
/// (rows x 2) receives mean and rstd of each row.
///
/// # Panics
/// When shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn forward(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    bias: Option<&Matrix>,
    eps: f32,
    y: &Matrix,
    stats: &Matrix,
) -> Result<()> {
    fabric.relay(&forward_relay(fabric, x, gain, bias, eps, y, stats))
}

/// [`forward`] as the fabric's scheduler sees it.
///
/// # Panics
/// As [`forward`].
pub fn forward_relay(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    bias: Option<&Matrix>,
    eps: f32,
    y: &Matrix,
    stats: &Matrix,
) -> impl Relay + use<> {
    let biased = bias.is_some() as u32;
    // Without a bias, the gain stands in its place for reading and is not read there.
    let bias = bias.unwrap_or(gain);
    let Rows { rows, quads } = Rows::of(&[x, y]);
    expect_row(gain, x);
    expect_row(bias, x);
    expect_stats(stats, x);
    let ((x_offset, x_stride), (y_offset, y_stride)) = (x.place(), y.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = ForwardParams {
        rows,
        cols: x.cols as u32,
        quads,
        eps,
        biased,
        x_offset,
        x_stride,
        gain_offset: gain.place().0,
        bias_offset: bias.place().0,
        y_offset,
        y_stride,
        stats_offset,
        stats_stride,
        ..bytemuck::Zeroable::zeroed()
    };
    let views = [x, gain, bias, y, stats].map(|m| m.view.clone());
    let class = fabric.device().class();
    Chain { words: params.words(), views: views.into(), ..over_rows(&FORWARD, class, x, [1, 1]) }
}

/// Queues `dx = the gradient through the norm (+ residual)`. `x`, `dy`, `residual` and `dx` are of one shape, `dx` is no
/// buffer of the others; `stats` is what [`forward`] wrote. `residual` is the gradient that by-passes the norm.
///
/// # Panics
/// When shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn backward(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    stats: &Matrix,
    dy: &Matrix,
    residual: Option<&Matrix>,
    dx: &Matrix,
) -> Result<()> {
    fabric.relay(&backward_relay(fabric, x, gain, stats, dy, residual, dx))
}

/// [`backward`] as the fabric's scheduler sees it.
///
/// # Panics
/// As [`backward`].
pub fn backward_relay(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    stats: &Matrix,
    dy: &Matrix,
    residual: Option<&Matrix>,
    dx: &Matrix,
) -> impl Relay + use<> {
    let bypassed = residual.is_some() as u32;
    // Without one, dy stands in its place for reading and is not read there.
    let residual = residual.unwrap_or(dy);
    let Rows { rows, quads } = Rows::of(&[x, dy, residual, dx]);
    expect_row(gain, x);
    expect_stats(stats, x);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let ((residual_offset, residual_stride), (dx_offset, dx_stride)) = (residual.place(), dx.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = BackwardParams {
        rows,
        cols: x.cols as u32,
        quads,
        bypassed,
        x_offset,
        x_stride,
        gain_offset: gain.place().0,
        stats_offset,
        stats_stride,
        dy_offset,
        dy_stride,
        residual_offset,
        residual_stride,
        dx_offset,
        dx_stride,
        ..bytemuck::Zeroable::zeroed()
    };
    let views = [x, gain, stats, dy, residual, dx].map(|m| m.view.clone());
    let class = fabric.device().class();
    Chain { words: params.words(), views: views.into(), ..over_rows(&BACKWARD, class, x, [2]) }
}

/// Queues `dgain (+)= column sums of dy * (x - mean) * rstd`; `dgain` is one row, `stats` is what [`forward`] wrote.
///
/// # Panics
/// When shapes differ or a slice does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn gain_backward(
    fabric: &Fabric,
    x: &Matrix,
    stats: &Matrix,
    dy: &Matrix,
    dgain: &Matrix,
    accumulate: bool,
) -> Result<()> {
    fabric.relay(&gain_relay(fabric, x, stats, dy, dgain, accumulate))
}

/// [`gain_backward`] as the fabric's scheduler sees it.
///
/// # Panics
/// As [`gain_backward`].
pub fn gain_relay(
    fabric: &Fabric,
    x: &Matrix,
    stats: &Matrix,
    dy: &Matrix,
    dgain: &Matrix,
    accumulate: bool,
) -> impl Relay + use<> {
    let Rows { rows, quads } = Rows::of(&[x, dy]);
    expect_row(dgain, x);
    expect_stats(stats, x);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = GainParams {
        rows,
        quads,
        accumulate: accumulate as u32,
        x_offset,
        x_stride,
        stats_offset,
        stats_stride,
        dy_offset,
        dy_stride,
        dgain_offset: dgain.place().0,
        ..bytemuck::Zeroable::zeroed()
    };
    let views = [x, stats, dy, dgain].map(|m| m.view.clone());
    let class = fabric.device().class();
    Chain { words: params.words(), views: views.into(), ..over_columns(&GAIN_BACKWARD, class, dgain, rows) }
}

fn expect_row(row: &Matrix, x: &Matrix) {
    assert!(row.rows == 1, "{row:?} is not one row");
    row.expect_like(&x.rows(0, 1));
}

fn expect_stats(stats: &Matrix, x: &Matrix) {
    assert!(
        (stats.rows, stats.cols, stats.quads()) == (x.rows, 2, 2),
        "{stats:?} does not hold mean and rstd of the rows of {x:?}"
    );
}

/// A relay along the rows of `x`, with so many sums side by side in each of its passes; its operands are to be put in.
pub(super) fn over_rows<const N: usize>(program: &'static Program, class: Class, x: &Matrix, sums: [u32; N]) -> Chain {
    let (rows, variant) = (x.rows as u32, program.kernel.variant(class));
    let all = sums.iter().sum::<u32>().into();
    Chain {
        kernel: &program.kernel,
        work: Work::Rows { lines: rows.into(), len: x.cols as u64, sums: all },
        axis: Axis::Row,
        lines: row_groups(rows, variant),
        len: x.quads(),
        block_len: ROW_BLOCK,
        gathers: &[u32::MAX; N],
        applies: true,
        carry: row_carry(class, variant, sums.into_iter().fold(0, u32::max)),
        words: vec![],
        views: vec![],
    }
}

/// A relay down `rows` rows into a row of sums; its operands are to be put in.
pub(super) fn over_columns(program: &'static Program, class: Class, sums: &Matrix, rows: u32) -> Chain {
    let variant = program.kernel.variant(class);
    Chain {
        kernel: &program.kernel,
        work: Work::Columns { lines: sums.cols as u64, len: rows.into() },
        axis: Axis::Column,
        lines: column_groups(sums.quads(), variant),
        len: rows,
        block_len: BLOCK_ROWS,
        gathers: &[u32::MAX],
        applies: false,
        carry: column_carry(class, variant),
        words: vec![],
        views: vec![],
    }
}
