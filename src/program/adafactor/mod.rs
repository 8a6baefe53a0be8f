//! Adafactor (Shazeer and Stern, arXiv 1804.04235), the optimiser's second phase with sublinear state, by the formulas of
//! `torch.optim.Adafactor`. A tensor `[R, C]` keeps a second moment for each row and each column; a vector (one row) keeps
//! that of each element, and its row is always 1.
//!
//! ```text
//! g = gradient * clip scale              beta2 = 1 - t^beta2_decay            rho = min(lr, 1 / sqrt(t))
//! row = row + (1 - beta2) (mean over columns of g^2 - row)        column = column + (1 - beta2) (mean over rows - column)
//! variance = row column / max(mean(row), eps1)                    u = g / sqrt(max(variance, eps1^2))
//! w = w (1 - lr decay) - max(eps2, RMS(w)) rho / max(1, RMS(u) / d) u
//! ```
//!
//! A tensor comes in panels of whole rows, in order, once for each of three passes; between them stand two calls for the
//! whole tensor: [`sums`] of every panel, [`factor`], [`partial`] of every panel, [`finish`], [`apply`] of every panel.
//! What crosses rows is added slot by slot ([`SLOT_ROWS`] rows each) in the tensor's order, so how it is cut into panels
//! cannot change a bit. Clip scale and the count of values that are not finite are read on the device: where the count is
//! not 0, neither state nor weight is written. It must never know which tensors decay: the caller says so.
//!
//! Two places differ from PyTorch, both only where f32 ends: `eps1^2` is at least the smallest normal number, and the mean
//! of squares is not taken of a rounded norm.

mod bound;
mod cases;
mod host;
mod reference;

use super::adamw::decimal;
use super::grad_norm::{ROWS_PER_SLOT, SCALARS, slots};
use super::{Matrix, Program, launch};
use crate::device::{
    ALL_CLASSES, Class, Device, DeviceError, Elem, Held, Kernel, Lane, Result, Variant, View, read, write,
};

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Learning rate of this step: the largest relative step, and the factor of the weight decay. PyTorch has 0.01.
    pub lr: f32,
    /// Exponent of the decay of the second moments, at most 0. PyTorch has -0.8.
    pub beta2_decay: f32,
    /// Least root of a variance, above 0; `None`: the distance from 1 to the next f32, as in PyTorch.
    pub eps1: Option<f32>,
    /// Least size of weights that a step is relative to. PyTorch has 1e-3.
    pub eps2: f32,
    /// Root mean square of an update above which it is scaled down (d); at least 1. PyTorch has 1.
    pub clip_threshold: f32,
    /// Decoupled weight decay; 0 for tensors of one dimension: the caller decides.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u64,
}

/// Rows of a slot; panels begin at multiples of it (the store cuts at multiples of
/// [`GRANULE_ROWS`](super::grad_norm::GRANULE_ROWS), which it divides).
pub const SLOT_ROWS: usize = ROWS_PER_SLOT;

/// Index among a tensor's factors of `1 / max(mean(row), eps1)`.
pub const INVERSE_MEAN: usize = 0;
/// Of what an update is multiplied by.
pub const STEP_SIZE: usize = 1;
/// Of the root mean square of the update before clipping.
pub const UPDATE_SIZE: usize = 2;
/// Of the root mean square of the weights before the step.
pub const WEIGHT_SIZE: usize = 3;
/// Number of factors.
pub const FACTORS: usize = 4;

/// Working memory, shared by all tensors of a model: what one tensor's calls hand to each other.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// Sum of squares of each row.
    pub row_sums: View,
    /// Sum of squares of each column.
    pub column_sums: View,
    /// Sums of squares of each column of each slot of a panel.
    pub column_partials: View,
    /// Sums of squares of update and weights of each slot.
    pub slot_sums: View,
    /// [`FACTORS`] numbers of the tensor.
    pub factors: View,
}

