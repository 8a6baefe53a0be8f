// GELU, forward and backward. A tile owns WG * QUADS vec4 elements; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/gelu.rs.

const SQRT_2_OVER_PI: f32 = 0.7978845608028654;

// 1 + tanh(u), through exp of a non-positive number: no overflow, and no cancellation for u << 0.
fn one_plus_tanh(u: vec4<f32>) -> vec4<f32> {
    let e = exp(-2.0 * abs(u));
    return select(2.0 * e, vec4<f32>(2.0), u >= vec4<f32>(0.0)) / (1.0 + e);
}

// erf by Abramowitz and Stegun 7.1.26 is good to 1.5e-7 only, so the series and the continued fraction are left to a
// minimax pair: |z| < 1 a polynomial in z^2, else 1 - exp(-z^2) * rational.
fn erf_scalar(z: f32) -> f32 {
    let a = abs(z);
    let s = a * a;
    if (a < 1.0) {
        // Taylor series of 2/sqrt(pi) * sum (-1)^n z^(2n+1) / (n! (2n+1)), n <= 9: truncation 2e-8 at 1.
        var p = -1.0 / 6894720.0;
        p = fma(p, s, 1.0 / 685440.0);
        p = fma(p, s, -1.0 / 75600.0);
        p = fma(p, s, 1.0 / 9360.0);
        p = fma(p, s, -1.0 / 1320.0);
        p = fma(p, s, 1.0 / 216.0);
        p = fma(p, s, -1.0 / 42.0);
        p = fma(p, s, 1.0 / 10.0);
        p = fma(p, s, -1.0 / 3.0);
        p = fma(p, s, 1.0);
        return z * p * 1.1283791670955126;
    }
    // Continued fraction of erfc (Laplace), 24 levels from a = 1: below f32 rounding of erf.
    var f = a;
    for (var n = 24; n >= 1; n--) {
        f = a + (0.5 * f32(n)) / f;
    }
    let erfc = exp(-s) * 0.5641895835477563 / f;
    return sign(z) * (1.0 - erfc);
}

fn erf4(z: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(erf_scalar(z.x), erf_scalar(z.y), erf_scalar(z.z), erf_scalar(z.w));
}

fn tanh_argument(x: vec4<f32>) -> vec4<f32> {
    return SQRT_2_OVER_PI * x * fma(0.044715 * x, x, vec4<f32>(1.0));
}

//# entry gelu_forward

@compute @workgroup_size(WG, 1, 1)
fn gelu_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    for (var q = 0u; q < QUADS; q++) {
        let i = (group * QUADS + q) * WG + lane;
        if (group < p.groups && i < p.quads) {
            let v = x[i];
            if (p.erf == 1u) {
                y[i] = 0.5 * v * (1.0 + erf4(v * 0.7071067811865476));
            } else {
                y[i] = 0.5 * v * one_plus_tanh(tanh_argument(v));
            }
        }
    }
}

//# entry gelu_backward

@compute @workgroup_size(WG, 1, 1)
fn gelu_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    for (var q = 0u; q < QUADS; q++) {
        let i = (group * QUADS + q) * WG + lane;
        if (group < p.groups && i < p.quads) {
            let v = x[i];
            if (p.erf == 1u) {
                let cdf = 0.5 * (1.0 + erf4(v * 0.7071067811865476));
                dx[i] = dy[i] * (cdf + v * exp(-0.5 * v * v) * 0.3989422804014327);
            } else {
                let plus = one_plus_tanh(tanh_argument(v));
                let du = SQRT_2_OVER_PI * fma(0.134145 * v, v, vec4<f32>(1.0));
                dx[i] = dy[i] * 0.5 * plus * (1.0 + v * (2.0 - plus) * du);
            }
        }
    }
}
