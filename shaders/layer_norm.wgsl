// Layer norm over rows, forward and backward, and the gradient of the gain. A tile owns a block of a few rows (forward,
// backward), LANES invocations a row, or of a few columns (gain); fused: all of them. Lanes' sums go on from block to block,
// and meet where the line ends: with one lane a row nothing meets; with more, they do in a tree whose order depends on the shape
// alone.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/layer_norm.rs.

//# if ROW
// Which of the four columns of quad q lie inside the row: padding counts in no mean and stays zero.
fn inside(q: u32) -> vec4<bool> {
    return vec4<u32>(4u * q) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.cols);
}

// Where a tile keeps what it knows of a lane's row: behind `sums` vec4 of each lane.
fn kept(group: u32, sums: u32, lane: u32) -> u32 {
    return group * (sums * WG + WG / LANES) + sums * WG + lane / LANES;
}

fn quad_sum(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

//# if TREE
var<workgroup> partial: array<vec2<f32>, WG>;

// The sum over the LANES invocations of a row; every invocation of the tile must call it.
fn row_sum(lane: u32, value: vec2<f32>) -> vec2<f32> {
    partial[lane] = value;
    let slot = lane % LANES;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (slot < half) {
            partial[lane] += partial[lane + half];
        }
    }
    workgroupBarrier();
    let total = partial[lane - slot];
    workgroupBarrier();
    return total;
}
//# else
fn row_sum(lane: u32, value: vec2<f32>) -> vec2<f32> {
    return value;
}
//# end
//# end

//# entry layer_norm_forward

@compute @workgroup_size(WG, 1, 1)
fn layer_norm_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let row = (p.first_line + group / p.blocks) * (WG / LANES) + lane / LANES;
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let ends = begin + p.block_len >= p.quads;
    // Rows past the last take part in the barriers only.
    let last = select(0u, min(begin + p.block_len, p.quads), row < p.rows);
    let first = begin + lane % LANES;
    let source = p.x_offset + row * p.x_stride;
    let n = f32(p.cols);
    let slot = group * (WG + WG / LANES) + lane;
    let known = kept(group, 1u, lane);
    var mean = 0.0;
    var variance = 0.0;
    if (p.carried == 1u) {
        mean = carry[known].x;
        variance = carry[known].y;
    }
    if ((p.passes & 1u) != 0u) {
        var total = vec4<f32>(0.0);
        if (begin > 0u) {
            total = carry[slot];
        }
        for (var q = first; q < last; q += LANES) {
            total += x[source + q];
        }
        if (ends) {
            mean = row_sum(lane, vec2<f32>(quad_sum(total), 0.0)).x / n;
        } else {
            carry[slot] = total;
        }
    }
    if ((p.passes & 2u) != 0u) {
        var squares = vec4<f32>(0.0);
        if (begin > 0u) {
            squares = carry[slot];
        }
        for (var q = first; q < last; q += LANES) {
            let d = select(vec4<f32>(0.0), x[source + q] - mean, inside(q));
            squares = fma(d, d, squares);
        }
        if (ends) {
            variance = row_sum(lane, vec2<f32>(quad_sum(squares), 0.0)).x / n;
        } else {
            carry[slot] = squares;
        }
    }
    if ((p.passes & 4u) == 0u) {
        // All lanes of a row have read these where it ends: they have met.
        if (ends && lane % LANES == 0u) {
            carry[known] = vec4<f32>(mean, variance, 0.0, 0.0);
        }
        return;
    }
    let rstd = 1.0 / sqrt(variance + p.eps);
    let to = p.y_offset + row * p.y_stride;
    for (var q = first; q < last; q += LANES) {
        let scaled = (x[source + q] - mean) * rstd * gain[p.gain_offset + q];
        var out = scaled;
        if (p.biased == 1u) {
            out += bias[p.bias_offset + q];
        }
        y[to + q] = select(vec4<f32>(0.0), out, inside(q));
    }
    if (row < p.rows && begin == 0u && lane % LANES == 0u) {
        stats[p.stats_offset + row * p.stats_stride] = vec4<f32>(mean, rstd, 0.0, 0.0);
        stats[p.stats_offset + row * p.stats_stride + 1u] = vec4<f32>(0.0);
    }
}

