//! What it costs to sum over tiles and to send to all of them, in cycles: the model of "Near-Optimal Wafer-Scale Reduce"
//! (Luczynski et al., HPDC'24, arXiv 2404.15888), which lies within 4 % of what its authors measured on a CS-2. It must
//! never know what is summed, or why.
//!
//! A reduce that receives at most C wavelets at one tile, crosses links E times in all, on N links, over a way of L hops at
//! most, and passes D cores one after another, takes `max(C, E / N + L) + (2 T_R + 1) D` cycles, T_R being those of a ramp.

use super::Machine;

/// How a line of tiles sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Every tile sends to the root.
    Star,
    /// Every tile adds its own to what its neighbour sends, and sends that on.
    Chain,
    /// Half of the tiles send to the other half, over 1, 2, 4 ... hops.
    Tree,
    /// Groups of about the square root of the tiles, a chain in each, then a chain of their sums.
    TwoPhase,
    /// Parts of the sum go round: a sum that ends on all tiles, and no reduce.
    Ring,
}

/// What the cycles of a collective are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Wavelets that the busiest tile receives (C).
    pub contention: f64,
    /// Links crossed, summed over the wavelets (E).
    pub energy: f64,
    /// Links that take part (N).
    pub links: f64,
    /// Hops of the longest way (L).
    pub distance: f64,
    /// Cores passed one after another (D).
    pub depth: f64,
}

impl Terms {
    /// `max(C, E / N + L) + (2 T_R + 1) D` cycles.
    pub fn cycles(&self, machine: &Machine) -> f64 {
        let way = self.energy / self.links + self.distance * machine.hop_cycles as f64;
        self.contention.max(way) + machine.turn_cycles() as f64 * self.depth
    }
}

impl Algorithm {
    /// The reduces: all but [`Algorithm::Ring`].
    pub const REDUCES: [Algorithm; 4] = [Algorithm::Star, Algorithm::Chain, Algorithm::Tree, Algorithm::TwoPhase];

    /// Its name, as a table prints it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Star => "star",
            Algorithm::Chain => "chain",
            Algorithm::Tree => "tree",
            Algorithm::TwoPhase => "two-phase",
            Algorithm::Ring => "ring",
        }
    }

    /// The terms of a reduce of `wavelets` from each of `tiles` in a line to one at its end; of the ring, of the whole
    /// all-reduce. Logarithm and root are those of a real number, as in the reference.
    ///
    /// # Panics
    /// For less than two tiles.
    pub fn terms(self, tiles: u64, wavelets: u64) -> Terms {
        assert!(tiles > 1, "a collective has two tiles or more");
        let (p, b) = (tiles as f64, wavelets as f64);
        let line = p - 1.0;
        let (contention, energy, links, distance, depth) = match self {
            Algorithm::Star => (b * line, b * p * line / 2.0, line, line, 1.0),
            Algorithm::Chain => (b, b * line, line, line, line),
            Algorithm::Tree => (b * p.log2(), b * p / 2.0 * p.log2(), line, line, p.log2()),
            Algorithm::TwoPhase => (2.0 * b, b * (2.0 * p - p.sqrt() - 1.0), line, line, 2.0 * p.sqrt() - 2.0),
            // 2 (P - 1) rounds in which a P-th part crosses each of 2 (P - 1) links: there, and back to the first tile.
            Algorithm::Ring => (2.0 * line * b / p, 4.0 * line * line * b / p, 2.0 * line, 4.0 * p - 6.0, 2.0 * line),
        };
        Terms { contention, energy, links, distance, depth }
    }

    /// Cycles of the reduce, of the ring those of the all-reduce; none for one tile.
    pub fn cycles(self, machine: &Machine, tiles: u64, wavelets: u64) -> f64 {
        if tiles < 2 {
            return 0.0;
        }
        let terms = self.terms(tiles, wavelets);
        match self {
            // What comes from afar arrives behind what comes from near, in one stream without a gap: the root takes in the
            // first wavelet after a hop and one a cycle from then on, and no way is waited for beside.
            Algorithm::Star => Terms { energy: 0.0, distance: 0.0, ..terms }.cycles(machine),
            _ => terms.cycles(machine),
        }
    }

    /// Cycles of an all-reduce: the reduce and a broadcast of the sum, or the ring.
    pub fn all_reduce(self, machine: &Machine, tiles: u64, wavelets: u64) -> f64 {
        match self {
            Algorithm::Ring => self.cycles(machine, tiles, wavelets),
            _ => self.cycles(machine, tiles, wavelets) + machine.broadcast(tiles, wavelets),
        }
    }
}

