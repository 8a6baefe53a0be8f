//! The grid of tiles, who owns which block, and the rounds in which more blocks than tiles are played.

use std::fmt;

use super::{Defects, Mesh, WaferError};

/// Columns and rows of tiles, all of which work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Tiles along x.
    pub width: u32,
    /// Tiles along y.
    pub height: u32,
}

impl Grid {
    /// A grid of `width x height` tiles.
    ///
    /// # Panics
    /// For a width or a height of zero.
    pub fn new(width: u32, height: u32) -> Grid {
        assert!(width > 0 && height > 0, "a grid has tiles");
        Grid { width, height }
    }
}

/// A grid of tiles joined by a mesh. Programs see the tiles that work, as if nothing were wrong with the others: see
/// [`Wafer::with_defects`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wafer {
    /// Tiles along x.
    pub width: u32,
    /// Tiles along y.
    pub height: u32,
    mesh: Mesh,
}

/// SRAM of a WSE-2 tile in bytes.
pub const WSE2_TILE_SRAM: u32 = 48 * 1024;

/// A tile, by its place on the wafer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    /// Column, from the left.
    pub x: u32,
    /// Row, from the top.
    pub y: u32,
}

/// A side of a tile, by which blocks come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// Towards row 0.
    North,
    /// Towards higher columns.
    East,
    /// Towards higher rows.
    South,
    /// Towards column 0.
    West,
}

impl Port {
    /// All four.
    pub const ALL: [Port; 4] = [Port::North, Port::East, Port::South, Port::West];

    /// The port of the neighbour that this one leads to.
    pub fn opposite(self) -> Port {
        Port::ALL[(self as usize + 2) % 4]
    }

    /// The tile that the port leads to, on a grid without edges.
    pub fn beyond(self, Tile { x, y }: Tile) -> Tile {
        match self {
            Port::North => Tile { x, y: y.wrapping_sub(1) },
            Port::East => Tile { x: x + 1, y },
            Port::South => Tile { x, y: y + 1 },
            Port::West => Tile { x: x.wrapping_sub(1), y },
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Port::North => "north",
            Port::East => "east",
            Port::South => "south",
            Port::West => "west",
        })
    }
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

    /// The number of block (i, j), where it is one of them.
    pub fn number(&self, i: u32, j: u32) -> Option<usize> {
        let (row, col) = (i.checked_sub(self.first_row)?, j.checked_sub(self.first_col)?);
        (row < self.height && col < self.width).then_some((row * self.width + col) as usize)
    }

    /// The blocks (i, j) in the order of their numbers.
    pub fn blocks(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.tiles()).map(move |t| (self.first_row + t / self.width, self.first_col + t % self.width))
    }
}

impl Wafer {
    /// A wafer of `width x height` tiles with the SRAM of a WSE-2 tile.
    ///
    /// # Panics
    /// For a width or a height of zero.
    pub fn new(width: u32, height: u32) -> Wafer {
        assert!(width > 0 && height > 0, "a wafer has tiles");
        Wafer { width, height, mesh: Mesh::whole(width, height) }
    }

    /// A wafer of which some tiles and links are dead: the largest grid of tiles that work and can reach each other, a row
    /// of it on a row of the wafer. Work moves to the tiles behind a dead one; what crosses them goes round.
    ///
    /// # Errors
    /// [`WaferError::Dead`] where no tile is left, [`WaferError::Outside`] for a defect that is not on the wafer.
    ///
    /// # Panics
    /// For a width or a height of zero.
    pub fn with_defects(width: u32, height: u32, defects: &Defects) -> Result<Wafer, WaferError> {
        assert!(width > 0 && height > 0, "a wafer has tiles");
        let (mesh, (width, height)) = Mesh::with_defects(width, height, defects)?;
        Ok(Wafer { width, height, mesh })
    }

    /// Where the tiles and links lie that programs see as a grid.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The tile that block (i, j) of any matrix lives on.
    pub fn owner(&self, i: u32, j: u32) -> Tile {
        Tile { x: j % self.width, y: i % self.height }
    }

    /// The rounds of a program of `rows x cols` blocks, row by row; no two blocks of a round share a tile.
    pub fn rounds(&self, rows: u32, cols: u32) -> impl Iterator<Item = Round> + use<> {
        let (wide, high) = (self.width, self.height);
        let (height, width) = (high as usize, wide as usize);
        (0..rows).step_by(height).flat_map(move |first_row| {
            (0..cols).step_by(width).map(move |first_col| Round {
                first_row,
                first_col,
                height: high.min(rows - first_row),
                width: wide.min(cols - first_col),
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
}
