//! Attention from its formulas, at any precision: tile by tile and block by block, one row after the other, so that it runs
//! in supersteps as well, with equal bits. Nothing in it is for speed; it must never know a vector's width.

use super::tiles::{Received, Shape, Tile};
use crate::device::{Args, Real};

fn dot<F: Real>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).map(|(&x, &y)| x * y).sum()
}

fn add_scaled<F: Real>(to: &mut [F], factor: F, from: &[F]) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to += factor * x);
}

/// Row `c` of a received block.
fn row<'a, F>(of: &Shape, block: Received<'a, F>, c: usize) -> &'a [F] {
    &block.data[c * block.stride..][..of.size]
}

/// Runs every tile on its accumulators, `width` of each own row: zeros before the first step, else as they were saved.
/// Saves them where there are steps to come, else calls `finish`.
fn each_tile<F: Real>(
    of: &Shape,
    state: &mut [F],
    width: usize,
    mut steps: impl FnMut(Tile, &mut [F]),
    mut finish: impl FnMut(Tile, &[F]),
) {
    let len = of.rows * width;
    for group in 0..of.groups {
        let tile = of.tile(group);
        let mut acc = vec![F::zero(); len];
        if of.p.first_step > 0 {
            acc.copy_from_slice(&state[group * len..][..len]);
        }
        steps(tile, &mut acc);
        if of.p.saves() {
            state[group * len..][..len].copy_from_slice(&acc);
        } else {
            finish(tile, &acc);
        }
    }
}

/// Accumulators of a query: the sum of weights `l`, the largest score `m` (once `l` is not 0), and `out` before the
/// division by `l`.
pub(super) fn forward<F: Real>(args: &mut Args<'_, F>) {
    let of = Shape::of_queries(args);
    let (p, size) = (of.p, of.size);
    let (q, k, v) = (args.read(0), args.read(1), args.read(2));
    let (out, lse, state) = (args.write(3), args.write(4), args.write(5));
    let own = |at, tile: Tile, r: usize| of.query(at, tile.batch, tile.head, tile.block * of.rows + r);
    let steps = |tile: Tile, acc: &mut [F]| {
        for step in p.first_step..p.last_step {
            let Some((first, n)) = of.key_block(tile, step) else { break };
            let place = |at| of.key(at, tile.batch, tile.head / p.group as usize, first);
            let keys = of.received(k, place((p.k_offset, p.k_stride)), p.k_stride, tile);
            let values = of.received(v, place((p.v_offset, p.v_stride)), p.v_stride, tile);
            for (r, acc) in acc.chunks_mut(size + 2).enumerate().take(of.live(tile)) {
                let q = &q[own((p.q_offset, p.q_stride), tile, r)..][..size];
                let seen = of.seen(tile.block * of.rows + r, first, n);
                let scores = seen.clone().map(|c| F::of(p.scale as f64) * dot(q, row(&of, keys, c)));
                let query = tile.block * of.rows + r;
                let value = |c| {
                    let factor = p.factor(tile.batch, tile.head, query, first + seen.start + c);
                    (F::of(factor), row(&of, values, seen.start + c))
                };
                soften(acc, &scores.collect::<Vec<F>>(), value);
            }
        }
    };
    each_tile(&of, state, size + 2, steps, |tile, acc| {
        for (r, acc) in acc.chunks(size + 2).enumerate().take(of.live(tile)) {
            let (l, m) = (acc[0], acc[1]);
            let out = &mut out[own((p.o_offset, p.o_stride), tile, r)..][..size];
            out.iter_mut().zip(&acc[2..]).for_each(|(out, &x)| *out = x / l);
            lse[of.scalar(tile.batch, tile.head, tile.block * of.rows + r)] = m + l.ln();
        }
    });
}

/// Adds a block of scores and their values, each with what dropout multiplies its weight by, to what one query has
/// accumulated, relative to the largest score so far.
fn soften<'a, F: Real>(acc: &mut [F], scores: &[F], value: impl Fn(usize) -> (F, &'a [F])) {
    let none = if acc[0] == F::zero() { F::neg_infinity() } else { acc[1] };
    let top = scores.iter().fold(none, |top, &s| top.max(s));
    if scores.is_empty() {
        return;
    }
    let fade = (none - top).exp();
    acc[1] = top;
    acc[0] *= fade;
    acc[2..].iter_mut().for_each(|x| *x *= fade);
    for (c, &score) in scores.iter().enumerate() {
        let weight = (score - top).exp();
        acc[0] += weight;
        let (factor, value) = value(c);
        add_scaled(&mut acc[2..], factor * weight, value);
    }
}

pub(super) fn delta<F: Real>(args: &mut Args<'_, F>) {
    let of = Shape::of_queries(args);
    let p = of.p;
    let (out, d_out, delta) = (args.read(0), args.read(1), args.write(2));
    for tile in (0..of.groups).map(|group| of.tile(group)) {
        for query in (tile.block * of.rows..).take(of.live(tile)) {
            let place = |at| of.query(at, tile.batch, tile.head, query);
            let out = &out[place((p.o_offset, p.o_stride))..][..of.size];
            let d_out = &d_out[place((p.grad_offset, p.grad_stride))..][..of.size];
            delta[of.scalar(tile.batch, tile.head, query)] = dot(out, d_out);
        }
    }
}

