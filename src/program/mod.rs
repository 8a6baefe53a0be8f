//! Tile programs: one file each, with declaration, reference, bound, cases and (where speed needs one) a host kernel.
//! The WGSL of the same stem lies in `shaders/`, its test in `tests/program/`.
//!
//! A [`Program`] is a [`Kernel`] (what a device runs) with what proves it: the error bound of each output element and the
//! cases it is checked on. This layer knows matrices and formulas; it must never know a model, a store or a clock.

pub mod activation;
pub mod adafactor;
pub mod adamw;
pub mod all_reduce;
pub mod attention;
mod chain;
pub mod check;
pub mod column_sum;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod exchange;
pub mod grad_norm;
pub mod initial;
pub mod layer_norm;
pub mod matmul;
pub mod matrix;
pub mod philox;
pub mod quantize;
pub mod relay;
pub mod residual_add;
pub mod rms_norm;
pub mod rotary;
pub mod round;
pub mod schedule;
pub mod sgd;
pub mod vector;

pub use matrix::Matrix;

use crate::device::{Device, Kernel, NativeFn, Variant};

/// Half the distance from 1 to the next f32: the relative error of one correctly rounded operation.
pub const EPS: f64 = 1.0 / (1u64 << 24) as f64;

/// A tile program: a kernel and what proves it.
pub struct Program {
    /// What a device runs.
    pub kernel: Kernel,
    /// Takes the arguments of the reference and writes, in place of each output element, how far an f32 result may lie
    /// from it: computed from the operation (`c * n * EPS * sum of |terms|`), never typed in.
    pub bound: NativeFn<f64>,
    /// What it is checked on: small, odd and edge shapes.
    pub cases: fn() -> Vec<Case>,
    /// One edit of the WGSL (text, replacement) that makes it wrong; the checker must catch it.
    pub fault: (&'static str, &'static str),
}

/// One check of a program: what its buffers hold at first, and the launch.
pub struct Case {
    /// Names the shape, for tables.
    pub label: String,
    /// Contents of each binding before the launch, in binding order.
    pub fills: Vec<Fill>,
    /// Parameter words and number of tiles, for a variant.
    pub launch: LaunchFn,
}

/// Parameter words and number of tiles of a [`Case`] in a variant; no tiles where the variant has no room for the case.
/// Results must not depend on the variant beyond rounding.
pub type LaunchFn = Box<dyn Fn(&Variant) -> (Vec<u32>, u32) + Send + Sync>;

/// What a buffer of a [`Case`] holds at first. Random values are a pure function of seed, binding and index.
#[derive(Clone, Debug)]
pub enum Fill {
    /// `rows x cols` normal values times `scale` plus `mean`, at row stride `stride`, zeros in the padding.
    Normal {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Elements from one row to the next.
        stride: usize,
        /// Standard deviation.
        scale: f32,
        /// Mean.
        mean: f32,
    },
    /// `len` integers below `below`.
    Ids {
        /// How many.
        len: usize,
        /// All are less.
        below: u32,
    },
    /// Given floats.
    Floats(Vec<f32>),
    /// Given integers.
    Words(Vec<u32>),
    /// `len` floats that hold a NaN of a known pattern: each must be written, or left as it is by the reference too.
    Poison {
        /// How many.
        len: usize,
    },
}

impl Fill {
    /// Normal values of a matrix with the crate's row stride.
    pub fn matrix(rows: usize, cols: usize) -> Fill {
        Fill::Normal { rows, cols, stride: Matrix::stride_for(cols), scale: 1.0, mean: 0.0 }
    }

    /// Poison of a matrix with the crate's row stride.
    pub fn poison(rows: usize, cols: usize) -> Fill {
        Fill::Poison { len: rows * Matrix::stride_for(cols) }
    }
}

/// Every program, in the order of a training step.
pub fn all() -> Vec<&'static Program> {
    let mut all: Vec<&'static Program> = Vec::new();
    all.extend(initial::PROGRAMS);
    all.extend(embedding::PROGRAMS);
    all.extend(layer_norm::PROGRAMS);
    all.extend(rms_norm::PROGRAMS);
    all.extend(matmul::PROGRAMS);
    all.extend(rotary::PROGRAMS);
    all.extend(attention::PROGRAMS);
    all.extend(activation::PROGRAMS);
    all.extend(dropout::PROGRAMS);
    all.extend(residual_add::PROGRAMS);
    all.extend(cross_entropy::PROGRAMS);
    all.extend(column_sum::PROGRAMS);
    all.extend(all_reduce::PROGRAMS);
    all.extend(grad_norm::PROGRAMS);
    all.extend(adamw::PROGRAMS);
    all.extend(sgd::PROGRAMS);
    all.extend(adafactor::PROGRAMS);
    all.extend(round::PROGRAMS);
    all.extend(quantize::PROGRAMS);
    all
}

/// Queues one launch of a kernel in the variant that the device takes by default: `params` is a struct made with
/// [`params!`](crate::params), `groups` the number of tiles in that variant, `views` one for each binding, in order.
///
/// # Errors
/// [`DeviceError::Usage`](crate::device::DeviceError::Usage) when `params` or `views` do not fit the declaration; what
/// [`Device::launch`] says otherwise.
pub fn launch<P: bytemuck::Pod>(
    device: &Device,
    kernel: &'static Kernel,
    params: &P,
    groups: impl FnOnce(&Variant) -> u32,
    views: &[crate::device::View],
) -> crate::device::Result<()> {
    let variant = kernel.variant(device.class());
    // A struct without fields has no words, and no place either.
    let params = if size_of::<P>() == 0 { &[] } else { bytemuck::cast_slice(bytemuck::bytes_of(params)) };
    device.launch(&crate::device::Launch { kernel, variant, groups: groups(variant), params, views })
}
