//! The activations: every buffer of a training step but the panels, allocated once. What is kept between forward and
//! backward follows [`Recompute`]; it can change memory and time, never a bit. It must never know a parameter.

use super::config::{Config, Residual, Rotation};
use crate::device::{Buffer, Device, Elem, Result};
use crate::program::{Matrix, rotary};

/// Sizes of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
}

impl Shape {
    /// Tokens of a micro-batch: rows of every activation.
    pub fn rows(&self) -> usize {
        self.batch * self.seq_len
    }
}

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Everything: nothing is computed twice.
    None,
    /// Each layer's input; the backward pass computes the rest of a layer again.
    Layer,
    /// `none` where it fits the device memory allowed, else `layer`.
    Auto,
}

/// What one layer leaves for its backward pass.
pub struct LayerActivations {
    /// Output of the first norm, and its statistics.
    pub norm_1: (Matrix, Matrix),
    /// Queries, keys and values side by side; queries and keys turned by their positions where nothing norms them first.
    pub qkv: Matrix,
    /// Queries and keys after their norms, where they have such.
    pub qk_norm: Option<HeadNorms>,
    /// Output of attention before its projection.
    pub attended: Matrix,
    /// Log-sum-exp of each query's scores: `[batch * heads, seq_len]`.
    pub lse: Matrix,
    /// Residual stream between attention and MLP, where the MLP starts from it.
    pub middle: Option<Matrix>,
    /// Output of the second norm, and its statistics, where there is one.
    pub norm_2: Option<(Matrix, Matrix)>,
    /// Input of the nonlinearity, beside what it gates.
    pub up: Matrix,
    /// Its output; where nothing is gated, the backward pass puts the gradient of `up` here.
    pub activated: Matrix,
}

/// Queries and keys that were normed head by head.
pub struct HeadNorms {
    /// Both side by side, turned by their positions.
    pub turned: Matrix,
    /// Statistics of each head of the queries.
    pub query_stats: Matrix,
    /// And of the keys.
    pub key_stats: Matrix,
}

/// Buffers of the backward pass, shared by all layers and micro-batches.
pub struct Gradients {
    /// Gradient of the residual stream between attention and MLP; in the forward pass, that stream where no layer keeps it.
    pub middle: Matrix,
    /// Gradient of a norm's output, or of attention's; in the forward pass, what joins the residual stream.
    narrow: Matrix,
    /// Gradient of the nonlinearity's output.
    pub wide: Matrix,
    /// Gradient of what a gated nonlinearity takes.
    pub up: Option<Matrix>,
    /// Gradient of queries, keys and values.
    pub qkv: Matrix,
    /// Gradient of queries and keys after their norms.
    pub turned: Option<Matrix>,
    /// Gradient of what joined the residual stream, where a part of it was left out.
    pub joined: Option<Matrix>,
    /// Row sums that the backward pass of attention needs: `[batch * heads, seq_len]`.
    pub delta: Matrix,
}

impl Gradients {
    fn new(device: &Device, config: &Config, shape: &Shape) -> Result<Gradients> {
        let (rows, d, [q, k, _]) = (shape.rows(), config.d_model, config.qkv_widths());
        let wide = |label: &str, cols| Matrix::new(device, label, rows, cols);
        let perhaps = |there: bool, label, cols| there.then(|| wide(label, cols)).transpose();
        Ok(Gradients {
            middle: wide("gradient of middle", d)?,
            narrow: wide("gradient of a norm", d.max(q))?,
            wide: wide("gradient of the activation", config.d_ff())?,
            up: perhaps(config.gated, "gradient of the gated", config.up_width())?,
            qkv: wide("gradient of qkv", config.qkv_width())?,
            turned: perhaps(config.qk_norm, "gradient of normed queries and keys", q + k)?,
            joined: perhaps(config.dropout > 0.0, "gradient of what joined", d)?,
            delta: Matrix::new(device, "attention delta", shape.batch * config.heads, shape.seq_len)?,
        })
    }

