//! Products by the route of a CS-2: the activations stay, rows of weights are broadcast down the columns, and partial sums
//! go round a ring along the rows. A sum starts at the tile of the first block of the contraction and every tile adds its
//! own block to what it was handed, so the order of additions is that of the default route, and the bits are the same. Tiles
//! work on the sums one behind the other: while one adds to a block of the result, the next adds to the block before.
//!
//! For the gradient of weights, whose contraction runs over tokens, it is the same turned by a quarter: what reaches the
//! layer stays, its gradient is broadcast along the rows, sums go down the columns and leave at the bottom.
//!
//! Where the contraction has more blocks than a row of the wafer has tiles, sums go round more than once, and rest with the
//! tile that owns the block of the result. It knows the route; it must never know the arithmetic.

use std::ops::Range;

use super::{Form, MatmulParams, Tiled};
use crate::device::{Buffer, Launch, Result, Span};
use crate::program::Matrix;
use crate::program::exchange::Message;
use crate::program::schedule::{Block, Fabric, Stepwise, Tiles};
use crate::wafer::{self, Cost, Tile, Wafer};

/// A product on its way over the tiles.
pub(super) struct Stream<'a, 'b> {
    tiled: &'b Tiled<'a>,
    /// True: the contraction lies along columns of tiles, and what stays is B.
    down: bool,
}

/// One part of the contraction: as many blocks as tiles lie along it.
#[derive(Clone)]
struct Turn {
    /// Blocks of the side that stays, one a line of tiles.
    lines: Range<u32>,
    /// Blocks of the contraction.
    depth: Range<u32>,
}

impl<'a, 'b> Stream<'a, 'b> {
    pub fn new(tiled: &'b Tiled<'a>) -> Self {
        Stream { tiled, down: tiled.product.form == Form::TN }
    }

    /// Blocks that stay, blocks that pass, blocks of the contraction.
    fn extent(&self) -> (u32, u32, u32) {
        let ((rows, cols), steps) = (self.tiled.blocks(), self.tiled.steps());
        if self.down { (cols, rows, steps) } else { (rows, cols, steps) }
    }

    /// Lines of tiles, and tiles along the contraction.
    fn grid(&self, wafer: &Wafer) -> (u32, u32) {
        if self.down { (wafer.width, wafer.height) } else { (wafer.height, wafer.width) }
    }

    /// The block of the result of a line and of what passes.
    fn result(&self, line: u32, passing: u32) -> (u32, u32) {
        if self.down { (passing, line) } else { (line, passing) }
    }

    /// The tile of a line and of a block of the contraction.
    fn tile(&self, wafer: &Wafer, line: u32, k: u32) -> Tile {
        if self.down { wafer.owner(k, line) } else { wafer.owner(line, k) }
    }

    /// What the route costs, in closed form.
    pub fn cost(&self, wafer: &Wafer) -> Cost {
        let ((lines, passing, steps), (side, along)) = (self.extent(), self.grid(wafer));
        let elements = self.tiled.elements();
        wafer::Stream {
            lines: lines.into(),
            passing: passing.into(),
            steps: steps.into(),
            moved: if self.down { elements.0 } else { elements.1 },
            result: u64::from(self.tiled.params.m) * u64::from(self.tiled.params.c_cols),
            accumulate: self.tiled.product.accumulate,
        }
        .superstep((side, along))
    }

    /// Runs the product in supersteps.
    pub fn run(&self, fabric: &Fabric) -> Result<()> {
        let ((lines, _, steps), (side, along)) = (self.extent(), self.grid(fabric.wafer()));
        let parts = |len: u32, part: u32| (0..len).step_by(part as usize).map(move |at| at..len.min(at + part));
        let span = Span { program: self.tiled.name(), work: self.tiled.work(), blocks: self.tiled.blocks() };
        fabric.scheduled(
            span,
            || self.cost(fabric.wafer()),
            |tiles| {
                for lines in parts(lines, side) {
                    for depth in parts(steps, along) {
                        self.turn(tiles, &Turn { lines: lines.clone(), depth })?;
                    }
                }
                Ok(())
            },
        )
    }

