//! Where the tiles of one native launch lie: which rows stay on each, which block arrives at a step, where a row begins.
//! The reference and the host kernels share it; it must never know what is computed on a row.

use super::AttentionParams;
use crate::device::Args;
use crate::program::Matrix;

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
}

/// Rows of the other side that a tile received or reads in place.
#[derive(Clone, Copy)]
pub(super) struct Received<'a, F> {
    /// From the first element of the first row.
    pub data: &'a [F],
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Shape {
    /// The shape of a launch of any of the kernels.
    pub fn new<F>(args: &Args<'_, F>) -> Shape {
        let p: AttentionParams = args.params();
        let (rows, cols) = (args.variant.get("ROWS") as usize, args.variant.get("COLS") as usize);
        Shape { p, rows, cols, size: p.head_size as usize, groups: args.groups as usize }
    }

    /// Tile number `group` of the launch.
    pub fn tile(&self, group: usize) -> Tile {
        let p = &self.p;
        let i = p.first_row as usize + group / p.width as usize;
        let own = p.own_blocks as usize;
        Tile { group, batch: i / own, block: i % own, head: p.first_col as usize + group % p.width as usize }
    }

    /// Own rows of a tile that exist, `len` to a sequence.
    pub fn live(&self, tile: Tile, len: u32) -> usize {
        self.rows.min(len as usize - tile.block * self.rows)
    }

    /// Whether this launch restores or saves state.
    pub fn partial(&self) -> bool {
        self.p.first_step > 0 || self.p.last_step < self.p.steps
    }

    /// First key and number of keys that a tile of queries receives at a step; `None` after the last block. From the
    /// farthest block that it sees downwards.
    pub fn key_block(&self, tile: Tile, step: u32) -> Option<(usize, usize)> {
        let last = tile.block * self.rows + self.live(tile, self.p.query_len) - 1;
        let visible = self.p.horizon(last);
        let first = (visible.div_ceil(self.cols) - 1).checked_sub(step as usize)? * self.cols;
        Some((first, self.cols.min(visible - first)))
    }

    /// Query head, first query and number of queries that a tile of keys receives at a step; `None` where no block is
    /// left for a head. Head by head, from the first block that sees one of its keys upwards.
    pub fn query_block(&self, tile: Tile, step: u32) -> Option<(usize, usize, usize)> {
        let blocks = (self.p.query_len as usize).div_ceil(self.cols);
        let block = self.p.near(tile.block * self.rows, self.cols) + step as usize % blocks;
        let (head, first) = (tile.head * self.p.group as usize + step as usize / blocks, block * self.cols);
        (block < blocks).then(|| (head, first, self.cols.min(self.p.query_len as usize - first)))
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
        if self.p.inbox == 1 { tile.group * self.cols } else { self.scalar(tile.batch, head, row) }
    }

    /// The rows of a received block, of which the first begins at `place` where it is read in place, rows `stride` apart.
    pub fn received<'a, F>(&self, data: &'a [F], place: usize, stride: u32, tile: Tile) -> Received<'a, F> {
        if self.p.inbox == 1 {
            let stride = Matrix::stride_for(self.size);
            return Received { data: &data[tile.group * self.cols * stride..], stride };
        }
        Received { data: &data[place..], stride: stride as usize }
    }
}
