//! Maps of defects: which tiles and which links of a wafer are dead, from a text or drawn by a seed. It must never know
//! where work goes instead.

use std::collections::BTreeSet;

use super::mesh::ordered;
use super::{Port, Tile};

/// Dead tiles and dead links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defects {
    tiles: BTreeSet<Tile>,
    links: BTreeSet<(Tile, Tile)>,
}

/// What is wrong with a wafer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaferError {
    /// A line of a map that is none.
    #[error(
        "{name}, line {line}: {text:?} is no defect; write `tile X Y` or `link X Y X Y` of two neighbours, one a line"
    )]
    Line {
        /// The file.
        name: String,
        /// Its line, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A defect of a tile that the wafer does not have.
    #[error("the map of defects names tile {} {}, the wafer has {width} x {height}; give a map of this wafer", tile.x, tile.y)]
    Outside {
        /// The tile.
        tile: Tile,
        /// Columns of the wafer.
        width: u32,
        /// Rows of the wafer.
        height: u32,
    },
    /// No tile works.
    #[error("no tile of the {width} x {height} works; give a map with fewer defects")]
    Dead {
        /// Columns of the wafer.
        width: u32,
        /// Rows of the wafer.
        height: u32,
    },
}

impl Defects {
    /// Reads a map: `tile X Y` or `link X Y X Y` a line, `#` before a remark.
    ///
    /// # Errors
    /// [`WaferError::Line`] names the line of the file called `name`.
    pub fn parse(text: &str, name: &str) -> Result<Defects, WaferError> {
        let mut defects = Defects::default();
        for (number, line) in text.lines().enumerate() {
            let said = line.split('#').next().unwrap_or_default().trim();
            if !said.is_empty() && defects.add(said).is_none() {
                return Err(WaferError::Line { name: name.into(), line: number + 1, text: said.into() });
            }
        }
        Ok(defects)
    }

    fn add(&mut self, said: &str) -> Option<()> {
        let (kind, numbers) = said.split_once(char::is_whitespace)?;
        let numbers: Vec<u32> = numbers.split_whitespace().map(|n| n.parse().ok()).collect::<Option<_>>()?;
        match (kind, numbers.as_slice()) {
            ("tile", &[x, y]) => {
                self.tiles.insert(Tile { x, y });
            }
            ("link", &[x, y, u, v]) => {
                let (a, b) = (Tile { x, y }, Tile { x: u, y: v });
                if x.abs_diff(u) + y.abs_diff(v) != 1 {
                    return None;
                }
                self.links.insert(ordered(a, b));
            }
            _ => return None,
        }
        Some(())
    }

    /// Each tile and each link dead with a probability of `rate`, drawn by `seed`.
    pub fn random(width: u32, height: u32, rate: f64, seed: u64) -> Defects {
        let mut defects = Defects::default();
        let mut draw = SplitMix(seed);
        let mut dead = || (draw.next() >> 11) as f64 / ((1u64 << 53) as f64) < rate;
        for y in 0..height {
            for x in 0..width {
                let tile = Tile { x, y };
                if dead() {
                    defects.tiles.insert(tile);
                }
                for port in [Port::East, Port::South] {
                    let next = port.beyond(tile);
                    if next.x < width && next.y < height && dead() {
                        defects.links.insert(ordered(tile, next));
                    }
                }
            }
        }
        defects
    }

    /// Dead tiles.
    pub fn tiles(&self) -> &BTreeSet<Tile> {
        &self.tiles
    }

    /// Dead links, each once.
    pub fn links(&self) -> &BTreeSet<(Tile, Tile)> {
        &self.links
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tiles.is_empty() && self.links.is_empty()
    }

    pub(super) fn check(&self, width: u32, height: u32) -> Result<(), WaferError> {
        let ends = self.links.iter().flat_map(|(a, b)| [a, b]);
        match self.tiles.iter().chain(ends).find(|tile| tile.x >= width || tile.y >= height) {
            Some(&tile) => Err(WaferError::Outside { tile, width, height }),
            None => Ok(()),
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_line_by_line() {
        let map = Defects::parse("# of a wafer\ntile 3 4 # scratched\n\nlink 1 2 1 1\n", "map").unwrap();
        assert_eq!(map.tiles().iter().collect::<Vec<_>>(), [&Tile { x: 3, y: 4 }]);
        assert_eq!(map.links().iter().collect::<Vec<_>>(), [&(Tile { x: 1, y: 1 }, Tile { x: 1, y: 2 })]);
        for bad in ["tile 3", "tile 3 x", "link 0 0 1 1", "hole 1 1", "tile 1 2 3", "tile -1 0"] {
            let error = Defects::parse(&format!("tile 0 0\n{bad}"), "map.txt").unwrap_err();
            let told = error.to_string();
            assert!(told.contains("map.txt, line 2") && told.contains("link X Y X Y"), "{told}");
        }
    }

    #[test]
    fn draws_are_those_of_the_seed_and_of_the_rate() {
        let draw = |rate, seed| Defects::random(100, 80, rate, seed);
        assert_eq!(draw(0.1, 3), draw(0.1, 3));
        assert_ne!(draw(0.1, 3), draw(0.1, 4));
        assert!(draw(0.0, 3).is_empty());
        assert_eq!(draw(1.0, 3).tiles().len(), 8000);
        let (tiles, links) = (draw(0.1, 5).tiles().len() as f64, draw(0.1, 5).links().len() as f64);
        // Ten standard deviations of a binomial distribution.
        let near = |count: f64, of: f64| (count - 0.1 * of).abs() <= 10.0 * (0.09 * of).sqrt();
        assert!(near(tiles, 8000.0) && near(links, 15820.0), "{tiles} tiles, {links} links");
    }
}