/// One pair of a query and a key that it sees.
struct Pair<'a, F> {
    q: &'a [F],
    k: &'a [F],
    v: &'a [F],
    d_out: &'a [F],
    lse: F,
    delta: F,
    /// What dropout multiplies the weight by.
    factor: F,
}

impl<F: Real> Pair<'_, F> {
    /// The softmax weight after dropout, and the gradient of the product of query and key.
    fn weight(&self, scale: F) -> (F, F) {
        let weight = (scale * dot(self.q, self.k) - self.lse).exp();
        let d_score = weight * (self.factor * dot(self.d_out, self.v) - self.delta);
        (self.factor * weight, scale * d_score)
    }
}

pub(super) fn backward_query<F: Real>(args: &mut Args<'_, F>) {
    let of = Shape::of_queries(args);
    let (p, size) = (of.p, of.size);
    let [q, k, v, d_out, lse, delta] = [0, 1, 2, 3, 4, 5].map(|i| args.read(i));
    let (dq, state) = (args.write(6), args.write(7));
    let own = |at, tile: Tile, r: usize| of.query(at, tile.batch, tile.head, tile.block * of.rows + r);
    let steps = |tile: Tile, acc: &mut [F]| {
        for step in p.first_step..p.last_step {
            let Some((first, n)) = of.key_block(tile, step) else { break };
            let place = |at| of.key(at, tile.batch, tile.head / p.group as usize, first);
            let keys = of.received(k, place((p.k_offset, p.k_stride)), p.k_stride, tile);
            let values = of.received(v, place((p.v_offset, p.v_stride)), p.v_stride, tile);
            for (r, acc) in acc.chunks_mut(size).enumerate().take(of.live(tile)) {
                let q = &q[own((p.q_offset, p.q_stride), tile, r)..][..size];
                let d_out = &d_out[own((p.o_offset, p.o_stride), tile, r)..][..size];
                let at = of.scalar(tile.batch, tile.head, tile.block * of.rows + r);
                for c in of.seen(tile.block * of.rows + r, first, n) {
                    let (k, v) = (row(&of, keys, c), row(&of, values, c));
                    let factor = F::of(p.factor(tile.batch, tile.head, tile.block * of.rows + r, first + c));
                    let pair = Pair { q, k, v, d_out, lse: lse[at], delta: delta[at], factor };
                    add_scaled(acc, pair.weight(F::of(p.scale as f64)).1, k);
                }
            }
        }
    };
    each_tile(&of, state, size, steps, |tile, acc| {
        for (r, acc) in acc.chunks(size).enumerate().take(of.live(tile)) {
            dq[own((p.grad_offset, p.grad_stride), tile, r)..][..size].copy_from_slice(acc);
        }
    });
}

/// Accumulators of a key: `dk`, then `dv`.
pub(super) fn backward_key_value<F: Real>(args: &mut Args<'_, F>) {
    let of = Shape::of_keys(args);
    let (p, size) = (of.p, of.size);
    let [q, k, v, d_out, lse, delta] = [0, 1, 2, 3, 4, 5].map(|i| args.read(i));
    let (dkv, state) = (args.write(6), args.write(7));
    let own = |at, tile: Tile, r: usize| of.key(at, tile.batch, tile.head, tile.block * of.rows + r);
    let steps = |tile: Tile, acc: &mut [F]| {
        for step in p.first_step..p.last_step {
            let Some((head, first, n)) = of.query_block(tile, step) else { break };
            let place = |at| of.query(at, tile.batch, head, first);
            let queries = of.received(q, place((p.q_offset, p.q_stride)), p.q_stride, tile);
            let gradients = of.received(d_out, place((p.o_offset, p.o_stride)), p.o_stride, tile);
            let at = of.received_scalar(tile, head, first);
            for c in 0..n {
                let (q, d_out) = (row(&of, queries, c), row(&of, gradients, c));
                let seen = of.seen(first + c, tile.block * of.rows, of.live(tile));
                for (r, acc) in acc.chunks_mut(2 * size).enumerate().take(seen.end).skip(seen.start) {
                    let k = &k[own((p.k_offset, p.k_stride), tile, r)..][..size];
                    let v = &v[own((p.v_offset, p.v_stride), tile, r)..][..size];
                    let factor = F::of(p.factor(tile.batch, head, first + c, tile.block * of.rows + r));
                    let pair = Pair { q, k, v, d_out, lse: lse[at + c], delta: delta[at + c], factor };
                    let (weight, d_product) = pair.weight(F::of(p.scale as f64));
                    add_scaled(&mut acc[..size], d_product, q);
                    add_scaled(&mut acc[size..], weight, d_out);
                }
            }
        }
    };
    each_tile(&of, state, 2 * size, steps, |tile, acc| {
        for (r, acc) in acc.chunks(2 * size).enumerate().take(of.live(tile)) {
            dkv[own((p.grad_offset, p.grad_stride), tile, r)..][..size].copy_from_slice(&acc[..size]);
            dkv[own((p.grad_v_offset, p.grad_stride), tile, r)..][..size].copy_from_slice(&acc[size..]);
        }
    });
}