    /// Gradient of a norm's output, or of attention's; in the forward pass, what joins the residual stream.
    pub fn narrow(&self, cols: usize) -> Matrix {
        Matrix::over(&self.narrow.view.buffer, self.narrow.rows, cols)
    }

    /// Floats of [`Gradients::new`].
    fn floats(config: &Config, shape: &Shape) -> u64 {
        let stride = |cols: usize| Matrix::stride_for(cols) as u64;
        let perhaps = |there: bool, cols| if there { stride(cols) } else { 0 };
        let (d, [q, k, _]) = (config.d_model, config.qkv_widths());
        let row = stride(d) + stride(d.max(q)) + stride(config.d_ff()) + stride(config.qkv_width());
        let row = row + perhaps(config.gated, config.up_width()) + perhaps(config.qk_norm, q + k);
        let row = row + perhaps(config.dropout > 0.0, d);
        shape.rows() as u64 * row + per_head(config, shape)
    }
}

/// Floats of one number for each head and query.
fn per_head(config: &Config, shape: &Shape) -> u64 {
    (shape.batch * config.heads * Matrix::stride_for(shape.seq_len)) as u64
}

/// The head: last norm and loss.
pub struct HeadActivations {
    /// Output of the last norm, and its statistics.
    pub norm: (Matrix, Matrix),
    /// Running maximum, running sum and target's logit of each row.
    pub state: Matrix,
    /// Loss of each row: `[1, rows]`.
    pub losses: Matrix,
    /// Logits of each vocabulary chunk where everything is kept, else of one at a time.
    pub logits: Vec<Matrix>,
}

/// Token ids of one micro-batch, and where each occurs.
pub struct Ids {
    /// Inputs, one per row.
    pub inputs: Buffer,
    /// Targets, one per row.
    pub targets: Buffer,
    /// Rows by token: see [`crate::program::embedding::Occurrences`].
    pub index: Index,
}

/// Device copy of [`crate::program::embedding::Occurrences`].
pub struct Index {
    /// Rows, grouped by id.
    pub rows: Buffer,
    /// First of each group, and the end.
    pub starts: Buffer,
    /// Id of each group.
    pub ids: Buffer,
    /// Groups that there are.
    pub count: usize,
}

impl Index {
    /// Room for `rows` ids.
    pub fn new(device: &Device, rows: usize) -> Result<Index> {
        Ok(Index {
            rows: device.buffer("occurrence rows", Elem::U32, rows)?,
            starts: device.buffer("occurrence starts", Elem::U32, rows + 1)?,
            ids: device.buffer("occurrence ids", Elem::U32, rows)?,
            count: 0,
        })
    }
}

/// All activations of a model for one shape.
pub struct Activations {
    /// Residual stream before each layer and after the last: `[layer][micro-batch]`, or two that take turns.
    pub stream: Vec<Vec<Matrix>>,
    /// Kept activations: `[layer][micro-batch]`, or one set that all share.
    pub layers: Vec<Vec<LayerActivations>>,
    /// Gradient of the residual stream of each micro-batch.
    pub d_stream: Vec<Matrix>,
    /// Buffers of the backward pass.
    pub gradients: Gradients,
    /// The head.
    pub head: HeadActivations,
    /// Ids of each micro-batch.
    pub ids: Vec<Ids>,
    /// Position of each row, and where each position occurs.
    pub positions: (Buffer, Index),
    /// Cosines and sines by position, where positions turn.
    pub rotary: Option<Matrix>,
}

