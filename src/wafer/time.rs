//! How long a wafer would take over a work, a product by each of four dataflows, and a training step, in closed form. It
//! must never hold a number that was fitted to a measurement: what is left out here makes a prediction too fast, and a bench
//! (`benches/wafer.rs`) says by how much.
//!
//! Values are of 16 bit, and activations lie as on a CS-2 (the vendor's talk at Hot Chips 34): of the whole usable grid,
//! columns of tiles share the hidden dimension, rows of tiles the tokens. A tile takes one vector operation over its tokens
//! a weight, as many elements a cycle as it is wide. Every share is that of the busiest tile, so what does not divide
//! evenly costs whole elements, columns and vectors.
//!
//! Left out: the cycles in which a vector operation is issued, tasks are switched and a loop is counted; exponentials and
//! roots, which count as one operation; parts of the wafer set aside for traffic; the host.

use std::iter::Sum;
use std::ops::Add;

use serde::Serialize;

use super::{Algorithm, Machine, Work};

/// Bits of an activation, of a weight and of a partial sum.
const VALUE_BITS: u64 = 16;

/// Cycles of a work, on the busiest tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Time {
    /// In which its core multiplies and adds.
    pub compute_cycles: f64,
    /// In which wavelets come over its ramp or are under way.
    pub fabric_cycles: f64,
}

impl Time {
    /// Cycles of both at once: microthreads move wavelets while the core works, and the next row of weights or the next rows
    /// of tokens fill what one row would wait.
    pub fn cycles(&self) -> f64 {
        self.compute_cycles.max(self.fabric_cycles)
    }
}

impl Add for Time {
    type Output = Time;

    fn add(self, other: Time) -> Time {
        Time {
            compute_cycles: self.compute_cycles + other.compute_cycles,
            fabric_cycles: self.fabric_cycles + other.fabric_cycles,
        }
    }
}

impl Sum for Time {
    fn sum<I: Iterator<Item = Time>>(times: I) -> Time {
        times.fold(Time::default(), Add::add)
    }
}

/// How a product is spread over tiles. (How a block travels is a [`Route`](super::Route).)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Dataflow {
    /// One operand stays, the other streams through row by row, sums go round along the rows: CS-2.
    WeightStream,
    /// In every step a column of blocks of A and a row of blocks of B are broadcast.
    Summa,
    /// In every step all blocks of A move one tile along x, all of B one along y, the last to the first over the whole line.
    Cannon,
    /// The same with tiles interleaved, so that no block moves more than two hops (WaferLLM, arXiv 2502.04563).
    MeshGemm,
}

/// Cycles of a product by a dataflow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gemm {
    /// In which the busiest tile multiplies and adds.
    pub compute_cycles: f64,
    /// From the first to the last.
    pub total_cycles: f64,
}

impl Gemm {
    /// Compute over total.
    pub fn efficiency(&self) -> f64 {
        self.compute_cycles / self.total_cycles
    }
}

/// Part of a training step: weights that stream through once in forward and once in backward, and what is done with them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Visit {
    /// Bytes of the weights on the link; their gradients have as many.
    pub weight_bytes: u64,
    /// What is done in forward.
    pub forward: Vec<Work>,
    /// What is done in backward, with what is computed again.
    pub backward: Vec<Work>,
}

/// A training step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    /// Of a micro-batch, in the order of forward.
    pub visits: Vec<Visit>,
    /// Tokens of a micro-batch.
    pub micro_tokens: u64,
    /// Micro-batches, each of which has the weights streamed through anew.
    pub micro_batches: u64,
}

/// What bounds a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Bound {
    /// Cores.
    Compute,
    /// Links and ramps of the wafer.
    Fabric,
    /// The link that leaves the wafer.
    Link,
}

/// How long a training step takes, and over what.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// Seconds in which the busiest tile multiplies and adds.
    pub compute_seconds: f64,
    /// Seconds of the fabric.
    pub fabric_seconds: f64,
    /// Seconds in which weights come in; gradients leave at the same time.
    pub link_seconds: f64,
    /// Seconds of all of it, overlapped.
    pub total_seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// What takes longest.
    pub bound: Bound,
}

/// A product on a grid: the rows that stream through, and what each of them costs the busiest tile.
struct Stream {
    rows: f64,
    products: f64,
    sums: f64,
    wavelets: f64,
    /// Cycles until the first row is through.
    fill: f64,
}

