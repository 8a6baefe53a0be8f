//! Inference one token after another with a cache of keys and values: the blocks of training, the queries starting where the
//! cache ends. It must never know how a token is chosen.

use super::activations::{LayerActivations, Shape, first_rows, rotary_table};
use super::config::Config;
use super::gpt::embed;
use super::layer::Block;
use super::linear::{self, Normed};
use super::table::Table;
use crate::device::{Buffer, Device, Elem};
use crate::program::Matrix;
use crate::program::matmul::{self, Form, Matmul};
use crate::program::schedule::Fabric;
use crate::store::{Result, Store};

/// The most tokens of a sequence, where the context is longer: cache and buffers are made for so many.
const LENGTH: usize = 4096;

/// A sequence being extended: the cache of every layer, and the buffers of a pass.
pub struct Decoder {
    config: Config,
    table: Table,
    caches: Vec<[Matrix; 2]>,
    ids: Buffer,
    positions: Buffer,
    rotary: Option<Matrix>,
    /// Two that take turns, what joins them, and the one between attention and MLP.
    streams: [Matrix; 4],
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
        let (length, d, [_, k, v]) = (config.context.min(LENGTH), config.d_model, config.qkv_widths());
        let shape = Shape { batch: 1, seq_len: length, micro_batches: 1 };
        let matrix = |label: &str, cols| Matrix::new(device, label, length, cols);
        let cache = |_| -> Result<[Matrix; 2]> { Ok([matrix("key cache", k)?, matrix("value cache", v)?]) };
        Ok(Decoder {
            config: config.clone(),
            table: Table::new(config),
            caches: (0..config.layers).map(cache).collect::<Result<_>>()?,
            ids: device.buffer("ids", Elem::U32, length)?,
            positions: device.buffer("positions", Elem::U32, length)?,
            rotary: rotary_table(device, config, length)?,
            streams: [matrix("stream", d)?, matrix("next stream", d)?, matrix("joins", d)?, matrix("middle", d)?],
            kept: LayerActivations::new(device, config, &shape)?,
            last: (matrix("last norm", d)?, matrix("last norm stats", config.norm.statistics())?),
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
        assert!(!tokens.is_empty() && self.tokens.len() <= self.context(), "1 token to {}", self.context());
        self.pass(fabric, store, start)
    }

    /// The most tokens of a sequence.
    pub fn context(&self) -> usize {
        self.caches[0][0].rows
    }

    /// Forgets all tokens.
    pub fn restart(&mut self) {
        self.tokens.clear();
    }

    /// Runs the tokens from `start` on through all layers.
    fn pass(&self, fabric: &Fabric, store: &mut Store, start: usize) -> Result<Vec<f32>> {
        let (device, n) = (fabric.device(), self.tokens.len() - start);
        device.upload(&self.ids.view(0, n), &self.tokens[start..])?;
        let [mut x, mut y, joins, middle] = [0, 1, 2, 3].map(|i| first_rows(&self.streams[i], n));
        store.begin_visit(&[], &[])?;
        if let Some(table) = self.table.positions {
            let positions: Vec<u32> = (start as u32..self.tokens.len() as u32).collect();
            device.upload(&self.positions.view(0, n), &positions)?;
            embed(fabric, store, table, &self.positions.view(0, n), &x, false)?;
        }
        embed(fabric, store, self.table.tokens, &self.ids.view(0, n), &x, self.table.positions.is_some())?;
        let (kept, shape) = (self.kept.first_rows(n), Shape { batch: 1, seq_len: n, micro_batches: 1 });
        for (rows, cache) in self.table.layers.iter().zip(&self.caches) {
            let block = Block {
                config: &self.config,
                shape: &shape,
                rows,
                kept: &kept,
                x: x.clone(),
                joins: &joins,
                middle: &middle,
                rotary: self.rotary.as_ref(),
                masks: None,
                cache: Some((cache, start)),
            };
            block.forward(fabric, store, Some(&y))?;
            std::mem::swap(&mut x, &mut y);
        }
        self.head(fabric, store, &x)
    }

    /// The logits after the last row of the residual stream.
    fn head(&self, fabric: &Fabric, store: &mut Store, x: &Matrix) -> Result<Vec<f32>> {
        let (norm, stats) = (first_rows(&self.last.0, x.rows), first_rows(&self.last.1, x.rows));
        linear::norm(fabric, store, self.table.norm_f, Normed::of(&self.config), x, &norm, &stats)?;
        let (a, head) = (norm.rows(x.rows - 1, 1), self.table.head);
        for panel in store.panels(head.weight) {
            store.begin_operation();
            let weight = store.weight(head.weight, panel)?;
            let bias = linear::bias(store, head, panel.first_row, panel.rows)?;
            let c = self.logits.columns(panel.first_row, panel.rows);
            let product = Matmul { form: Form::NT, a: &a, b: &weight, c: &c, bias: bias.as_ref(), accumulate: false };
            matmul::run(fabric, &product)?;
        }
        Ok(self.logits.download(fabric.device())?)
    }
}
