//! Which tiles of a wafer have how much to do: rectangles of tiles that are alike, exact at any size. Block (i, j) of a
//! program is played by tile (j mod width, i mod height), so how much a tile has to do only steps where blocks run out.

use serde::Serialize;

/// Rectangles of tiles that are alike. Cell (row, column) is the tiles `columns[column] .. columns[column + 1]` by
/// `rows[row] .. rows[row + 1]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Map {
    /// Borders along x, from 0 to the width.
    pub columns: Vec<u64>,
    /// Borders along y, from 0 to the height.
    pub rows: Vec<u64>,
    /// Row by row: what a tile has to do, as a share of the busiest tile.
    pub work: Vec<Vec<f64>>,
    /// Row by row: the most that a program takes of a tile's SRAM, as a share of it; 0 where no program runs.
    pub sram: Vec<Vec<f64>>,
    /// Row by row: the bytes that a tile receives over its links, as a share of the most that one does.
    pub traffic: Vec<Vec<f64>>,
    /// Bytes that the tile receives which receives most.
    pub most_bytes: f64,
    /// Tiles that have something to do.
    pub busy: u64,
    /// Mean work over that of the busiest tile.
    pub balance: f64,
}

/// A program as the map sees it.
#[derive(Clone, Copy, Debug)]
pub struct Played {
    /// Rows and columns of blocks.
    pub blocks: (u64, u64),
    /// Work of all blocks together, in any unit that all share.
    pub work: f64,
    /// Share of a tile's SRAM that it takes.
    pub sram: f64,
    /// Bytes that all blocks together receive over the fabric. In a broadcast and in a ring a tile passes on what it
    /// receives, so that these are the bytes that cross its links.
    pub bytes: f64,
}

impl Map {
    /// The map of programs on a grid.
    pub fn of((width, height): (u64, u64), played: &[Played]) -> Map {
        let borders = |side: u64, extents: &mut dyn Iterator<Item = u64>| {
            // Beyond the last whole round, some tiles have one block more.
            let mut borders: Vec<u64> = extents.map(|blocks| blocks % side).chain([0, side]).collect();
            borders.sort_unstable();
            borders.dedup();
            borders
        };
        let columns = borders(width, &mut played.iter().map(|p| p.blocks.1));
        let rows = borders(height, &mut played.iter().map(|p| p.blocks.0));
        let on = |at: u64, side: u64, blocks: u64| blocks / side + u64::from(at < blocks % side);
        let each = |value: &dyn Fn(u64, u64) -> f64| -> Vec<Vec<f64>> {
            let row = |y: &u64| columns[..columns.len() - 1].iter().map(|x| value(*x, *y)).collect();
            rows[..rows.len() - 1].iter().map(row).collect()
        };
        let count = |x: u64, y: u64, p: &Played| on(x, width, p.blocks.1) * on(y, height, p.blocks.0);
        let shared = |of: &dyn Fn(&Played) -> f64| {
            let part = |x, y, p: &Played| of(p) * count(x, y, p) as f64 / (p.blocks.0 * p.blocks.1).max(1) as f64;
            let mut cells = each(&|x, y| played.iter().map(|p| part(x, y, p)).sum());
            let most = cells.iter().flatten().copied().fold(0.0, f64::max);
            cells.iter_mut().flatten().for_each(|cell| *cell = if most > 0.0 { *cell / most } else { 0.0 });
            (cells, most)
        };
        let (work, _) = shared(&|p| p.work);
        let (traffic, most_bytes) = shared(&|p| p.bytes);
        let sram = each(&|x, y| played.iter().filter(|p| count(x, y, p) > 0).map(|p| p.sram).fold(0.0, f64::max));
        let (mut busy, mut sum) = (0, 0.0);
        for (row, y) in work.iter().zip(rows.windows(2)) {
            for (share, x) in row.iter().zip(columns.windows(2)) {
                let tiles = (x[1] - x[0]) * (y[1] - y[0]);
                busy += if *share > 0.0 { tiles } else { 0 };
                sum += *share * tiles as f64;
            }
        }
        Map { columns, rows, work, sram, traffic, most_bytes, busy, balance: sum / (width * height) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_what_each_tile_plays() {
        let played = [
            Played { blocks: (5, 7), work: 35.0, sram: 0.5, bytes: 70.0 },
            Played { blocks: (2, 1), work: 6.0, sram: 0.75, bytes: 0.0 },
            Played { blocks: (1, 2), work: 1.0, sram: 0.25, bytes: 8.0 },
        ];
        for (width, height) in [(3, 2), (8, 8), (1, 1), (7, 5), (4, 9)] {
            let map = Map::of((width, height), &played);
            let mut work = vec![vec![0.0; width as usize]; height as usize];
            let (mut sram, mut bytes) = (work.clone(), work.clone());
            for p in &played {
                for (i, j) in (0..p.blocks.0).flat_map(|i| (0..p.blocks.1).map(move |j| (i, j))) {
                    let (y, x) = ((i % height) as usize, (j % width) as usize);
                    work[y][x] += p.work / (p.blocks.0 * p.blocks.1) as f64;
                    bytes[y][x] += p.bytes / (p.blocks.0 * p.blocks.1) as f64;
                    sram[y][x] = p.sram.max(sram[y][x]);
                }
            }
            let most = work.iter().flatten().copied().fold(0.0, f64::max);
            let most_bytes = bytes.iter().flatten().copied().fold(0.0, f64::max);
            assert!((map.most_bytes - most_bytes).abs() < 1e-9);
            let at =
                |borders: &[u64], place: u64| borders.windows(2).position(|b| (b[0]..b[1]).contains(&place)).unwrap();
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let (row, column) = (at(&map.rows, y), at(&map.columns, x));
                let wanted = (work[y as usize][x as usize] / most, sram[y as usize][x as usize]);
                assert!((map.work[row][column] - wanted.0).abs() < 1e-12, "{width} x {height}: {x}, {y}");
                let traffic = bytes[y as usize][x as usize] / most_bytes;
                assert!((map.traffic[row][column] - traffic).abs() < 1e-12, "{width} x {height}: {x}, {y}");
                assert_eq!(map.sram[row][column], wanted.1, "{width} x {height}: {x}, {y}");
            }
            assert_eq!(map.busy, work.iter().flatten().filter(|w| **w > 0.0).count() as u64);
        }
        assert_eq!(Map::of((4, 4), &[]).busy, 0);
    }
}
