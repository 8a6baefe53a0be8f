//! Attention on CPU threads: one task a tile, vector lanes over the tile's own rows.
//!
//! The own side (queries, or keys in the gradient of keys and values) is transposed once into scratch, so that every
//! product is `C[m][own] += A[m][k] * B[k][own]` with contiguous rows of B and C, blocks of the other side are read where
//! they lie, and the softmax runs down the columns: no reduction crosses lanes, so every CPU gives the same bits. It knows
//! tiles and steps; it must never know which schedule runs them.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::multiply::{Left, multiply};
use super::tiles::{Shape, Tile};
use super::{AttentionParams, CAUSAL, MAX_HEAD_SIZE};
use crate::device::Args;
use crate::program::{initial, vector};

/// The maximum before any score: finite, so that the first rescaling multiplies by `exp` of a huge negative number, 0.
const LOWEST: f32 = -3.0e38;

/// Own rows computed are rounded up to this: the widest vector. Also the partial sums of `delta`.
pub(super) const LANES: usize = 16;

/// Most rows of a block in any variant for native code.
const OWN_MAX: usize = 64;

/// One cache line, to align the scratch memory.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([f32; LANES]);

thread_local! {
    /// Grown to the largest tile, once a thread.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with scratch memory for parts of the given lengths, each a multiple of [`LANES`].
fn with_scratch<const N: usize>(lengths: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    SCRATCH.with_borrow_mut(|lines| {
        let needed = lengths.iter().sum::<usize>() / LANES;
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; LANES]));
        }
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(lines);
        f(lengths.map(|len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            part
        }));
    });
}

/// A run of elements of an output that belongs to one tile.
struct Cut {
    start: usize,
    len: usize,
    tile: usize,
    slot: usize,
}

/// Hands each tile its own runs of an output, in its own order.
fn carve(mut data: &mut [f32], mut cuts: Vec<Cut>, tiles: usize, slots: usize) -> Vec<Vec<&mut [f32]>> {
    cuts.sort_unstable_by_key(|c| c.start);
    let mut parts: Vec<Vec<&mut [f32]>> =
        (0..tiles).map(|_| std::iter::repeat_with(Default::default).take(slots).collect()).collect();
    let mut at = 0;
    for cut in cuts {
        let (own, rest) = data.split_at_mut(cut.start - at).1.split_at_mut(cut.len);
        parts[cut.tile][cut.slot] = own;
        (data, at) = (rest, cut.start + cut.len);
    }
    parts
}

impl Shape {
    /// The saved states of the tiles; nothing in a launch of all steps.
    fn states<'a>(&self, state: &'a mut [f32], len: usize) -> Vec<&'a mut [f32]> {
        if self.partial() {
            return state.chunks_mut(len).take(self.groups).collect();
        }
        std::iter::repeat_with(Default::default).take(self.groups).collect()
    }

    /// Runs that rows of the own side have in an output: slots `first_slot ..`.
    fn own_rows(&self, offset: u32, stride: u32, sequence: u32, first_slot: usize, cuts: &mut Vec<Cut>) {
        for group in 0..self.groups {
            let tile = self.tile(group);
            for r in 0..self.live(tile) {
                let row = tile.batch * sequence as usize + tile.block * self.rows + r;
                let start = offset as usize + row * stride as usize + tile.head * self.size;
                cuts.push(Cut { start, len: self.size, tile: group, slot: first_slot + r });
            }
        }
    }

    /// Transposes the own rows of an operand: `to[d * rows + r]`; rows that are none become zero.
    #[inline(always)]
    fn transpose(&self, to: &mut [f32], from: &[f32], start: usize, stride: u32, live: usize) {
        const NONE: [f32; MAX_HEAD_SIZE] = [0.0; MAX_HEAD_SIZE];
        for first in (0..self.rows).step_by(LANES) {
            // A line of 16 rows at a time: whole lines are written, and 16 streams read.
            let mut sources = [&NONE[..self.size]; LANES];
            for (i, source) in sources.iter_mut().enumerate().take(live.saturating_sub(first)) {
                *source = &from[start + (first + i) * stride as usize..][..self.size];
            }
            for (d, row) in to.chunks_exact_mut(self.rows).enumerate().take(self.size) {
                for (to, source) in row[first..first + LANES].iter_mut().zip(&sources) {
                    *to = source[d];
                }
            }
        }
    }
}