impl Stream {
    fn time(&self) -> Time {
        Time {
            compute_cycles: self.rows * (self.products + self.sums),
            fabric_cycles: self.rows * self.wavelets + self.fill,
        }
    }
}

impl Machine {
    /// Cycles in which a core multiplies a vector by a scalar and adds it to another. That one stays in the tile's cache, so
    /// one operand an element comes from the SRAM.
    fn fused_cycles(&self, len: u64) -> f64 {
        (len.div_ceil(self.macs_16) as f64).max((len * VALUE_BITS) as f64 / self.sram_read_bits as f64)
    }

    /// Cycles in which a core makes one vector of two, all three in SRAM.
    fn local_cycles(&self, len: u64) -> f64 {
        let (read, written) = (2 * len * VALUE_BITS, len * VALUE_BITS);
        let sram = (read as f64 / self.sram_read_bits as f64).max(written as f64 / self.sram_write_bits as f64);
        self.fused_cycles(len).max(sram)
    }

    fn values(&self, len: u64) -> f64 {
        self.wavelets(len * VALUE_BITS) as f64
    }

    /// Cycles of a work on the whole usable grid.
    pub fn time(&self, work: &Work) -> Time {
        let (tokens, hidden) = (|len: u64| len.div_ceil(self.height), |len: u64| len.div_ceil(self.width));
        match *work {
            Work::Product { m, n, k } => self.product((self.width, self.height), (m, n, k)),
            Work::Attention { heads, head_size, rows, pairs, products } => {
                self.attention((heads, head_size), (rows, pairs), products)
            }
            Work::Rows { lines, len, sums } => {
                let (lines, columns) = (tokens(lines), hidden(len));
                Time {
                    compute_cycles: (sums * columns) as f64 * self.fused_cycles(lines),
                    fabric_cycles: sums as f64 * self.best_all_reduce(self.width.min(len), lines).1,
                }
            }
            Work::Columns { lines, len } => {
                let (lines, rows) = (hidden(lines), tokens(len));
                Time {
                    compute_cycles: lines as f64 * self.fused_cycles(rows),
                    fabric_cycles: self.best(self.height.min(len), lines).1,
                }
            }
            Work::Grid { len } => Time {
                compute_cycles: self.fused_cycles(len.div_ceil(self.tiles())),
                fabric_cycles: self.centre_all_reduce(self.width, self.height, 1),
            },
            Work::Local { elements } => {
                Time { compute_cycles: self.local_cycles(elements.div_ceil(self.tiles())), fabric_cycles: 0.0 }
            }
        }
    }

    /// The product in the cheaper of the two ways in which a CS-2 has its operands: with the sum along x (activations times
    /// streamed weights), or along y (gradients of weights, summed over tokens).
    fn product(&self, grid: (u64, u64), of: (u64, u64, u64)) -> Time {
        let (weights, gradients) = (self.weight_stream(grid, of).time(), self.gradient_stream(grid, of).time());
        if weights.cycles() <= gradients.cycles() { weights } else { gradients }
    }

    /// m tokens along y, k columns along x; n rows of weights come one after another, down every column the wavelets of its
    /// share, value and index in one. Each is one vector operation over the tile's tokens. Then the tile's partial sums of the
    /// row go on to the next tile of a ring along x, which adds its own.
    fn weight_stream(&self, (width, height): (u64, u64), (m, n, k): (u64, u64, u64)) -> Stream {
        let (tokens, columns) = (m.div_ceil(height), k.div_ceil(width));
        let ring = k.min(width);
        let alone = f64::from(u8::from(ring > 1));
        Stream {
            rows: n as f64,
            products: columns as f64 * self.fused_cycles(tokens),
            sums: alone * self.fused_cycles(tokens),
            wavelets: columns as f64 + alone * self.values(tokens),
            // Down the column, and once round the ring, whose tiles are two hops apart.
            fill: (height * self.hop_cycles + ring * (self.turn_cycles() + 2 * self.hop_cycles)) as f64,
        }
    }

    /// k tokens along y, n columns along x; for each of m columns of the other operand its values are broadcast along the
    /// rows, each tile multiplies them into the sums of its columns, and these are added down the column and leave, value and
    /// index in one wavelet.
    fn gradient_stream(&self, (width, height): (u64, u64), (m, n, k): (u64, u64, u64)) -> Stream {
        let (tokens, columns) = (k.div_ceil(height), n.div_ceil(width));
        let chain = k.min(height);
        Stream {
            rows: m as f64,
            products: columns as f64 * self.fused_cycles(tokens),
            sums: self.fused_cycles(columns),
            wavelets: self.values(tokens) + columns as f64,
            fill: (width * self.hop_cycles + chain * (self.turn_cycles() + self.hop_cycles)) as f64,
        }
    }

