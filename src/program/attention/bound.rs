//! How far an f32 result of attention may lie from the formula, first order in the rounding, with the errors of scores,
//! weights and sums propagated. Written on the whole softmax, not on blocks: it must never know what arrives when.

use super::AttentionParams;
use super::host::LANES;
use super::tiles::Shape;
use crate::device::Args;
use crate::program::EPS;

/// A launch of all steps, for all sequences and heads.
struct Whole {
    of: Shape,
    batch: usize,
}

impl Whole {
    fn new(of: Shape) -> Whole {
        Whole { of, batch: of.groups / (of.p.width as usize * of.own_blocks()) }
    }

    fn query(&self, at: (u32, u32), b: usize, h: usize, t: usize) -> usize {
        self.of.query(at, b, h, t)
    }

    /// Row `t` of keys or values, for a query head.
    fn key(&self, at: (u32, u32), b: usize, h: usize, t: usize) -> usize {
        self.of.key(at, b, h / self.of.p.group as usize, t)
    }

    fn scalar(&self, b: usize, h: usize, t: usize) -> usize {
        self.of.scalar(b, h, t)
    }

    /// Calls `f(sequence, head, query)`.
    fn each_query(&self, mut f: impl FnMut(usize, usize, usize)) {
        for b in 0..self.batch {
            for h in 0..self.of.p.query_heads as usize {
                (0..self.of.p.query_len as usize).for_each(|t| f(b, h, t));
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Absolute error of a dot product that adds index by index in `lanes` partial sums, then these: each product and each
/// addition is rounded, relative to its own result. Far less than the number of terms times their sizes where signs differ.
fn dot_error(a: &[f64], b: &[f64], lanes: usize) -> f64 {
    let (mut sums, mut rounded) = (vec![0.0; lanes], 0.0);
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        let sum: &mut f64 = &mut sums[i % lanes];
        *sum += x * y;
        rounded += (x * y).abs() + sum.abs();
    }
    let mut total = 0.0f64;
    for sum in &sums[..lanes.min(a.len())] {
        total += sum;
        rounded += total.abs();
    }
    EPS * rounded
}

/// Scores of one query against the keys it may see.
fn scores(rows: &Whole, q: &[f64], k: &[f64], b: usize, h: usize, t: usize) -> Vec<f64> {
    let (p, size) = (&rows.of.p, rows.of.size);
    let own = &q[rows.query((p.q_offset, p.q_stride), b, h, t)..][..size];
    p.keys(t)
        .map(|j| f64::from(p.scale) * dot(own, &k[rows.key((p.k_offset, p.k_stride), b, h, j)..][..size]))
        .collect()
}

/// The operands of both backward kernels.
struct Backward<'a> {
    rows: Whole,
    q: &'a [f64],
    k: &'a [f64],
    v: &'a [f64],
    d_out: &'a [f64],
    lse: &'a [f64],
    delta: &'a [f64],
}

/// One pair of a query and a key it sees: addresses of their rows, softmax weight and gradient of the score.
struct Pair {
    q: usize,
    k: usize,
    d_out: usize,
    weight: f64,
    /// What dropout multiplies the weight by.
    factor: f64,
    d_score: f64,
}

impl<'a> Backward<'a> {
    fn new(args: &Args<'a, f64>, of: Shape) -> Self {
        Backward {
            rows: Whole::new(of),
            q: args.read(0),
            k: args.read(1),
            v: args.read(2),
            d_out: args.read(3),
            lse: args.read(4),
            delta: args.read(5),
        }
    }

    /// Calls `f` for each pair; key ascending for a query.
    fn each_pair(&self, mut f: impl FnMut(usize, usize, usize, usize, Pair)) {
        let (rows, p, size) = (&self.rows, &self.rows.of.p, self.rows.of.size);
        rows.each_query(|b, h, t| {
            let q = rows.query((p.q_offset, p.q_stride), b, h, t);
            let d_out = rows.query((p.o_offset, p.o_stride), b, h, t);
            let (lse, delta) = (self.lse[rows.scalar(b, h, t)], self.delta[rows.scalar(b, h, t)]);
            for j in p.keys(t) {
                let k = rows.key((p.k_offset, p.k_stride), b, h, j);
                let v = rows.key((p.v_offset, p.v_stride), b, h, j);
                let s = f64::from(p.scale) * dot(&self.q[q..][..size], &self.k[k..][..size]);
                let weight = (s - lse).exp();
                let dp = dot(&self.d_out[d_out..][..size], &self.v[v..][..size]);
                let factor = p.factor(b, h, t, j);
                f(b, h, t, j, Pair { q, k, d_out, weight, factor, d_score: weight * (factor * dp - delta) });
            }
        });
    }
}

/// Relative error of `exp(x)`, argument exact: WGSL allows `3 + 2|x|` ulp, an ulp is two EPS.
fn exp_error(x: f64) -> f64 {
    (6.0 + 4.0 * x.abs()) * EPS
}

/// Absolute error of a score: the dot product, and its product with the scale.
fn score_error(p: &AttentionParams, q: &[f64], k: &[f64]) -> f64 {
    p.scale.abs() as f64 * (dot_error(q, k, 1) + 2.0 * EPS * dot(q, k).abs())
}

/// Relative error of a weight's product with its factor of dropout: the rounding of the product, and in WGSL that of the
/// number of words that keep it, an ulp, and the division by it, 2.5 ulp.
fn factor_error(p: &AttentionParams) -> f64 {
    if p.threshold > 0 { 8.0 * EPS } else { 0.0 }
}

/// `out` is a mean of values, weighted by `exp(s - m) / l`. A weight errs by its score, by its `exp`, and by the rescaling
/// of each block: one `exp` and one rounding, the arguments of these `exp` adding up to no more than the spread of the
/// scores. A block has 8 columns at least.
pub(super) fn forward(args: &mut Args<'_, f64>) {
    let rows = Whole::new(Shape::of_queries(args));
    let (p, size) = (rows.of.p, rows.of.size);
    let (q, k, v) = (args.read(0), args.read(1), args.read(2));
    let (out, lse) = (args.write(3), args.write(4));
    rows.each_query(|b, h, t| {
        let s = scores(&rows, q, k, b, h, t);
        let (low, high) = s.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, z), &x| (a.min(x), z.max(x)));
        let (n, spread) = (s.len() as f64, high - low);
        let l: f64 = s.iter().map(|x| (x - high).exp()).sum();
        let own = &q[rows.query((p.q_offset, p.q_stride), b, h, t)..][..size];
        let keys = p.keys(t);
        let blocks = (keys.end.div_ceil(8) - keys.start / 8) as f64;
        let common = blocks * 8.0 * EPS + 5.0 * EPS * spread + (n + blocks) * EPS;
        let errors: Vec<f64> = (keys.clone().zip(&s))
            .map(|(j, s)| {
                let key = &k[rows.key((p.k_offset, p.k_stride), b, h, j)..][..size];
                score_error(&p, own, key) + EPS * (high - s) + exp_error(high - s) + common
            })
            .collect();
        let weights: Vec<f64> = s.iter().map(|x| (x - high).exp() / l).collect();
        let of_l: f64 = weights.iter().zip(&errors).map(|(w, e)| w * e).sum();
        let out = &mut out[rows.query((p.o_offset, p.o_stride), b, h, t)..][..size];
        out.fill(0.0);
        for (j, (w, e)) in keys.zip(weights.iter().zip(&errors)) {
            let v = &v[rows.key((p.v_offset, p.v_stride), b, h, j)..][..size];
            let error = p.factor(b, h, t, j) * w * (e + of_l + 3.0 * EPS + factor_error(&p));
            out.iter_mut().zip(v).for_each(|(o, v)| *o += error * v.abs());
        }
        // WGSL's log errs by 2^-21 between 1/2 and 2 and by 3 ulp elsewhere.
        lse[rows.scalar(b, h, t)] = of_l + EPS * (8.0 + 6.0 * l.ln().abs() + high.abs());
    });
}