impl Activations {
    /// Allocates for a model and a shape; `kept` is false where layers are recomputed, `spilled` where their inputs leave
    /// the device.
    ///
    /// # Errors
    /// What the device says: a buffer too large, or no memory left.
    pub fn new(device: &Device, config: &Config, shape: &Shape, kept: bool, spilled: bool) -> Result<Activations> {
        let (rows, d, micro) = (shape.rows(), config.d_model, shape.micro_batches);
        let wide = |label: &str, cols| Matrix::new(device, label, rows, cols);
        let streams = |label: &'static str, n| (0..n).map(move |_| wide(label, d)).collect::<Result<Vec<_>>>();
        let inputs = if spilled { (2, 1) } else { (config.layers + 1, micro) };
        let sets = if kept { (config.layers, micro) } else { (1, 1) };
        let chunk = vocabulary_chunk(config, shape);
        let set = |_| (0..sets.1).map(|_| LayerActivations::new(device, config, shape)).collect::<Result<Vec<_>>>();
        let ids = |_| -> Result<Ids> {
            Ok(Ids {
                inputs: device.buffer("inputs", Elem::U32, rows)?,
                targets: device.buffer("targets", Elem::U32, rows)?,
                index: Index::new(device, rows)?,
            })
        };
        Ok(Activations {
            stream: (0..inputs.0).map(|_| streams("residual stream", inputs.1)).collect::<Result<_>>()?,
            layers: (0..sets.0).map(set).collect::<Result<_>>()?,
            d_stream: streams("gradient of the residual stream", micro)?,
            gradients: Gradients::new(device, config, shape)?,
            head: HeadActivations {
                norm: (wide("last norm", d)?, wide("last norm stats", config.norm.statistics())?),
                state: wide("softmax state", 3)?,
                losses: Matrix::new(device, "losses", 1, rows)?,
                logits: (0..logits_kept(config, shape, kept))
                    .map(|_| wide("logits of a chunk", chunk))
                    .collect::<Result<_>>()?,
            },
            ids: (0..micro).map(ids).collect::<Result<_>>()?,
            positions: (device.buffer("positions", Elem::U32, rows)?, Index::new(device, rows)?),
            rotary: rotary_table(device, config, shape.seq_len)?,
        })
    }

    /// Kept activations of a layer for a micro-batch.
    pub fn layer(&self, layer: usize, micro: usize) -> &LayerActivations {
        &self.layers[layer.min(self.layers.len() - 1)][micro.min(self.layers[0].len() - 1)]
    }

    /// Device bytes that [`Activations::new`] allocates.
    pub fn bytes(config: &Config, shape: &Shape, kept: bool, spilled: bool) -> u64 {
        let stride = |cols: usize| Matrix::stride_for(cols) as u64;
        let (rows, d, micro) = (shape.rows() as u64, stride(config.d_model), shape.micro_batches as u64);
        let sets = if kept { config.layers as u64 * micro } else { 1 };
        let inputs = if spilled { 2 } else { (config.layers as u64 + 1) * micro };
        let streams = rows * d * (inputs + micro);
        let chunk = stride(vocabulary_chunk(config, shape)) * logits_kept(config, shape, kept) as u64;
        let head = rows * (d + stride(config.norm.statistics()) + stride(3) + chunk) + stride(shape.rows());
        let dims = config.rotary_dims();
        let table = if dims > 0 { shape.seq_len as u64 * stride(dims) } else { 0 };
        let layer = LayerActivations::floats(config, shape);
        let shared = Gradients::floats(config, shape) + head + table;
        let ids = micro * (5 * rows + 1) + 4 * rows + 1;
        4 * (sets * layer + streams + shared + ids)
    }
}

impl LayerActivations {
    /// For one layer and one micro-batch.
    pub fn new(device: &Device, config: &Config, shape: &Shape) -> Result<LayerActivations> {
        let (rows, d, [q, k, _]) = (shape.rows(), config.d_model, config.qkv_widths());
        let wide = |label: &str, cols| Matrix::new(device, label, rows, cols);
        let statistics = config.norm.statistics();
        let head_norms = || -> Result<HeadNorms> {
            Ok(HeadNorms {
                turned: wide("normed queries and keys", q + k)?,
                query_stats: wide("query norm stats", config.heads)?,
                key_stats: wide("key norm stats", config.key_value_heads())?,
            })
        };
        let norm_2 = || -> Result<_> { Ok((wide("norm 2", d)?, wide("norm 2 stats", statistics)?)) };
        Ok(LayerActivations {
            norm_1: (wide("norm 1", d)?, wide("norm 1 stats", statistics)?),
            qkv: wide("qkv", config.qkv_width())?,
            qk_norm: config.qk_norm.then(head_norms).transpose()?,
            attended: wide("attended", q)?,
            lse: Matrix::new(device, "lse", shape.batch * config.heads, shape.seq_len)?,
            middle: (config.residual == Residual::Serial).then(|| wide("middle", d)).transpose()?,
            norm_2: (config.residual != Residual::Shared).then(norm_2).transpose()?,
            up: wide("up", config.up_width())?,
            activated: wide("activated", config.d_ff())?,
        })
    }