/// Writes the own rows of a transposed accumulator.
#[inline(always)]
fn store(acc: &[f32], rows: usize, to: &mut [&mut [f32]]) {
    for (line, to) in to.chunks_mut(LANES).enumerate() {
        for (d, row) in acc.chunks_exact(rows).enumerate() {
            for (to, &x) in to.iter_mut().zip(&row[line * LANES..]) {
                to[d] = x;
            }
        }
    }
}

/// Multiplies an accumulator by the scale of the scores.
#[inline(always)]
fn rescale(acc: &mut [f32], scale: f32) {
    for x in acc {
        *x *= scale;
    }
}

/// What the weights of a query and of neighbouring keys are multiplied by, from the index of their first pair.
#[inline(always)]
fn factors(p: &AttentionParams, first: u64, to: &mut [f32]) {
    let gain = p.gain() as f32;
    let mut words = [0; OWN_MAX];
    let words = &mut words[..to.len()];
    initial::word_run(p.key(), first, words);
    for (to, &word) in to.iter_mut().zip(&*words) {
        *to = if word < p.threshold { 0.0 } else { gain };
    }
}

#[inline(always)]
fn scale_by(x: &mut [f32], factors: &[f32]) {
    for (x, factor) in x.iter_mut().zip(factors) {
        *x *= factor;
    }
}

impl Shape {
    /// Multiplies what belongs to the pairs of own queries and `n` keys from `first_key` on, a row for each key, by the
    /// pair's factor.
    #[inline(always)]
    fn drop_weights(&self, tile: Tile, s: &mut [f32], first_key: usize, n: usize) {
        for r in 0..self.live(tile) {
            let first = self.p.first_pair(tile.batch, tile.head, tile.block * self.rows + r) + first_key as u64;
            let mut kept = [0.0; OWN_MAX];
            factors(&self.p, first, &mut kept[..n]);
            for (row, factor) in s.chunks_exact_mut(self.rows).zip(&kept[..n]) {
                row[r] *= factor;
            }
        }
    }
}

/// A tile of the forward pass.
struct Forward<'a, 'b> {
    of: Shape,
    tile: Tile,
    operands: [&'a [f32]; 3],
    out: &'b mut [&'a mut [f32]],
    lse: &'b mut [f32],
    state: &'b mut [f32],
    /// Transposed queries, scores, accumulators, maxima, sums, rescaling factors.
    scratch: [&'b mut [f32]; 6],
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Forward { of, tile, operands: [q, k, v], out, lse, state, scratch: [qt, s, acc, m, l, fade] } = self;
        let Shape { p, rows, size, .. } = of;
        let live = of.live(tile);
        let (wide, first_query) = (live.next_multiple_of(LANES), tile.block * rows);
        let start = (tile.batch * p.query_len as usize + first_query) * p.q_stride as usize + tile.head * size;
        of.transpose(qt, q, p.q_offset as usize + start, p.q_stride, live);
        if p.first_step > 0 {
            m.copy_from_slice(&state[..rows]);
            l.copy_from_slice(&state[rows..2 * rows]);
            acc.copy_from_slice(&state[2 * rows..][..size * rows]);
        } else {
            m.fill(LOWEST);
            l.fill(0.0);
            acc.fill(0.0);
        }
        for step in p.first_step..p.last_step {
            let Some((first_key, n)) = of.key_block(tile, step) else { break };
            let row = |at| of.key(at, tile.batch, tile.head / p.group as usize, first_key);
            let keys = of.received(k, row((p.k_offset, p.k_stride)), p.k_stride, tile);
            let values = of.received(v, row((p.v_offset, p.v_stride)), p.v_stride, tile);
            multiply(simd, (n, size, wide), Left::Rows(keys.data, keys.stride), qt, s, rows, false);
            soften(&p, s, m, l, fade, (rows, wide, n), first_query, first_key);
            if p.threshold > 0 {
                of.drop_weights(tile, s, first_key, n);
            }
            for row in acc.chunks_exact_mut(rows) {
                for (o, f) in row[..wide].iter_mut().zip(&fade[..wide]) {
                    *o *= f;
                }
            }
            multiply(simd, (size, n, wide), Left::Columns(values.data, values.stride), s, acc, rows, true);
        }
        if p.saves() {
            state[..rows].copy_from_slice(m);
            state[rows..2 * rows].copy_from_slice(l);
            state[2 * rows..][..size * rows].copy_from_slice(acc);
            return;
        }
        for row in acc.chunks_exact_mut(rows) {
            for (o, l) in row[..live].iter_mut().zip(&l[..live]) {
                *o /= l;
            }
        }
        store(acc, rows, &mut out[..live]);
        for (r, lse) in lse.iter_mut().enumerate() {
            *lse = m[r] + l[r].ln();
        }
    }
}