    /// Queries stay; of two operands (keys and values, or queries and gradients) the rows that a query pairs with pass along
    /// y, as many as pairs a query on average: sequences are dealt so that no tile has more. A pair's dot product is a sum
    /// over the columns of tiles of its head; the half of the products that begin with such a scalar need it on all of them.
    /// Either way each tile of the head passes it on.
    fn attention(&self, (heads, head_size): (u64, u64), (rows, pairs): (u64, u64), products: u64) -> Time {
        if rows == 0 {
            return Time::default();
        }
        let (tokens, columns) = (rows.div_ceil(self.height), (heads * head_size).div_ceil(self.width));
        let others = pairs as f64 / rows as f64;
        // Heads of which a tile holds columns, where it holds no head whole.
        let shared = if columns < head_size { columns.div_ceil(head_size) } else { 0 };
        let sums = products.div_ceil(2) * shared;
        Time {
            compute_cycles: others * (products * columns + sums) as f64 * self.fused_cycles(tokens),
            fabric_cycles: others * (2.0 * self.values(columns) + (products * shared) as f64 * self.values(tokens)),
        }
    }

    /// Cycles of C[m, n] += sum over k by a dataflow on `side x side` tiles.
    ///
    /// Blocks are the same for the three that have steps: of each of `side` steps the busiest tile multiplies a block of A by
    /// one of B, while those of the next step come over its ramp, one wavelet a cycle, after as many hops as the dataflow has.
    /// A broadcast before the first step is waited for; Cannon and MeshGEMM bring A into line by `side / 2` shifts first, as
    /// WaferLLM's code does, and have B loaded so.
    ///
    /// # Panics
    /// For a grid of less than two tiles a side, or larger than the usable one.
    pub fn gemm(&self, dataflow: Dataflow, side: u64, (m, n, k): (u64, u64, u64)) -> Gemm {
        assert!(side > 1 && side <= self.width.min(self.height), "{side} x {side} tiles of {}", self.name);
        let hops = match dataflow {
            Dataflow::WeightStream => {
                let stream = self.weight_stream((side, side), (m, n, k));
                let total_cycles = (stream.products + stream.sums).max(stream.wavelets) * stream.rows + stream.fill;
                return Gemm { compute_cycles: stream.products * stream.rows, total_cycles };
            }
            Dataflow::Summa | Dataflow::Cannon => side - 1,
            Dataflow::MeshGemm => 2,
        };
        let (rows, columns, depth) = (m.div_ceil(side), n.div_ceil(side), k.div_ceil(side));
        let (a, b) = (self.values(rows * depth), self.values(depth * columns));
        let way = (hops * self.hop_cycles + self.turn_cycles()) as f64;
        let compute = (depth * columns) as f64 * self.fused_cycles(rows);
        let before = if dataflow == Dataflow::Summa { a + b + way } else { (side / 2) as f64 * (a + way) };
        Gemm { compute_cycles: side as f64 * compute, total_cycles: before + side as f64 * compute.max(a + b + way) }
    }

    /// Cycles of a row vector of k elements times a matrix of k x n on `side x side` tiles: each multiplies its block, then
    /// the columns of blocks sum by a reduce, and by a broadcast give the sum back where `back`.
    ///
    /// # Panics
    /// For a grid larger than the usable one.
    pub fn gemv(&self, reduce: Algorithm, side: u64, (n, k): (u64, u64), back: bool) -> f64 {
        assert!(side <= self.width.min(self.height), "{side} x {side} tiles of {}", self.name);
        let (columns, depth) = (n.div_ceil(side), k.div_ceil(side));
        let wavelets = self.wavelets(columns * VALUE_BITS);
        let sum = match back {
            true => reduce.all_reduce(self, side, wavelets),
            false => reduce.cycles(self, side, wavelets),
        };
        depth as f64 * self.fused_cycles(columns) + sum
    }

