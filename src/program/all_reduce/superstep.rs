//! Which tiles run in a superstep of the all-reduce, and what each of them takes and sends: straight lines of tiles, as data
//! of a launch. It must never know a value, nor count what the closed forms predict.

use crate::wafer::{AllReduce, Grid, Tile};

/// Ports of a tile, clockwise: the opposite of a port differs in the second bit.
pub const NORTH: u32 = 0;
/// The port towards larger x.
pub const EAST: u32 = 1;
/// The port towards larger y.
pub const SOUTH: u32 = 2;
/// The port towards smaller x.
pub const WEST: u32 = 3;

/// Bit of a task: shifted by a port, the tile adds the message that came there.
pub(super) const TAKE: u32 = 1;
/// Shifted by a port, it sends its sum there.
pub(super) const SEND: u32 = 1 << 4;
/// It begins with its own value, not with the sum it keeps.
pub(super) const OWN: u32 = 1 << 8;
/// It passes on what came in, without adding.
pub(super) const PASS: u32 = 1 << 9;

/// Lines of a superstep, at most: the sum goes out as a rhombus of four sides, and the two tips send in other directions.
pub(super) const LINES: usize = 6;

/// Tiles `first + n * stride` for `n < count` (a negative stride wraps), all with one task.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Line {
    pub first: u32,
    pub stride: u32,
    pub count: u32,
    pub task: u32,
}

/// What a superstep is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Rows add up towards the centre column.
    Rows,
    /// The centre column adds up towards the root.
    Column,
    /// The sum goes out.
    Outward,
}

/// The tiles that run in one superstep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superstep {
    /// Its number, from 0 on.
    pub number: u32,
    /// What it is for.
    pub phase: Phase,
    wafer: Grid,
    pub(super) lines: [Line; LINES],
}

impl Superstep {
    /// Superstep `number` of the all-reduce on a wafer; past the last one, no tile runs.
    pub fn of(wafer: Grid, number: u32) -> Superstep {
        let (across, down) = AllReduce { wafer }.reach();
        let phase = match number {
            n if n < across => Phase::Rows,
            n if n <= across + down => Phase::Column,
            _ => Phase::Outward,
        };
        let mut step = Superstep { number, phase, wafer, lines: [Line::default(); LINES] };
        match phase {
            Phase::Rows => step.rows(),
            Phase::Column => step.column(number - across),
            Phase::Outward => step.outward(i64::from(number - across - down)),
        }
        step
    }

    /// How many tiles run.
    pub fn count(&self) -> u32 {
        self.lines.iter().map(|line| line.count).sum()
    }