//# entry layer_norm_backward

@compute @workgroup_size(WG, 1, 1)
fn layer_norm_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let row = (p.first_line + group / p.blocks) * (WG / LANES) + lane / LANES;
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let ends = begin + p.block_len >= p.quads;
    // Rows past the last take part in the barriers only.
    let last = select(0u, min(begin + p.block_len, p.quads), row < p.rows);
    let first = begin + lane % LANES;
    let source = p.x_offset + row * p.x_stride;
    let above = p.dy_offset + row * p.dy_stride;
    let n = f32(p.cols);
    let moments = stats[p.stats_offset + select(0u, row, row < p.rows) * p.stats_stride];
    let mean = moments.x;
    let rstd = moments.y;
    let slot = group * (2u * WG + WG / LANES) + lane;
    let known = kept(group, 2u, lane);
    var sums = vec2<f32>(0.0);
    if (p.carried == 1u) {
        sums = carry[known].xy;
    }
    if ((p.passes & 1u) != 0u) {
        // Padding of dy is zero: it adds nothing to either sum.
        var plain = vec4<f32>(0.0);
        var leaning = vec4<f32>(0.0);
        if (begin > 0u) {
            plain = carry[slot];
            leaning = carry[slot + WG];
        }
        for (var q = first; q < last; q += LANES) {
            let h = gain[p.gain_offset + q] * dy[above + q];
            plain += h;
            leaning = fma(h, x[source + q] - mean, leaning);
        }
        if (ends) {
            sums = row_sum(lane, vec2<f32>(quad_sum(plain), quad_sum(leaning) * rstd)) / n;
        } else {
            carry[slot] = plain;
            carry[slot + WG] = leaning;
        }
    }
    if ((p.passes & 2u) == 0u) {
        // All lanes of a row have read these where it ends: they have met.
        if (ends && lane % LANES == 0u) {
            carry[known] = vec4<f32>(sums, 0.0, 0.0);
        }
        return;
    }
    for (var q = first; q < last; q += LANES) {
        let h = gain[p.gain_offset + q] * dy[above + q];
        let normal = (x[source + q] - mean) * rstd;
        var out = rstd * (h - sums.x - normal * sums.y);
        if (p.bypassed == 1u) {
            out += residual[p.residual_offset + row * p.residual_stride + q];
        }
        dx[p.dx_offset + row * p.dx_stride + q] = select(vec4<f32>(0.0), out, inside(q));
    }
}

//# entry layer_norm_gain_backward

//# if SPLIT
var<workgroup> totals: array<vec4<f32>, WG>;
//# end

@compute @workgroup_size(WG, 1, 1)
fn layer_norm_gain_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let q = (p.first_line + group / p.blocks) * QUADS + lane % QUADS;
    let slot = lane / QUADS;
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let ends = begin + p.block_len >= p.rows;
    // Columns past the last take part in the barriers only.
    let rows = select(0u, min(begin + p.block_len, p.rows), q < p.quads);
    // A slot takes every SLOTS-th block of rows, by its place in the column, wherever that is cut.
    let first = begin + (slot - begin / BLOCK) % SLOTS * BLOCK;
    var total = vec4<f32>(0.0);
    if (begin > 0u) {
        total = carry[group * WG + lane];
    }
    for (var block = first; block < rows; block += SLOTS * BLOCK) {
        var part = vec4<f32>(0.0);
        for (var row = block; row < min(block + BLOCK, rows); row++) {
            let moments = stats[p.stats_offset + row * p.stats_stride];
            let normal = (x[p.x_offset + row * p.x_stride + q] - moments.x) * moments.y;
            part = fma(dy[p.dy_offset + row * p.dy_stride + q], normal, part);
        }
        total += part;
    }
    if (!ends) {
        carry[group * WG + lane] = total;
        return;
    }
//# if SPLIT
    totals[lane] = total;
    for (var half = SLOTS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (slot < half) {
            totals[lane] += totals[lane + half * QUADS];
        }
    }
    total = totals[lane];
//# end
    if (slot == 0u && q < p.quads) {
        if (p.accumulate == 1u) {
            total += dgain[p.dgain_offset + q];
        }
        dgain[p.dgain_offset + q] = total;
    }
}