/// Which of `wide` own queries see a key: those between its position and the end of its window.
#[inline(always)]
fn seeing(p: &AttentionParams, key: usize, first_query: usize, wide: usize) -> (usize, usize) {
    let own = |position: usize| position.saturating_sub(p.query_start as usize + first_query).min(wide);
    let from = if p.flags & CAUSAL != 0 { own(key) } else { 0 };
    (from, if p.window > 0 { own(key + p.window as usize) } else { wide })
}

/// Turns a block of products into weights: scales, masks, raises the maxima and adds to the sums.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one call site; a struct would only rename them
fn soften(
    p: &AttentionParams,
    s: &mut [f32],
    m: &mut [f32],
    l: &mut [f32],
    fade: &mut [f32],
    (rows, wide, n): (usize, usize, usize),
    first_query: usize,
    first_key: usize,
) {
    let (m, l, fade) = (&mut m[..wide], &mut l[..wide], &mut fade[..wide]);
    fade.copy_from_slice(m);
    for (c, row) in s.chunks_exact_mut(rows).take(n).enumerate() {
        let (from, to) = seeing(p, first_key + c, first_query, wide);
        for (s, m) in row[from..to].iter_mut().zip(&mut m[from..to]) {
            *s *= p.scale;
            *m = if *s > *m { *s } else { *m };
        }
    }
    for ((fade, m), l) in fade.iter_mut().zip(&*m).zip(&mut *l) {
        *fade = vector::exp(*fade - m);
        *l *= *fade;
    }
    for (c, row) in s.chunks_exact_mut(rows).take(n).enumerate() {
        let (from, to) = seeing(p, first_key + c, first_query, wide);
        row[..from].fill(0.0);
        for ((s, m), l) in row[from..to].iter_mut().zip(&m[from..to]).zip(&mut l[from..to]) {
            *s = vector::exp(*s - m);
            *l += *s;
        }
        row[to..wide].fill(0.0);
    }
}

pub(super) fn forward(args: &mut Args<'_, f32>) {
    let of = Shape::of_queries(args);
    let p = of.p;
    let operands = [args.read(0), args.read(1), args.read(2)];
    let mut cuts = Vec::new();
    of.own_rows(p.o_offset, p.o_stride, p.query_len, 0, &mut cuts);
    let out = carve(args.write(3), cuts, of.groups, of.rows);
    let lse = scalars_of_tiles(&of, args.write(4));
    let states = of.states(args.write(5), of.rows * (of.size + 2));
    let tiles = out.into_par_iter().zip(lse).zip(states).enumerate();
    tiles.for_each(|(group, ((mut out, mut lse), state))| {
        let (own, block) = (of.size * of.rows, of.cols * of.rows);
        with_scratch([own, block, own, of.rows, of.rows, of.rows], |scratch| {
            let (out, lse) = (&mut out[..], &mut *lse[0]);
            Arch::new().dispatch(Forward { of, tile: of.tile(group), operands, out, lse, state, scratch });
        });
    });
}

/// The run of each tile in `lse` or `delta`.
fn scalars_of_tiles<'a>(of: &Shape, data: &'a mut [f32]) -> Vec<Vec<&'a mut [f32]>> {
    let cut = |group| {
        let tile = of.tile(group);
        let start = of.scalar(tile.batch, tile.head, tile.block * of.rows);
        Cut { start, len: of.live(tile), tile: group, slot: 0 }
    };
    carve(data, (0..of.groups).map(cut).collect(), of.groups, 1)
}

pub(super) fn delta(args: &mut Args<'_, f32>) {
    let of = Shape::of_queries(args);
    let (p, size) = (of.p, of.size);
    let (out, d_out) = (args.read(0), args.read(1));
    let tiles = scalars_of_tiles(&of, args.write(2)).into_par_iter().enumerate();
    tiles.for_each(|(group, mut delta)| {
        let tile = of.tile(group);
        let first = tile.batch * p.query_len as usize + tile.block * of.rows;
        Arch::new().dispatch(|| {
            for (r, delta) in delta[0].iter_mut().enumerate() {
                let at = |offset: u32, stride: u32| offset as usize + (first + r) * stride as usize + tile.head * size;
                let x = &out[at(p.o_offset, p.o_stride)..][..size];
                let y = &d_out[at(p.grad_offset, p.grad_stride)..][..size];
                *delta = dot(x, y);
            }
        });
    });
}

