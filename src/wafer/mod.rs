//! The wafer: geometry, blocks, routes, SRAM and closed forms. Pure data and arithmetic; it names nothing above itself.
//!
//! A matrix is cut into blocks, and block (i, j) lives on tile (j mod W, i mod H): columns of blocks along x, rows along
//! y. A program with more blocks than tiles runs in rounds. What a tile receives at a step, and over which links of the
//! mesh, is a [`Route`].

/// A grid of tiles joined by a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wafer {
    /// Tiles along x.
    pub width: u32,
    /// Tiles along y.
    pub height: u32,
    /// SRAM of one tile in bytes: workgroup memory, accumulators and saved state of a program must fit it together.
    pub sram_bytes: u32,
}

/// A tile, by its place on the wafer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Column, from the left.
    pub x: u32,
    /// Row, from the top.
    pub y: u32,
}

/// A link between two neighbours, in the direction of travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Where a block leaves.
    pub from: Tile,
    /// The neighbour it reaches.
    pub to: Tile,
}

/// A rectangle of blocks whose tiles run together: block (i, j) with `first_row <= i < first_row + height` and
/// `first_col <= j < first_col + width` is number `(i - first_row) * width + (j - first_col)` of the round.
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

impl Round {
    /// Number of tiles that run.
    pub fn tiles(&self) -> u32 {
        self.height * self.width
    }

    /// The blocks (i, j) in the order of their numbers.
    pub fn blocks(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.tiles()).map(move |t| (self.first_row + t / self.width, self.first_col + t % self.width))
    }
}

/// Which block of an operand the tile of output block (i, j) receives at step s, and how it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Block (i, j), which the tile owns: nothing travels.
    Local,
    /// Block (i, s), from its owner along the row to every tile of it.
    BroadcastRow,
    /// Block (s, j), from its owner along the column to every tile of it.
    BroadcastColumn,
}

impl Route {
    /// The block of the operand that output block (i, j) receives at a step.
    pub fn block(self, i: u32, j: u32, step: u32) -> (u32, u32) {
        match self {
            Route::Local => (i, j),
            Route::BroadcastRow => (i, step),
            Route::BroadcastColumn => (step, j),
        }
    }

    /// The links a block crosses from its owner to the tile of output block (i, j), in order; none when the tile owns it.
    /// Tiles of one row (or column) receive one broadcast, so their paths share links, each crossed once.
    pub fn path(self, wafer: &Wafer, i: u32, j: u32, step: u32) -> impl Iterator<Item = Link> {
        let (bi, bj) = self.block(i, j, step);
        let (mut at, to) = (wafer.owner(bi, bj), wafer.owner(i, j));
        std::iter::from_fn(move || {
            let from = at;
            if from.x != to.x {
                at.x = if from.x < to.x { from.x + 1 } else { from.x - 1 };
            } else if from.y != to.y {
                at.y = if from.y < to.y { from.y + 1 } else { from.y - 1 };
            } else {
                return None;
            }
            Some(Link { from, to: at })
        })
    }
}

/// What a run of a program costs the fabric, in closed form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Launches.
    pub dispatches: u64,
    /// Blocks delivered into inboxes.
    pub messages: u64,
    /// Bytes of those blocks.
    pub exchanged_bytes: u64,
}

/// The blocks of a product `C[m, n] = sum over k`, as a tile program cuts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of C, and of a block of it.
    pub m: (u64, u64),
    /// Columns of C, and of a block of it.
    pub n: (u64, u64),
    /// Depth of the contraction, and of one step.
    pub k: (u64, u64),
    /// f32 elements of A and of B that travel: each once, with the padding that is moved along.
    pub elements: (u64, u64),
}

impl Product {
    /// Rows of blocks, columns of blocks, steps.
    pub fn blocks(&self) -> (u64, u64, u64) {
        let count = |(total, block): (u64, u64)| total.div_ceil(block);
        (count(self.m), count(self.n), count(self.k))
    }

