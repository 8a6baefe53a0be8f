//! How norms lie on tiles: rows cut into blocks of columns, columns cut into blocks of rows, what a tile of either carries,
//! and the same cuts for native code. It must never know what is summed.

use std::ops::Range;

use crate::device::{Args, Class, Held, Real, Variant};
use crate::program::chain::{Cut, Stretch};
use crate::program::column_sum::{self, settle};
use crate::program::matrix::Place;
use crate::program::vector::CHAINS;

/// Quads of a row that a tile owns: a multiple of the lanes of every variant, and four times as many columns are one of the
/// host's chains, so that a cut leaves each column in its lane.
pub const ROW_BLOCK: u32 = 32;

/// Elements of what native code keeps of a row from tile to tile: four numbers, and so many sums in chains.
const fn kept(sums: usize) -> usize {
    4 + sums * CHAINS
}

/// Rows that a tile of a variant plays side by side: a line.
pub fn line_rows(variant: &Variant) -> u32 {
    variant.get("WG") / variant.get("LANES")
}

/// Elements that a tile of rows hands on. In WGSL: a vec4 for each lane and each of `sums`, then one for each row.
pub fn row_carry(class: Class, variant: &Variant, sums: u32) -> usize {
    match class {
        Class::Native => line_rows(variant) as usize * kept(sums as usize),
        _ => 4 * (sums * variant.get("WG") + line_rows(variant)) as usize,
    }
}

/// Elements that a tile of columns hands on. In native code: a sum for each column. In WGSL: a vec4 for each lane.
pub fn column_carry(class: Class, variant: &Variant) -> usize {
    4 * variant.get(if class == Class::Native { "QUADS" } else { "WG" }) as usize
}

/// What a tile of rows holds. Accumulators: two sums of four floats in each lane. State: what it carries, at most.
pub fn row_held(variant: &Variant, sums: u32) -> Held {
    held(variant, |class| row_carry(class, variant, sums))
}

/// What a tile of columns holds. Accumulators: two sums of four floats in each lane. State: what it carries, at most.
pub fn column_held(variant: &Variant) -> Held {
    held(variant, |class| column_carry(class, variant))
}

fn held(variant: &Variant, carry: impl Fn(Class) -> usize) -> Held {
    let carry = variant.classes.iter().map(|class| carry(*class)).max().unwrap_or(0);
    Held { accumulators: column_sum::accumulators(variant), state: 4 * carry as u32 }
}

/// Where a tile stands in a row.
#[derive(Clone, Copy)]
pub struct At {
    /// The row.
    pub row: u32,
    /// The tile's quads of it.
    pub span: Stretch,
}

impl At {
    /// Its columns in a row of so many, without padding.
    pub fn columns(&self, cols: u32) -> Range<usize> {
        let cols = cols as usize;
        cols.min(4 * self.span.from)..cols.min(4 * self.span.to)
    }
}

/// Rows that a launch writes.
pub struct Written<'a, F> {
    /// The binding that holds them.
    pub cells: &'a mut [F],
    /// Where the first one of all lies, and how far they are apart.
    pub place: Place,
    /// Quads of a row.
    pub quads: u32,
}

/// The rows that a launch plays, for native code.
pub struct Plan<'a, F> {
    /// Which part of them is played.
    pub cut: Cut,
    /// How many there are in all.
    pub rows: u32,
    /// Sums of a row that go on side by side.
    pub sums: u32,
    /// What is written of each column.
    pub out: Written<'a, F>,
    /// What is written of each row.
    pub stats: Option<Written<'a, F>>,
    /// What tiles hand on.
    pub carry: &'a mut [F],
}

/// Rows of a launch that lie on the same tiles.
pub struct Line<'a, F> {
    cut: Cut,
    rows: Range<u32>,
    /// Its first tile in the launch.
    tile: usize,
    out: Strip<'a, F>,
    stats: Option<Strip<'a, F>>,
    /// The slots of its tiles, where they carry something, their length and that of a row there.
    carry: Option<(&'a mut [F], usize, usize)>,
}

/// The rows of a line in one matrix.
struct Strip<'a, F> {
    cells: &'a mut [F],
    stride: usize,
    width: usize,
}

impl<F> Strip<'_, F> {
    fn row(&mut self, i: usize) -> &mut [F] {
        &mut self.cells[i * self.stride..][..self.width]
    }
}

