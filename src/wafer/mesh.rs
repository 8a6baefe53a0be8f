//! Which tiles and links of a wafer work, where the tiles lie that programs see as a whole grid, and the way from one to
//! another. It must never know what travels.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::{Defects, Port, Tile, WaferError};

/// The tiles and links of a wafer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    width: u32,
    height: u32,
    /// What is dead, and where each tile lies that programs see, row by row; nothing where all work.
    broken: Option<Arc<Broken>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Broken {
    tiles: BTreeSet<Tile>,
    links: BTreeSet<(Tile, Tile)>,
    columns: u32,
    places: Vec<Tile>,
}

/// From each tile that can be reached, by which port one comes back towards the source; the source has none.
pub type Ways = HashMap<Tile, Port>;

impl Mesh {
    pub(super) fn whole(width: u32, height: u32) -> Mesh {
        Mesh { width, height, broken: None }
    }

    /// The mesh, and columns and rows of the largest grid of tiles that work on it.
    pub(super) fn with_defects(width: u32, height: u32, defects: &Defects) -> Result<(Mesh, (u32, u32)), WaferError> {
        defects.check(width, height)?;
        let broken =
            Broken { tiles: defects.tiles().clone(), links: defects.links().clone(), columns: 0, places: vec![] };
        let mut mesh = Mesh { width, height, broken: Some(Arc::new(broken)) };
        let live = mesh.largest_part();
        let row = |y: u32| (0..width).map(move |x| Tile { x, y }).filter(|tile| live.contains(tile));
        let counts: Vec<u32> = (0..height).map(|y| row(y).count() as u32).collect();
        // With so many columns, every row that has as many tiles takes part.
        let rows = |columns: u32| counts.iter().filter(|count| **count >= columns).count() as u32;
        let columns = (1..=width).max_by_key(|&columns| (columns * rows(columns), columns)).expect("columns");
        let rows = rows(columns);
        if rows == 0 {
            return Err(WaferError::Dead { width, height });
        }
        let used = (0..height).filter(|y| counts[*y as usize] >= columns);
        let places = used.flat_map(|y| row(y).take(columns as usize)).collect();
        let dead = (0..width * height).map(|at| Tile { x: at % width, y: at / width });
        let tiles = dead.filter(|tile| !live.contains(tile)).collect();
        mesh.broken = Some(Arc::new(Broken { tiles, links: defects.links().clone(), columns, places }));
        Ok((mesh, (columns, rows)))
    }

    /// Columns and rows of the wafer itself, dead tiles included.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Whether all of it works.
    pub fn is_whole(&self) -> bool {
        self.broken.is_none()
    }

    /// Whether a tile of the wafer works and can be reached.
    pub fn works(&self, tile: Tile) -> bool {
        self.broken.as_ref().is_none_or(|broken| !broken.tiles.contains(&tile))
    }

    /// Where a tile lies that programs see.
    pub fn place(&self, tile: Tile) -> Tile {
        match &self.broken {
            None => tile,
            Some(broken) => broken.places[(tile.y * broken.columns + tile.x) as usize],
        }
    }

    /// The neighbour behind a port, where it and the link to it work.
    pub fn neighbour(&self, tile: Tile, port: Port) -> Option<Tile> {
        let next = port.beyond(tile);
        let there = next.x < self.width && next.y < self.height;
        let linked = |broken: &Broken| !broken.tiles.contains(&next) && !broken.links.contains(&ordered(tile, next));
        (there && self.broken.as_deref().is_none_or(linked)).then_some(next)
    }

    /// The ways from a place to all others: along the row first, then along columns; round what is dead, on a shortest way.
    pub fn ways(&self, source: Tile) -> Ways {
        let mut ways = Ways::new();
        if self.is_whole() {
            for at in 0..self.width * self.height {
                let tile = Tile { x: at % self.width, y: at / self.width };
                let back = match () {
                    () if tile.y > source.y => Port::North,
                    () if tile.y < source.y => Port::South,
                    () if tile.x > source.x => Port::West,
                    () if tile.x < source.x => Port::East,
                    () => continue,
                };
                ways.insert(tile, back);
            }
            return ways;
        }
        let mut queue = VecDeque::from([source]);
        while let Some(tile) = queue.pop_front() {
            for port in [Port::East, Port::West, Port::South, Port::North] {
                let Some(next) = self.neighbour(tile, port) else { continue };
                if next != source && !ways.contains_key(&next) {
                    ways.insert(next, port.opposite());
                    queue.push_back(next);
                }
            }
        }
        ways
    }