/// Either order of additions: one sum, or the host's partial sums.
pub(super) fn delta(args: &mut Args<'_, f64>) {
    let rows = Whole::new(Shape::of_queries(args));
    let (p, size) = (rows.of.p, rows.of.size);
    let (out, d_out, delta) = (args.read(0), args.read(1), args.write(2));
    rows.each_query(|b, h, t| {
        let out = &out[rows.query((p.o_offset, p.o_stride), b, h, t)..][..size];
        let d_out = &d_out[rows.query((p.grad_offset, p.grad_stride), b, h, t)..][..size];
        delta[rows.scalar(b, h, t)] = dot_error(out, d_out, 1).max(dot_error(out, d_out, LANES));
    });
}

impl Backward<'_> {
    /// Relative error of a weight after dropout, and absolute error of the gradient of its score.
    fn pair_error(&self, b: usize, h: usize, t: usize, j: usize, pair: &Pair) -> (f64, f64) {
        let (rows, p, size) = (&self.rows, &self.rows.of.p, self.rows.of.size);
        let (lse, delta) = (self.lse[rows.scalar(b, h, t)], self.delta[rows.scalar(b, h, t)]);
        let (q, k) = (&self.q[pair.q..][..size], &self.k[pair.k..][..size]);
        let x = pair.weight.max(f64::MIN_POSITIVE).ln();
        let of_weight = score_error(p, q, k) + EPS * (x.abs() + (x + lse).abs()) + exp_error(x);
        let v = &self.v[rows.key((p.v_offset, p.v_stride), b, h, j)..][..size];
        let d_out = &self.d_out[pair.d_out..][..size];
        let dp = pair.factor * dot(d_out, v);
        let of_dp = pair.factor * dot_error(d_out, v, 1) + factor_error(p) * dp.abs() + 2.0 * EPS * (dp - delta).abs();
        (of_weight + factor_error(p), pair.weight * (of_weight * (dp - delta).abs() + of_dp))
    }
}

