//! What a program costs the fabric, in closed form: predicted from shapes alone, held against what a device counts. It
//! must never walk a schedule: a prediction that repeats what it predicts proves nothing.

use super::Wafer;

/// What a run of a program costs the fabric, in closed form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Launches.
    pub dispatches: u64,
    /// Blocks delivered into inboxes.
    pub messages: u64,
    /// Bytes of those blocks.
    pub exchanged_bytes: u64,
}

/// The blocks of a product `C[m, n] = sum over k`, as a tile program cuts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of C, and of a block of it.
    pub m: (u64, u64),
    /// Columns of C, and of a block of it.
    pub n: (u64, u64),
    /// Depth of the contraction, and of one step.
    pub k: (u64, u64),
    /// f32 elements of A and of B that travel: each once, with the padding that is moved along.
    pub elements: (u64, u64),
}

impl Product {
    /// Rows of blocks, columns of blocks, steps.
    pub fn blocks(&self) -> (u64, u64, u64) {
        let count = |(total, block): (u64, u64)| total.div_ceil(block);
        (count(self.m), count(self.n), count(self.k))
    }

    /// The cost of one dispatch over all blocks and steps, operands read in place.
    pub fn fused(&self) -> Cost {
        Cost { dispatches: 1, ..Cost::default() }
    }

    /// The cost in supersteps: A broadcast along rows, so that each of its elements reaches every column of blocks, and
    /// B along columns, so that each of its elements reaches every row of blocks.
    pub fn superstep(&self, wafer: &Wafer) -> Cost {
        let (rows, cols, steps) = self.blocks();
        Cost {
            dispatches: wafer.round_count(rows, cols) * steps,
            messages: 2 * rows * cols * steps,
            exchanged_bytes: 4 * (cols * self.elements.0 + rows * self.elements.1),
        }
    }
}

/// A product by the route of a CS-2: blocks of one side stay, those of the other pass, and sums go along the contraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Blocks of the side that stays, each on a line of tiles.
    pub lines: u64,
    /// Blocks of the side that passes.
    pub passing: u64,
    /// Blocks of the contraction.
    pub steps: u64,
    /// f32 elements of the operand that passes, with the padding that is moved along.
    pub moved: u64,
    /// f32 elements of the result, with its padding.
    pub result: u64,
    /// Whether it is added to what is there.
    pub accumulate: bool,
}

impl Stream {
    /// The cost in supersteps, with so many lines of tiles and so many tiles along the contraction: every tile launches once
    /// for each block that passes it. What passes reaches every line; a block of the result goes over every tile of the
    /// contraction and, for each time round, back to its owner, from whom it comes unless it begins at zero.
    pub fn superstep(&self, (side, along): (u32, u32)) -> Cost {
        let rounds = self.steps.div_ceil(along.into());
        let sums = self.steps + rounds - 1 + u64::from(self.accumulate);
        Cost {
            dispatches: self.lines.div_ceil(side.into()) * self.passing * self.steps,
            messages: self.lines * self.passing * (self.steps + sums),
            exchanged_bytes: 4 * (self.lines * self.moved + sums * self.result),
        }
    }
}

/// Lines of blocks along which running sums travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Lines.
    pub lines: u64,
    /// Blocks of a line.
    pub blocks: u64,
    /// Blocks that all passes which gather go through, together.
    pub steps: u64,
    /// Whether every tile of a line uses what was gathered.
    pub applies: bool,
    /// f32 elements that a tile hands on.
    pub carry: u64,
}

impl Relay {
    /// The cost of one dispatch in which a tile plays its whole line.
    pub fn fused(&self) -> Cost {
        Cost { dispatches: 1, ..Cost::default() }
    }