impl Machine {
    /// Cycles in which the tile at the end of a line sends `wavelets` to all of `tiles`: `B + P + 2 T_R`; none for one tile.
    pub fn broadcast(&self, tiles: u64, wavelets: u64) -> f64 {
        self.broadcast_2d(tiles, 1, wavelets)
    }

    /// Cycles in which a tile in a corner sends `wavelets` to all of `width x height` tiles: `B + M + N - 2 + 2 T_R + 1`;
    /// none for one tile.
    pub fn broadcast_2d(&self, width: u64, height: u64, wavelets: u64) -> f64 {
        self.flood((width + height).saturating_sub(2), wavelets)
    }

    /// Cycles until the last of `wavelets` has come so many hops, and up and down a ramp.
    fn flood(&self, hops: u64, wavelets: u64) -> f64 {
        if hops == 0 { 0.0 } else { (wavelets + hops * self.hop_cycles + self.turn_cycles()) as f64 }
    }

    /// The reduce of a line of tiles that takes the fewest cycles, and how many; the first of equals.
    pub fn best(&self, tiles: u64, wavelets: u64) -> (Algorithm, f64) {
        least(Algorithm::REDUCES.map(|algorithm| (algorithm, algorithm.cycles(self, tiles, wavelets))))
    }

    /// The same of an all-reduce, the ring among them.
    pub fn best_all_reduce(&self, tiles: u64, wavelets: u64) -> (Algorithm, f64) {
        let all = [&Algorithm::REDUCES[..], &[Algorithm::Ring]].concat();
        least(all.into_iter().map(|algorithm| (algorithm, algorithm.all_reduce(self, tiles, wavelets))))
    }

    /// Cycles of a reduce of a rectangle to a corner: along each row, then down the first column (X-Y).
    pub fn reduce_2d(&self, width: u64, height: u64, wavelets: u64) -> f64 {
        self.best(width, wavelets).1 + self.best(height, wavelets).1
    }

    /// Cycles of an all-reduce of a rectangle: X-Y to a corner, and a broadcast from there.
    pub fn all_reduce_2d(&self, width: u64, height: u64, wavelets: u64) -> f64 {
        self.reduce_2d(width, height, wavelets) + self.broadcast_2d(width, height, wavelets)
    }

    /// Cycles of an all-reduce of a rectangle with its root in the middle: each half of a row sums towards the two tiles in
    /// the middle, these columns halve by halve towards the four tiles in the centre, these four sum in two turns, and one of
    /// them sends to all.
    pub fn centre_all_reduce(&self, width: u64, height: u64, wavelets: u64) -> f64 {
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        let quarters = self.reduce_2d(half_width, half_height, wavelets);
        let centre = self.reduce_2d(width.min(2), height.min(2), wavelets);
        quarters + centre + self.flood(width / 2 + height / 2, wavelets)
    }
}

