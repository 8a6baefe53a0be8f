//! The exponential and sums over slices for host kernels: branch-free, so that a loop over a slice inside `pulp`'s
//! dispatch becomes vector code. It knows numbers only; a program's reference and its oracle must never use it.
//!
//! Accuracy of the exponential over the whole range, measured by the test below against f64: 1.1 ulp. Fused multiply-adds are explicit, so
//! every CPU gives the same bits.

/// Runs `f` compiled for the widest vectors of this CPU. Write `#[inline(always)]` before the closure, and call only
/// functions and closures marked so: what is not inlined is compiled for the oldest CPU, and its `mul_add` is a call.
///
/// `pulp` would take the closure itself, but calls it through the compiler's `FnOnce` shim, which is not inlined where
/// the body is large.
#[inline(always)]
pub fn dispatch<R>(f: impl FnMut() -> R) -> R {
    pulp::Arch::new().dispatch(Inlined(f))
}

struct Inlined<F>(F);

impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

/// Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which the low bits of the sum then hold.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts: the first has 9 trailing zero bits, so that its product with a small integer is exact.
const LN2_HIGH: f32 = 0.693_145_75;
const LN2_LOW: f32 = 1.428_606_8e-6;

/// Writes `x = n * ln 2 + r` and returns `(expm1(r), n)`, `|r| <= ln(2) / 2`: Taylor's series to `r^7`, whose remainder
/// is a tenth of an ulp.
#[inline(always)]
fn reduced(x: f32) -> (f32, i32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.0f32 / 5040.0;
    p = p.mul_add(r, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    ((r * r).mul_add(p, r), (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32))
}

/// `2^n` for a normal result.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `e^x`: 0 below -104, infinite above 88.73, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Clamped by comparisons that NaN fails, so that it stays NaN. The scale is applied in two steps: the second one
    // rounds a subnormal result, or overflows.
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 90.0 { 90.0 } else { x };
    let (p, n) = reduced(x);
    let half = n >> 1;
    (1.0 + p) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// Chains in which a host kernel adds up a row: that of a column is its place modulo this, wherever the row is cut.
pub const CHAINS: usize = 32;

/// Adds to N times [`CHAINS`] running sums what a stretch of three rows contributes. It begins at a multiple of `CHAINS`.
#[inline(always)]
pub fn chain<const N: usize>(
    sums: &mut [[f32; CHAINS]; N],
    a: &[f32],
    b: &[f32],
    c: &[f32],
    terms: impl Fn(f32, f32, f32) -> [f32; N],
) {
    let mut chains = *sums;
    let (a, a_rest) = a.as_chunks::<CHAINS>();
    let (b, b_rest) = b.as_chunks::<CHAINS>();
    let (c, c_rest) = c.as_chunks::<CHAINS>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for i in 0..CHAINS {
            let terms = terms(a[i], b[i], c[i]);
            for k in 0..N {
                chains[k][i] += terms[k];
            }
        }
    }
    for (i, ((&a, &b), &c)) in a_rest.iter().zip(b_rest).zip(c_rest).enumerate() {
        let terms = terms(a, b, c);
        for k in 0..N {
            chains[k][i] += terms[k];
        }
    }
    *sums = chains;
}

/// The sums of the chains, which meet in a tree: the order is the same whatever the vectors of the machine are.
#[inline(always)]
pub fn meet<const N: usize>(mut sums: [[f32; CHAINS]; N]) -> [f32; N] {
    let mut totals = [0.0; N];
    for (sums, total) in sums.iter_mut().zip(&mut totals) {
        let mut half = CHAINS / 2;
        while half > 0 {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
            half /= 2;
        }
        *total = sums[0];
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error of `f` in ulp of the exact result over evenly spaced bit patterns of both signs.
    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, largest: f32, normal: bool) -> f64 {
        let mut worst = 0.0f64;
        for bits in (0..=largest.to_bits()).step_by(997) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let want = exact(x as f64);
                if normal == (want.abs() < f64::from(f32::MIN_POSITIVE)) || want > f64::from(f32::MAX) {
                    continue;
                }
                let exponent = want.abs().log2().floor().max(-126.0);
                let error = (f(x) as f64 - want).abs() / (exponent - 23.0).exp2();
                assert!(!error.is_nan(), "NaN at {x}");
                worst = worst.max(error);
            }
        }
        worst
    }

    #[test]
    fn exp_is_good_to_about_one_ulp() {
        let normal = worst(exp, f64::exp, 104.0, true);
        let subnormal = worst(exp, f64::exp, 104.0, false);
        assert!(normal <= 1.1 && subnormal <= 1.1, "{normal} {subnormal} ulp");
        assert_eq!([exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
        assert_eq!([exp(89.0), exp(f32::INFINITY)], [f32::INFINITY; 2]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_cpu_gives_the_same_bits() {
        let xs: Vec<f32> = (0..4096).map(|i| (i as f32 - 2048.0) * 0.05).collect();
        let mut wide = vec![0.0f32; xs.len()];
        dispatch(|| wide.iter_mut().zip(&xs).for_each(|(y, &x)| *y = exp(x)));
        for (y, &x) in wide.iter().zip(&xs) {
            assert_eq!(y.to_bits(), exp(x).to_bits(), "at {x}");
        }
    }
}