    /// Floats of [`LayerActivations::new`].
    fn floats(config: &Config, shape: &Shape) -> u64 {
        let stride = |cols: usize| Matrix::stride_for(cols) as u64;
        let perhaps = |there: bool, floats| if there { floats } else { 0 };
        let ([q, k, _], norm) = (config.qkv_widths(), stride(config.d_model) + stride(config.norm.statistics()));
        let head_norms = stride(q + k) + stride(config.heads) + stride(config.key_value_heads());
        let row = norm + stride(config.qkv_width()) + stride(q) + stride(config.up_width()) + stride(config.d_ff());
        let row = row + perhaps(config.qk_norm, head_norms) + perhaps(config.residual != Residual::Shared, norm);
        let row = row + perhaps(config.residual == Residual::Serial, stride(config.d_model));
        shape.rows() as u64 * row + per_head(config, shape)
    }

    /// The same for the first `n` rows of one sequence.
    pub fn first_rows(&self, n: usize) -> LayerActivations {
        let pair = |(a, b): &(Matrix, Matrix)| (first_rows(a, n), first_rows(b, n));
        LayerActivations {
            norm_1: pair(&self.norm_1),
            qkv: first_rows(&self.qkv, n),
            qk_norm: self.qk_norm.as_ref().map(|norms| HeadNorms {
                turned: first_rows(&norms.turned, n),
                query_stats: first_rows(&norms.query_stats, n),
                key_stats: first_rows(&norms.key_stats, n),
            }),
            attended: first_rows(&self.attended, n),
            lse: Matrix::over(&self.lse.view.buffer, self.lse.rows, n),
            middle: self.middle.as_ref().map(|middle| first_rows(middle, n)),
            norm_2: self.norm_2.as_ref().map(pair),
            up: first_rows(&self.up, n),
            activated: first_rows(&self.activated, n),
        }
    }
}

/// The first `n` rows, as a matrix whose view ends with them.
pub(super) fn first_rows(matrix: &Matrix, n: usize) -> Matrix {
    Matrix::over(&matrix.view.buffer, n, matrix.cols)
}

/// Cosines and sines of the first `positions`, where positions turn.
pub(super) fn rotary_table(device: &Device, config: &Config, positions: usize) -> Result<Option<Matrix>> {
    let table = |rotation: &Rotation| {
        let frequencies = rotary::frequencies(config.rotary_dims(), rotation.base, rotation.scaling.as_ref());
        rotary::table(device, "rotary", positions, &frequencies)
    };
    config.rotary.as_ref().map(table).transpose()
}

/// Chunks of logits that lie on the device at once: all of them where everything is kept for the backward pass.
fn logits_kept(config: &Config, shape: &Shape, kept: bool) -> usize {
    if kept { config.vocab_size.div_ceil(vocabulary_chunk(config, shape)) } else { 1 }
}

/// Columns of logits computed at a time: a power of two times the contraction chunk, at most 8192, so that weights and
/// logits of a chunk take at most 32 MiB each where that is possible. A function of the model and the shape alone: it is
/// part of the arithmetic.
pub fn vocabulary_chunk(config: &Config, shape: &Shape) -> usize {
    let widest = config.d_model.max(shape.rows());
    let mut chunk = 8192;
    while chunk > 512 && chunk * widest * 4 > 32 << 20 {
        chunk /= 2;
    }
    chunk.min(config.vocab_size)
}