impl Scratch {
    /// Floats of each view, in the order of the fields, for a tensor of `rows x cols` in panels of at most `panel_rows`.
    pub fn elements(rows: usize, cols: usize, panel_rows: usize) -> [usize; 5] {
        let stride = Matrix::stride_for(cols);
        let partials = slots(panel_rows.min(rows)) * stride;
        [rows.next_multiple_of(4), stride, partials, 2 * slots(rows), FACTORS]
    }

    /// New working memory with room for each of `tensors`: rows, columns, rows of a panel.
    ///
    /// # Errors
    /// As [`Device::buffer`].
    pub fn new(device: &Device, tensors: &[(usize, usize, usize)]) -> Result<Scratch> {
        let most = Scratch::largest(tensors);
        let view = |i: usize, label: &str| Ok(device.buffer(label, Elem::F32, most[i])?.all());
        Ok(Scratch {
            row_sums: view(0, "row sums of squares")?,
            column_sums: view(1, "column sums of squares")?,
            column_partials: view(2, "column sums of squares of slots")?,
            slot_sums: view(3, "sums of squares of slots")?,
            factors: view(4, "factors of a tensor")?,
        })
    }

    /// Bytes that [`Scratch::new`] takes.
    pub fn bytes(tensors: &[(usize, usize, usize)]) -> usize {
        4 * Scratch::largest(tensors).iter().sum::<usize>()
    }

    fn largest(tensors: &[(usize, usize, usize)]) -> [usize; 5] {
        tensors.iter().fold([0, 0, 0, 0, FACTORS], |most, &(rows, cols, panel_rows)| {
            let wanted = Scratch::elements(rows, cols, panel_rows);
            std::array::from_fn(|i| most[i].max(wanted[i]))
        })
    }
}

/// What the calls of one tensor in one step share. All views lie in buffers of their own.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// State `[1, R]`, zeros before the first step. Of a vector (R = 1) it is written before it is read: any spare
    /// `[1, 1]` will do.
    pub row: &'a Matrix,
    /// State `[1, C]`, zeros before the first step.
    pub column: &'a Matrix,
    /// The step's scalars, after [`grad_norm::finish`](super::grad_norm::finish).
    pub scalars: &'a View,
    /// Working memory.
    pub scratch: &'a Scratch,
}

crate::params! {
    /// Parameters of the sums of one panel.
    pub struct SumsParams {
        /// Rows of the panel.
        rows: u32,
        /// Vec4 elements of a row.
        row_quads: u32,
        /// Vec4 elements before the first gradient.
        gradient_offset: u32,
        /// The panel's first row.
        first_row: u32,
    }
}

crate::params! {
    /// Parameters of the sum over slots.
    pub struct ColumnsParams {
        /// Slots of the panel.
        slots: u32,
        /// Vec4 elements of a row.
        row_quads: u32,
        /// 1: the tensor's first panel.
        begins: u32,
    }
}

crate::params! {
    /// Parameters of the moments' step.
    pub struct FactorParams {
        /// Rows of the tensor.
        rows: u32,
        /// Columns of the tensor.
        cols: u32,
        /// Elements before the state of the first row.
        row_offset: u32,
        /// Elements before the state of the first column.
        column_offset: u32,
        /// 1 / rows.
        inverse_rows: f32,
        /// 1 / columns.
        inverse_cols: f32,
        /// t^beta2_decay.
        one_minus_beta2: f32,
        /// eps1.
        eps1: f32,
        /// 1: not factored.
        is_vector: u32,
    }
}

crate::params! {
    /// Parameters of a pass over gradients and weights: of the sums of the update, and of the update.
    pub struct PassParams {
        /// Rows of the panel.
        rows: u32,
        /// Vec4 elements of a row.
        row_quads: u32,
        /// Vec4 elements before the first gradient.
        gradient_offset: u32,
        /// Vec4 elements before the first weight.
        weights_offset: u32,
        /// Elements before the state of the panel's first row.
        row_first: u32,
        /// Vec4 elements before the state of the first column.
        column_offset: u32,
        /// The panel's first slot.
        first_slot: u32,
        /// eps1 squared.
        eps1_squared: f32,
        /// 1 - lr * weight decay.
        decay: f32,
    }
}

