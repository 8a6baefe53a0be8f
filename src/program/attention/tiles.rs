//! Where the tiles of a launch lie: which rows stay on each, which block arrives at a step, where a row begins. The passes,
//! the reference and the host kernels share it; it must never know what is computed on a row.

use std::ops::Range;

use super::{AttentionParams, CAUSAL, INBOX, SAVES, WORDS};
use crate::device::Args;
use crate::program::{Matrix, initial};

/// One tile: which block of which sequence and head.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Number in the launch.
    pub group: usize,
    /// Sequence.
    pub batch: usize,
    /// Block of the own side.
    pub block: usize,
    /// Head of the own side.
    pub head: usize,
}

/// A launch: parameters and the variant's shape.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Parameters.
    pub p: AttentionParams,
    /// Rows that stay on a tile.
    pub rows: usize,
    /// Rows of a received block.
    pub cols: usize,
    /// Columns of a head.
    pub size: usize,
    /// Tiles.
    pub groups: usize,
    /// Rows of the own side in a sequence.
    own_len: usize,
}

/// Rows of the other side that a tile received or reads in place.
#[derive(Clone, Copy)]
pub(super) struct Received<'a, F> {
    /// From the first element of the first row.
    pub data: &'a [F],
    /// Elements from one row to the next.
    pub stride: usize,
}

impl AttentionParams {
    /// Whether received blocks lie in inboxes.
    pub(super) fn inbox(&self) -> bool {
        self.flags & INBOX != 0
    }

    /// Whether steps are left to do.
    pub(super) fn saves(&self) -> bool {
        self.flags & SAVES != 0
    }

    /// Seed of the random words.
    pub(super) fn key(&self) -> u64 {
        u64::from(self.key_high) << 32 | u64::from(self.key_low)
    }

    /// Index of the random word of a query's pair with key 0.
    pub(super) fn first_pair(&self, batch: usize, head: usize, query: usize) -> u64 {
        ((batch * self.query_heads as usize + head) as u64 * u64::from(self.query_len) + query as u64)
            * u64::from(self.key_value_len)
    }

    /// What a weight that is not dropped is multiplied by: exactly 1 without dropout.
    pub(super) fn gain(&self) -> f64 {
        WORDS / (WORDS - f64::from(self.threshold))
    }

    /// What the weight of a pair is multiplied by.
    pub(super) fn factor(&self, batch: usize, head: usize, query: usize, key: usize) -> f64 {
        let word = || initial::word(self.key(), self.first_pair(batch, head, query) + key as u64);
        if self.threshold > 0 && word() < self.threshold { 0.0 } else { self.gain() }
    }

    /// The keys that query `row` of a sequence sees.
    pub(super) fn keys(&self, row: usize) -> Range<usize> {
        let len = self.key_value_len as usize;
        if self.flags & CAUSAL == 0 {
            return 0..len;
        }
        let end = self.query_start as usize + row + 1;
        let first = if self.window > 0 { end.saturating_sub(self.window as usize) } else { 0 };
        first..len.min(end)
    }

    /// The queries of a sequence that see one of some keys.
    pub(super) fn queries(&self, keys: &Range<usize>) -> Range<usize> {
        let (len, start) = (self.query_len as usize, self.query_start as usize);
        if self.flags & CAUSAL == 0 {
            return 0..len;
        }
        let last = if self.window > 0 { (keys.end - 1 + self.window as usize).saturating_sub(start) } else { len };
        let end = len.min(last);
        end.min(keys.start.saturating_sub(start))..end
    }

    /// The keys that one of some queries sees, and the blocks of `cols` keys in which they lie.
    pub(super) fn key_blocks(&self, queries: &Range<usize>, cols: usize) -> (Range<usize>, Range<usize>) {
        let keys = self.keys(queries.start).start..self.keys(queries.end - 1).end;
        let blocks = keys.start / cols..keys.end.div_ceil(cols);
        (keys, blocks)
    }

    /// The queries that see one of some keys, and the blocks of `cols` queries in which they lie.
    pub(super) fn query_blocks(&self, keys: &Range<usize>, cols: usize) -> (Range<usize>, Range<usize>) {
        let queries = self.queries(keys);
        let end = if queries.is_empty() { 0 } else { queries.end.div_ceil(cols) };
        let blocks = end.min(queries.start / cols)..end;
        (queries, blocks)
    }

    /// The keys that a tile of queries receives at a step; `None` after the last block. From the farthest block that it
    /// sees downwards.
    pub(super) fn keys_at(&self, queries: &Range<usize>, cols: usize, step: usize) -> Option<Range<usize>> {
        let (keys, blocks) = self.key_blocks(queries, cols);
        let first = blocks.rev().nth(step)? * cols;
        Some(first..keys.end.min(first + cols))
    }