    /// The cost of one dispatch over all blocks and steps, operands read in place.
    pub fn fused(&self) -> Cost {
        Cost { dispatches: 1, ..Cost::default() }
    }

    /// The cost in supersteps: A broadcast along rows, so that each of its elements reaches every column of blocks, and
    /// B along columns, so that each of its elements reaches every row of blocks.
    pub fn superstep(&self, wafer: &Wafer) -> Cost {
        let (rows, cols, steps) = self.blocks();
        Cost {
            dispatches: wafer.round_count(rows, cols) * steps,
            messages: 2 * rows * cols * steps,
            exchanged_bytes: 4 * (cols * self.elements.0 + rows * self.elements.1),
        }
    }
}

impl Wafer {
    /// A wafer of `width x height` tiles with the SRAM of a WSE-2 tile.
    ///
    /// # Panics
    /// For a width or a height of zero.
    pub fn new(width: u32, height: u32) -> Wafer {
        assert!(width > 0 && height > 0, "a wafer has tiles");
        Wafer { width, height, sram_bytes: 48 * 1024 }
    }

    /// The tile that block (i, j) of any matrix lives on.
    pub fn owner(&self, i: u32, j: u32) -> Tile {
        Tile { x: j % self.width, y: i % self.height }
    }

    /// The rounds of a program of `rows x cols` blocks, row by row; no two blocks of a round share a tile.
    pub fn rounds(self, rows: u32, cols: u32) -> impl Iterator<Item = Round> {
        let (height, width) = (self.height as usize, self.width as usize);
        (0..rows).step_by(height).flat_map(move |first_row| {
            (0..cols).step_by(width).map(move |first_col| Round {
                first_row,
                first_col,
                height: self.height.min(rows - first_row),
                width: self.width.min(cols - first_col),
            })
        })
    }

    /// How many rounds there are.
    pub fn round_count(&self, rows: u64, cols: u64) -> u64 {
        rows.div_ceil(self.height.into()) * cols.div_ceil(self.width.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rounds_cover_each_block_once_and_no_tile_twice() {
        for (wafer, rows, cols) in
            [(Wafer::new(3, 2), 5, 7), (Wafer::new(1, 1), 2, 3), (Wafer::new(8, 8), 3, 2), (Wafer::new(2, 5), 0, 4)]
        {
            let mut seen = HashSet::new();
            let mut count = 0;
            for round in wafer.rounds(rows, cols) {
                let tiles: HashSet<Tile> = round.blocks().map(|(i, j)| wafer.owner(i, j)).collect();
                assert_eq!(tiles.len() as u32, round.tiles(), "{round:?} puts two blocks on a tile");
                assert!(round.blocks().all(|block| seen.insert(block)), "{round:?} repeats a block");
                count += 1;
            }
            assert_eq!(seen.len() as u32, rows * cols);
            assert_eq!(count, wafer.round_count(rows.into(), cols.into()));
        }
    }

    #[test]
    fn routes_lead_from_the_owner_to_the_tile_over_neighbours() {
        let wafer = Wafer::new(4, 3);
        for route in [Route::Local, Route::BroadcastRow, Route::BroadcastColumn] {
            for (i, j, step) in [(0, 0, 0), (2, 3, 1), (5, 1, 6), (1, 7, 3)] {
                let (bi, bj) = route.block(i, j, step);
                let mut at = wafer.owner(bi, bj);
                for link in route.path(&wafer, i, j, step) {
                    assert_eq!(link.from, at);
                    assert_eq!(link.from.x.abs_diff(link.to.x) + link.from.y.abs_diff(link.to.y), 1);
                    at = link.to;
                }
                assert_eq!(at, wafer.owner(i, j));
            }
        }
        assert_eq!(Route::Local.path(&wafer, 2, 1, 5).count(), 0);
        // A broadcast along a row never leaves it, so its links together are at most the row's.
        let links: HashSet<Link> = (0..4).flat_map(|j| Route::BroadcastRow.path(&wafer, 1, j, 2)).collect();
        assert_eq!(links.len(), 3);
    }
}
