//! Relays: programs whose sums run along a line of tiles. A line is cut into blocks, one a tile; a pass goes from the first
//! block to the last, each tile adding its own block to the running sums it was handed and handing them on, so that the order
//! of additions is that of the line, wherever it is cut. After the passes that gather, a last one may let every tile of the
//! line use what was gathered.
//!
//! `fused` is one launch in which a tile plays its whole line, all passes. `superstep` is a launch a block and pass, with the
//! running sums moved between them. This file knows lines, blocks and passes; it must never know what is summed.

use crate::device::{Buffer, Device, Result};
use crate::wafer::{self, Cost, Tile, Wafer, Work};

/// Along which tiles the blocks of a line lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Line i on row i of tiles, its block b on column b.
    Row,
    /// Line i on column i of tiles, its block b on row b.
    Column,
    /// One line over all tiles, row by row.
    Grid,
}

/// Which part of a relay a launch runs. Its tile number `g` plays block `first_block + g % blocks` of line
/// `first_line + g / blocks`, and what it carries is slot `g` of the carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First line.
    pub first_line: u32,
    /// Lines.
    pub lines: u32,
    /// First block of each line.
    pub first_block: u32,
    /// Blocks of each line.
    pub blocks: u32,
    /// Passes to run: bit i is pass i, the last of them the one that uses what was gathered, where there is one.
    pub passes: u32,
    /// False: the whole line in one block, nothing carried. True: a tile begins with what it was handed (except the sums of a
    /// pass in its first block, which begin at zero) and leaves there what it hands on.
    pub carried: bool,
}

impl Part {
    /// All passes over lines that are one block each.
    pub fn whole(lines: u32) -> Part {
        Part { first_line: 0, lines, first_block: 0, blocks: 1, passes: u32::MAX, carried: false }
    }

    /// Tiles.
    pub fn groups(&self) -> u32 {
        self.lines * self.blocks
    }
}

/// A program of this kind, with its operands.
pub trait Relay {
    /// The name of its kernel.
    fn name(&self) -> &'static str;
    /// What it does.
    fn work(&self) -> Work;
    /// Along which tiles a line lies.
    fn axis(&self) -> Axis;
    /// Lines, and blocks of each.
    fn extent(&self) -> (u32, u32);
    /// For each pass that gathers, how many blocks of a line it goes through: all, or the first few.
    fn gathers(&self) -> Vec<u32>;
    /// Whether a pass follows in which every tile uses what was gathered.
    fn applies(&self) -> bool;
    /// Elements that a tile hands on.
    fn carry(&self) -> usize;
    /// Launches a part. `carry` is bound with `Buffer::all`, and may be longer than the part needs.
    ///
    /// # Errors
    /// What the launch says.
    fn launch(&self, device: &Device, part: &Part, carry: &Buffer) -> Result<()>;
}

impl Axis {
    /// The tile of a block of a line.
    pub fn tile(self, wafer: &Wafer, line: u32, block: u32) -> Tile {
        match self {
            Axis::Row => wafer.owner(line, block),
            Axis::Column => wafer.owner(block, line),
            Axis::Grid => wafer.owner(block / wafer.width, block % wafer.width),
        }
    }

    /// Rows and columns of tiles that so many lines of so many blocks are.
    pub fn blocks(self, wafer: &Wafer, (lines, blocks): (u32, u32)) -> (u32, u32) {
        match self {
            Axis::Row => (lines, blocks),
            Axis::Column => (blocks, lines),
            Axis::Grid => (blocks.div_ceil(wafer.width), blocks.min(wafer.width)),
        }
    }

    /// Lines that run side by side, and blocks of a line that do.
    pub fn at_once(self, wafer: &Wafer) -> (u32, u32) {
        match self {
            Axis::Row => (wafer.height, wafer.width),
            Axis::Column => (wafer.width, wafer.height),
            Axis::Grid => (1, wafer.width * wafer.height),
        }
    }
}

/// The cost of a relay in closed form, in supersteps on a wafer.
pub fn cost(program: &dyn Relay, wafer: &Wafer) -> Cost {
    let (lines, blocks) = program.extent();
    let steps: u32 = program.gathers().iter().sum();
    wafer::Relay {
        lines: lines.into(),
        blocks: blocks.into(),
        steps: steps.into(),
        applies: program.applies(),
        carry: program.carry() as u64,
    }
    .superstep(program.axis().at_once(wafer))
}
