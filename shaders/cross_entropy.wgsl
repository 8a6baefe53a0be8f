// Softmax cross-entropy over chunks of the vocabulary: a tile owns one row of logits, and the state of that row (running
// maximum, running sum, logit of the target) goes on from chunk to chunk.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/cross_entropy.rs.

// Elements of a row of state.
const STATE: u32 = 8u;
const IGNORE: u32 = 0xffffffffu;
// Stands for "no logit yet"; the least finite f32.
const NONE: f32 = -0x1.fffffep+127;
const LARGEST_BITS: u32 = 0x7f7fffffu;

// Bits without the sign: above LARGEST_BITS for NaN and infinity. Compared as integers, because a driver may assume that
// floats are finite.
fn size_bits(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

//# entry cross_entropy_forward

var<workgroup> partial: array<f32, WG>;
var<workgroup> largest: array<u32, WG>;

// Columns of quad `q` that hold logits, not padding.
fn live(q: u32) -> vec4<bool> {
    return vec4<u32>(4u * q) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.cols);
}

@compute @workgroup_size(WG, 1, 1)
fn cross_entropy_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * nwg.x + wid.x;
    if (row >= p.groups) {
        return;
    }
    let start = p.offset + row * p.row_quads;
    let quads = (p.cols + 3u) / 4u;
    let at = p.state_offset + row * STATE;

    var m4 = vec4<f32>(NONE);
    var bits4 = vec4<u32>(0u);
    for (var q = lane; q < quads; q += WG) {
        // Padding is zero: finite.
        let x = logits[start + q];
        bits4 = max(bits4, bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu));
        m4 = max(m4, select(vec4<f32>(NONE), x, live(q)));
    }
    partial[lane] = max(max(m4.x, m4.y), max(m4.z, m4.w));
    largest[lane] = max(max(bits4.x, bits4.y), max(bits4.z, bits4.w));
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            partial[lane] = max(partial[lane], partial[lane + half]);
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
        workgroupBarrier();
    }
    var m = partial[0];
    let worst = largest[0];
    workgroupBarrier();
    var before = 0.0;
    if (p.first == 0u) {
        let m_before = state[at];
        m = max(m, m_before);
        before = state[at + 1u] * exp(m_before - m);
    }

    var s4 = vec4<f32>(0.0);
    for (var q = lane; q < quads; q += WG) {
        s4 += select(vec4<f32>(0.0), exp(logits[start + q] - m), live(q));
    }
    partial[lane] = (s4.x + s4.y) + (s4.z + s4.w);
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        state[at] = m;
        // A logit that is not finite must be seen in the loss: its own bits become the sum.
        state[at + 1u] = select(before + partial[0], bitcast<f32>(worst), worst > LARGEST_BITS);
        let column = targets[row] - p.first_col;
        if (targets[row] != IGNORE && targets[row] >= p.first_col && column < p.cols) {
            state[at + 2u] = logits[start + column / 4u][column % 4u];
        } else if (p.first == 1u) {
            state[at + 2u] = NONE;
        }
        if (p.first == 1u) {
            for (var i = 3u; i < STATE; i++) {
                state[at + i] = 0.0;
            }
        }
    }
}

//# entry cross_entropy_finish

@compute @workgroup_size(WG, 1, 1)
fn cross_entropy_finish(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    let row = group * WG + lane;
    if (group < p.groups && row < p.rows) {
        let at = p.state_offset + row * STATE;
        let m = state[at];
        let s = state[at + 1u];
        let t = state[at + 2u];
        let log_sum = log(s);
        // The difference of logits comes first: it is exact to a rounding, where lse - t would cancel.
        var loss = (m - t) + log_sum;
        // A sum that is not finite, or a target outside of the vocabulary, is a loss that is not finite.
        if (size_bits(s) > LARGEST_BITS) {
            loss = s;
        } else if (t == NONE) {
            loss = bitcast<f32>(size_bits(t) | 0x7fc00000u);
        }
        losses[p.losses_offset + row] = select(loss, 0.0, targets[row] == IGNORE);
        state[at] = m + log_sum;
    }
}

//# entry cross_entropy_sum

var<workgroup> partial: array<f32, WG>;

@compute @workgroup_size(WG, 1, 1)
fn cross_entropy_sum(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < p.rows; i += WG) {
        sum += losses[p.losses_offset + i];
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    if (lane == 0u && wid.x == 0u) {
        let scaled = p.scale * partial[0];
        if (p.accumulate == 1u) {
            scalars[p.slot] += scaled;
        } else {
            scalars[p.slot] = scaled;
        }
    }
}

//# entry cross_entropy_backward

@compute @workgroup_size(WG, 1, 1)
fn cross_entropy_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * nwg.x + wid.x;
    if (row < p.groups) {
        let start = p.offset + row * p.row_quads;
        let quads = (p.cols + 3u) / 4u;
        let lse = state[p.state_offset + row * STATE];
        let ignored = targets[row] == IGNORE;
        // Wraps to a column that is never met when the target lies in another chunk.
        let hit = targets[row] - p.first_col;
        for (var q = lane; q < quads; q += WG) {
            let columns = vec4<u32>(4u * q) + vec4<u32>(0u, 1u, 2u, 3u);
            let onehot = select(vec4<f32>(0.0), vec4<f32>(1.0), columns == vec4<u32>(hit));
            let gradient = (exp(logits[start + q] - lse) - onehot) * p.scale;
            logits[start + q] = select(vec4<f32>(0.0), gradient, (columns < vec4<u32>(p.cols)) & vec4<bool>(!ignored));
        }
    }
}
