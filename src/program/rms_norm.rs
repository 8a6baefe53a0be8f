//! RMS norm over rows, or over the equal parts of each row: `y = x / sqrt(mean(x^2) + eps) * gain` (Zhang and Sennrich,
//! arXiv 1910.07467), its gradient, and that of the gain. It must never know where in a model the norm stands.
//!
//! With one part the row is normalised as a whole. With more, each part is normalised alone, and all share one gain of a
//! part's columns: heads of queries and keys lie side by side in a row so. Forward keeps the reciprocal root of each part
//! for backward.
//!
//! Rows of one part and the gain's gradient are relays, as those of layer norm. Of rows of several parts each part lies whole on a
//! tile: nothing travels, and both schedules are one and the same launch.

mod bound;
mod cases;
mod host;
mod reference;

use std::ops::Range;

use super::chain::{Chain, relay_params};
use super::column_sum::groups as column_groups;
use super::layer_norm::lines::{At, column_held, row_held};
use super::layer_norm::{COLUMN_VARIANTS, ROW_VARIANTS, over_columns, over_rows, row_groups};
use super::matrix::Rows;
use super::relay::{Axis, Part, Relay};
use super::schedule::Fabric;
use super::{Matrix, Program};
use crate::device::{Buffer, Device, Kernel, Lane, Result, View, read, write};
use crate::wafer::Work;

relay_params! {
    /// Parameters of the forward kernel; places in quads of four floats.
    /// Blocks are measured in quads.
    pub struct ForwardParams {
        /// Number of rows.
        rows: u32,
        /// Parts of a row.
        parts: u32,
        /// Columns of a part: a multiple of 4 where there are several.
        cols: u32,
        /// Quads of a row, padding included.
        quads: u32,
        /// Added to the mean square.
        eps: f32,
        /// First quad of `x`.
        x_offset: u32,
        /// Quads from one row of `x` to the next.
        x_stride: u32,
        /// First quad of `gain`.
        gain_offset: u32,
        /// First quad of `y`.
        y_offset: u32,
        /// Quads from one row of `y` to the next.
        y_stride: u32,
        /// First quad of `stats`.
        stats_offset: u32,
        /// Quads from one row of `stats` to the next.
        stats_stride: u32,
        /// Quads of a row of `stats`, padding included.
        stats_quads: u32,
    }
}

