//! Attention from its formula, at any precision, and how far an f32 result may lie from it. It knows no blocks and no
//! steps: it computes a whole launch at once, operands in place, and refuses one that is a part.

use super::AttentionParams;
use crate::device::{Args, Real};
use crate::program::EPS;

/// Where the rows of one launch lie, for all sequences and heads.
struct Rows {
    p: AttentionParams,
    batch: usize,
}

impl Rows {
    /// # Panics
    /// When the launch is one superstep of several.
    fn new<F>(args: &Args<'_, F>) -> Rows {
        let p: AttentionParams = args.params();
        assert!(p.inbox == 0 && p.first_step == 0 && p.last_step == p.steps, "the reference runs fused only");
        Rows { p, batch: (args.groups / (p.width * p.own_blocks)) as usize }
    }

    fn query(&self, offset: u32, stride: u32, b: usize, h: usize, t: usize) -> usize {
        offset as usize + (b * self.p.query_len as usize + t) * stride as usize + h * self.p.head_size as usize
    }

    fn key(&self, offset: u32, stride: u32, b: usize, h: usize, t: usize) -> usize {
        let head = h / self.p.group as usize;
        offset as usize + (b * self.p.key_value_rows as usize + t) * stride as usize + head * self.p.head_size as usize
    }

    fn scalar(&self, b: usize, h: usize, t: usize) -> usize {
        self.p.row_offset as usize + (b * self.p.query_heads as usize + h) * self.p.row_stride as usize + t
    }

    /// Calls `f(sequence, head, query)`.
    fn each_query(&self, mut f: impl FnMut(usize, usize, usize)) {
        for b in 0..self.batch {
            for h in 0..self.p.query_heads as usize {
                (0..self.p.query_len as usize).for_each(|t| f(b, h, t));
            }
        }
    }
}

fn dot<F: Real>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).map(|(&x, &y)| x * y).sum()
}

/// Sum of the sizes of the terms.
fn dot_size(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x * y).abs()).sum()
}

/// Scores of one query against the keys it may see.
fn scores<F: Real>(rows: &Rows, q: &[F], k: &[F], b: usize, h: usize, t: usize) -> Vec<F> {
    let (p, size) = (&rows.p, rows.p.head_size as usize);
    let own = &q[rows.query(p.q_offset, p.q_stride, b, h, t)..][..size];
    (0..p.horizon(t))
        .map(|j| F::of(p.scale as f64) * dot(own, &k[rows.key(p.k_offset, p.k_stride, b, h, j)..][..size]))
        .collect()
}

pub(super) fn forward<F: Real>(args: &mut Args<'_, F>) {
    let rows = Rows::new(args);
    let (p, size) = (rows.p, rows.p.head_size as usize);
    let (q, k, v) = (args.read(0), args.read(1), args.read(2));
    let (out, lse) = (args.write(3), args.write(4));
    rows.each_query(|b, h, t| {
        let s = scores(&rows, q, k, b, h, t);
        let m = s.iter().fold(F::neg_infinity(), |m, &x| m.max(x));
        let l: F = s.iter().map(|&x| (x - m).exp()).sum();
        let out = &mut out[rows.query(p.o_offset, p.o_stride, b, h, t)..][..size];
        out.fill(F::zero());
        for (j, &x) in s.iter().enumerate() {
            let weight = (x - m).exp() / l;
            let v = &v[rows.key(p.v_offset, p.v_stride, b, h, j)..][..size];
            out.iter_mut().zip(v).for_each(|(o, &v)| *o += weight * v);
        }
        lse[rows.scalar(b, h, t)] = m + l.ln();
    });
}

pub(super) fn delta<F: Real>(args: &mut Args<'_, F>) {
    let rows = Rows::new(args);
    let (p, size) = (rows.p, rows.p.head_size as usize);
    let (out, d_out, delta) = (args.read(0), args.read(1), args.write(2));
    rows.each_query(|b, h, t| {
        let out = &out[rows.query(p.o_offset, p.o_stride, b, h, t)..][..size];
        delta[rows.scalar(b, h, t)] = dot(out, &d_out[rows.query(p.grad_offset, p.grad_stride, b, h, t)..][..size]);
    });
}

/// The operands of both backward kernels.
struct Backward<'a, F> {
    rows: Rows,
    q: &'a [F],
    k: &'a [F],
    v: &'a [F],
    d_out: &'a [F],
    lse: &'a [F],
    delta: &'a [F],
}

/// One pair of a query and a key it sees: addresses of their rows, softmax weight and gradient of the score.
struct Pair<F> {
    q: usize,
    k: usize,
    d_out: usize,
    weight: F,
    d_score: F,
}

impl<'a, F: Real> Backward<'a, F> {
    fn new(args: &Args<'a, F>) -> Self {
        Backward {
            rows: Rows::new(args),
            q: args.read(0),
            k: args.read(1),
            v: args.read(2),
            d_out: args.read(3),
            lse: args.read(4),
            delta: args.read(5),
        }
    }