pub(super) fn backward_query(args: &mut Args<'_, f64>) {
    let of = Backward::new(args, Shape::of_queries(args));
    let (p, size) = (of.rows.of.p, of.rows.of.size);
    let dq = args.write(6);
    let at = |b, h, t| of.rows.query((p.grad_offset, p.grad_stride), b, h, t);
    of.rows.each_query(|b, h, t| dq[at(b, h, t)..][..size].fill(0.0));
    of.each_pair(|b, h, t, j, pair| {
        let (_, of_score) = of.pair_error(b, h, t, j, &pair);
        let n = p.keys(t).len() as f64 + 2.0;
        let factor = p.scale.abs() as f64 * (of_score + n * EPS * pair.d_score.abs());
        let dq = dq[at(b, h, t)..][..size].iter_mut();
        dq.zip(&of.k[pair.k..][..size]).for_each(|(to, k)| *to += factor * k.abs());
    });
}

/// Zeroes the rows of dk and dv that are written.
fn clear(rows: &Whole, dkv: &mut [f64]) {
    let (p, size) = (&rows.of.p, rows.of.size);
    for b in 0..rows.batch {
        for h in 0..p.query_heads as usize {
            for j in 0..p.key_value_len as usize {
                dkv[rows.key((p.grad_offset, p.grad_stride), b, h, j)..][..size].fill(0.0);
                dkv[rows.key((p.grad_v_offset, p.grad_stride), b, h, j)..][..size].fill(0.0);
            }
        }
    }
}

pub(super) fn backward_key_value(args: &mut Args<'_, f64>) {
    let of = Backward::new(args, Shape::of_keys(args));
    let (p, size) = (of.rows.of.p, of.rows.of.size);
    let dkv = args.write(6);
    clear(&of.rows, dkv);
    of.each_pair(|b, h, t, j, pair| {
        let n = (p.group as usize * p.queries(&(j..j + 1)).len()) as f64 + 2.0;
        let (of_weight, of_score) = of.pair_error(b, h, t, j, &pair);
        let factor = p.scale.abs() as f64 * (of_score + n * EPS * pair.d_score.abs());
        let dk = dkv[of.rows.key((p.grad_offset, p.grad_stride), b, h, j)..][..size].iter_mut();
        dk.zip(&of.q[pair.q..][..size]).for_each(|(to, q)| *to += factor * q.abs());
        let factor = pair.factor * pair.weight * (of_weight + n * EPS);
        let dv = dkv[of.rows.key((p.grad_v_offset, p.grad_stride), b, h, j)..][..size].iter_mut();
        dv.zip(&of.d_out[pair.d_out..][..size]).for_each(|(to, x)| *to += factor * x.abs());
    });
}