relay_params! {
    /// Parameters of the backward kernel; places in quads.
    /// Blocks are measured in quads.
    pub struct BackwardParams {
        /// Number of rows.
        rows: u32,
        /// Parts of a row.
        parts: u32,
        /// Columns of a part.
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
        /// Parts of a row.
        parts: u32,
        /// Columns of a part.
        cols: u32,
        /// Quads of `dgain`, padding included.
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

const WGSL: &str = include_str!("../../shaders/rms_norm.wgsl");

/// The three programs.
pub static PROGRAMS: [&Program; 3] = [&FORWARD, &BACKWARD, &GAIN_BACKWARD];

/// `y = norm(x) * gain`: bindings x, gain, y, stats, carry.
pub static FORWARD: Program = Program {
    kernel: Kernel {
        name: "rms_norm_forward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("gain", Lane::Vec4),
            write("y", Lane::Vec4),
            write("stats", Lane::F32),
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
    fault: ("square + p.eps", "square"),
};

/// `dx = the gradient through the norm (+ residual)`: bindings x, gain, stats, dy, residual, dx, carry.
pub static BACKWARD: Program = Program {
    kernel: Kernel {
        name: "rms_norm_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("gain", Lane::Vec4),
            read("stats", Lane::F32),
            read("dy", Lane::Vec4),
            read("residual", Lane::Vec4),
            write("dx", Lane::Vec4),
            write("carry", Lane::Vec4),
        ],
        params: BackwardParams::FIELDS,
        variants: ROW_VARIANTS,
        held: |v| row_held(v, 1),
        reference_f32: reference::backward,
        reference_f64: reference::backward,
        host: Some(host::backward),
    },
    bound: bound::backward,
    cases: cases::backward,
    fault: ("h - normal * lean", "h"),
};

/// `dgain (+)= sums over rows and parts of dy * norm(x)`: bindings x, stats, dy, dgain, carry.
pub static GAIN_BACKWARD: Program = Program {
    kernel: Kernel {
        name: "rms_norm_gain_backward",
        wgsl: WGSL,
        bindings: &[
            read("x", Lane::Vec4),
            read("stats", Lane::F32),
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
    fault: ("stats[kept + part]", "stats[kept]"),
};

/// Queues `y = x * r * gain`, `r = 1 / sqrt(mean(x^2) + eps)` over each of the `parts` equal parts of a row. `x` and `y`
/// are of one shape and not one buffer, `gain` is one row of a part's columns; `stats` (rows x parts) receives r.
///
/// # Panics
/// When shapes differ, or a slice or a part of several does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn forward(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    parts: usize,
    eps: f32,
    y: &Matrix,
    stats: &Matrix,
) -> Result<()> {
    fabric.relay(&forward_relay(fabric, x, gain, parts, eps, y, stats))
}

/// [`forward`] as the fabric's scheduler sees it.
///
/// # Panics
/// As [`forward`].
pub fn forward_relay(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    parts: usize,
    eps: f32,
    y: &Matrix,
    stats: &Matrix,
) -> impl Relay + use<> {
    let Rows { rows, quads } = Rows::of(&[x, y]);
    let cols = part_cols(x, parts);
    expect_gain(gain, cols, quads - (parts as u32 - 1) * (cols / 4));
    expect_stats(stats, x, parts);
    let ((x_offset, x_stride), (y_offset, y_stride)) = (x.place(), y.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = ForwardParams {
        rows,
        parts: parts as u32,
        cols,
        quads,
        eps,
        x_offset,
        x_stride,
        gain_offset: gain.place().0,
        y_offset,
        y_stride,
        stats_offset,
        stats_stride,
        stats_quads: stats.quads(),
        ..bytemuck::Zeroable::zeroed()
    };
    let views = [x, gain, y, stats].map(|m| m.view.clone());
    along(fabric, &FORWARD, x, parts, params.words(), views.into())
}

/// Queues `dx = the gradient through the norm (+ residual)`. `x`, `dy`, `residual` and `dx` are of one shape, `dx` is no
/// buffer of the others; `stats` is what [`forward`] wrote. `residual` is the gradient that by-passes the norm.
///
/// # Panics
/// When shapes differ, or a slice or a part of several does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
#[allow(clippy::too_many_arguments)] // each is an operand of the formula
pub fn backward(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    parts: usize,
    stats: &Matrix,
    dy: &Matrix,
    residual: Option<&Matrix>,
    dx: &Matrix,
) -> Result<()> {
    fabric.relay(&backward_relay(fabric, x, gain, parts, stats, dy, residual, dx))
}

/// [`backward`] as the fabric's scheduler sees it.
///
/// # Panics
/// As [`backward`].
#[allow(clippy::too_many_arguments)] // each is an operand of the formula
pub fn backward_relay(
    fabric: &Fabric,
    x: &Matrix,
    gain: &Matrix,
    parts: usize,
    stats: &Matrix,
    dy: &Matrix,
    residual: Option<&Matrix>,
    dx: &Matrix,
) -> impl Relay + use<> {
    let bypassed = residual.is_some() as u32;
    // Without one, dy stands in its place for reading and is not read there.
    let residual = residual.unwrap_or(dy);
    let Rows { rows, quads } = Rows::of(&[x, dy, residual, dx]);
    let cols = part_cols(x, parts);
    expect_gain(gain, cols, quads - (parts as u32 - 1) * (cols / 4));
    expect_stats(stats, x, parts);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let ((residual_offset, residual_stride), (dx_offset, dx_stride)) = (residual.place(), dx.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = BackwardParams {
        rows,
        parts: parts as u32,
        cols,
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
    along(fabric, &BACKWARD, x, parts, params.words(), views.into())
}

/// Queues `dgain (+)= sums over rows and parts of dy * x * r`; `dgain` is one row of a part's columns, `stats` is what
/// [`forward`] wrote. Rows come in blocks, in ascending order, and inside a row its parts do.
///
/// # Panics
/// When shapes differ, or a slice or a part of several does not lie on multiples of 4.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when the views do not fit the declaration; what the device
/// says otherwise.
pub fn gain_backward(
    fabric: &Fabric,
    x: &Matrix,
    parts: usize,
    stats: &Matrix,
    dy: &Matrix,
    dgain: &Matrix,
    accumulate: bool,
) -> Result<()> {
    fabric.relay(&gain_relay(fabric, x, parts, stats, dy, dgain, accumulate))
}

/// [`gain_backward`] as the fabric's scheduler sees it.
///
/// # Panics
/// As [`gain_backward`].
pub fn gain_relay(
    fabric: &Fabric,
    x: &Matrix,
    parts: usize,
    stats: &Matrix,
    dy: &Matrix,
    dgain: &Matrix,
    accumulate: bool,
) -> impl Relay + use<> {
    let Rows { rows, .. } = Rows::of(&[x, dy]);
    let cols = part_cols(x, parts);
    expect_gain(dgain, cols, cols.div_ceil(4));
    expect_stats(stats, x, parts);
    let ((x_offset, x_stride), (dy_offset, dy_stride)) = (x.place(), dy.place());
    let (stats_offset, stats_stride) = stats.place();
    let params = GainParams {
        rows,
        parts: parts as u32,
        cols,
        quads: dgain.quads(),
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

/// Columns of one of the parts.
fn part_cols(x: &Matrix, parts: usize) -> u32 {
    let equal = parts > 0 && x.cols.is_multiple_of(parts);
    assert!(equal && (parts == 1 || (x.cols / parts).is_multiple_of(4)), "{x:?} in {parts} parts of whole quads");
    (x.cols / parts) as u32
}

/// `quads`: what a kernel reads of the gain at most, the padding of a row's last part included.
fn expect_gain(gain: &Matrix, cols: u32, quads: u32) {
    let fits = (gain.rows, gain.cols) == (1, cols as usize) && gain.quads() >= quads;
    assert!(fits, "{gain:?} is not one row of {cols} columns in {quads} quads");
}

fn expect_stats(stats: &Matrix, x: &Matrix, parts: usize) {
    let fits = (stats.rows, stats.cols) == (x.rows, parts) && 4 * stats.quads() as usize >= parts;
    assert!(fits, "{stats:?} does not hold {parts} roots for a row of {x:?}");
}

/// The parts of a row that a tile has columns of: those columns, in the row and in the part. A tile of several parts has them
/// whole.
fn parts_in(at: &At, parts: u32, cols: u32) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
    let (mine, cols) = (at.columns(parts * cols), cols as usize);
    (0..parts as usize).map(move |part| {
        let columns = mine.start.max(part * cols)..mine.end.min((part + 1) * cols);
        (columns.clone(), columns.start - part * cols..columns.end - part * cols)
    })
}

/// A relay along the rows of `x`, or one launch over their parts.
fn along(
    fabric: &Fabric,
    program: &'static Program,
    x: &Matrix,
    parts: usize,
    words: Vec<u32>,
    views: Vec<View>,
) -> Along {
    let class = fabric.device().class();
    let chain = Chain { words, views, ..over_rows(program, class, x, [1]) };
    let items = x.rows as u32 * parts as u32;
    Along { chain, parts: (parts > 1).then(|| row_groups(items, program.kernel.variant(class))) }
}

/// Rows of one part, which are cut, or rows of several, which are not.
struct Along {
    chain: Chain,
    /// Tiles of rows of several parts.
    parts: Option<u32>,
}

impl Relay for Along {
    fn name(&self) -> &'static str {
        self.chain.name()
    }

    fn work(&self) -> Work {
        match (self.parts, self.chain.work()) {
            (Some(_), Work::Rows { lines, len, .. }) => Work::Local { elements: lines * len },
            (_, work) => work,
        }
    }

    fn axis(&self) -> Axis {
        self.chain.axis()
    }

    /// Tiles that share nothing are launched together: to the scheduler they are one.
    fn extent(&self) -> (u32, u32) {
        match self.parts {
            Some(tiles) => (tiles.min(1), 1),
            None => self.chain.extent(),
        }
    }

    fn gathers(&self) -> Vec<u32> {
        if self.parts.is_some() { vec![1] } else { self.chain.gathers() }
    }

    fn applies(&self) -> bool {
        self.parts.is_none()
    }

    fn carry(&self) -> usize {
        self.chain.carry()
    }

    fn launch(&self, device: &Device, part: &Part, carry: &Buffer) -> Result<()> {
        let all = self.parts.map(Part::whole);
        self.chain.launch(device, all.as_ref().unwrap_or(part), carry)
    }
}