    /// Calls `f` for each pair; key ascending for a query.
    fn each_pair(&self, mut f: impl FnMut(usize, usize, usize, usize, Pair<F>)) {
        let (rows, p, size) = (&self.rows, &self.rows.p, self.rows.p.head_size as usize);
        rows.each_query(|b, h, t| {
            let q = rows.query(p.q_offset, p.q_stride, b, h, t);
            let d_out = rows.query(p.o_offset, p.o_stride, b, h, t);
            let (lse, delta) = (self.lse[rows.scalar(b, h, t)], self.delta[rows.scalar(b, h, t)]);
            for j in 0..p.horizon(t) {
                let k = rows.key(p.k_offset, p.k_stride, b, h, j);
                let v = rows.key(p.v_offset, p.v_stride, b, h, j);
                let s = F::of(p.scale as f64) * dot(&self.q[q..][..size], &self.k[k..][..size]);
                let weight = (s - lse).exp();
                let dp = dot(&self.d_out[d_out..][..size], &self.v[v..][..size]);
                f(b, h, t, j, Pair { q, k, d_out, weight, d_score: weight * (dp - delta) });
            }
        });
    }
}

fn add_scaled<F: Real>(to: &mut [F], factor: F, from: &[F]) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to += factor * x);
}

pub(super) fn backward_query<F: Real>(args: &mut Args<'_, F>) {
    let of = Backward::new(args);
    let (p, size) = (of.rows.p, of.rows.p.head_size as usize);
    let dq = args.write(6);
    let at = |b, h, t| of.rows.query(p.grad_offset, p.grad_stride, b, h, t);
    of.rows.each_query(|b, h, t| dq[at(b, h, t)..][..size].fill(F::zero()));
    of.each_pair(|b, h, t, _, pair| {
        add_scaled(&mut dq[at(b, h, t)..][..size], F::of(p.scale as f64) * pair.d_score, &of.k[pair.k..][..size]);
    });
}

/// Zeroes the rows of dk and dv that are written.
fn clear<F: Real>(rows: &Rows, dkv: &mut [F]) {
    let (p, size) = (&rows.p, rows.p.head_size as usize);
    for b in 0..rows.batch {
        for h in 0..p.query_heads as usize {
            for j in 0..p.key_value_len as usize {
                dkv[rows.key(p.grad_offset, p.grad_stride, b, h, j)..][..size].fill(F::zero());
                dkv[rows.key(p.grad_v_offset, p.grad_v_stride, b, h, j)..][..size].fill(F::zero());
            }
        }
    }
}

pub(super) fn backward_key_value<F: Real>(args: &mut Args<'_, F>) {
    let of = Backward::new(args);
    let (p, size) = (of.rows.p, of.rows.p.head_size as usize);
    let dkv = args.write(6);
    clear(&of.rows, dkv);
    of.each_pair(|b, h, _, j, pair| {
        let dk = &mut dkv[of.rows.key(p.grad_offset, p.grad_stride, b, h, j)..][..size];
        add_scaled(dk, F::of(p.scale as f64) * pair.d_score, &of.q[pair.q..][..size]);
        let dv = &mut dkv[of.rows.key(p.grad_v_offset, p.grad_v_stride, b, h, j)..][..size];
        add_scaled(dv, pair.weight, &of.d_out[pair.d_out..][..size]);
    });
}

/// Relative error of `exp(x)`, argument exact: WGSL allows `3 + 2|x|` ulp, an ulp is two EPS.
fn exp_error(x: f64) -> f64 {
    (6.0 + 4.0 * x.abs()) * EPS
}

/// Absolute error of a score: the dot product, and its product with the scale.
fn score_error(p: &AttentionParams, q: &[f64], k: &[f64]) -> f64 {
    (p.head_size as f64 + 2.0) * EPS * p.scale.abs() as f64 * dot_size(q, k)
}

/// `out` is a mean of values, weighted by `exp(s - m) / l`. A weight errs by its score, by its `exp`, and by the rescaling
/// of each block: one `exp` and one rounding, the arguments of these `exp` adding up to no more than the spread of the
/// scores. A block has 8 columns at least.
pub(super) fn forward_bound(args: &mut Args<'_, f64>) {
    let rows = Rows::new(args);
    let (p, size) = (rows.p, rows.p.head_size as usize);
    let (q, k, v) = (args.read(0), args.read(1), args.read(2));
    let (out, lse) = (args.write(3), args.write(4));
    rows.each_query(|b, h, t| {
        let s = scores(&rows, q, k, b, h, t);
        let (low, high) = s.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, z), &x| (a.min(x), z.max(x)));
        let (n, spread) = (s.len() as f64, high - low);
        let l: f64 = s.iter().map(|x| (x - high).exp()).sum();
        let own = &q[rows.query(p.q_offset, p.q_stride, b, h, t)..][..size];
        let blocks = (n / 8.0).ceil();
        let common = blocks * 8.0 * EPS + 5.0 * EPS * spread + (n + blocks) * EPS;
        let errors: Vec<f64> = (0..s.len())
            .map(|j| {
                let key = &k[rows.key(p.k_offset, p.k_stride, b, h, j)..][..size];
                score_error(&p, own, key) + EPS * (high - s[j]) + exp_error(high - s[j]) + common
            })
            .collect();
        let weights: Vec<f64> = s.iter().map(|x| (x - high).exp() / l).collect();
        let of_l: f64 = weights.iter().zip(&errors).map(|(w, e)| w * e).sum();
        let out = &mut out[rows.query(p.o_offset, p.o_stride, b, h, t)..][..size];
        out.fill(0.0);
        for (j, (w, e)) in weights.iter().zip(&errors).enumerate() {
            let v = &v[rows.key(p.v_offset, p.v_stride, b, h, j)..][..size];
            out.iter_mut().zip(v).for_each(|(o, v)| *o += w * v.abs() * (e + of_l + 3.0 * EPS));
        }
        // WGSL's log errs by 2^-21 between 1/2 and 2 and by 3 ulp elsewhere.
        lse[rows.scalar(b, h, t)] = of_l + EPS * (8.0 + 6.0 * l.ln().abs() + high.abs());
    });
}