crate::params! {
    /// Parameters of the step size.
    pub struct FinishParams {
        /// Slots of the tensor.
        slots: u32,
        /// 1 / (rows * columns).
        inverse_count: f32,
        /// rho.
        rho: f32,
        /// eps2.
        eps2: f32,
        /// 1 / d.
        inverse_threshold: f32,
    }
}

const TILES: &[Variant] = &[
    Variant {
        name: "slot256",
        classes: &[Class::Gpu],
        constants: &[
            ("WG", 256),
            ("ROWS", 16),
            ("CLIP_SCALE", 2),
            ("NON_FINITE", 3),
            ("INVERSE_MEAN", 0),
            ("STEP_SIZE", 1),
            ("UPDATE_SIZE", 2),
            ("WEIGHT_SIZE", 3),
        ],
    },
    Variant {
        name: "slot16",
        classes: &[Class::Software, Class::Native],
        constants: &[
            ("WG", 16),
            ("ROWS", 16),
            ("CLIP_SCALE", 2),
            ("NON_FINITE", 3),
            ("INVERSE_MEAN", 0),
            ("STEP_SIZE", 1),
            ("UPDATE_SIZE", 2),
            ("WEIGHT_SIZE", 3),
        ],
    },
];

const COLUMN_TILES: &[Variant] = &[Variant { name: "quads64", classes: ALL_CLASSES, constants: &[("WG", 64)] }];

const RUNS: &[Variant] = &[Variant {
    name: "run256x4",
    classes: ALL_CLASSES,
    constants: &[("WG", 64), ("QUADS", 4), ("CLIP_SCALE", 2), ("NON_FINITE", 3), ("INVERSE_MEAN", 0), ("STEP_SIZE", 1)],
}];

/// All programs, in the order of a step.
pub static PROGRAMS: [&Program; 6] = [&SUMS, &COLUMNS, &FACTOR, &PARTIAL, &FINISH, &APPLY];

const WGSL: &str = include_str!("../../../shaders/adafactor.wgsl");

/// Sums of squares of rows, and of the columns of each slot: bindings gradient, scalars, row_sums, column_partials.
pub static SUMS: Program = Program {
    kernel: Kernel {
        name: "adafactor_sums",
        wgsl: WGSL,
        bindings: &[
            read("gradient", Lane::Vec4),
            read("scalars", Lane::F32),
            write("row_sums", Lane::F32),
            write("column_partials", Lane::Vec4),
        ],
        params: SumsParams::FIELDS,
        variants: TILES,
        // In each lane a sum for each row, and those of four columns.
        held: |v| Held { accumulators: 4 * v.get("WG") * (v.get("ROWS") + 4), state: 0 },
        reference_f32: reference::sums,
        reference_f64: reference::sums,
        host: Some(host::sums),
    },
    bound: bound::sums,
    cases: cases::sums,
    fault: ("column = fma(g, g, column)", "column = fma(g, g, g)"),
};

/// Sums of squares of columns: bindings column_partials, column_sums.
pub static COLUMNS: Program = Program {
    kernel: Kernel {
        name: "adafactor_columns",
        wgsl: WGSL,
        bindings: &[read("column_partials", Lane::Vec4), write("column_sums", Lane::Vec4)],
        params: ColumnsParams::FIELDS,
        variants: COLUMN_TILES,
        // Four sums in each lane.
        held: |v| Held { accumulators: 16 * v.get("WG"), state: 0 },
        reference_f32: reference::columns,
        reference_f64: reference::columns,
        host: Some(host::columns),
    },
    bound: bound::columns,
    cases: cases::columns,
    fault: ("var slot = 0u", "var slot = 1u"),
};