/// The one of fewest cycles; the first of equals.
fn least(all: impl IntoIterator<Item = (Algorithm, f64)>) -> (Algorithm, f64) {
    all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("an algorithm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wafer::WSE2;

    /// Tiles; for 1, 64, 1024 and 4096 wavelets the best reduce, its cycles, those of the all-reduce, microseconds of it.
    const REFERENCE: &str = "
        64   star 68 137 0.16   two-phase 254 386 0.45   chain 1402 2494 2.9       chain 4474 8638 10.2
        512  star 516 1033 1.2  tree 845 1425 1.7        two-phase 2732 4272 5.0   chain 7162 11774 13.9
        750  star 754 1509 1.8  tree 1103 1921 2.3       two-phase 3025 4803 5.7   chain 8590 13440 15.8";
    const WAVELETS: [u64; 4] = [1, 64, 1024, 4096];

    /// Cells of the reference in which a machine differs.
    fn differing(machine: &Machine) -> Vec<String> {
        let mut found = Vec::new();
        for line in REFERENCE.trim().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let tiles = words[0].parse().expect("tiles");
            for (cell, wavelets) in words[1..].chunks(4).zip(WAVELETS) {
                let (algorithm, cycles) = machine.best(tiles, wavelets);
                let both = algorithm.all_reduce(machine, tiles, wavelets);
                let decimals = cell[3].split_once('.').map_or(0, |(_, after)| after.len());
                let ours = [
                    algorithm.name().to_owned(),
                    format!("{cycles:.0}"),
                    format!("{both:.0}"),
                    format!("{:.decimals$}", machine.seconds(both) * 1e6),
                ];
                if ours != cell {
                    found.push(format!("{tiles} tiles, {wavelets} wavelets: {ours:?}, not {cell:?}"));
                }
            }
        }
        found
    }

    #[test]
    fn every_reference_vector_is_reproduced() {
        assert_eq!(differing(&WSE2), [""; 0]);
        assert_eq!(WSE2.broadcast_2d(750, 994, 1), 1748.0);
        assert_eq!(format!("{:.2}", WSE2.seconds(1748.0) * 1e6), "2.06");
    }

    #[test]
    fn another_ramp_fails_every_reference_vector() {
        for ramp_cycles in [0, 1, 3, 7] {
            let machine = Machine { ramp_cycles, ..WSE2 };
            assert_eq!(differing(&machine).len(), 12, "T_R = {ramp_cycles}");
            assert_ne!(machine.broadcast_2d(750, 994, 1), 1748.0);
        }
        // A clock or a hop that is wrong is seen too.
        assert!(!differing(&Machine { clock_hz: 1.1e9, ..WSE2 }).is_empty());
        assert!(!differing(&Machine { hop_cycles: 2, ..WSE2 }).is_empty());
    }

    #[test]
    fn terms_give_the_closed_forms() {
        for (tiles, wavelets) in [(2, 1), (7, 3), (64, 64), (750, 1024)] {
            let (p, b) = (tiles as f64, wavelets as f64);
            let near = |algorithm: Algorithm, wanted: f64| {
                let ours = algorithm.cycles(&WSE2, tiles, wavelets);
                assert!((ours - wanted).abs() <= 1e-12 * wanted, "{algorithm:?}: {ours}, not {wanted}");
            };
            near(Algorithm::Star, b * (p - 1.0) + 5.0);
            near(Algorithm::Chain, b + 6.0 * (p - 1.0));
            let tree = b * p / (2.0 * (p - 1.0)) * p.log2() + p - 1.0;
            near(Algorithm::Tree, tree.max(b * p.log2()) + 5.0 * p.log2());
            near(Algorithm::Ring, 2.0 * (p - 1.0) * b / p + 4.0 * p - 6.0 + 2.0 * (p - 1.0) * 5.0);
            assert_eq!(WSE2.broadcast(tiles, wavelets), b + p + 4.0);
        }
    }

    #[test]
    fn more_costs_more_and_the_best_is_the_least() {
        let (tiles, wavelets) = ([2, 3, 4, 5, 17, 64, 100, 512, 750, 994], [1, 2, 5, 64, 100, 1024, 4096, 100_000]);
        let all = [&Algorithm::REDUCES[..], &[Algorithm::Ring]].concat();
        for p in tiles {
            for b in wavelets {
                let (_, best) = WSE2.best(p, b);
                // Whatever the order, all that the root adds comes over its one ramp, and something from the far end.
                assert!(
                    best >= (b.max(p - 1) + WSE2.turn_cycles()) as f64 * (1.0 - 1e-12) || p == 2,
                    "{p}, {b}: {best}"
                );
                for algorithm in Algorithm::REDUCES {
                    assert!(best <= algorithm.cycles(&WSE2, p, b));
                }
                for algorithm in &all {
                    assert!(WSE2.best_all_reduce(p, b).1 <= algorithm.all_reduce(&WSE2, p, b));
                    for (p, b, q, c) in tiles.iter().flat_map(|q| wavelets.map(|c| (p, b, *q, c))) {
                        let less = algorithm.all_reduce(&WSE2, p, b) <= algorithm.all_reduce(&WSE2, q, c);
                        assert!(less || q < p || c < b, "{algorithm:?}: {p} tiles, {b} and {q} tiles, {c}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_root_in_the_middle_halves_the_way() {
        for (width, height) in [(602, 595), (750, 994), (9, 4), (2, 2)] {
            let (corner, centre) = (WSE2.all_reduce_2d(width, height, 1), WSE2.centre_all_reduce(width, height, 1));
            assert!(centre >= (width + height - 2) as f64, "there and back is the diameter: {centre}");
            assert!(centre < corner || width + height < 16, "{width} x {height}: {centre}, {corner}");
        }
        assert_eq!(WSE2.all_reduce_2d(1, 1, 5), 0.0);
        assert_eq!(WSE2.centre_all_reduce(1, 1, 5), 0.0);
    }
}
