//! A scalar all-reduce over every tile of a wafer, rooted at its centre, in closed form: supersteps, messages, how often
//! each tile runs. It must never walk the schedule: a prediction that repeats what it predicts proves nothing.

use super::{Cost, Grid, Tile};

/// Each tile has one number, and in the end all have their sum. Rows add up from both ends towards the centre column, that
/// column from both ends towards the root, and the sum goes back the same ways. A hop is a superstep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllReduce {
    /// The grid.
    pub wafer: Grid,
}

impl AllReduce {
    /// Where the sum becomes whole.
    pub fn root(&self) -> Tile {
        let (x, y) = self.reach();
        Tile { x, y }
    }

    /// Hops from the root to the farthest column, and to the farthest row.
    pub fn reach(&self) -> (u32, u32) {
        (self.wafer.width / 2, self.wafer.height / 2)
    }

    /// Hops from the first message to the last tile, one after the other: at one cycle a hop, the cycles of the fabric.
    /// What cores add, and the ramps between core and router, is not in it.
    pub fn hops(&self) -> u64 {
        let (across, down) = self.reach();
        2 * (u64::from(across) + u64::from(down))
    }

    /// Supersteps: the tiles that begin have not waited for a hop.
    pub fn supersteps(&self) -> u64 {
        self.hops() + 1
    }

    /// Hops between opposite corners: no all-reduce can be over sooner.
    pub fn diameter(&self) -> u64 {
        u64::from(self.wafer.width - 1) + u64::from(self.wafer.height - 1)
    }

    /// Hops of the same all-reduce with its root in a corner.
    pub fn hops_from_a_corner(&self) -> u64 {
        2 * self.diameter()
    }

    /// A dispatch a superstep; each tile but the root sends one message of 4 bytes inwards and gets one back.
    pub fn cost(&self) -> Cost {
        let messages = 2 * (self.tiles() - 1);
        Cost { dispatches: self.supersteps(), messages, exchanged_bytes: 4 * messages }
    }

    /// How often a tile runs: to send its sum inwards and to pass the whole one on, which at the root is one. A tile of
    /// the centre column runs once more, for its row, where the column's message comes later.
    pub fn runs(&self, tile: Tile) -> u64 {
        let root = self.root();
        let waits = tile.x == root.x && self.wafer.width > 1 && tile.y.abs_diff(root.y) < root.y;
        1 + u64::from(tile != root) + u64::from(waits)
    }

    /// Messages that a tile sends: one inwards, unless it is the root, and one to each neighbour that hears the sum from it.
    pub fn sends(&self, tile: Tile) -> u64 {
        let root = self.root();
        // Neighbours on one axis that are farther from the root than the tile.
        let outer =
            |at: u32, root: u32, len: u32| u64::from(at <= root && at > 0) + u64::from(at >= root && at + 1 < len);
        let across = outer(tile.x, root.x, self.wafer.width);
        let down = if tile.x == root.x { outer(tile.y, root.y, self.wafer.height) } else { 0 };
        u64::from(tile != root) + across + down
    }

    /// Runs of all tiles together.
    pub fn all_runs(&self) -> u64 {
        let waiting = if self.wafer.width > 1 { (2 * u64::from(self.root().y)).saturating_sub(1) } else { 0 };
        2 * self.tiles() - 1 + waiting
    }

    fn tiles(&self) -> u64 {
        u64::from(self.wafer.width) * u64::from(self.wafer.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published one: 602 x 595 tiles of a CS-1 in less than 1.5 us, about a tenth above the diameter (Rocki et al.,
    /// SC20, arXiv 2010.03660). Its clock was not published; 850 MHz is that of a CS-2 in Cerebras' own examples.
    #[test]
    fn the_published_time_leaves_room_for_cores_and_ramps() {
        let cs1 = AllReduce { wafer: Grid::new(602, 595) };
        assert_eq!((cs1.hops(), cs1.diameter()), (1196, 1195));
        let published = 1.1 * cs1.diameter() as f64;
        assert!(cs1.hops() as f64 <= published && cs1.hops() as f64 / 850.0 < 1.5);
        assert!(cs1.hops_from_a_corner() as f64 > published, "the root makes the difference");
    }

    #[test]
    fn tiles_add_up_to_the_whole() {
        for (width, height) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 7), (6, 1), (5, 3), (4, 9), (9, 4), (8, 8)] {
            let all = AllReduce { wafer: Grid::new(width, height) };
            let tiles = || (0..width * height).map(|t| Tile { x: t % width, y: t / width });
            assert_eq!(tiles().map(|tile| all.runs(tile)).sum::<u64>(), all.all_runs(), "{all:?}");
            assert_eq!(tiles().map(|tile| all.sends(tile)).sum::<u64>(), all.cost().messages, "{all:?}");
            let far = |tile: Tile| u64::from(tile.x.abs_diff(all.root().x) + tile.y.abs_diff(all.root().y));
            assert_eq!(2 * tiles().map(far).max().unwrap_or(0), all.hops(), "{all:?}");
            assert!((all.diameter()..=all.diameter() + 2).contains(&all.hops()), "{all:?}");
        }
    }
}
