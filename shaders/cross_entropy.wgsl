// Softmax cross-entropy over chunks of the vocabulary: a tile owns a block of one row of logits (fused: the whole row), and the
// state of that row (running maximum, running sum, logit of the target) goes on from chunk to chunk.
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
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let row = p.first_line + group / p.blocks;
    let quads = (p.cols + 3u) / 4u;
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let end = min(begin + p.block_len, quads);
    // A lane takes quads by their place in the row, wherever it is cut.
    let first = begin + (lane - begin) % WG;
    let start = p.offset + row * p.row_quads;
    let at = p.state_offset + row * STATE;
    // A tile carries a vec4 a lane, then what it knows of the row: maximum, sum, target's logit, largest bits.
    let slot = group * (WG + 1u);
    var known = vec4<f32>(NONE, 0.0, NONE, 0.0);
    var worst = 0u;

    if ((p.passes & 1u) != 0u) {
        var m4 = vec4<f32>(NONE);
        if (begin > 0u) {
            m4 = carry[slot + lane];
            known = carry[slot + WG];
            worst = bitcast<u32>(known.w);
        } else if (p.first == 0u) {
            known = vec4<f32>(state[at], state[at + 1u], state[at + 2u], 0.0);
        }
        var bits4 = vec4<u32>(worst);
        for (var q = first; q < end; q += WG) {
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
        worst = largest[0];
        if (end == quads) {
            var m = partial[0];
            if (p.first == 0u) {
                m = max(m, known.x);
                known.y *= exp(known.x - m);
            }
            known.x = m;
        }
        workgroupBarrier();
        if (p.carried == 1u) {
            carry[slot + lane] = m4;
            if (lane == 0u) {
                carry[slot + WG] = vec4<f32>(known.xyz, bitcast<f32>(worst));
            }
        }
    }

    if ((p.passes & 2u) != 0u) {
        var s4 = vec4<f32>(0.0);
        if (p.carried == 1u) {
            known = carry[slot + WG];
            worst = bitcast<u32>(known.w);
            if (begin > 0u) {
                s4 = carry[slot + lane];
            }
        }
        let m = known.x;
        for (var q = first; q < end; q += WG) {
            s4 += select(vec4<f32>(0.0), exp(logits[start + q] - m), live(q));
        }
        if (lane == 0u) {
            let column = targets[row] - p.first_col;
            let inside = targets[row] != IGNORE && targets[row] >= p.first_col && column < p.cols;
            if (inside && column / 4u >= begin && column / 4u < end) {
                known.z = logits[start + column / 4u][column % 4u];
            }
        }
        partial[lane] = (s4.x + s4.y) + (s4.z + s4.w);
        workgroupBarrier();
        if (end < quads) {
            carry[slot + lane] = s4;
            if (lane == 0u) {
                carry[slot + WG] = vec4<f32>(known.xyz, bitcast<f32>(worst));
            }
            return;
        }
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            if (lane < half) {
                partial[lane] += partial[lane + half];
            }
            workgroupBarrier();
        }
        if (lane == 0u) {
            let before = known.y;
            state[at] = m;
            // A logit that is not finite must be seen in the loss: its own bits become the sum.
            state[at + 1u] = select(before + partial[0], bitcast<f32>(worst), worst > LARGEST_BITS);
            state[at + 2u] = known.z;
            if (p.first == 1u) {
                for (var i = 3u; i < STATE; i++) {
                    state[at + i] = 0.0;
                }
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
fn cross_entropy_sum(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let end = min(begin + p.block_len, p.rows);
    var sum = 0.0;
    if (begin > 0u) {
        sum = carry[group * WG + lane];
    }
    for (var i = begin + (lane - begin) % WG; i < end; i += WG) {
        sum += losses[p.losses_offset + i];
    }
    if (end < p.rows) {
        carry[group * WG + lane] = sum;
        return;
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
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
    let group = wid.y * nwg.x + wid.x;
    if (group < p.groups) {
        let row = p.first_line + group / p.blocks;
        let start = p.offset + row * p.row_quads;
        let begin = (p.first_block + group % p.blocks) * p.block_len;
        let end = min(begin + p.block_len, (p.cols + 3u) / 4u);
        var lse = 0.0;
        if ((p.passes & 1u) != 0u) {
            lse = state[p.state_offset + row * STATE];
            if (p.carried == 1u && lane == 0u) {
                carry[group] = lse;
            }
        } else {
            lse = carry[group];
        }
        if ((p.passes & 2u) == 0u) {
            return;
        }
        let ignored = targets[row] == IGNORE;
        // Wraps to a column that is never met when the target lies in another chunk.
        let hit = targets[row] - p.first_col;
        for (var q = begin + lane; q < end; q += WG) {
            let columns = vec4<u32>(4u * q) + vec4<u32>(0u, 1u, 2u, 3u);
            let onehot = select(vec4<f32>(0.0), vec4<f32>(1.0), columns == vec4<u32>(hit));
            let gradient = (exp(logits[start + q] - lse) - onehot) * p.scale;
            logits[start + q] = select(vec4<f32>(0.0), gradient, (columns < vec4<u32>(p.cols)) & vec4<bool>(!ignored));
        }
    }
}