    /// Which query head of its group, and which of its queries, a tile of keys receives at a step; `None` after the last
    /// block. Head by head, from the first block that sees one of its keys upwards.
    pub(super) fn queries_at(&self, keys: &Range<usize>, cols: usize, step: usize) -> Option<(usize, Range<usize>)> {
        let (queries, blocks) = self.query_blocks(keys, cols);
        if step >= blocks.len() * self.group as usize {
            return None;
        }
        let first = (blocks.start + step % blocks.len()) * cols;
        Some((step / blocks.len(), first..queries.end.min(first + cols)))
    }
}

impl Shape {
    /// The shape of a launch whose tiles keep queries.
    pub fn of_queries<F>(args: &Args<'_, F>) -> Shape {
        Shape::new(args, |p| p.query_len)
    }

    /// The shape of a launch whose tiles keep keys and values.
    pub fn of_keys<F>(args: &Args<'_, F>) -> Shape {
        Shape::new(args, |p| p.key_value_len)
    }

    fn new<F>(args: &Args<'_, F>, own_len: fn(&AttentionParams) -> u32) -> Shape {
        let p: AttentionParams = args.params();
        let (rows, cols) = (args.variant.get("ROWS") as usize, args.variant.get("COLS") as usize);
        let (size, groups, own_len) = (p.head_size as usize, args.groups as usize, own_len(&p) as usize);
        Shape { p, rows, cols, size, groups, own_len }
    }

    /// Own blocks of a sequence.
    pub fn own_blocks(&self) -> usize {
        self.own_len.div_ceil(self.rows)
    }

    /// Tile number `group` of the launch.
    pub fn tile(&self, group: usize) -> Tile {
        let p = &self.p;
        let i = p.first_row as usize + group / p.width as usize;
        let own = self.own_blocks();
        Tile { group, batch: i / own, block: i % own, head: p.first_col as usize + group % p.width as usize }
    }

    /// Own rows of a tile that exist.
    pub fn live(&self, tile: Tile) -> usize {
        self.own(tile).len()
    }

    /// The same in their sequence.
    fn own(&self, tile: Tile) -> Range<usize> {
        tile.block * self.rows..self.own_len.min((tile.block + 1) * self.rows)
    }

    /// Whether this launch restores or saves state.
    pub fn partial(&self) -> bool {
        self.p.first_step > 0 || self.p.saves()
    }

    /// First key and number of keys that a tile of queries receives at a step; `None` after the last block.
    pub fn key_block(&self, tile: Tile, step: u32) -> Option<(usize, usize)> {
        let keys = self.p.keys_at(&self.own(tile), self.cols, step as usize)?;
        Some((keys.start, keys.len()))
    }

    /// Query head, first query and number of queries that a tile of keys receives at a step; `None` after the last block.
    pub fn query_block(&self, tile: Tile, step: u32) -> Option<(usize, usize, usize)> {
        let (head, queries) = self.p.queries_at(&self.own(tile), self.cols, step as usize)?;
        Some((tile.head * self.p.group as usize + head, queries.start, queries.len()))
    }

    /// Which of `n` keys from `first` on a query sees: the part of them.
    pub fn seen(&self, query: usize, first: usize, n: usize) -> Range<usize> {
        let keys = self.p.keys(query);
        let within = |key: usize| key.saturating_sub(first).min(n);
        within(keys.start)..within(keys.end)
    }

    /// Where row `row` of an operand of queries begins, for a head.
    pub fn query(&self, at: (u32, u32), batch: usize, head: usize, row: usize) -> usize {
        at.0 as usize + (batch * self.p.query_len as usize + row) * at.1 as usize + head * self.size
    }

    /// The same of keys and values, for one of their heads.
    pub fn key(&self, at: (u32, u32), batch: usize, head: usize, row: usize) -> usize {
        at.0 as usize + (batch * self.p.key_value_rows as usize + row) * at.1 as usize + head * self.size
    }

    /// Where `lse` and `delta` of a query lie.
    pub fn scalar(&self, batch: usize, head: usize, row: usize) -> usize {
        let p = &self.p;
        p.row_offset as usize + (batch * p.query_heads as usize + head) * p.row_stride as usize + row
    }

    /// The same of the first query of a received block.
    pub fn received_scalar(&self, tile: Tile, head: usize, row: usize) -> usize {
        if self.p.inbox() { tile.group * self.cols } else { self.scalar(tile.batch, head, row) }
    }

    /// The rows of a received block, of which the first begins at `place` where it is read in place, rows `stride` apart.
    pub fn received<'a, F>(&self, data: &'a [F], place: usize, stride: u32, tile: Tile) -> Received<'a, F> {
        if self.p.inbox() {
            let stride = Matrix::stride_for(self.size);
            return Received { data: &data[tile.group * self.cols * stride..], stride };
        }
        Received { data: &data[place..], stride: stride as usize }
    }
}