    /// The cost in supersteps, where so many lines run side by side and so many blocks of a line do: a message from each tile
    /// of a pass to the next, and one to each tile that uses what was gathered.
    pub fn superstep(&self, (lines, blocks): (u32, u32)) -> Cost {
        let rounds = self.lines.div_ceil(lines.into());
        let (uses, launches) = if self.applies { (self.blocks, self.blocks.div_ceil(blocks.into())) } else { (0, 0) };
        let messages = self.lines * (self.steps - 1 + uses);
        Cost { dispatches: rounds * (self.steps + launches), messages, exchanged_bytes: 4 * self.carry * messages }
    }
}

/// The blocks of an attention, as a tile program cuts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Sequences.
    pub batch: u64,
    /// Heads of the queries, and of keys and values.
    pub heads: (u64, u64),
    /// Columns of a head.
    pub head_size: u64,
    /// Queries of a sequence.
    pub query_len: u64,
    /// Keys and values of a sequence.
    pub key_value_len: u64,
    /// Position of the first query; keys start at position 0.
    pub query_start: u64,
    /// Whether a query sees only keys at its position and before.
    pub causal: bool,
    /// Of these, how many at most.
    pub window: Option<u64>,
    /// Rows that stay on a tile, and rows of a block that it receives.
    pub rows: (u64, u64),
}

impl Attention {
    /// The cost of one dispatch over all blocks and steps, operands read in place.
    pub fn fused(&self) -> Cost {
        Cost { dispatches: 1, ..Cost::default() }
    }

    /// The cost in supersteps where queries stay (forward, gradient of the queries): of keys and of values, a tile
    /// receives each from the block of the first that its first query sees to the last that its last query sees, once.
    pub fn queries_stay(&self, wafer: &Wafer) -> Cost {
        let (own, block) = self.rows;
        let seen = |queries: u64| match self.causal {
            true => self.key_value_len.min(self.query_start + queries),
            false => self.key_value_len,
        };
        // What lies before the window of a query after `queries` others.
        let past = |queries: u64| self.window.map_or(0, |w| (self.query_start + queries + 1).saturating_sub(w));
        let tiles = self.query_len.div_ceil(own);
        let keys = (0..tiles).map(|tile| seen(self.query_len.min((tile + 1) * own)) - past(tile * own) / block * block);
        let blocks = keys.clone().map(|keys| keys.div_ceil(block));
        let columns = self.batch * self.heads.0;
        Cost {
            dispatches: wafer.round_count(self.batch * tiles, self.heads.0) * blocks.clone().max().unwrap_or(0),
            messages: 2 * columns * blocks.sum::<u64>(),
            exchanged_bytes: 4 * 2 * self.head_size * columns * keys.sum::<u64>(),
        }
    }

