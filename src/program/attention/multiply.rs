//! Products of small blocks in vector registers: `C[m][n] (+)= sum over k of A[m][k] * B[k][n]`, n along the lanes, k
//! ascending in one accumulator per element, fused multiply-add: equal bits whatever the width of the vectors. It knows
//! nothing of attention.

use pulp::Simd;

/// How the left operand lies: its data and the elements from one stored row to the next.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// Stored rows run along m: `A[m][k] = data[m * stride + k]`.
    Rows(&'a [f32], usize),
    /// Stored rows run along k: `A[m][k] = data[k * stride + m]`.
    Columns(&'a [f32], usize),
}

/// Multiplies blocks of `(m, k, n)`: `b` and `c` have rows of `width` elements, of which `n`, a multiple of 16, count.
#[inline(always)]
pub(super) fn multiply<S: Simd>(
    simd: S,
    (m, k, n): (usize, usize, usize),
    a: Left<'_>,
    b: &[f32],
    c: &mut [f32],
    width: usize,
    add: bool,
) {
    // Of AVX-512's 32 registers 16 accumulate, of AVX2's 16 eight.
    if S::F32_LANES >= 16 {
        rows::<S, 8>(simd, (m, k, n), a, b, c, width, add);
    } else {
        rows::<S, 4>(simd, (m, k, n), a, b, c, width, add);
    }
}

#[inline(always)]
fn rows<S: Simd, const M: usize>(
    simd: S,
    (m, k, n): (usize, usize, usize),
    a: Left<'_>,
    b: &[f32],
    c: &mut [f32],
    width: usize,
    add: bool,
) {
    let whole = m - m % M;
    for row in (0..whole).step_by(M) {
        columns::<S, M>(simd, (row, k, n), a, b, c, width, add);
    }
    for row in whole..m {
        columns::<S, 1>(simd, (row, k, n), a, b, c, width, add);
    }
}

/// `M` rows of the product.
#[inline(always)]
fn columns<S: Simd, const M: usize>(
    simd: S,
    (row, k, n): (usize, usize, usize),
    a: Left<'_>,
    b: &[f32],
    c: &mut [f32],
    width: usize,
    add: bool,
) {
    let pair = 2 * S::F32_LANES;
    let paired = n - n % pair;
    for column in (0..paired).step_by(pair) {
        tile::<S, M, 2>(simd, (row, k, column), a, b, c, width, add);
    }
    for column in (paired..n).step_by(S::F32_LANES) {
        tile::<S, M, 1>(simd, (row, k, column), a, b, c, width, add);
    }
}

/// `M` rows by `V` vectors of the product, in registers.
#[inline(always)]
fn tile<S: Simd, const M: usize, const V: usize>(
    simd: S,
    (row, depth, column): (usize, usize, usize),
    a: Left<'_>,
    b: &[f32],
    c: &mut [f32],
    width: usize,
    add: bool,
) {
    let lanes = V * S::F32_LANES;
    let mut acc = [[simd.splat_f32s(0.0); V]; M];
    if add {
        for (i, acc) in acc.iter_mut().enumerate() {
            acc.copy_from_slice(S::as_simd_f32s(&c[(row + i) * width + column..][..lanes]).0);
        }
    }
    // Loops, not closures: what a caller's vector features do not reach by inlining is compiled without them.
    let b_rows = b[column..].chunks(width).take(depth);
    match a {
        Left::Rows(data, stride) => {
            let mut a = [&data[..0]; M];
            for (i, a) in a.iter_mut().enumerate() {
                *a = &data[(row + i) * stride..][..depth];
            }
            for (k, b) in b_rows.enumerate() {
                let mut x = [0.0; M];
                for i in 0..M {
                    x[i] = a[i][k];
                }
                accumulate::<S, M, V>(simd, &mut acc, &x, b);
            }
        }
        Left::Columns(data, stride) => {
            for (b, a) in b_rows.zip(data[row..].chunks(stride)) {
                let mut x = [0.0; M];
                x.copy_from_slice(&a[..M]);
                accumulate::<S, M, V>(simd, &mut acc, &x, b);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        S::as_mut_simd_f32s(&mut c[(row + i) * width + column..][..lanes]).0.copy_from_slice(acc);
    }
}

/// One step of the contraction: a column of A times a row of B.
#[inline(always)]
fn accumulate<S: Simd, const M: usize, const V: usize>(simd: S, acc: &mut [[S::f32s; V]; M], x: &[f32; M], b: &[f32]) {
    let b = S::as_simd_f32s(&b[..V * S::F32_LANES]).0;
    let mut row = [simd.splat_f32s(0.0); V];
    row.copy_from_slice(b);
    for i in 0..M {
        let x = simd.splat_f32s(x[i]);
        for v in 0..V {
            acc[i][v] = simd.mul_add_f32s(x, row[v], acc[i][v]);
        }
    }
}
