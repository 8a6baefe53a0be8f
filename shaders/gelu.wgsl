// GELU, forward and backward. A tile owns a run of WG * QUADS vec4 elements of one row; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/gelu.rs.

const SQRT_2_OVER_PI: f32 = 0.7978845608028654;
const INVERSE_SQRT_TAU: f32 = 0.3989422804014327;
const RUN: u32 = WG * QUADS;

// Beyond this both forms are x or 0 to the last bit, and no square overflows up to it.
fn saturated(x: vec4<f32>) -> vec4<f32> {
    return clamp(x, vec4<f32>(-16.0), vec4<f32>(16.0));
}

// 1 + tanh(u) and 1 - tanh(u), both free of cancellation.
struct OnePlusMinus {
    plus: vec4<f32>,
    minus: vec4<f32>,
}

fn tanh_sides(x: vec4<f32>) -> OnePlusMinus {
    let u = SQRT_2_OVER_PI * x * fma(0.044715 * x, x, vec4<f32>(1.0));
    let e = exp(-2.0 * abs(u));
    let large = 2.0 / (1.0 + e);
    let positive = u >= vec4<f32>(0.0);
    return OnePlusMinus(select(e * large, large, positive), select(large, e * large, positive));
}

// Phi(-a) * exp(a^2 / 2) for a >= 0: a minimax polynomial in 1 / (1 + 0.35 a), relative error 3.2e-8 up to a = 13.5.
fn scaled_tail(a: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / fma(a, vec4<f32>(0.35), vec4<f32>(1.0));
    var h = vec4<f32>(-0.02912587672472);
    h = fma(h, t, vec4<f32>(0.14387229084968567));
    h = fma(h, t, vec4<f32>(-0.25550466775894165));
    h = fma(h, t, vec4<f32>(0.15892940759658813));
    h = fma(h, t, vec4<f32>(-0.022937219589948654));
    h = fma(h, t, vec4<f32>(0.10543297231197357));
    h = fma(h, t, vec4<f32>(0.11985243111848831));
    h = fma(h, t, vec4<f32>(0.13985908031463623));
    h = fma(h, t, vec4<f32>(0.1396215707063675));
    return h * t;
}

// Phi(x), given e = exp(-x^2 / 2).
fn normal_cdf(x: vec4<f32>, e: vec4<f32>) -> vec4<f32> {
    let tail = e * scaled_tail(abs(x));
    return select(tail, 1.0 - tail, x >= vec4<f32>(0.0));
}

//# entry gelu_forward

@compute @workgroup_size(WG, 1, 1)
fn gelu_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let runs = (p.quads + RUN - 1u) / RUN;
    let row = group / runs;
    let first = (group - row * runs) * RUN + lane;
    let last = min(p.quads, first + RUN);
    for (var q = first; q < last; q += WG) {
        let v = x[p.x_offset + row * p.x_stride + q];
        let w = saturated(v);
        var twice_cdf: vec4<f32>;
        if (p.erf == 1u) {
            twice_cdf = 2.0 * normal_cdf(w, exp(-0.5 * w * w));
        } else {
            twice_cdf = tanh_sides(w).plus;
        }
        y[p.y_offset + row * p.y_stride + q] = 0.5 * v * twice_cdf;
    }
}

//# entry gelu_backward

@compute @workgroup_size(WG, 1, 1)
fn gelu_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let runs = (p.quads + RUN - 1u) / RUN;
    let row = group / runs;
    let first = (group - row * runs) * RUN + lane;
    let last = min(p.quads, first + RUN);
    for (var q = first; q < last; q += WG) {
        let v = x[p.x_offset + row * p.x_stride + q];
        let w = saturated(v);
        // The derivative is cdf + v * slope of the cdf; v itself enters, so that a NaN is not clamped away.
        var cdf: vec4<f32>;
        var slope: vec4<f32>;
        if (p.erf == 1u) {
            let e = exp(-0.5 * w * w);
            cdf = normal_cdf(w, e);
            slope = INVERSE_SQRT_TAU * e;
        } else {
            let sides = tanh_sides(w);
            cdf = 0.5 * sides.plus;
            slope = cdf * sides.minus * SQRT_2_OVER_PI * fma(0.134145 * w, w, vec4<f32>(1.0));
        }
        dx[p.dx_offset + row * p.dx_stride + q] = dy[p.dy_offset + row * p.dy_stride + q] * fma(v, slope, cdf);
    }
}