    /// The tiles, in the order of their workgroups.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> {
        let (lines, width) = (self.lines, self.wafer.width);
        let address = |line: Line| (0..line.count).map(move |n| line.first.wrapping_add(n.wrapping_mul(line.stride)));
        lines.into_iter().flat_map(address).map(move |t| Tile { x: t % width, y: t / width })
    }

    /// Two columns, as far from the centre as each other.
    fn rows(&mut self) {
        let (centre, width, height) = (self.wafer.width / 2, self.wafer.width, self.wafer.height);
        let (west, east) = (self.number, 2 * centre - self.number);
        let task = OWN | SEND << EAST | if west > 0 { TAKE << WEST } else { 0 };
        self.add((west, 0), (0, 1), height, task);
        if east < width {
            let task = OWN | SEND << WEST | if east + 1 < width { TAKE << EAST } else { 0 };
            self.add((east, 0), (0, 1), height, task);
        }
    }

    /// Two tiles of the centre column, `step` hops from where they began. At the first, the messages of all rows are there,
    /// and every tile of the column takes them.
    fn column(&mut self, step: u32) {
        let (x, centre) = (self.wafer.width / 2, self.wafer.height / 2);
        let Grid { width, height } = self.wafer;
        let (north, south) = (step, 2 * centre - step);
        let east = if x + 1 < width { TAKE << EAST } else { 0 };
        let rows = if step == 0 && x > 0 { TAKE << WEST | east } else { 0 };
        // Without rows there is no sum yet that a tile could keep.
        let start = if step == 0 || width == 1 { OWN | rows } else { 0 };
        let above = if north > 0 { TAKE << NORTH } else { 0 };
        let below = if south + 1 < height { TAKE << SOUTH } else { 0 };
        if north == centre {
            let everywhere = SEND << NORTH | SEND << EAST | SEND << SOUTH | SEND << WEST;
            return self.add((x, centre), (0, 1), 1, start | above | below | everywhere);
        }
        self.add((x, north), (0, 1), 1, start | above | SEND << SOUTH);
        if south < height {
            self.add((x, south), (0, 1), 1, start | below | SEND << NORTH);
        }
        if rows != 0 {
            self.add((x, 1), (0, 1), height - 1 - u32::from(south < height), start);
        }
    }

    /// The tiles `far` hops from the root.
    fn outward(&mut self, far: i64) {
        let (x, y) = (i64::from(self.wafer.width / 2), i64::from(self.wafer.height / 2));
        let (right, below) = (i64::from(self.wafer.width) - 1 - x, i64::from(self.wafer.height) - 1 - y);
        let along = SEND << EAST | SEND << WEST;
        if far <= y {
            self.add((x as u32, (y - far) as u32), (0, 1), 1, PASS | TAKE << SOUTH | SEND << NORTH | along);
        }
        if far <= below {
            self.add((x as u32, (y + far) as u32), (0, 1), 1, PASS | TAKE << NORTH | SEND << SOUTH | along);
        }
        for (side, limit, task) in [(-1, x, TAKE << EAST | SEND << WEST), (1, right, TAKE << WEST | SEND << EAST)] {
            // Columns beside the centre on this side: with rows from the root up, then with those below it.
            for (first, last, down) in [(far - y, far, -1), (far - below, far - 1, 1)] {
                let (first, last) = (first.max(1), last.min(limit));
                if first <= last {
                    let start = ((x + side * first) as u32, (y + down * (far - first)) as u32);
                    self.add(start, (side as i32, -down as i32), (last - first + 1) as u32, PASS | task);
                }
            }
        }
    }

    /// Adds the line of `count` tiles from `(x, y)` on in a direction.
    fn add(&mut self, (x, y): (u32, u32), (dx, dy): (i32, i32), count: u32, task: u32) {
        let width = self.wafer.width;
        let free = self.lines.iter_mut().find(|line| line.count == 0).expect("a superstep has at most six lines");
        *free =
            Line { first: y * width + x, stride: (dy as u32).wrapping_mul(width).wrapping_add(dx as u32), count, task };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_tile_runs_as_often_as_predicted_and_never_twice_at_once() {
        for (width, height) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 7), (6, 1), (5, 3), (4, 9), (9, 4), (8, 8)] {
            let all = AllReduce { wafer: Grid::new(width, height) };
            let mut runs = vec![0; (width * height) as usize];
            for number in 0..all.supersteps() as u32 {
                let step = Superstep::of(all.wafer, number);
                let tiles: Vec<Tile> = step.tiles().collect();
                assert!(!tiles.is_empty() && tiles.len() == step.count() as usize, "{step:?}");
                assert_eq!(tiles.iter().collect::<HashSet<_>>().len(), tiles.len(), "{step:?}");
                tiles.iter().for_each(|tile| runs[(tile.y * width + tile.x) as usize] += 1);
            }
            let want = (0..width * height).map(|t| all.runs(Tile { x: t % width, y: t / width }));
            assert_eq!(runs, want.collect::<Vec<u64>>(), "{all:?}");
            assert_eq!(Superstep::of(all.wafer, all.supersteps() as u32).count(), 0);
        }
    }
}