/// Both moments after the step: bindings row_sums, column_sums, scalars, row, column, factors.
pub static FACTOR: Program = Program {
    kernel: Kernel {
        name: "adafactor_factor",
        wgsl: WGSL,
        bindings: &[
            read("row_sums", Lane::F32),
            read("column_sums", Lane::F32),
            read("scalars", Lane::F32),
            write("row", Lane::F32),
            write("column", Lane::F32),
            write("factors", Lane::F32),
        ],
        params: FactorParams::FIELDS,
        variants: TILES,
        // A sum in each lane.
        held: |v| Held { accumulators: 4 * v.get("WG"), state: 0 },
        reference_f32: reference::factor,
        reference_f64: reference::factor,
        host: None,
    },
    bound: bound::factor,
    cases: cases::factor,
    fault: ("column_sums[i] * p.inverse_rows", "column_sums[i] * p.inverse_cols"),
};

/// Sums of squares of update and weights, slot by slot: bindings gradient, weights, scalars, row, column, factors,
/// slot_sums.
pub static PARTIAL: Program = Program {
    kernel: Kernel {
        name: "adafactor_partial",
        wgsl: WGSL,
        bindings: &[
            read("gradient", Lane::Vec4),
            read("weights", Lane::Vec4),
            read("scalars", Lane::F32),
            read("row", Lane::F32),
            read("column", Lane::Vec4),
            read("factors", Lane::F32),
            write("slot_sums", Lane::F32),
        ],
        params: PassParams::FIELDS,
        variants: TILES,
        // In each lane four sums of the update and four of the weights.
        held: |v| Held { accumulators: 32 * v.get("WG"), state: 0 },
        reference_f32: reference::partial,
        reference_f64: reference::partial,
        host: Some(host::partial),
    },
    bound: bound::partial,
    cases: cases::partial,
    fault: ("fma(w, w, square_sum)", "fma(w, u, square_sum)"),
};

/// The size of the step: bindings slot_sums, factors.
pub static FINISH: Program = Program {
    kernel: Kernel {
        name: "adafactor_finish",
        wgsl: WGSL,
        bindings: &[read("slot_sums", Lane::F32), write("factors", Lane::F32)],
        params: FinishParams::FIELDS,
        variants: TILES,
        // Two sums in each lane.
        held: |v| Held { accumulators: 8 * v.get("WG"), state: 0 },
        reference_f32: reference::finish,
        reference_f64: reference::finish,
        host: None,
    },
    bound: bound::finish,
    cases: cases::finish,
    fault: ("max(1.0, update_size", "max(0.0, update_size"),
};

/// The update: bindings gradient, scalars, row, column, factors, weights.
pub static APPLY: Program = Program {
    kernel: Kernel {
        name: "adafactor_apply",
        wgsl: WGSL,
        bindings: &[
            read("gradient", Lane::Vec4),
            read("scalars", Lane::F32),
            read("row", Lane::F32),
            read("column", Lane::Vec4),
            read("factors", Lane::F32),
            write("weights", Lane::Vec4),
        ],
        params: PassParams::FIELDS,
        variants: RUNS,
        held: |_| Held::NOTHING,
        reference_f32: reference::apply,
        reference_f64: reference::apply,
        host: Some(host::apply),
    },
    bound: bound::apply,
    cases: cases::apply,
    fault: ("* p.decay", "* 1.0"),
};

/// Queues the sums of squares of a panel of the gradient that begins at row `first_row`: every panel of a tensor, in
/// order from row 0.
///
/// # Errors
/// [`DeviceError::Usage`] when the panel does not fit the tensor or its scratch; what the device says.
pub fn sums(device: &Device, tensor: &Tensor<'_>, gradient: &Matrix, first_row: usize) -> Result<()> {
    let (gradient_offset, row_quads) = tensor.check(gradient, first_row)?;
    let slots = slots(gradient.rows) as u32;
    let params = SumsParams { rows: gradient.rows as u32, row_quads, gradient_offset, first_row: first_row as u32 };
    let scratch = tensor.scratch;
    let views = [&gradient.view, tensor.scalars, &scratch.row_sums, &scratch.column_partials].map(View::clone);
    launch(device, &SUMS.kernel, &params, |_| slots, &views)?;
    let params = ColumnsParams { slots, row_quads, begins: (first_row == 0) as u32 };
    let views = [&scratch.column_partials, &scratch.column_sums].map(View::clone);
    launch(device, &COLUMNS.kernel, &params, |v| row_quads.div_ceil(v.get("WG")), &views)
}