    /// The cost in supersteps where keys and values stay (their gradients): for each query head of its group, a tile
    /// receives the queries, their output gradients and two scalars of each, from the block of the first query that sees
    /// one of its keys to the last that does.
    pub fn keys_stay(&self, wafer: &Wafer) -> Cost {
        let (own, block) = self.rows;
        let tiles = self.key_value_len.div_ceil(own);
        let blind = |first_key: u64| if self.causal { first_key.saturating_sub(self.query_start) } else { 0 };
        // Queries before the first that has lost all of so many keys.
        let end = |keys: u64| match self.window {
            Some(w) => self.query_len.min((keys - 1 + w).saturating_sub(self.query_start)),
            None => self.query_len,
        };
        let queries = (0..tiles).map(|tile| {
            let (first, end) = (blind(tile * own), end(self.key_value_len.min((tile + 1) * own)));
            if first < end { end - first / block * block } else { 0 }
        });
        let blocks = queries.clone().map(|queries| queries.div_ceil(block));
        let (group, columns) = (self.heads.0 / self.heads.1, self.batch * self.heads.0);
        let steps = group * blocks.clone().max().unwrap_or(0);
        Cost {
            dispatches: wafer.round_count(self.batch * tiles, self.heads.1) * steps,
            messages: 4 * columns * blocks.sum::<u64>(),
            exchanged_bytes: 4 * (2 * self.head_size + 2) * columns * queries.sum::<u64>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a query sees a key.
    fn sees(of: &Attention, query: u64, key: u64) -> bool {
        let position = of.query_start + query;
        (!of.causal || key <= position) && of.window.is_none_or(|window| position < key + window)
    }

    /// Blocks and rows of the other side that each tile must receive, from the pairs of query and key themselves: of a
    /// block all rows up to the last that is needed.
    fn needed(of: &Attention, (own_len, other_len): (u64, u64), pair: impl Fn(u64, u64) -> bool) -> (u64, u64) {
        let (own, block) = of.rows;
        let (mut blocks, mut rows) = (0, 0);
        for tile in 0..own_len.div_ceil(own) {
            let used = |other: u64| (tile * own..own_len.min((tile + 1) * own)).any(|row| pair(row, other));
            for first in (0..other_len).step_by(block as usize) {
                let end = other_len.min(first + block);
                let live = (first..end).rev().find(|&other| used(other)).map_or(0, |last| last + 1 - first);
                (blocks, rows) = (blocks + u64::from(live > 0), rows + live);
            }
        }
        (blocks, rows)
    }

    #[test]
    fn attention_moves_what_its_pairs_need() {
        let base = Attention {
            batch: 2,
            heads: (6, 2),
            head_size: 5,
            query_len: 37,
            key_value_len: 37,
            query_start: 0,
            causal: true,
            window: None,
            rows: (8, 6),
        };
        let shapes = [
            base,
            Attention { query_len: 21, query_start: 50, key_value_len: 71, ..base },
            Attention { query_start: 3, key_value_len: 40, rows: (4, 16), ..base },
            Attention { query_len: 13, key_value_len: 50, causal: false, ..base },
            Attention { window: Some(1), ..base },
            Attention { window: Some(11), rows: (6, 8), ..base },
            Attention { window: Some(1000), ..base },
            Attention { query_len: 21, query_start: 50, key_value_len: 71, window: Some(20), ..base },
        ];
        for of in shapes {
            let wafer = Wafer::new(3, 2);
            let (blocks, rows) = needed(&of, (of.query_len, of.key_value_len), |q, k| sees(&of, q, k));
            let cost = of.queries_stay(&wafer);
            assert_eq!((cost.messages, cost.exchanged_bytes), (12 * 2 * blocks, 12 * 2 * 5 * 4 * rows), "{of:?}");
            let (blocks, rows) = needed(&of, (of.key_value_len, of.query_len), |k, q| sees(&of, q, k));
            let cost = of.keys_stay(&wafer);
            assert_eq!((cost.messages, cost.exchanged_bytes), (12 * 4 * blocks, 12 * 12 * 4 * rows), "{of:?}");
        }
    }

    #[test]
    fn a_dispatch_is_a_step_of_a_round() {
        // 5 blocks of queries and of keys a sequence, 10 rows of blocks in all, on tiles of 2 rows by 3 columns.
        let of = Attention {
            batch: 2,
            heads: (6, 2),
            head_size: 5,
            query_len: 37,
            key_value_len: 37,
            query_start: 0,
            causal: true,
            window: None,
            rows: (8, 6),
        };
        let wafer = Wafer::new(3, 2);
        assert_eq!(of.queries_stay(&wafer).dispatches, 5 * 2 * 7);
        assert_eq!(of.keys_stay(&wafer).dispatches, 5 * (3 * 7));
        // A window of 5 and 8 queries span 12 keys: 3 blocks of 6 where they do not begin with one, 2 for the first tile.
        let windowed = Attention { window: Some(5), ..of };
        assert_eq!(windowed.queries_stay(&wafer).dispatches, 5 * 2 * 3);
        assert_eq!(windowed.keys_stay(&wafer).dispatches, 5 * (3 * 3));
        assert_eq!(of.fused(), Cost { dispatches: 1, messages: 0, exchanged_bytes: 0 });
    }
}
