//! One of the three stepwise kernels with its operands, ready for a fabric: blocks, steps, and what a tile receives when.
//! It knows the route; it must never know the arithmetic.

use super::{
    Attention, AttentionParams, BACKWARD_KEY_VALUE, BACKWARD_QUERY, FORWARD, INBOX, SAVES, place, variant_for,
};
use crate::device::{Buffer, Class, Device, DeviceError, Kernel, Launch, Result, Variant, View};
use crate::program::Matrix;
use crate::program::schedule::{Block, Origin, Round, Source, Stepwise};
use crate::wafer::{self, Cost, Wafer, Work};

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tiles keep queries and receive k, v.
    Forward,
    /// The same, for `dq`.
    Query,
    /// Tiles keep keys and values and receive q, d_out, lse, delta.
    KeyValue,
}

/// A stepwise kernel and its operands.
pub struct Pass<'a> {
    kind: Kind,
    kernel: &'static Kernel,
    variant: &'static Variant,
    shape: &'a Attention,
    params: AttentionParams,
    /// Own blocks of a sequence, and steps of the longest tile.
    extent: (u32, u32),
    /// All bindings but the state, operands in place.
    views: Vec<View>,
    received: Vec<Matrix>,
}

impl<'a> Pass<'a> {
    /// The forward pass, with the operands of [`forward`](super::forward), as a device of a class runs it.
    ///
    /// # Errors
    /// [`DeviceError::Usage`] for a shape that is none or matrices that do not have it.
    pub fn forward(
        class: Class,
        shape: &'a Attention,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        out: &Matrix,
        lse: &Matrix,
    ) -> Result<Pass<'a>> {
        shape.check(&[q, out], &[k, v], &[lse])?;
        let mut params = shape.params(q, k, v, lse);
        (params.o_offset, params.o_stride) = place(out);
        Ok(Pass::new(Kind::Forward, shape, class, params, &[q, k, v, out, lse], &[k, v]))
    }

    /// The gradient of the queries, with operands of [`backward`](super::backward).
    ///
    /// # Errors
    /// As [`Pass::forward`].
    #[allow(clippy::too_many_arguments)] // the operands of the formula, in its order
    pub fn backward_query(
        class: Class,
        shape: &'a Attention,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        d_out: &Matrix,
        lse: &Matrix,
        delta: &Matrix,
        dq: &Matrix,
    ) -> Result<Pass<'a>> {
        shape.check(&[q, d_out, dq], &[k, v], &[lse, delta])?;
        let mut params = shape.gradient_params([q, k, v, d_out], [lse, delta])?;
        (params.grad_offset, params.grad_stride) = place(dq);
        Ok(Pass::new(Kind::Query, shape, class, params, &[q, k, v, d_out, lse, delta, dq], &[k, v]))
    }

    /// The gradients of keys and values, with operands of [`backward`](super::backward).
    ///
    /// # Errors
    /// As [`Pass::forward`].
    #[allow(clippy::too_many_arguments)] // the operands of the formula, in its order
    pub fn backward_key_value(
        class: Class,
        shape: &'a Attention,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        d_out: &Matrix,
        lse: &Matrix,
        delta: &Matrix,
        dk: &Matrix,
        dv: &Matrix,
    ) -> Result<Pass<'a>> {
        shape.check(&[q, d_out], &[k, v, dk, dv], &[lse, delta])?;
        if !dk.view.is_same(&dv.view) || dk.stride != dv.stride {
            return Err(DeviceError::Usage("attention: dk and dv must be slices of one matrix".into()));
        }
        let mut params = shape.gradient_params([q, k, v, d_out], [lse, delta])?;
        (params.grad_offset, params.grad_stride) = place(dk);
        params.grad_v_offset = dv.offset as u32;
        let operands = [q, k, v, d_out, lse, delta, dk];
        Ok(Pass::new(Kind::KeyValue, shape, class, params, &operands, &[q, d_out, lse, delta]))
    }

    fn new(
        kind: Kind,
        shape: &'a Attention,
        class: Class,
        params: AttentionParams,
        operands: &[&Matrix],
        received: &[&Matrix],
    ) -> Self {
        let kernel = match kind {
            Kind::Forward => &FORWARD.kernel,
            Kind::Query => &BACKWARD_QUERY.kernel,
            Kind::KeyValue => &BACKWARD_KEY_VALUE.kernel,
        };
        let variant = variant_for(kernel, class, &params);
        let extent = extent(kind, shape, &params, variant);
        let views = operands.iter().map(|m| m.view.clone()).collect();
        let received = received.iter().map(|&m| m.clone()).collect();
        Pass { kind, kernel, variant, shape, params, extent, views, received }
    }

    /// Rows that stay on a tile, and rows of a block that it receives.
    pub fn block_rows(&self) -> (usize, usize) {
        (self.variant.get("ROWS") as usize, self.cols())
    }

    /// Bindings that inboxes replace, in the order of the operands.
    fn inbox_bindings(&self) -> &'static [usize] {
        match self.kind {
            Kind::Forward | Kind::Query => &[1, 2],
            Kind::KeyValue => &[0, 3, 4, 5],
        }
    }

    fn cols(&self) -> usize {
        self.variant.get("COLS") as usize
    }

    /// The block of the sequence whose tile passes on what it received: keys and values go to later queries, queries to
    /// earlier keys.
    fn neighbour(&self, block: u32) -> Option<u32> {
        match self.kind {
            Kind::KeyValue => Some(block + 1).filter(|next| *next < self.extent.0),
            Kind::Forward | Kind::Query => block.checked_sub(1),
        }
    }

    /// The first row and the rows of what a tile receives at a step, and which head of it.
    fn arrival(&self, block: usize, head: usize, step: usize) -> Option<(usize, usize, usize)> {
        let (rows, cols) = self.block_rows();
        let own = |len: usize| block * rows..len.min((block + 1) * rows);
        if self.kind == Kind::KeyValue {
            let (of_group, queries) = self.params.queries_at(&own(self.shape.key_value_len), cols, step)?;
            return Some((queries.start, queries.len(), head * self.shape.group() + of_group));
        }
        let keys = self.params.keys_at(&own(self.shape.query_len), cols, step)?;
        Some((keys.start, keys.len(), head / self.shape.group()))
    }
}