/// Queues the step of the tensor's moments, after the sums of all its panels.
///
/// # Errors
/// [`DeviceError::Usage`] when a setting is out of its range or the state does not fit; what the device says.
pub fn factor(device: &Device, hyper: &Adafactor, tensor: &Tensor<'_>) -> Result<()> {
    let (rows, cols) = tensor.shape()?;
    let params = FactorParams {
        rows: rows as u32,
        cols: cols as u32,
        row_offset: 4 * tensor.row.row_quads()?.0,
        column_offset: 4 * tensor.column.row_quads()?.0,
        inverse_rows: (rows as f64).recip() as f32,
        inverse_cols: (cols as f64).recip() as f32,
        one_minus_beta2: hyper.words()?.one_minus_beta2,
        eps1: hyper.eps1(),
        is_vector: (rows == 1) as u32,
    };
    let Scratch { row_sums, column_sums, factors, .. } = tensor.scratch;
    let views =
        [row_sums, column_sums, tensor.scalars, &tensor.row.view, &tensor.column.view, factors].map(View::clone);
    launch(device, &FACTOR.kernel, &params, |_| 1, &views)
}

/// Queues the sums of the update's and the weights' squares of a panel that begins at row `first_row`, after [`factor`].
///
/// # Errors
/// [`DeviceError::Usage`] when a panel does not fit the tensor or its scratch; what the device says.
pub fn partial(
    device: &Device,
    hyper: &Adafactor,
    tensor: &Tensor<'_>,
    weights: &Matrix,
    gradient: &Matrix,
    first_row: usize,
) -> Result<()> {
    let params = tensor.pass(hyper, weights, gradient, first_row)?;
    let Scratch { slot_sums, factors, .. } = tensor.scratch;
    let state = [&tensor.row.view, &tensor.column.view];
    let views = [&gradient.view, &weights.view, tensor.scalars, state[0], state[1], factors, slot_sums];
    launch(device, &PARTIAL.kernel, &params, |_| slots(gradient.rows) as u32, &views.map(View::clone))
}

/// Queues the size of the tensor's step, after [`partial`] of all its panels.
///
/// # Errors
/// [`DeviceError::Usage`] when a setting is out of its range; what the device says.
pub fn finish(device: &Device, hyper: &Adafactor, tensor: &Tensor<'_>) -> Result<()> {
    let (rows, cols) = tensor.shape()?;
    let params = FinishParams {
        slots: slots(rows) as u32,
        inverse_count: (rows as f64 * cols as f64).recip() as f32,
        ..hyper.words()?.finish
    };
    let views = [&tensor.scratch.slot_sums, &tensor.scratch.factors].map(View::clone);
    launch(device, &FINISH.kernel, &params, |_| 1, &views)
}

/// Queues the update of a panel that begins at row `first_row`, after [`finish`]. Padding stays zero.
///
/// # Errors
/// [`DeviceError::Usage`] when a panel does not fit the tensor; what the device says.
pub fn apply(
    device: &Device,
    hyper: &Adafactor,
    tensor: &Tensor<'_>,
    weights: &Matrix,
    gradient: &Matrix,
    first_row: usize,
) -> Result<()> {
    let params = tensor.pass(hyper, weights, gradient, first_row)?;
    let state = [&tensor.row.view, &tensor.column.view];
    let views = [&gradient.view, tensor.scalars, state[0], state[1], &tensor.scratch.factors, &weights.view];
    launch(device, &APPLY.kernel, &params, |v| apply_groups(&params, v), &views.map(View::clone))
}

