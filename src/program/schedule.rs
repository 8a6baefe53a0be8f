//! The host scheduler: runs one stepwise tile program either `fused` or `superstep`, with equal bits.
//!
//! A stepwise program is one pipeline whose entry point takes `(first_step, last_step, source addresses)` as data. `fused`
//! launches all tiles over all steps, operands read in place. `superstep` goes round the grid: for each round of at most
//! `W x H` tiles and each step, it moves the blocks the tiles receive into their inboxes, then launches that one step. It
//! knows blocks, rounds and inboxes; it must never know what a program computes.

use crate::device::{Buffer, Device, Result};

/// How stepwise programs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// As few dispatches as the data dependences allow; a tile reads the owner's block in place.
    Fused,
    /// One dispatch per step and round; tiles read only their own blocks, their state and their inbox.
    Superstep,
}

/// A rectangle of tiles launched together: block (i, j) of the program with `first_row <= i < first_row + height` and
/// `first_col <= j < first_col + width` is workgroup `(i - first_row) * width + (j - first_col)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// First block row.
    pub first_row: u32,
    /// First block column.
    pub first_col: u32,
    /// Block rows.
    pub height: u32,
    /// Block columns.
    pub width: u32,
}

/// Where the tiles of a launch find what they receive.
pub enum Source<'a> {
    /// In the owner's block, in place.
    InPlace,
    /// In inboxes, one buffer per received operand: workgroup `g` finds operand `o` at element `g * inbox_len(o)`, rows
    /// `inbox_stride(o)` apart.
    Inbox(&'a [Buffer]),
}

/// A block of a matrix that a tile receives.
#[derive(Clone, Debug)]
pub struct Block {
    /// Where it lies.
    pub buffer: Buffer,
    /// First element in the buffer.
    pub offset: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows of the block.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

/// A tile program of several steps, with its operands, ready to be scheduled.
pub trait Stepwise {
    /// Rows and columns of blocks: one tile each.
    fn blocks(&self) -> (u32, u32);
    /// Steps of the longest tile.
    fn steps(&self) -> u32;
    /// Number of operands that tiles receive.
    fn operands(&self) -> usize;
    /// Elements of the inbox of one tile for an operand, and its row stride there.
    fn inbox(&self, operand: usize) -> (usize, usize);
    /// Elements of state that one tile saves between supersteps.
    fn state(&self) -> usize;
    /// What tile (i, j) receives at a step, for an operand; `None` when the tile does nothing at that step.
    fn receives(&self, i: u32, j: u32, step: u32, operand: usize) -> Option<Block>;
    /// Launches steps `first .. last` on the tiles of a round; `state` holds `state()` elements per workgroup.
    fn launch(
        &self,
        device: &Device,
        round: Round,
        source: Source<'_>,
        first: u32,
        last: u32,
        state: &Buffer,
    ) -> Result<()>;
}