    /// One turn round the ring for all blocks of the result that belong to some lines.
    fn turn(&self, tiles: &mut Tiles<'_>, turn: &Turn) -> Result<()> {
        let (passing, along) = (self.extent().1, turn.depth.len() as u32);
        for time in 0..passing + along - 1 {
            let active = turn.depth.clone().zip(0..along).filter_map(|(k, x)| {
                let block = time.checked_sub(x).filter(|block| *block < passing)?;
                Some((k, block))
            });
            let active: Vec<(u32, u32)> = active.collect();
            let [before, sums] = [time + 1, time].map(|time| tiles.state(time as usize % 2, self.state_len(turn)));
            let (before, sums) = (before?, sums?);
            let inbox = tiles.inbox(0, 0, turn.lines.len() * along as usize * self.inbox().0)?;
            for &(k, block) in &active {
                self.send(tiles, turn, (k, block), (&before, &sums), &inbox);
            }
            tiles.exchange()?;
            for &(k, block) in &active {
                self.launch(tiles, turn, (k, block), &sums, &inbox)?;
                if k + 1 == turn.depth.end {
                    self.leave(tiles, turn, block, &sums);
                }
            }
        }
        tiles.exchange()
    }

    /// Which operand passes.
    fn moving(&self) -> usize {
        if self.down { 0 } else { 1 }
    }

    fn inbox(&self) -> (usize, usize) {
        self.tiled.inbox(self.moving())
    }

    fn state_len(&self, turn: &Turn) -> usize {
        turn.lines.len() * turn.depth.len() * self.tiled.get("TM") * self.tiled.get("TN")
    }

    /// Where in the state of the tiles at block `k` of the contraction the sums of line number `at` begin, and the elements
    /// between their rows: those of lines that are columns lie side by side.
    fn sums_at(&self, turn: &Turn, k: u32, at: usize) -> (usize, usize) {
        let (tm, tn, lines) = (self.tiled.get("TM"), self.tiled.get("TN"), turn.lines.len());
        let tile = (k - turn.depth.start) as usize * lines;
        if self.down { (tile * tm * tn + at * tn, lines * tn) } else { ((tile + at) * tm * tn, tn) }
    }

    /// The sums of a block of the result with the tiles at block `k` of the contraction, and those with their owner.
    fn sums(&self, turn: &Turn, (k, block): (u32, u32), at: usize, state: &Buffer) -> (Block, Block, Tile) {
        let (i, j) = self.result(turn.lines.start + at as u32, block);
        let (offset, stride) = self.sums_at(turn, k, at);
        let owned = self.tiled.result(i, j);
        let held = Block { buffer: state.clone(), offset, stride, rows: owned.rows, cols: owned.cols };
        (held, owned, Tile { x: j, y: i })
    }

    /// What the tiles at a block of the contraction receive: weights, and sums from the tile before or from their owner.
    fn send(
        &self,
        tiles: &mut Tiles<'_>,
        turn: &Turn,
        (k, block): (u32, u32),
        (before, sums): (&Buffer, &Buffer),
        inbox: &Buffer,
    ) {
        let wafer = tiles.wafer;
        let (len, stride) = self.inbox();
        for (at, line) in turn.lines.clone().enumerate() {
            let to = self.tile(wafer, line, k);
            let (i, j) = self.result(line, block);
            let moved = self.tiled.receives(i, j, k, self.moving()).expect("every step of a product receives");
            // Weights come in over the edge of the wafer, what passes along rows from the tile that owns it.
            let from = if self.down { wafer.owner(k, block) } else { Tile { x: to.x, y: 0 } };
            let slot = ((k - turn.depth.start) as usize * turn.lines.len() + at) * len;
            tiles.send(Message { block: moved, from, to, target: (inbox.clone(), slot, stride) });

            let (held, owned, owner) = self.sums(turn, (k, block), at, sums);
            let source = if k > turn.depth.start {
                let (handed, ..) = self.sums(turn, (k - 1, block), at, before);
                Some((handed, self.tile(wafer, line, k - 1)))
            } else if k > 0 || self.tiled.product.accumulate {
                Some((owned, wafer.owner(owner.y, owner.x)))
            } else {
                None
            };
            if let Some((block, from)) = source {
                tiles.send(Message { block, from, to, target: (held.buffer, held.offset, held.stride) });
            }
        }
    }