    /// How long a training step takes. Forward and backward stream through visit by visit, and of each visit the longer of
    /// link and wafer counts: what follows is on its way already. Weights come in for forward and again for backward;
    /// gradients leave while they do, on the other half of the link. The update of a layer, off the wafer, is hidden behind
    /// the forward of the next step.
    pub fn step(&self, step: &Step) -> StepTime {
        let mut wafer = Time::default();
        let (mut link_seconds, mut total_seconds) = (0.0, 0.0);
        for visit in &step.visits {
            let link = self.off_wafer_seconds(visit.weight_bytes);
            for works in [&visit.forward, &visit.backward] {
                let times: Vec<Time> = works.iter().map(|work| self.time(work)).collect();
                let cycles = times.iter().map(Time::cycles).sum();
                wafer = wafer + times.into_iter().sum();
                link_seconds += link;
                total_seconds += link.max(self.seconds(cycles));
            }
        }
        let count = step.micro_batches as f64;
        let (compute, fabric) = (self.seconds(wafer.compute_cycles), self.seconds(wafer.fabric_cycles));
        let bound = if link_seconds >= compute.max(fabric) {
            Bound::Link
        } else if fabric >= compute {
            Bound::Fabric
        } else {
            Bound::Compute
        };
        StepTime {
            compute_seconds: count * compute,
            fabric_seconds: count * fabric,
            link_seconds: count * link_seconds,
            total_seconds: count * total_seconds,
            tokens_per_second: step.micro_tokens as f64 / total_seconds,
            bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wafer::{MACHINES, WSE2};

    const SMALL: Machine = Machine { width: 2, height: 3, ..WSE2 };

    #[test]
    fn a_product_is_what_its_loops_are() {
        // 5 tokens and 6 columns a tile: a row of weights is 6 wavelets and 6 operations of 2 cycles, a ring of 2 tiles passes
        // 5 values in 3 wavelets and adds them in 2 cycles. 3 hops down, 2 tiles round, of 5 cycles and 2 hops.
        let weights = SMALL.weight_stream((2, 3), (15, 100, 12)).time();
        assert_eq!(weights, Time { compute_cycles: 100.0 * 14.0, fabric_cycles: 100.0 * 9.0 + 3.0 + 2.0 * 7.0 });
        // Its gradient: sums over tokens. A column of 100 is 5 values in 3 wavelets, 6 operations of 2 cycles, 6 sums of 2.
        let gradients = SMALL.gradient_stream((2, 3), (100, 12, 15)).time();
        assert_eq!(gradients, Time { compute_cycles: 100.0 * 14.0, fabric_cycles: 100.0 * 9.0 + 2.0 + 3.0 * 6.0 });
        // Of the two ways, each has the products that are its own: many tokens lie along y.
        for (of, along_x) in [((135_168, 4096, 4096), true), ((4096, 4096, 135_168), false)] {
            let grid = (WSE2.width, WSE2.height);
            let ways = [WSE2.weight_stream(grid, of).time(), WSE2.gradient_stream(grid, of).time()];
            assert_eq!(ways[0].cycles() < ways[1].cycles(), along_x);
            assert_eq!(WSE2.product(grid, of), ways[usize::from(!along_x)]);
        }
        // One tile has no ring.
        let alone = Machine { width: 1, height: 1, ..WSE2 }.time(&Work::Product { m: 4, n: 10, k: 3 });
        assert_eq!(alone.compute_cycles, 30.0);
    }

    #[test]
    fn an_attention_is_what_its_pairs_are() {
        // 2 heads of 8 columns on 4 tiles of 4 columns, 6 queries a tile that see 5 keys each.
        let machine = Machine { width: 4, height: 2, ..WSE2 };
        let time = machine.time(&Work::Attention { heads: 2, head_size: 8, rows: 12, pairs: 60, products: 2 });
        // A key is 2 products of 4 columns and one sum, of 6 queries in 2 cycles each; key and value of 4 columns pass in 2
        // wavelets each, and two scalars of 6 queries in 3.
        assert_eq!(time, Time { compute_cycles: 5.0 * 9.0 * 2.0, fabric_cycles: 5.0 * (4.0 + 6.0) });
        // A tile that has whole heads sums alone.
        let whole = Machine { width: 2, ..machine };
        let time = whole.time(&Work::Attention { heads: 2, head_size: 8, rows: 12, pairs: 60, products: 2 });
        assert_eq!(time, Time { compute_cycles: 5.0 * 16.0 * 2.0, fabric_cycles: 5.0 * 8.0 });
    }

    #[test]
    fn sums_cost_their_collectives() {
        let time = |work| WSE2.time(&work);
        let rows = time(Work::Rows { lines: 994 * 10, len: 1500, sums: 2 });
        assert_eq!(
            rows,
            Time { compute_cycles: 2.0 * 2.0 * 3.0, fabric_cycles: 2.0 * WSE2.best_all_reduce(750, 10).1 }
        );
        let columns = time(Work::Columns { lines: 1500, len: 994 * 10 });
        assert_eq!(columns, Time { compute_cycles: 2.0 * 3.0, fabric_cycles: WSE2.best(994, 2).1 });
        // Fewer elements than tiles: those that have one sum alone.
        assert_eq!(time(Work::Rows { lines: 1, len: 8, sums: 1 }).fabric_cycles, WSE2.best_all_reduce(8, 1).1);
        let grid = time(Work::Grid { len: 745_500 * 8 });
        assert_eq!(grid, Time { compute_cycles: 2.0, fabric_cycles: WSE2.centre_all_reduce(750, 994, 1) });
        let local = time(Work::Local { elements: 745_500 * 8 });
        assert_eq!(local, Time { compute_cycles: 2.0, fabric_cycles: 0.0 });
        for nothing in [Work::Rows { lines: 0, len: 0, sums: 1 }, Work::Columns { lines: 0, len: 0 }] {
            assert_eq!(time(nothing), Time::default());
        }
    }

    /// Works of many sizes.
    fn works() -> Vec<Work> {
        let sizes = [1, 2, 3, 750, 994, 4096, 11_008, 135_168];
        let mut works = Vec::new();
        for m in sizes {
            for n in sizes {
                works.extend(sizes.map(|k| Work::Product { m, n, k }));
                let pairs = m * n;
                works.extend([2, 3, 4].map(|products| Work::Attention {
                    heads: 16,
                    head_size: 256,
                    rows: m,
                    pairs,
                    products,
                }));
                works.extend([Work::Rows { lines: m, len: n, sums: 2 }, Work::Columns { lines: m, len: n }]);
            }
            works.extend([Work::Grid { len: m }, Work::Local { elements: m }]);
        }
        works
    }

    /// Works that a machine is said to do with more operations a cycle than its tiles have.
    fn too_fast(machine: &Machine, peak: &Machine) -> usize {
        let rate = (peak.tiles() * peak.macs_16) as f64;
        let least = |work: &Work| (work.macs() + work.operations()) as f64 / rate * (1.0 - 1e-12);
        works().iter().filter(|work| !(machine.time(work).compute_cycles >= least(work))).count()
    }

    #[test]
    fn no_work_is_faster_than_the_peak() {
        for machine in MACHINES {
            assert_eq!(too_fast(machine, machine), 0, "{}", machine.name);
            // Canary: a machine twice as wide is found out.
            let twice = Machine { macs_16: 2 * machine.macs_16, sram_read_bits: 256, sram_write_bits: 128, ..*machine };
            assert!(too_fast(&twice, machine) > 100);
        }
    }

    #[test]
    fn more_work_takes_no_less() {
        let sizes = [1, 3, 750, 4096, 135_168];
        let cycles = |m, n, k| WSE2.time(&Work::Product { m, n, k }).cycles();
        for (m, n, k) in sizes.into_iter().flat_map(|m| sizes.into_iter().flat_map(move |n| sizes.map(|k| (m, n, k)))) {
            let one = cycles(m, n, k);
            assert!(one <= cycles(m + 1, n, k) && one <= cycles(m, n + 1, k) && one <= cycles(m, n, k + 1));
        }
    }

    #[test]
    fn two_hops_beat_a_line() {
        let all = [Dataflow::WeightStream, Dataflow::Summa, Dataflow::Cannon, Dataflow::MeshGemm];
        for size in [1024, 2048, 4096, 8192, 16_384] {
            let [stream, summa, cannon, mesh] = all.map(|dataflow| WSE2.gemm(dataflow, 720, (size, size, size)));
            assert!(mesh.total_cycles < cannon.total_cycles, "{size}");
            // Where compute hides every way, what is left is what goes before: a broadcast against shifts.
            assert_eq!(mesh.total_cycles < summa.total_cycles, size <= 8192, "{size}");
            assert!(mesh.compute_cycles == cannon.compute_cycles && mesh.compute_cycles == summa.compute_cycles);
            let least = (size * size * size) as f64 / (720 * 720 * WSE2.macs_16) as f64;
            for gemm in [stream, summa, cannon, mesh] {
                assert!(gemm.efficiency() > 0.0 && gemm.efficiency() <= 1.0 && gemm.compute_cycles >= least);
            }
        }
        // By hand: 2 x 2 tiles, blocks of 4 x 4; 16 operations of a cycle; blocks of 8 wavelets each.
        let gemm = |dataflow| WSE2.gemm(dataflow, 2, (8, 8, 8));
        assert_eq!(gemm(Dataflow::Summa), Gemm { compute_cycles: 32.0, total_cycles: 22.0 + 2.0 * 22.0 });
        assert_eq!(gemm(Dataflow::Cannon), Gemm { compute_cycles: 32.0, total_cycles: 14.0 + 2.0 * 22.0 });
        assert_eq!(gemm(Dataflow::MeshGemm), Gemm { compute_cycles: 32.0, total_cycles: 15.0 + 2.0 * 23.0 });
        // 8 rows of 4 weights and 4 values in 2 wavelets; 2 hops down, 2 tiles round.
        let stream = Gemm { compute_cycles: 32.0, total_cycles: 8.0 * 6.0 + 2.0 + 2.0 * 7.0 };
        assert_eq!(gemm(Dataflow::WeightStream), stream);
    }

    #[test]
    fn a_vector_product_is_its_block_and_its_sum() {
        // 16 x 16 tiles, blocks of 4 x 4: 4 operations of a cycle, then sums of 4 values in 2 wavelets.
        for reduce in Algorithm::REDUCES {
            let cycles = WSE2.gemv(reduce, 16, (64, 64), false);
            assert_eq!(cycles, 4.0 + reduce.cycles(&WSE2, 16, 2));
            assert_eq!(WSE2.gemv(reduce, 16, (64, 64), true), cycles + WSE2.broadcast(16, 2));
        }
        assert_eq!(WSE2.gemv(Algorithm::TwoPhase, 1, (64, 64), true), 64.0 * 16.0);
    }

    fn step(tokens: u64) -> Step {
        let (m, d) = (tokens, 4096);
        let visit = Visit {
            weight_bytes: 2 * d * d,
            forward: vec![Work::Product { m, n: d, k: d }],
            backward: vec![Work::Product { m, n: d, k: d }, Work::Product { m: d, n: d, k: m }],
        };
        Step { visits: vec![visit; 3], micro_tokens: tokens, micro_batches: 2 }
    }

    #[test]
    fn a_step_is_bound_by_its_longest() {
        for (tokens, bound) in [(64, Bound::Link), (200_000, Bound::Compute)] {
            let time = WSE2.step(&step(tokens));
            let parts = [time.compute_seconds, time.fabric_seconds, time.link_seconds];
            assert_eq!(time.bound, bound, "{time:?}");
            assert!(parts.iter().all(|part| *part <= time.total_seconds) && time.total_seconds <= parts.iter().sum());
            let tokens_per_second = 2.0 * tokens as f64 / time.total_seconds;
            assert!((time.tokens_per_second / tokens_per_second - 1.0).abs() < 1e-12);
        }
        // Bound by the link, a step takes as long as its weights, twice for each micro-batch; a slower one is seen.
        let time = WSE2.step(&step(64));
        assert_eq!(time.total_seconds, time.link_seconds);
        let bytes = 2.0 * 2.0 * 3.0 * 2.0 * 4096.0 * 4096.0;
        assert!((time.link_seconds - bytes / 150e9).abs() < 1e-12);
        let slower = Machine { off_wafer_bytes_per_second: 75e9, ..WSE2 };
        assert!((slower.step(&step(64)).total_seconds / time.total_seconds - 2.0).abs() < 1e-12);
        assert!(slower.step(&step(200_000)).total_seconds == WSE2.step(&step(200_000)).total_seconds);
        // Links and ramps of a bit a cycle bind.
        let narrow = Machine { link_bits: 1, ..WSE2 };
        assert_eq!(narrow.step(&step(200_000)).bound, Bound::Fabric);
    }

    #[test]
    fn weights_stream_in_as_long_as_published() {
        let milliseconds = |parameters: u64| (1e3 * WSE2.off_wafer_seconds(2 * parameters)).round();
        assert_eq!([milliseconds(6_050_882_784), milliseconds(20_554_567_680)], [81.0, 274.0]);
    }
}
