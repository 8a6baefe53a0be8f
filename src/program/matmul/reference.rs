//! The plain product, tile by tile, at any precision, and how far an f32 result may lie from it.

use super::MatmulParams;
use crate::device::{Args, Real};
use crate::program::EPS;

/// The reference of all three kernels: the formula, one accumulator per element, k ascending.
pub fn product<F: Real>(args: &mut Args<'_, F>) {
    tiles(args, |x| x, |sum| sum);
}

/// A sum of K products, of C and of the bias takes K + 2 roundings at most, each relative to a partial sum that the sum of
/// the magnitudes bounds, in whatever order.
pub fn bound(args: &mut Args<'_, f64>) {
    let k = args.params::<MatmulParams>().k as f64;
    tiles(args, f64::abs, |sum| (k + 2.0) * EPS * sum);
}

/// Plays each tile of the launch on `of` every term, `end` applied to what is stored.
fn tiles<F: Real>(args: &mut Args<'_, F>, of: impl Fn(F) -> F, end: impl Fn(F) -> F) {
    let p: MatmulParams = args.params();
    let get = |name: &str| args.variant.get(name) as usize;
    let (tm, tn, kb) = (get("TM"), get("TN"), get("KB"));
    let (a_along, b_along) = (get("A_ALONG") == 1, get("B_ALONG") == 1);
    let (a, b, bias) = (args.read(0), args.read(1), args.read(2));
    let c = args.write(3);
    let depth = (p.last as usize * kb).min(p.k as usize) - p.first as usize * kb;
    let at = |stride: u32, along: bool, across: usize, k: usize| {
        if along { across * stride as usize + k } else { k * stride as usize + across }
    };
    let mut sums = vec![F::zero(); tn];
    for group in 0..args.groups as usize {
        let (y, x) = (group / p.round_width as usize, group % p.round_width as usize);
        let (i, j) = (p.first_row as usize + y, p.first_col as usize + x);
        let a = &a[p.a_base as usize + y * p.a_tile_y as usize + x * p.a_tile_x as usize..];
        let b = &b[p.b_base as usize + y * p.b_tile_y as usize + x * p.b_tile_x as usize..];
        let rows = tm.min(p.m as usize - i * tm);
        let cols = tn.min(p.n as usize - j * tn);
        let padded = tn.min(p.c_cols as usize - j * tn);
        for r in 0..rows {
            let line = p.c_at(i * tm + r, j * tn);
            let adds = p.first > 0 || p.accumulate == 1;
            for (sum, &c) in sums[..cols].iter_mut().zip(&c[line..]) {
                *sum = if adds { of(c) } else { F::zero() };
            }
            for k in 0..depth {
                let factor = of(a[at(p.a_stride, a_along, r, k)]);
                for (col, sum) in sums[..cols].iter_mut().enumerate() {
                    *sum = factor.mul_add(of(b[at(p.b_stride, b_along, col, k)]), *sum);
                }
            }
            let ends = p.last == p.steps;
            for (col, &sum) in sums[..cols].iter().enumerate() {
                let last = if ends && p.bias == 1 { of(bias[p.bias_base as usize + j * tn + col]) } else { F::zero() };
                c[line + col] = if ends { end(sum + last) } else { sum };
            }
            c[line + cols..line + padded].fill(F::zero());
        }
    }
}
