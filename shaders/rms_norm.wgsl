// RMS norm over equal parts of rows, forward and backward, and the gradient of the gain. A tile owns whole parts (forward,
// backward), LANES invocations a part, or whole columns of the gain. With one lane a part nothing meets; with more, the
// lanes' sums meet in a tree whose order depends on the shape alone.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/rms_norm.rs.

//# if ROW
// Where one part lies: its row, its number in the row, and the quads of the row from `first` to before `end`.
struct Span {
    row: u32,
    part: u32,
    first: u32,
    end: u32,
}

// The part that an invocation works on. Those past the last take part in the barriers only: they have no quads.
fn span(item: u32) -> Span {
    let present = item < p.rows * p.parts;
    let row = select(0u, item / p.parts, present);
    let part = select(0u, item % p.parts, present);
    let step = p.cols / 4u;
    // The last part takes the padding of its row along: zeros, which add nothing to a sum and stay zeros.
    let end = select((part + 1u) * step, p.quads, part + 1u == p.parts);
    return Span(row, part, part * step, select(0u, end, present));
}

fn quad_sum(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

//# if TREE
var<workgroup> partial: array<f32, WG>;

// The sum over the LANES invocations of a part; every invocation of the tile must call it, once.
fn part_sum(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    let slot = lane % LANES;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (slot < half) {
            partial[lane] += partial[lane + half];
        }
    }
    workgroupBarrier();
    return partial[lane - slot];
}
//# else
fn part_sum(lane: u32, value: f32) -> f32 {
    return value;
}
//# end
//# end

//# entry rms_norm_forward

@compute @workgroup_size(WG, 1, 1)
fn rms_norm_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let at = span(group * (WG / LANES) + lane / LANES);
    let source = p.x_offset + at.row * p.x_stride;
    var squares = vec4<f32>(0.0);
    for (var q = at.first + lane % LANES; q < at.end; q += LANES) {
        let v = x[source + q];
        squares = fma(v, v, squares);
    }
    let square = part_sum(lane, quad_sum(squares)) / f32(p.cols);
    let scale = inverseSqrt(square + p.eps);
    let to = p.y_offset + at.row * p.y_stride;
    for (var q = at.first + lane % LANES; q < at.end; q += LANES) {
        y[to + q] = x[source + q] * scale * gain[p.gain_offset + q - at.first];
    }
    if (at.end > 0u && lane % LANES == 0u) {
        let kept = 4u * (p.stats_offset + at.row * p.stats_stride);
        stats[kept + at.part] = scale;
        if (at.part + 1u == p.parts) {
            for (var c = p.parts; c < 4u * p.stats_quads; c++) {
                stats[kept + c] = 0.0;
            }
        }
    }
}

//# entry rms_norm_backward

@compute @workgroup_size(WG, 1, 1)
fn rms_norm_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let at = span(group * (WG / LANES) + lane / LANES);
    let source = p.x_offset + at.row * p.x_stride;
    let above = p.dy_offset + at.row * p.dy_stride;
    let scale = stats[4u * (p.stats_offset + at.row * p.stats_stride) + at.part];
    var leaning = vec4<f32>(0.0);
    for (var q = at.first + lane % LANES; q < at.end; q += LANES) {
        let h = gain[p.gain_offset + q - at.first] * dy[above + q];
        leaning = fma(h, x[source + q], leaning);
    }
    let lean = part_sum(lane, quad_sum(leaning)) * scale / f32(p.cols);
    for (var q = at.first + lane % LANES; q < at.end; q += LANES) {
        let h = gain[p.gain_offset + q - at.first] * dy[above + q];
        let normal = x[source + q] * scale;
        var out = scale * (h - normal * lean);
        if (p.bypassed == 1u) {
            out += residual[p.residual_offset + at.row * p.residual_stride + q];
        }
        dx[p.dx_offset + at.row * p.dx_stride + q] = out;
    }
}

//# entry rms_norm_gain_backward

//# if SPLIT
var<workgroup> totals: array<vec4<f32>, WG>;
//# end

@compute @workgroup_size(WG, 1, 1)
fn rms_norm_gain_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let q = group * QUADS + lane % QUADS;
    let slot = lane / QUADS;
    // Columns past the last take part in the barriers only, and padding of the gain stays what it is.
    let rows = select(0u, p.rows, 4u * q < p.cols);
    var total = vec4<f32>(0.0);
    for (var block = slot * BLOCK; block < rows; block += SLOTS * BLOCK) {
        var sum = vec4<f32>(0.0);
        for (var row = block; row < min(block + BLOCK, rows); row++) {
            let source = p.x_offset + row * p.x_stride + q;
            let above = p.dy_offset + row * p.dy_stride + q;
            let kept = 4u * (p.stats_offset + row * p.stats_stride);
            for (var part = 0u; part < p.parts; part++) {
                let first = part * (p.cols / 4u);
                sum = fma(dy[above + first], x[source + first] * stats[kept + part], sum);
            }
        }
        total += sum;
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