/// A dot product in [`LANES`] partial sums: an order of its own, so that it is vector code.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (x_lines, y_lines) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail = x_lines.remainder().iter().zip(y_lines.remainder());
    for (sum, (&x, &y)) in sums.iter_mut().zip(tail) {
        *sum = x * y;
    }
    for (x, y) in x_lines.zip(y_lines) {
        for i in 0..LANES {
            sums[i] = x[i].mul_add(y[i], sums[i]);
        }
    }
    sums.iter().sum()
}

/// A tile of the gradient of the queries.
struct Query<'a, 'b> {
    of: Shape,
    tile: Tile,
    operands: [&'a [f32]; 6],
    dq: &'b mut [&'a mut [f32]],
    state: &'b mut [f32],
    /// Transposed queries and output gradients, scores, their gradients, accumulators.
    scratch: [&'b mut [f32]; 5],
}

impl WithSimd for Query<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Query { of, tile, operands: [q, k, v, d_out, lse, delta], dq, state, scratch: [qt, ot, s, dp, acc] } = self;
        let Shape { p, rows, size, .. } = of;
        let live = of.live(tile);
        let (wide, first_query) = (live.next_multiple_of(LANES), tile.block * rows);
        let row = tile.batch * p.query_len as usize + first_query;
        let start = |offset: u32, stride: u32| offset as usize + row * stride as usize + tile.head * size;
        of.transpose(qt, q, start(p.q_offset, p.q_stride), p.q_stride, live);
        of.transpose(ot, d_out, start(p.o_offset, p.o_stride), p.o_stride, live);
        let at = of.scalar(tile.batch, tile.head, first_query);
        let (lse, delta) = (&lse[at..][..live], &delta[at..][..live]);
        if p.first_step > 0 {
            acc.copy_from_slice(&state[..size * rows]);
        } else {
            acc.fill(0.0);
        }
        for step in p.first_step..p.last_step {
            let Some((first_key, n)) = of.key_block(tile, step) else { break };
            let row = |at| of.key(at, tile.batch, tile.head / p.group as usize, first_key);
            let keys = of.received(k, row((p.k_offset, p.k_stride)), p.k_stride, tile);
            let values = of.received(v, row((p.v_offset, p.v_stride)), p.v_stride, tile);
            multiply(simd, (n, size, wide), Left::Rows(keys.data, keys.stride), qt, s, rows, false);
            multiply(simd, (n, size, wide), Left::Rows(values.data, values.stride), ot, dp, rows, false);
            if p.threshold > 0 {
                of.drop_weights(tile, dp, first_key, n);
            }
            for (c, (s, dp)) in s.chunks_exact_mut(rows).zip(dp.chunks_exact(rows)).take(n).enumerate() {
                let (from, to) = seeing(&p, first_key + c, first_query, live);
                s[..from].fill(0.0);
                let own = lse[from..to].iter().zip(&delta[from..to]);
                for ((s, dp), (lse, delta)) in s[from..to].iter_mut().zip(&dp[from..to]).zip(own) {
                    *s = vector::exp(p.scale * *s - lse) * (dp - delta);
                }
                s[to..live].fill(0.0);
            }
            multiply(simd, (size, n, wide), Left::Columns(keys.data, keys.stride), s, acc, rows, true);
        }
        if p.saves() {
            state[..size * rows].copy_from_slice(acc);
        } else {
            rescale(acc, p.scale);
            store(acc, rows, &mut dq[..live]);
        }
    }
}

fn backward_operands<'a>(args: &Args<'a, f32>) -> [&'a [f32]; 6] {
    [0, 1, 2, 3, 4, 5].map(|i| args.read(i))
}

pub(super) fn backward_query(args: &mut Args<'_, f32>) {
    let of = Shape::of_queries(args);
    let p = of.p;
    let operands = backward_operands(args);
    let mut cuts = Vec::new();
    of.own_rows(p.grad_offset, p.grad_stride, p.query_len, 0, &mut cuts);
    let dq = carve(args.write(6), cuts, of.groups, of.rows);
    let states = of.states(args.write(7), of.rows * of.size);
    dq.into_par_iter().zip(states).enumerate().for_each(|(group, (mut dq, state))| {
        let (own, block) = (of.size * of.rows, of.cols * of.rows);
        with_scratch([own, own, block, block, own], |scratch| {
            let dq = &mut dq[..];
            Arch::new().dispatch(Query { of, tile: of.tile(group), operands, dq, state, scratch });
        });
    });
}

