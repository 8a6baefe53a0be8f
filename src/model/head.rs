//! The head and the loss over vocabulary chunks. Forward goes up the vocabulary keeping a running maximum and sum for each row;
//! backward goes down it, starting with the chunk that forward left in place. Where everything is kept for the backward pass
//! so are the logits; else a chunk overwrites the one before, and backward computes them again (equal bits).

use super::activations::{Activations, vocabulary_chunk};
use super::gpt::Gpt;
use super::linear::{self, Completion, NormGradient, Normed};
use crate::program::matmul::{self, Form, Matmul};
use crate::program::schedule::Fabric;
use crate::program::{Matrix, column_sum, cross_entropy};
use crate::store::{Panel, Result, Store};

/// The rows of one panel that fall in one chunk.
struct Piece {
    panel: Panel,
    /// First row within the panel.
    in_panel: usize,
    /// First column within the chunk.
    in_chunk: usize,
    rows: usize,
}

/// One sweep of the head over a micro-batch.
pub struct Sweep<'a> {
    gpt: &'a Gpt,
    acts: &'a Activations,
    micro: usize,
    /// The residual stream after the last layer.
    x: Matrix,
    chunk: usize,
}

impl<'a> Sweep<'a> {
    /// For a micro-batch of a model, with the residual stream after its last layer.
    pub fn new(gpt: &'a Gpt, micro: usize, x: Matrix) -> Sweep<'a> {
        Sweep { gpt, acts: gpt.activations(), micro, x, chunk: vocabulary_chunk(gpt.config(), gpt.shape()) }
    }

    /// Fills the losses of the rows.
    pub fn forward(&self, fabric: &Fabric, store: &mut Store) -> Result<()> {
        let head = &self.acts.head;
        self.norm(fabric, store)?;
        let targets = self.acts.ids[self.micro].targets.all();
        for chunk in 0..self.chunks() {
            let logits = self.logits(fabric, store, chunk)?;
            cross_entropy::forward(fabric, &logits, &targets, chunk * self.chunk, &head.state, chunk == 0)?;
        }
        Ok(cross_entropy::finish(fabric.device(), &targets, &head.state, &head.losses)?)
    }

    /// Hands out the logits of all rows, a chunk of the vocabulary at a time, as `take(first id, [rows, ids])`. The next
    /// chunk overwrites them.
    pub fn each_chunk(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        take: &mut dyn FnMut(usize, &Matrix) -> Result<()>,
    ) -> Result<()> {
        self.norm(fabric, store)?;
        (0..self.chunks()).try_for_each(|chunk| take(chunk * self.chunk, &self.logits(fabric, store, chunk)?))
    }

    /// After [`Sweep::forward`] of the same micro-batch: gradients of the head and of the residual stream, of
    /// `scale` times the sum of the losses.
    pub fn backward(&self, fabric: &Fabric, store: &mut Store, scale: f32, done: &mut Completion<'_>) -> Result<()> {
        let targets = self.acts.ids[self.micro].targets.all();
        let ((y, stats), state) = (&self.acts.head.norm, &self.acts.head.state);
        let d_norm = &self.acts.gradients.narrow(self.gpt.config().d_model);
        for chunk in (0..self.chunks()).rev() {
            let last = chunk + 1 == self.chunks();
            let left = last || self.acts.head.logits.len() > 1;
            let logits = if left { self.columns(chunk) } else { self.logits(fabric, store, chunk)? };
            cross_entropy::backward(fabric, &logits, &targets, state, chunk * self.chunk, scale)?;
            for piece in self.pieces(store, chunk) {
                let head = self.gpt.table().head.weight;
                let a = logits.columns(piece.in_chunk, piece.rows);
                store.begin_operation();
                let weight = store.weight(head, piece.panel)?.rows(piece.in_panel, piece.rows);
                let accumulate = !last || piece.in_chunk > 0;
                matmul::run(fabric, &Matmul { form: Form::NN, a: &a, b: &weight, c: d_norm, bias: None, accumulate })?;
                store.begin_operation();
                let gradient = self.gradient(store, &piece)?;
                let product =
                    Matmul { form: Form::TN, a: &a, b: y, c: &gradient.0, bias: None, accumulate: gradient.1 };
                matmul::run(fabric, &product)?;
                // Chunks go down the vocabulary: the first row of a panel is the last to come.
                if !self.gpt.config().tied && piece.in_panel == 0 {
                    done.panel(store, head, piece.panel)?;
                }
            }
            self.backward_bias(fabric, store, chunk, &logits, done)?;
        }
        let dx = &self.acts.d_stream[self.micro];
        let norm = NormGradient { x: &self.x, stats, dy: d_norm, residual: None, dx };
        linear::norm_backward(fabric, store, (self.gpt.table().norm_f, self.gpt.config().norm), &norm, done)
    }

    /// Adds the column sums of a chunk of the logits' gradient to that of the head's bias, where it has one.
    fn backward_bias(
        &self,
        fabric: &Fabric,
        store: &mut Store,
        chunk: usize,
        d_logits: &Matrix,
        done: &mut Completion<'_>,
    ) -> Result<()> {
        let Some(bias) = self.gpt.table().head.bias else { return Ok(()) };
        for panel in store.panels(bias) {
            store.begin_operation();
            let gradient = store.gradient_to_add(bias, panel)?.columns(chunk * self.chunk, d_logits.cols);
            column_sum::run(fabric, d_logits, &gradient, true)?;
            if chunk == 0 {
                done.panel(store, bias, panel)?;
            }
        }
        Ok(())
    }

    /// The rows of a panel's gradient that belong to a piece, and whether to add to them. Chunks come from the last one
    /// down, so a panel is fresh at its last piece; the rest of it is zeroed then, and added to later.
    fn gradient(&self, store: &mut Store, piece: &Piece) -> Result<(Matrix, bool)> {
        let head = self.gpt.table().head.weight;
        let whole = piece.rows == piece.panel.rows;
        let (gradient, accumulate) = if whole {
            let (gradient, fresh) = store.gradient(head, piece.panel)?;
            (gradient, !fresh)
        } else {
            (store.gradient_to_add(head, piece.panel)?, true)
        };
        Ok((gradient.rows(piece.in_panel, piece.rows), accumulate))
    }

    /// The last norm: what the head multiplies.
    fn norm(&self, fabric: &Fabric, store: &mut Store) -> Result<()> {
        let (y, stats) = &self.acts.head.norm;
        linear::norm(fabric, store, self.gpt.table().norm_f, Normed::of(self.gpt.config()), &self.x, y, stats)
    }

    fn chunks(&self) -> usize {
        self.gpt.config().vocab_size.div_ceil(self.chunk)
    }

    fn columns(&self, chunk: usize) -> Matrix {
        let cols = self.chunk.min(self.gpt.config().vocab_size - chunk * self.chunk);
        let kept = &self.acts.head.logits;
        let logits = &kept[chunk % kept.len()];
        // The last chunk may be narrower: its padding is its own, so its rows lie as if it were the whole buffer.
        Matrix::over(&logits.view.buffer, logits.rows, cols)
    }

    fn logits(&self, fabric: &Fabric, store: &mut Store, chunk: usize) -> Result<Matrix> {
        let logits = self.columns(chunk);
        for piece in self.pieces(store, chunk) {
            store.begin_operation();
            let head = self.gpt.table().head;
            let weight = store.weight(head.weight, piece.panel)?.rows(piece.in_panel, piece.rows);
            let c = logits.columns(piece.in_chunk, piece.rows);
            let (a, first) = (&self.acts.head.norm.0, piece.panel.first_row + piece.in_panel);
            let bias = linear::bias(store, head, first, piece.rows)?;
            let product = Matmul { form: Form::NT, a, b: &weight, c: &c, bias: bias.as_ref(), accumulate: false };
            matmul::run(fabric, &product)?;
        }
        Ok(logits)
    }

    fn pieces(&self, store: &Store, chunk: usize) -> Vec<Piece> {
        let (from, to) = (chunk * self.chunk, ((chunk + 1) * self.chunk).min(self.gpt.config().vocab_size));
        let piece = |panel: Panel| {
            let (first, end) = (panel.first_row.max(from), (panel.first_row + panel.rows).min(to));
            (first < end).then(|| Piece {
                panel,
                in_panel: first - panel.first_row,
                in_chunk: first - from,
                rows: end - first,
            })
        };
        store.panels(self.gpt.table().head.weight).filter_map(piece).collect()
    }
}
