//! Which block a tile receives at a step, and over which links of the mesh it comes.

use super::{Link, Wafer};

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

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
