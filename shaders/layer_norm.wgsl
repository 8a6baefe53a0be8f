// Layer norm over rows, forward and backward, and the gradient of the gain. A tile owns whole rows (forward, backward),
// LANES invocations a row, or whole columns (gain). With one lane a row nothing meets; with more, the lanes' sums meet in
// a tree whose order depends on the shape alone.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/layer_norm.rs.

//# if ROW
// Which of the four columns of quad q lie inside the row: padding counts in no mean and stays zero.
fn inside(q: u32) -> vec4<bool> {
    return vec4<u32>(4u * q) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.cols);
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
    let row = group * (WG / LANES) + lane / LANES;
    // Rows past the last take part in the barriers only.
    let last = select(0u, p.quads, row < p.rows);
    let source = p.x_offset + row * p.x_stride;
    let n = f32(p.cols);
    var total = vec4<f32>(0.0);
    for (var q = lane % LANES; q < last; q += LANES) {
        total += x[source + q];
    }
    let mean = row_sum(lane, vec2<f32>(quad_sum(total), 0.0)).x / n;
    var squares = vec4<f32>(0.0);
    for (var q = lane % LANES; q < last; q += LANES) {
        let d = select(vec4<f32>(0.0), x[source + q] - mean, inside(q));
        squares = fma(d, d, squares);
    }
    let variance = row_sum(lane, vec2<f32>(quad_sum(squares), 0.0)).x / n;
    let rstd = 1.0 / sqrt(variance + p.eps);
    let to = p.y_offset + row * p.y_stride;
    for (var q = lane % LANES; q < last; q += LANES) {
        let scaled = (x[source + q] - mean) * rstd * gain[p.gain_offset + q];
        var out = scaled;
        if (p.biased == 1u) {
            out += bias[p.bias_offset + q];
        }
        y[to + q] = select(vec4<f32>(0.0), out, inside(q));
    }
    if (row < p.rows && lane % LANES == 0u) {
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
    let row = group * (WG / LANES) + lane / LANES;
    // Rows past the last take part in the barriers only.
    let last = select(0u, p.quads, row < p.rows);
    let source = p.x_offset + row * p.x_stride;
    let above = p.dy_offset + row * p.dy_stride;
    let n = f32(p.cols);
    let moments = stats[p.stats_offset + select(0u, row, row < p.rows) * p.stats_stride];
    let mean = moments.x;
    let rstd = moments.y;
    // Padding of dy is zero: it adds nothing to either sum.
    var plain = vec4<f32>(0.0);
    var leaning = vec4<f32>(0.0);
    for (var q = lane % LANES; q < last; q += LANES) {
        let h = gain[p.gain_offset + q] * dy[above + q];
        plain += h;
        leaning = fma(h, x[source + q] - mean, leaning);
    }
    let sums = row_sum(lane, vec2<f32>(quad_sum(plain), quad_sum(leaning) * rstd)) / n;
    for (var q = lane % LANES; q < last; q += LANES) {
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
    let q = group * QUADS + lane % QUADS;
    let slot = lane / QUADS;
    // Columns past the last take part in the barriers only.
    let rows = select(0u, p.rows, q < p.quads);
    var total = vec4<f32>(0.0);
    for (var block = slot * BLOCK; block < rows; block += SLOTS * BLOCK) {
        var part = vec4<f32>(0.0);
        for (var row = block; row < min(block + BLOCK, rows); row++) {
            let moments = stats[p.stats_offset + row * p.stats_stride];
            let normal = (x[p.x_offset + row * p.x_stride + q] - moments.x) * moments.y;
            part = fma(dy[p.dy_offset + row * p.dy_stride + q], normal, part);
        }
        total += part;
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