/// A tile of the gradient of keys and values.
struct KeyValue<'a, 'b> {
    of: Shape,
    tile: Tile,
    operands: [&'a [f32]; 6],
    /// Rows of dk, then rows of dv.
    dkv: &'b mut [&'a mut [f32]],
    state: &'b mut [f32],
    /// Transposed keys and values, scores, their gradients, accumulators of dk and of dv.
    scratch: [&'b mut [f32]; 6],
}

impl WithSimd for KeyValue<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let KeyValue { of, tile, operands: [q, k, v, d_out, lse, delta], dkv, state, scratch } = self;
        let [kt, vt, s, dp, dk, dv] = scratch;
        let Shape { p, rows, size, .. } = of;
        let live = of.live(tile);
        let (wide, first_key) = (live.next_multiple_of(LANES), tile.block * rows);
        let row = tile.batch * p.key_value_rows as usize + first_key;
        let start = |offset: u32, stride: u32| offset as usize + row * stride as usize + tile.head * size;
        of.transpose(kt, k, start(p.k_offset, p.k_stride), p.k_stride, live);
        of.transpose(vt, v, start(p.v_offset, p.v_stride), p.v_stride, live);
        if p.first_step > 0 {
            dk.copy_from_slice(&state[..size * rows]);
            dv.copy_from_slice(&state[size * rows..][..size * rows]);
        } else {
            dk.fill(0.0);
            dv.fill(0.0);
        }
        for step in p.first_step..p.last_step {
            let Some((head, first_query, n)) = of.query_block(tile, step) else { break };
            let row = |at| of.query(at, tile.batch, head, first_query);
            let queries = of.received(q, row((p.q_offset, p.q_stride)), p.q_stride, tile);
            let gradients = of.received(d_out, row((p.o_offset, p.o_stride)), p.o_stride, tile);
            let at = of.received_scalar(tile, head, first_query);
            multiply(simd, (n, size, wide), Left::Rows(queries.data, queries.stride), kt, s, rows, false);
            multiply(simd, (n, size, wide), Left::Rows(gradients.data, gradients.stride), vt, dp, rows, false);
            for (c, (s, dp)) in s.chunks_exact_mut(rows).zip(dp.chunks_exact_mut(rows)).take(n).enumerate() {
                let seen = of.seen(first_query + c, first_key, live);
                let mut kept = [0.0; OWN_MAX];
                if p.threshold > 0 {
                    let first = p.first_pair(tile.batch, head, first_query + c) + first_key as u64;
                    factors(&p, first, &mut kept[..live]);
                    scale_by(&mut dp[..live], &kept);
                }
                for (s, dp) in s[seen.clone()].iter_mut().zip(&mut dp[seen.clone()]) {
                    *s = vector::exp(p.scale * *s - lse[at + c]);
                    *dp = *s * (*dp - delta[at + c]);
                }
                if p.threshold > 0 {
                    scale_by(&mut s[..live], &kept);
                }
                for none in [&mut s[..wide], &mut dp[..wide]] {
                    none[..seen.start].fill(0.0);
                    none[seen.end..].fill(0.0);
                }
            }
            multiply(simd, (size, n, wide), Left::Columns(gradients.data, gradients.stride), s, dv, rows, true);
            multiply(simd, (size, n, wide), Left::Columns(queries.data, queries.stride), dp, dk, rows, true);
        }
        if p.saves() {
            state[..size * rows].copy_from_slice(dk);
            state[size * rows..][..size * rows].copy_from_slice(dv);
            return;
        }
        let (dk_rows, dv_rows) = dkv.split_at_mut(rows);
        rescale(dk, p.scale);
        store(dk, rows, &mut dk_rows[..live]);
        store(dv, rows, &mut dv_rows[..live]);
    }
}

pub(super) fn backward_key_value(args: &mut Args<'_, f32>) {
    let of = Shape::of_keys(args);
    let p = of.p;
    let operands = backward_operands(args);
    let mut cuts = Vec::new();
    of.own_rows(p.grad_offset, p.grad_stride, p.key_value_rows, 0, &mut cuts);
    of.own_rows(p.grad_v_offset, p.grad_stride, p.key_value_rows, of.rows, &mut cuts);
    let dkv = carve(args.write(6), cuts, of.groups, 2 * of.rows);
    let states = of.states(args.write(7), 2 * of.rows * of.size);
    dkv.into_par_iter().zip(states).enumerate().for_each(|(group, (mut dkv, state))| {
        let (own, block) = (of.size * of.rows, of.cols * of.rows);
        with_scratch([own, own, block, block, own, own], |scratch| {
            let dkv = &mut dkv[..];
            Arch::new().dispatch(KeyValue { of, tile: of.tile(group), operands, dkv, state, scratch });
        });
    });
}