fn apply_groups(params: &PassParams, variant: &Variant) -> u32 {
    (params.rows * params.row_quads).div_ceil(variant.get("WG") * variant.get("QUADS"))
}

/// What settings and step come to, computed in f64.
struct Words {
    one_minus_beta2: f32,
    decay: f32,
    finish: FinishParams,
}

impl Adafactor {
    fn eps1(&self) -> f32 {
        self.eps1.unwrap_or(f32::EPSILON).max(f32::MIN_POSITIVE)
    }

    /// The words that do not depend on the tensor.
    fn words(&self) -> Result<Words> {
        let all = [self.lr, self.beta2_decay, self.eps1(), self.eps2, self.clip_threshold, self.weight_decay];
        let fits = all.iter().all(|x| x.is_finite())
            && self.lr >= 0.0
            && self.beta2_decay <= 0.0
            && self.eps1.is_none_or(|x| x > 0.0)
            && self.eps2 >= 0.0
            && self.clip_threshold >= 1.0
            && self.step > 0;
        if !fits {
            return Err(DeviceError::Usage(format!("adafactor: a setting is out of its range: {self:?}")));
        }
        let [lr, weight_decay] = [self.lr, self.weight_decay].map(decimal);
        let step = self.step as f64;
        Ok(Words {
            one_minus_beta2: step.powf(decimal(self.beta2_decay)) as f32,
            decay: (1.0 - lr * weight_decay) as f32,
            finish: FinishParams {
                slots: 0,
                inverse_count: 0.0,
                rho: lr.min(step.sqrt().recip()) as f32,
                eps2: self.eps2,
                inverse_threshold: f64::from(self.clip_threshold).recip() as f32,
            },
        })
    }
}

impl Tensor<'_> {
    /// Rows and columns, when state and scratch have room for them.
    fn shape(&self) -> Result<(usize, usize)> {
        let (rows, cols) = (self.row.cols, self.column.cols);
        let Scratch { row_sums, column_sums, slot_sums, factors, .. } = self.scratch;
        let fits = self.row.rows == 1
            && self.column.rows == 1
            && row_sums.len >= rows
            && column_sums.len >= Matrix::stride_for(cols)
            && slot_sums.len >= 2 * slots(rows)
            && factors.len >= FACTORS
            && self.scalars.len >= SCALARS;
        if fits { Ok((rows, cols)) } else { Err(DeviceError::Usage(format!("adafactor: {self:?} do not fit"))) }
    }

    /// Place and row of a panel of the tensor, in vec4 elements.
    fn check(&self, panel: &Matrix, first_row: usize) -> Result<(u32, u32)> {
        let (rows, cols) = self.shape()?;
        let place = panel.row_quads()?;
        let partials = slots(panel.rows) * panel.stride;
        let fits = panel.cols == cols
            && first_row.is_multiple_of(SLOT_ROWS)
            && first_row + panel.rows <= rows
            && self.scratch.column_partials.len >= partials;
        if fits {
            Ok(place)
        } else {
            Err(DeviceError::Usage(format!("adafactor: {panel:?} at row {first_row} does not fit {self:?}")))
        }
    }

    fn pass(&self, hyper: &Adafactor, weights: &Matrix, gradient: &Matrix, first_row: usize) -> Result<PassParams> {
        let (gradient_offset, row_quads) = self.check(gradient, first_row)?;
        let (weights_offset, _) = self.check(weights, first_row)?;
        if weights.rows != gradient.rows {
            return Err(DeviceError::Usage(format!("adafactor: {weights:?} and {gradient:?} differ")));
        }
        Ok(PassParams {
            rows: gradient.rows as u32,
            row_quads,
            gradient_offset,
            weights_offset,
            row_first: 4 * self.row.row_quads()?.0 + first_row as u32,
            column_offset: self.column.row_quads()?.0,
            first_slot: (first_row / SLOT_ROWS) as u32,
            eps1_squared: (f64::from(hyper.eps1()).powi(2) as f32).max(f32::MIN_POSITIVE),
            decay: hyper.words()?.decay,
        })
    }
}
