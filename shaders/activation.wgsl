// Activations, plain and gated, forward and backward. A tile owns a run of WG * QUADS vec4 elements of one row of y;
// nothing crosses tiles. Struct `Params`, bindings and constants are generated from the declarations in
// src/program/activation.rs and src/program/activation/gated.rs.

const SQRT_2_OVER_PI: f32 = 0.7978845608028654;
const INVERSE_SQRT_TAU: f32 = 0.3989422804014327;
const RUN: u32 = WG * QUADS;

// Places of the forms in `Form::ALL`; the last is ReLU.
const TANH: u32 = 0u;
const ERF: u32 = 1u;
const SILU: u32 = 2u;

// Row and quads of it that an invocation goes through, in steps of WG.
struct Run {
    row: u32,
    first: u32,
    last: u32,
}

fn run_of(group: u32, lane: u32) -> Run {
    let runs = (p.quads + RUN - 1u) / RUN;
    let row = group / runs;
    let first = (group - row * runs) * RUN;
    return Run(row, first + lane, min(p.quads, first + RUN));
}

// Every curve is x * rise; slope is the derivative of rise.
struct Parts {
    rise: vec4<f32>,
    slope: vec4<f32>,
}

// 1 / (1 + exp(-z)) and 1 / (1 + exp(z)), both free of cancellation and of infinities.
struct Sides {
    rise: vec4<f32>,
    fall: vec4<f32>,
}

fn logistic_sides(z: vec4<f32>) -> Sides {
    let e = exp(-abs(z));
    let large = 1.0 / (1.0 + e);
    let positive = z >= vec4<f32>(0.0);
    return Sides(select(e * large, large, positive), select(large, e * large, positive));
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

// The caller multiplies by v itself, so that a NaN is not clamped away.
fn parts(v: vec4<f32>) -> Parts {
    if (p.form == SILU) {
        // Beyond 128 the exponential is 0.
        let sides = logistic_sides(clamp(v, vec4<f32>(-128.0), vec4<f32>(128.0)));
        return Parts(sides.rise, sides.rise * sides.fall);
    }
    // Beyond 16 both forms of GELU are v or 0 to the last bit, and no square overflows up to it.
    let w = clamp(v, vec4<f32>(-16.0), vec4<f32>(16.0));
    if (p.form == TANH) {
        let sides = logistic_sides(2.0 * SQRT_2_OVER_PI * w * fma(0.044715 * w, w, vec4<f32>(1.0)));
        let steepness = 2.0 * SQRT_2_OVER_PI * fma(0.134145 * w, w, vec4<f32>(1.0));
        return Parts(sides.rise, sides.rise * sides.fall * steepness);
    }
    if (p.form == ERF) {
        let e = exp(-0.5 * w * w);
        let tail = e * scaled_tail(abs(w));
        return Parts(select(tail, 1.0 - tail, w >= vec4<f32>(0.0)), INVERSE_SQRT_TAU * e);
    }
    // By its bits: an adapter may take a subnormal for 0, and the step there is no small matter.
    let positive = bitcast<vec4<i32>>(v) > vec4<i32>(0);
    return Parts(select(vec4<f32>(0.0), vec4<f32>(1.0), positive), vec4<f32>(0.0));
}

//# entry activation_forward

@compute @workgroup_size(WG, 1, 1)
fn activation_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let run = run_of(group, lane);
    for (var q = run.first; q < run.last; q += WG) {
        let v = x[p.x_offset + run.row * p.x_stride + q];
        y[p.y_offset + run.row * p.y_stride + q] = v * parts(v).rise;
    }
}

//# entry activation_backward

@compute @workgroup_size(WG, 1, 1)
fn activation_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let run = run_of(group, lane);
    for (var q = run.first; q < run.last; q += WG) {
        let v = x[p.x_offset + run.row * p.x_stride + q];
        let c = parts(v);
        dx[p.dx_offset + run.row * p.dx_stride + q] =
            dy[p.dy_offset + run.row * p.dy_stride + q] * fma(v, c.slope, c.rise);
    }
}

//# entry gated_forward

@compute @workgroup_size(WG, 1, 1)
fn gated_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let run = run_of(group, lane);
    for (var q = run.first; q < run.last; q += WG) {
        let at = p.x_offset + run.row * p.x_stride + q;
        let gate = x[at];
        y[p.y_offset + run.row * p.y_stride + q] = gate * parts(gate).rise * x[at + p.quads];
    }
}

//# entry gated_backward

@compute @workgroup_size(WG, 1, 1)
fn gated_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let run = run_of(group, lane);
    for (var q = run.first; q < run.last; q += WG) {
        let at = p.x_offset + run.row * p.x_stride + q;
        let gate = x[at];
        let dv = dy[p.dy_offset + run.row * p.dy_stride + q];
        let c = parts(gate);
        let to = p.dx_offset + run.row * p.dx_stride + q;
        dx[to] = dv * x[at + p.quads] * fma(gate, c.slope, c.rise);
        dx[to + p.quads] = dv * (gate * c.rise);
    }
}