impl<'a, F> Written<'a, F> {
    /// So many of the rows, `high` neighbours at a time.
    fn strips(self, rows: Range<u32>, high: u32) -> impl Iterator<Item = Strip<'a, F>> {
        let (offset, stride, width) = (4 * self.place.0 as usize, 4 * self.place.1 as usize, 4 * self.quads as usize);
        let start = offset + rows.start as usize * stride;
        // The last row may end before its stride does.
        let len = if rows.is_empty() { 0 } else { (rows.len() - 1) * stride + width };
        let chunks = self.cells[start..][..len].chunks_mut(high as usize * stride);
        chunks.map(move |cells| Strip { cells, stride, width })
    }
}

impl<'a, F: Real> Plan<'a, F> {
    /// The lines of the launch, to be played in any order.
    pub fn lines(self, args: &Args<'_, F>) -> Vec<Line<'a, F>> {
        let Plan { cut, rows, sums, out, stats, carry } = self;
        let (high, tiles) = (line_rows(args.variant), cut.blocks as usize);
        let slot = row_carry(Class::Native, args.variant, sums);
        let first = cut.first_line * high;
        let played = first..rows.min(first + args.groups / cut.blocks * high);
        let mut stats = stats.map(|stats| stats.strips(played.clone(), high));
        let mut slots = (cut.carried == 1).then(|| carry.chunks_mut(tiles * slot));
        let line = |(i, out): (usize, Strip<'a, F>)| {
            let start = first + i as u32 * high;
            Line {
                cut,
                rows: start..played.end.min(start + high),
                tile: i * tiles,
                out,
                stats: stats.as_mut().and_then(Iterator::next),
                carry: slots.as_mut().and_then(|slots| Some((slots.next()?, slot, slot / high as usize))),
            }
        };
        out.strips(played.clone(), high).enumerate().map(line).collect()
    }
}

impl<F: Real> Line<'_, F> {
    /// For each row and each tile of it calls `f` with where that is, the tile's part of the row to be written, what is
    /// written of the row, and what is kept of it from tile to tile.
    #[inline(always)]
    pub fn play(mut self, f: impl Fn(At, &mut [F], &mut [F], &mut [F])) {
        let (width, blocks) = (self.out.width, self.cut.blocks as usize);
        for (i, row) in self.rows.clone().enumerate() {
            for block in 0..blocks {
                let span = self.cut.span(self.tile + block, width as u32 / 4);
                let mut own = [F::zero(); kept(2)];
                let kept = match &mut self.carry {
                    Some((slots, slot, len)) => &mut slots[block * *slot + i * *len..][..*len],
                    None => &mut own[..],
                };
                let out = &mut self.out.row(i)[4 * span.from..4 * span.to];
                let stats = self.stats.as_mut().map_or(Default::default(), |stats| stats.row(i));
                f(At { row, span }, out, stats, kept);
            }
        }
    }
}

/// The columns that a launch sums, for native code.
pub struct Columns<'a, F> {
    /// Which part of them is played.
    pub cut: Cut,
    /// Rows.
    pub rows: u32,
    /// Where the sums go: one element a column.
    pub sums: &'a mut [F],
    /// Whether they are added to what is there.
    pub accumulate: bool,
    /// What tiles hand on.
    pub carry: &'a mut [F],
}

impl<F: Real> Columns<'_, F> {
    /// `add(rows, columns, totals)` adds what these rows contribute to the totals of these columns. Where nothing is carried,
    /// that is all rows and all columns at once.
    #[inline(always)]
    pub fn sum(self, args: &Args<'_, F>, add: impl Fn(Range<u32>, Range<usize>, &mut [F])) {
        let Columns { cut, rows, sums, accumulate, carry } = self;
        if cut.carried == 0 {
            let mut totals = vec![F::zero(); sums.len()];
            add(0..rows, 0..sums.len(), &mut totals);
            return settle(sums, &totals, accumulate);
        }
        let wide = column_carry(Class::Native, args.variant);
        for tile in 0..args.groups as usize {
            let span = cut.span(tile, rows);
            let columns = span.line * wide..sums.len().min((span.line + 1) * wide);
            let totals = &mut carry[tile * wide..][..columns.len()];
            if span.begins() {
                totals.fill(F::zero());
            }
            add(span.from as u32..span.to as u32, columns.clone(), totals);
            if span.ends {
                settle(&mut sums[columns], totals, accumulate);
            }
        }
    }
}