/// Own blocks of a sequence, and steps of the longest tile.
pub(super) fn extent(kind: Kind, shape: &Attention, params: &AttentionParams, variant: &Variant) -> (u32, u32) {
    let (rows, cols) = (variant.get("ROWS") as usize, variant.get("COLS") as usize);
    let len = if kind == Kind::KeyValue { shape.key_value_len } else { shape.query_len };
    let steps = |first: usize| {
        let own = first..len.min(first + rows);
        match kind {
            Kind::KeyValue => shape.group() * params.query_blocks(&own, cols).1.len(),
            Kind::Forward | Kind::Query => params.key_blocks(&own, cols).1.len(),
        }
    };
    (len.div_ceil(rows) as u32, (0..len).step_by(rows).map(steps).max().unwrap_or(0) as u32)
}

impl Stepwise for Pass<'_> {
    fn name(&self) -> &'static str {
        self.kernel.name
    }

    fn work(&self) -> Work {
        let batch = self.shape.batch as u64;
        let products = match self.kind {
            Kind::Forward => 2,
            Kind::Query => 3,
            Kind::KeyValue => 4,
        };
        Work::Attention {
            heads: self.shape.query_heads as u64,
            head_size: self.shape.head_size as u64,
            rows: batch * self.shape.query_len as u64,
            pairs: batch * self.shape.pairs(),
            products,
        }
    }

    fn cost(&self, wafer: &Wafer) -> Cost {
        let Attention { batch, query_heads, key_value_heads, head_size, .. } = *self.shape;
        let Attention { query_len, key_value_len, query_start, causal, window, .. } = *self.shape;
        let (own, block) = self.block_rows();
        let cut = wafer::Attention {
            batch: batch as u64,
            heads: (query_heads as u64, key_value_heads as u64),
            head_size: head_size as u64,
            query_len: query_len as u64,
            key_value_len: key_value_len as u64,
            query_start: query_start as u64,
            causal,
            window: window.map(|w| w as u64),
            rows: (own as u64, block as u64),
        };
        if self.kind == Kind::KeyValue { cut.keys_stay(wafer) } else { cut.queries_stay(wafer) }
    }

    fn blocks(&self) -> (u32, u32) {
        let heads = match self.kind {
            Kind::KeyValue => self.shape.key_value_heads,
            Kind::Forward | Kind::Query => self.shape.query_heads,
        };
        (self.shape.batch as u32 * self.extent.0, heads as u32)
    }

    fn steps(&self) -> u32 {
        self.extent.1
    }

    fn operands(&self) -> usize {
        self.received.len()
    }

    fn inbox(&self, operand: usize) -> (usize, usize) {
        // Operands after the second are one scalar a received row.
        let stride = if operand < 2 { Matrix::stride_for(self.shape.head_size) } else { 1 };
        (self.cols() * stride, stride)
    }

    fn state(&self) -> usize {
        let row = match self.kind {
            Kind::Forward => self.shape.head_size + 2,
            Kind::Query => self.shape.head_size,
            Kind::KeyValue => 2 * self.shape.head_size,
        };
        self.variant.get("ROWS") as usize * row
    }

    fn receives(&self, i: u32, j: u32, step: u32, operand: usize) -> Option<Block> {
        let (batch, block) = ((i / self.extent.0) as usize, (i % self.extent.0) as usize);
        let (first, rows, head) = self.arrival(block, j as usize, step as usize)?;
        let m = &self.received[operand];
        let (base, size) = (m.view.offset + m.offset, self.shape.head_size);
        let buffer = m.view.buffer.clone();
        if operand >= 2 {
            let offset = base + (batch * self.shape.query_heads + head) * m.stride + first;
            return Some(Block { buffer, offset, stride: rows, rows: 1, cols: rows });
        }
        let sequence = if self.kind == Kind::KeyValue { self.shape.query_len } else { self.shape.key_value_rows };
        let offset = base + (batch * sequence + first) * m.stride + head * size;
        Some(Block { buffer, offset, stride: m.stride, rows, cols: size })
    }

    /// Blocks go round the ring of a sequence's tiles: what a tile receives, its neighbour received when it was as many steps
    /// behind as one block that stays has blocks that travel. The first of them comes from the tile that owns it.
    fn origin(&self, i: u32, j: u32, step: u32, _operand: usize) -> Origin {
        let (batch, block) = (i / self.extent.0, i % self.extent.0);
        let arrival = |block: u32, step: u32| self.arrival(block as usize, j as usize, step as usize);
        let here = arrival(block, step);
        let (first, _, head) = here.expect("asked of a tile that receives");
        let row = (first / self.block_rows().0) as u32;
        let owner = (batch * self.extent.0 + row.min(self.extent.0 - 1), head as u32);
        let (before, ago) = (self.neighbour(block), self.keeps() as u32);
        let same = before.filter(|&before| step >= ago && arrival(before, step - ago) == here);
        let passed = same.map(|before| ((batch * self.extent.0 + before, j), ago));
        Origin { owner, passed }
    }

    fn keeps(&self) -> usize {
        self.block_rows().0.div_ceil(self.cols())
    }

    fn launch(
        &self,
        device: &Device,
        round: Round,
        source: Source<'_>,
        first: u32,
        last: u32,
        state: &Buffer,
    ) -> Result<()> {
        let mut params = self.params;
        (params.first_step, params.last_step) = (first, last);
        (params.first_row, params.first_col, params.width) = (round.first_row, round.first_col, round.width);
        if last < self.steps() {
            params.flags |= SAVES;
        }
        let mut views = self.views.clone();
        if let Source::Inbox(inboxes) = source {
            params.flags |= INBOX;
            for (&binding, inbox) in self.inbox_bindings().iter().zip(inboxes) {
                views[binding] = inbox.all();
            }
        }
        views.push(state.all());
        device.launch(&Launch {
            kernel: self.kernel,
            variant: self.variant,
            groups: round.height * round.width,
            params: bytemuck::cast_slice(bytemuck::bytes_of(&params)),
            views: &views,
        })
    }
}
