//! Inference one token after another with a cache of keys and values: the same programs as training, the queries starting
//! where the cache ends. It must never know how a token is chosen.

use super::activations::{LayerActivations, Shape};
use super::config::Config;
use super::gpt::embed;
use super::layer::attention_shape;
use super::linear;
use super::table::{LayerRows, Table};
use crate::device::{Buffer, Device, Elem, Transfer};
use crate::program::matmul::{self, Form, Matmul};
use crate::program::schedule::Fabric;
use crate::program::{Matrix, activation, attention, residual_add};
use crate::store::{Result, Store};

/// A sequence being extended: the cache of every layer, and the buffers of a pass.
pub struct Decoder {
    config: Config,
    table: Table,
    caches: Vec<[Matrix; 2]>,
    ids: Buffer,
    positions: Buffer,
    streams: [Matrix; 3],
    kept: LayerActivations,
    last: (Matrix, Matrix),
    logits: Matrix,
    tokens: Vec<u32>,
}

impl Decoder {
    /// An empty sequence.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(device: &Device, config: &Config) -> Result<Decoder> {
        let (context, d) = (config.context, config.d_model);
        let shape = Shape { batch: 1, seq_len: context, micro_batches: 1 };
        let matrix = |label: &str, cols| Matrix::new(device, label, context, cols);
        let cache = |_| -> Result<[Matrix; 2]> { Ok([matrix("key cache", d)?, matrix("value cache", d)?]) };
        Ok(Decoder {
            config: config.clone(),
            table: Table::new(config),
            caches: (0..config.layers).map(cache).collect::<Result<_>>()?,
            ids: device.buffer("ids", Elem::U32, context)?,
            positions: device.buffer("positions", Elem::U32, context)?,
            streams: [matrix("stream", d)?, matrix("next stream", d)?, matrix("joins", d)?],
            kept: LayerActivations::new(device, config, &shape)?,
            last: (matrix("last norm", d)?, matrix("last norm stats", 2)?),
            logits: Matrix::new(device, "logits", 1, config.vocab_size)?,
            tokens: Vec::new(),
        })
    }

    /// Appends tokens and returns the logits of the token after them.
    ///
    /// # Errors
    /// What the device says.
    ///
    /// # Panics
    /// Without a token, or beyond the context.
    pub fn extend(&mut self, fabric: &Fabric, store: &mut Store, tokens: &[u32]) -> Result<Vec<f32>> {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        assert!(!tokens.is_empty() && self.tokens.len() <= self.config.context, "1 token to {}", self.config.context);
        self.pass(fabric, store, start)
    }

    /// The most tokens of a sequence.
    pub fn context(&self) -> usize {
        self.config.context
    }

    /// Forgets all tokens.
    pub fn restart(&mut self) {
        self.tokens.clear();
    }

    /// Runs the tokens from `start` on through all layers.
    fn pass(&self, fabric: &Fabric, store: &mut Store, start: usize) -> Result<Vec<f32>> {
        let (device, n) = (fabric.device(), self.tokens.len() - start);
        let positions: Vec<u32> = (start as u32..self.tokens.len() as u32).collect();
        device.upload(&self.ids.view(0, n), &self.tokens[start..])?;
        device.upload(&self.positions.view(0, n), &positions)?;
        let [mut x, mut y, joins] = [0, 1, 2].map(|i| first_rows(&self.streams[i], n));
        store.begin_visit(&[], &[])?;
        embed(fabric, store, self.table.positions, &self.positions.view(0, n), &x, false)?;
        embed(fabric, store, self.table.tokens, &self.ids.view(0, n), &x, true)?;
        for (rows, cache) in self.table.layers.iter().zip(&self.caches) {
            self.layer(fabric, store, rows, cache, start, [&x, &y, &joins])?;
            std::mem::swap(&mut x, &mut y);
        }
        let (norm, stats) = (first_rows(&self.last.0, n), first_rows(&self.last.1, n));
        linear::norm(fabric, store, self.table.norm_f, self.config.norm_eps, &x, &norm, &stats)?;
        let a = norm.rows(n - 1, 1);
        for panel in store.panels(self.table.tokens) {
            store.begin_operation();
            let weight = store.weight(self.table.tokens, panel)?;
            let c = self.logits.columns(panel.first_row, panel.rows);
            matmul::run(fabric, &Matmul { form: Form::NT, a: &a, b: &weight, c: &c, bias: None, accumulate: false })?;
        }
        Ok(self.logits.download(device)?)
    }

    fn layer(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        rows: &LayerRows,
        cache: &[Matrix; 2],
        start: usize,
        [x, y, joins]: [&Matrix; 3],
    ) -> Result<()> {
        let (device, n, d, eps) = (fabric.device(), x.rows, self.config.d_model, self.config.norm_eps);
        let kept = |matrix: &Matrix| first_rows(matrix, n);
        let (norm, qkv, attended) = (kept(&self.kept.norm_1.0), kept(&self.kept.qkv), kept(&self.kept.attended));
        linear::norm(fabric, store, rows.norm_1, eps, x, &norm, &kept(&self.kept.norm_1.1))?;
        linear::forward(fabric, store, rows.qkv, &norm, &qkv)?;
        for (part, cache) in cache.iter().enumerate() {
            device.copy(&rows_into(&qkv.columns((part + 1) * d, d), cache, start))?;
        }
        let shape = attention_shape(&self.config, 1, start, n, self.config.context);
        let lse = Matrix::over(&self.kept.lse.view.buffer, self.config.heads, n);
        attention::forward(fabric, &shape, &qkv.columns(0, d), &cache[0], &cache[1], &attended, &lse)?;
        linear::forward(fabric, store, rows.out, &attended, joins)?;
        let (middle, up, activated) = (kept(&self.kept.middle), kept(&self.kept.up), kept(&self.kept.activated));
        residual_add::run(device, x, joins, &middle)?;
        linear::norm(fabric, store, rows.norm_2, eps, &middle, &norm, &kept(&self.kept.norm_2.1))?;
        linear::forward(fabric, store, rows.up, &norm, &up)?;
        activation::forward(device, self.config.activation, &up, &activated)?;
        linear::forward(fabric, store, rows.down, &activated, joins)?;
        residual_add::run(device, &middle, joins, y)?;
        Ok(())
    }
}

/// The first `n` rows, as a matrix whose view ends with them.
fn first_rows(matrix: &Matrix, n: usize) -> Matrix {
    Matrix::over(&matrix.view.buffer, n, matrix.cols)
}

/// The copy of all rows of `from` to rows `start ..` of `to`.
fn rows_into(from: &Matrix, to: &Matrix, start: usize) -> Transfer {
    Transfer {
        source: from.view.buffer.clone(),
        source_offset: from.view.offset + from.offset,
        source_stride: from.stride,
        target: to.view.buffer.clone(),
        target_offset: to.view.offset + to.offset + start * to.stride,
        target_stride: to.stride,
        rows: from.rows,
        cols: from.cols,
    }
}
