//! Which tiles and links of a wafer work, where the tiles lie that programs see as a whole grid, and the way from one to
//! another. It must never know what travels.

use std::collections::VecDeque;
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
    /// Whether each tile works and can be reached.
    live: Vec<bool>,
    /// Of each tile the ports behind which the link is dead, a bit each.
    shut: Vec<u8>,
    columns: u32,
    places: Vec<Tile>,
}

/// The ways from one place to all others, each told backwards: by which port one comes a link nearer to the source.
#[derive(Clone, Debug)]
pub struct Ways {
    source: Tile,
    /// Columns of the wafer, and the port of each of its tiles, row by row; nothing where ways go straight.
    round: Option<(u32, Vec<Option<Port>>)>,
}

impl Ways {
    /// Where they begin.
    pub fn source(&self) -> Tile {
        self.source
    }

    /// The port of a tile that leads back towards the source; none of the source itself and of what cannot be reached.
    pub fn back(&self, tile: Tile) -> Option<Port> {
        let source = self.source;
        match &self.round {
            Some((width, ports)) => ports[(tile.y * width + tile.x) as usize],
            None if tile.y > source.y => Some(Port::North),
            None if tile.y < source.y => Some(Port::South),
            None if tile.x > source.x => Some(Port::West),
            None if tile.x < source.x => Some(Port::East),
            None => None,
        }
    }
}

impl Mesh {
    pub(super) fn whole(width: u32, height: u32) -> Mesh {
        Mesh { width, height, broken: None }
    }

    /// The mesh, and columns and rows of the largest grid of tiles that work on it.
    pub(super) fn with_defects(width: u32, height: u32, defects: &Defects) -> Result<(Mesh, (u32, u32)), WaferError> {
        defects.check(width, height)?;
        let size = width as usize * height as usize;
        let mut mesh = Mesh { width, height, broken: None };
        let (mut live, mut shut) = (vec![true; size], vec![0u8; size]);
        defects.tiles().iter().for_each(|tile| live[mesh.at(*tile)] = false);
        for (a, b) in defects.links() {
            for port in Port::ALL {
                shut[mesh.at(*a)] |= u8::from(port.beyond(*a) == *b) << port as u8;
                shut[mesh.at(*b)] |= u8::from(port.beyond(*b) == *a) << port as u8;
            }
        }
        let broken = |live, places, columns| Some(Arc::new(Broken { live, shut: shut.clone(), columns, places }));
        mesh.broken = broken(live, vec![], 0);
        let live = mesh.largest_part();
        let works = |tile: &Tile| live[(tile.y * width + tile.x) as usize];
        let row = |y: u32| (0..width).map(move |x| Tile { x, y }).filter(works);
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
        mesh.broken = broken(live, places, columns);
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
        self.broken.as_ref().is_none_or(|broken| broken.live[self.at(tile)])
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
        let open = |broken: &Broken| broken.live[self.at(next)] && broken.shut[self.at(tile)] >> port as u8 & 1 == 0;
        (there && self.broken.as_deref().is_none_or(open)).then_some(next)
    }

    /// The number of a tile, row by row.
    fn at(&self, tile: Tile) -> usize {
        tile.y as usize * self.width as usize + tile.x as usize
    }

    /// The ways from a place to all others: along the row first, then along columns; round what is dead, on a shortest way.
    pub fn ways(&self, source: Tile) -> Ways {
        let round = (!self.is_whole()).then(|| {
            let mut ports = vec![None; (self.width * self.height) as usize];
            self.flood(source, |tile, back| {
                let port = &mut ports[self.at(tile)];
                let new = tile != source && port.is_none();
                if new {
                    *port = Some(back);
                }
                new
            });
            (self.width, ports)
        });
        Ways { source, round }
    }

    /// Goes from a place over links that work, nearest tiles first: `enter` is told of a tile, and by which port one comes back,
    /// and says whether it is new.
    fn flood(&self, source: Tile, mut enter: impl FnMut(Tile, Port) -> bool) {
        let mut queue = VecDeque::from([source]);
        while let Some(tile) = queue.pop_front() {
            for port in [Port::East, Port::West, Port::South, Port::North] {
                let Some(next) = self.neighbour(tile, port) else { continue };
                if enter(next, port.opposite()) {
                    queue.push_back(next);
                }
            }
        }
    }

    /// Whether each tile, row by row, belongs to the largest part whose tiles reach each other; the first of equal ones.
    fn largest_part(&self) -> Vec<bool> {
        let at = |tile: Tile| self.at(tile);
        let mut parts = vec![0u32; (self.width * self.height) as usize];
        let mut sizes = vec![0u32];
        for (x, y) in (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y))) {
            let tile = Tile { x, y };
            if !self.works(tile) || parts[at(tile)] != 0 {
                continue;
            }
            let (part, mut size) = (sizes.len() as u32, 1);
            parts[at(tile)] = part;
            self.flood(tile, |next, _| {
                let new = parts[at(next)] == 0;
                if new {
                    (parts[at(next)], size) = (part, size + 1);
                }
                new
            });
            sizes.push(size);
        }
        let most = sizes.iter().copied().max().unwrap_or(0);
        let largest = sizes.iter().position(|size| *size == most).unwrap_or(0) as u32;
        parts.into_iter().map(|part| part != 0 && part == largest).collect()
    }
}

/// A link by its ends, whichever way it is crossed.
pub(super) fn ordered(a: Tile, b: Tile) -> (Tile, Tile) {
    if a < b { (a, b) } else { (b, a) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::wafer::Wafer;

    /// The tiles from a source to a target, both included.
    fn path(mesh: &Mesh, source: Tile, target: Tile) -> Vec<Tile> {
        let ways = mesh.ways(source);
        let mut path = vec![target];
        while *path.last().unwrap() != source {
            let at = *path.last().unwrap();
            let back = ways.back(at).expect("a way to what can be reached");
            path.push(mesh.neighbour(at, back).expect("a way leads over links that work"));
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
            assert!(tiles[1..].iter().all(|tile| ways.back(*tile).is_some()), "out of reach, seed {seed}");
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