    /// Sums that have been round go to the tile that owns the block of the result.
    fn leave(&self, tiles: &mut Tiles<'_>, turn: &Turn, block: u32, sums: &Buffer) {
        let k = turn.depth.end - 1;
        for (at, line) in turn.lines.clone().enumerate() {
            let (held, owned, owner) = self.sums(turn, (k, block), at, sums);
            let (from, to) = (self.tile(tiles.wafer, line, k), tiles.wafer.owner(owner.y, owner.x));
            tiles.send(Message { block: held, from, to, target: (owned.buffer, owned.offset, owned.stride) });
        }
    }

    /// One step of the tiles at a block of the contraction, all lines.
    fn launch(
        &self,
        tiles: &Tiles<'_>,
        turn: &Turn,
        (k, block): (u32, u32),
        sums: &Buffer,
        inbox: &Buffer,
    ) -> Result<()> {
        let Tiled { product, variant, params } = self.tiled;
        let (tm, tn, kb) = (self.tiled.get("TM"), self.tiled.get("TN"), self.tiled.get("KB"));
        let (lines, first_line) = (turn.lines.len(), turn.lines.start as usize);
        let (len, stride) = self.inbox();
        let inbox_base = (k - turn.depth.start) as usize * lines * len;
        let (i, j) = self.result(turn.lines.start, block);
        let (sums_base, sums_stride) = self.sums_at(turn, k, 0);
        // The kernel adds the place of block (i, j) in a whole result; modulo 2^32 what is taken off here cancels it.
        let place = (i as usize * tm * sums_stride + j as usize * tn) as u32;
        let mut params = MatmulParams {
            first: k,
            last: k + 1,
            round_width: if self.down { lines as u32 } else { 1 },
            first_row: i,
            first_col: j,
            c_base: (sums_base as u32).wrapping_sub(place),
            c_stride: sums_stride as u32,
            ..*params
        };
        let at = |m: &Matrix, row: usize, col: usize| (m.offset + row * m.stride + col) as u32;
        let (a, b) = if self.down {
            (params.a_base, params.a_stride, params.a_tile_x) = (inbox_base as u32, stride as u32, len as u32);
            params.b_base = at(product.b, k as usize * kb, first_line * tn);
            (params.b_stride, params.b_tile_x) = (product.b.stride as u32, tn as u32);
            (inbox.all(), product.b.view.clone())
        } else {
            (params.b_base, params.b_stride, params.b_tile_y) = (inbox_base as u32, stride as u32, len as u32);
            params.a_base = at(product.a, first_line * tm, k as usize * kb);
            (params.a_stride, params.a_tile_y) = (product.a.stride as u32, (tm * product.a.stride) as u32);
            (product.a.view.clone(), inbox.all())
        };
        // Without a bias its binding is not read; it must be bound all the same.
        let bias = product.bias.map_or_else(|| b.clone(), |bias| bias.view.clone());
        tiles.device.launch(&Launch {
            kernel: &product.form.program().kernel,
            variant,
            groups: lines as u32,
            params: bytemuck::cast_slice(bytemuck::bytes_of(&params)),
            views: &[a, b, bias, sums.all()],
        })
    }
}