pub(super) fn delta_bound(args: &mut Args<'_, f64>) {
    let rows = Rows::new(args);
    let (p, size) = (rows.p, rows.p.head_size as usize);
    let (out, d_out, delta) = (args.read(0), args.read(1), args.write(2));
    rows.each_query(|b, h, t| {
        let out = &out[rows.query(p.o_offset, p.o_stride, b, h, t)..][..size];
        let d_out = &d_out[rows.query(p.grad_offset, p.grad_stride, b, h, t)..][..size];
        delta[rows.scalar(b, h, t)] = size as f64 * EPS * dot_size(out, d_out);
    });
}

impl Backward<'_, f64> {
    /// Relative error of a weight, and absolute error of the gradient of its score.
    fn pair_error(&self, b: usize, h: usize, t: usize, j: usize, pair: &Pair<f64>) -> (f64, f64) {
        let (rows, p, size) = (&self.rows, &self.rows.p, self.rows.p.head_size as usize);
        let (lse, delta) = (self.lse[rows.scalar(b, h, t)], self.delta[rows.scalar(b, h, t)]);
        let (q, k) = (&self.q[pair.q..][..size], &self.k[pair.k..][..size]);
        let x = pair.weight.max(f64::MIN_POSITIVE).ln();
        let of_weight = score_error(p, q, k) + EPS * (x.abs() + (x + lse).abs()) + exp_error(x);
        let v = &self.v[rows.key(p.v_offset, p.v_stride, b, h, j)..][..size];
        let d_out = &self.d_out[pair.d_out..][..size];
        let dp = dot(d_out, v);
        let of_dp = size as f64 * EPS * dot_size(d_out, v) + 2.0 * EPS * (dp - delta).abs();
        (of_weight, pair.weight * (of_weight * (dp - delta).abs() + of_dp))
    }
}

pub(super) fn backward_query_bound(args: &mut Args<'_, f64>) {
    let of = Backward::new(args);
    let (p, size) = (of.rows.p, of.rows.p.head_size as usize);
    let dq = args.write(6);
    let at = |b, h, t| of.rows.query(p.grad_offset, p.grad_stride, b, h, t);
    of.rows.each_query(|b, h, t| dq[at(b, h, t)..][..size].fill(0.0));
    of.each_pair(|b, h, t, j, pair| {
        let (_, of_score) = of.pair_error(b, h, t, j, &pair);
        let n = p.horizon(t) as f64 + 2.0;
        let factor = p.scale.abs() as f64 * (of_score + n * EPS * pair.d_score.abs());
        let dq = dq[at(b, h, t)..][..size].iter_mut();
        dq.zip(&of.k[pair.k..][..size]).for_each(|(to, k)| *to += factor * k.abs());
    });
}

pub(super) fn backward_key_value_bound(args: &mut Args<'_, f64>) {
    let of = Backward::new(args);
    let (p, size) = (of.rows.p, of.rows.p.head_size as usize);
    let dkv = args.write(6);
    clear(&of.rows, dkv);
    let n = (p.group * p.query_len) as f64 + 2.0;
    of.each_pair(|b, h, t, j, pair| {
        let (of_weight, of_score) = of.pair_error(b, h, t, j, &pair);
        let factor = p.scale.abs() as f64 * (of_score + n * EPS * pair.d_score.abs());
        let dk = dkv[of.rows.key(p.grad_offset, p.grad_stride, b, h, j)..][..size].iter_mut();
        dk.zip(&of.q[pair.q..][..size]).for_each(|(to, q)| *to += factor * q.abs());
        let factor = pair.weight * (of_weight + n * EPS);
        let dv = dkv[of.rows.key(p.grad_v_offset, p.grad_v_stride, b, h, j)..][..size].iter_mut();
        dv.zip(&of.d_out[pair.d_out..][..size]).for_each(|(to, x)| *to += factor * x.abs());
    });
}