    /// The tiles of the largest part whose tiles reach each other; the first of equal ones.
    fn largest_part(&self) -> BTreeSet<Tile> {
        let mut parts: Vec<BTreeSet<Tile>> = Vec::new();
        for at in 0..self.width * self.height {
            let tile = Tile { x: at % self.width, y: at / self.width };
            if self.works(tile) && !parts.iter().any(|part| part.contains(&tile)) {
                parts.push(self.ways(tile).into_keys().chain([tile]).collect());
            }
        }
        parts.into_iter().rev().max_by_key(BTreeSet::len).unwrap_or_default()
    }
}

/// A link by its ends, whichever way it is crossed.
pub(super) fn ordered(a: Tile, b: Tile) -> (Tile, Tile) {
    if a < b { (a, b) } else { (b, a) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wafer::Wafer;

    /// The tiles from a source to a target, both included.
    fn path(mesh: &Mesh, source: Tile, target: Tile) -> Vec<Tile> {
        let ways = mesh.ways(source);
        let mut path = vec![target];
        while *path.last().unwrap() != source {
            let at = *path.last().unwrap();
            path.push(mesh.neighbour(at, ways[&at]).expect("a way leads over links that work"));
        }
        path.reverse();
        path
    }

    #[test]
    fn ways_on_a_whole_wafer_go_along_the_row_first() {
        let wafer = Wafer::new(5, 4);
        let at = |x, y| Tile { x, y };
        let way = path(wafer.mesh(), at(1, 3), at(3, 1));
        assert_eq!(way, [at(1, 3), at(2, 3), at(3, 3), at(3, 2), at(3, 1)]);
    }

    #[test]
    fn a_grid_with_defects_has_tiles_that_work_and_ways_between_all_of_them() {
        for seed in 0..60 {
            let defects = Defects::random(9, 7, 0.08, seed);
            let wafer = Wafer::with_defects(9, 7, &defects).unwrap();
            let mesh = wafer.mesh();
            let tiles: Vec<Tile> = (0..wafer.height)
                .flat_map(|y| (0..wafer.width).map(move |x| Tile { x, y }))
                .map(|tile| mesh.place(tile))
                .collect();
            assert_eq!(tiles.iter().collect::<BTreeSet<_>>().len(), tiles.len(), "two on one place, seed {seed}");
            assert!(tiles.iter().all(|tile| !defects.tiles().contains(tile)), "on a dead tile, seed {seed}");
            let ways = mesh.ways(tiles[0]);
            assert!(tiles[1..].iter().all(|tile| ways.contains_key(tile)), "out of reach, seed {seed}");
            for target in &tiles[1..] {
                let way = path(mesh, tiles[0], *target);
                let direct = tiles[0].x.abs_diff(target.x) + tiles[0].y.abs_diff(target.y);
                assert!(way.len() as u32 > direct, "shorter than the grid allows");
            }
            // Rows stay in order, and so do the tiles of a row.
            assert!(tiles.is_sorted_by_key(|tile| (tile.y, tile.x)));
        }
    }

    #[test]
    fn a_dead_tile_in_the_way_costs_two_hops() {
        let defects = Defects::parse("tile 2 0", "map").unwrap();
        let wafer = Wafer::with_defects(5, 2, &defects).unwrap();
        // Four columns of both rows are larger than five of one.
        assert_eq!((wafer.width, wafer.height), (4, 2));
        let mesh = wafer.mesh();
        let (left, right) = (mesh.place(Tile { x: 1, y: 0 }), mesh.place(Tile { x: 2, y: 0 }));
        assert_eq!((left.x, right.x), (1, 3));
        assert_eq!(path(mesh, left, right).len() - 1, 4, "two hops, and two round the dead tile");
    }

    #[test]
    fn a_dead_link_is_never_crossed() {
        let defects = Defects::parse("link 1 0 2 0", "map").unwrap();
        let wafer = Wafer::with_defects(3, 2, &defects).unwrap();
        assert_eq!((wafer.width, wafer.height), (3, 2));
        let at = |x, y| Tile { x, y };
        assert_eq!(path(wafer.mesh(), at(1, 0), at(2, 0)), [at(1, 0), at(1, 1), at(2, 1), at(2, 0)]);
    }

    #[test]
    fn a_wafer_of_dead_tiles_is_refused() {
        let defects = Defects::parse("tile 0 0\ntile 1 0", "map").unwrap();
        assert!(matches!(Wafer::with_defects(2, 1, &defects), Err(WaferError::Dead { .. })));
        let outside = Defects::parse("tile 2 0", "map").unwrap();
        assert!(matches!(Wafer::with_defects(2, 1, &outside), Err(WaferError::Outside { .. })));
    }
}
