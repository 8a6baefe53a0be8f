//! The activations: every buffer of a training step but the panels, allocated once. What is kept between forward and
//! backward follows [`Recompute`]; it can change memory and time, never a bit. It must never know a parameter.

use super::config::Config;
use crate::device::{Buffer, Device, Elem, Result};
use crate::program::Matrix;

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
    /// Queries, keys and values: `[rows, 3 d]`.
    pub qkv: Matrix,
    /// Output of attention before its projection.
    pub attended: Matrix,
    /// Log-sum-exp of each query's scores: `[batch * heads, seq_len]`.
    pub lse: Matrix,
    /// Residual stream between attention and MLP.
    pub middle: Matrix,
    /// Output of the second norm, and its statistics.
    pub norm_2: (Matrix, Matrix),
    /// Input of the activation: `[rows, 4 d]`.
    pub up: Matrix,
    /// Output of the activation; the backward pass puts the gradient of `up` here.
    pub activated: Matrix,
}

/// Buffers of the backward pass, shared by all layers and micro-batches.
pub struct Gradients {
    /// Gradient of the residual stream between attention and MLP.
    pub middle: Matrix,
    /// Gradient of a norm's output, or of attention's; in the forward pass, what joins the residual stream.
    pub narrow: Matrix,
    /// Gradient of the activation's output: `[rows, 4 d]`.
    pub wide: Matrix,
    /// Gradient of queries, keys and values.
    pub qkv: Matrix,
    /// Row sums that the backward pass of attention needs: `[batch * heads, seq_len]`.
    pub delta: Matrix,
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
        let per_head = |label: &str| Matrix::new(device, label, shape.batch * config.heads, shape.seq_len);
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
            gradients: Gradients {
                middle: wide("gradient of middle", d)?,
                narrow: wide("gradient of a norm", d)?,
                wide: wide("gradient of activation", 4 * d)?,
                qkv: wide("gradient of qkv", 3 * d)?,
                delta: per_head("attention delta")?,
            },
            head: HeadActivations {
                norm: (wide("last norm", d)?, wide("last norm stats", 2)?),
                state: wide("softmax state", 3)?,
                losses: Matrix::new(device, "losses", 1, rows)?,
                logits: (0..logits_kept(config, shape, kept))
                    .map(|_| wide("logits of a chunk", chunk))
                    .collect::<Result<_>>()?,
            },
            ids: (0..micro).map(ids).collect::<Result<_>>()?,
            positions: (device.buffer("positions", Elem::U32, rows)?, Index::new(device, rows)?),
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
        let per_head = (shape.batch * config.heads) as u64 * stride(shape.seq_len);
        let (wide, qkv) = (stride(4 * config.d_model), stride(3 * config.d_model));
        let layer = rows * (4 * d + 2 * stride(2) + qkv + 2 * wide) + per_head;
        let sets = if kept { config.layers as u64 * micro } else { 1 };
        let inputs = if spilled { 2 } else { (config.layers as u64 + 1) * micro };
        let streams = rows * d * (inputs + micro);
        let gradients = rows * (2 * d + wide + qkv) + per_head;
        let chunk = stride(vocabulary_chunk(config, shape)) * logits_kept(config, shape, kept) as u64;
        let head = rows * (d + stride(2) + stride(3) + chunk) + stride(shape.rows());
        let ids = micro * (5 * rows + 1) + 4 * rows + 1;
        4 * (sets * layer + streams + gradients + head + ids)
    }
}

impl LayerActivations {
    /// For one layer and one micro-batch.
    pub fn new(device: &Device, config: &Config, shape: &Shape) -> Result<LayerActivations> {
        let (rows, d) = (shape.rows(), config.d_model);
        let wide = |label: &str, cols| Matrix::new(device, label, rows, cols);
        Ok(LayerActivations {
            norm_1: (wide("norm 1", d)?, wide("norm 1 stats", 2)?),
            qkv: wide("qkv", 3 * d)?,
            attended: wide("attended", d)?,
            lse: Matrix::new(device, "lse", shape.batch * config.heads, shape.seq_len)?,
            middle: wide("middle", d)?,
            norm_2: (wide("norm 2", d)?, wide("norm 2 stats", 2)?),
            up: wide("up", 4 * d)?,
            activated: wide("activated", 4 * d)?,
        })
    }
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
