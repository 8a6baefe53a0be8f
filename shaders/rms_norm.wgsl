// RMS norm over equal parts of rows, forward and backward, and the gradient of the gain. A tile owns a block of a few rows of one
// part, or a few whole parts of several (forward, backward), LANES invocations a part, or a block of a few columns of the gain;
// fused: all of them. Lanes' sums go on from block to block, and meet where the line ends: with one lane a part nothing meets;
// with more, they do in a tree whose order depends on the shape alone.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/rms_norm.rs.

//# if ROW
// Where one part lies: its row, its number in the row, the quads of the row where it begins, and those of them that the tile
// owns, from `begin` to before `end`.
struct Span {
    row: u32,
    part: u32,
    first: u32,
    begin: u32,
    end: u32,
}

// The part that an invocation works on, from a quad of it on. Those past the last take part in the barriers only: they have no
// quads.
fn span(item: u32, begin: u32) -> Span {
    let present = item < p.rows * p.parts;
    let row = select(0u, item / p.parts, present);
    let part = select(0u, item % p.parts, present);
    let step = p.cols / 4u;
    // The last part takes the padding of its row along: zeros, which add nothing to a sum and stay zeros.
    let end = min(select((part + 1u) * step, p.quads, part + 1u == p.parts), part * step + begin + p.block_len);
    return Span(row, part, part * step, part * step + begin, select(0u, end, present));
}

// Where a tile keeps what it knows of a lane's part: behind a vec4 of each lane.
fn kept(group: u32, lane: u32) -> u32 {
    return group * (WG + WG / LANES) + WG + lane / LANES;
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
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let ends = begin + p.block_len >= p.quads;
    let at = span((p.first_line + group / p.blocks) * (WG / LANES) + lane / LANES, begin);
    let first = at.begin + lane % LANES;
    let source = p.x_offset + at.row * p.x_stride;
    let slot = group * (WG + WG / LANES) + lane;
    var square = 0.0;
    if (p.carried == 1u) {
        square = carry[kept(group, lane)].x;
    }
    if ((p.passes & 1u) != 0u) {
        var squares = vec4<f32>(0.0);
        if (begin > 0u) {
            squares = carry[slot];
        }
        for (var q = first; q < at.end; q += LANES) {
            let v = x[source + q];
            squares = fma(v, v, squares);
        }
        if (ends) {
            square = part_sum(lane, quad_sum(squares)) / f32(p.cols);
        } else {
            carry[slot] = squares;
        }
    }
    if ((p.passes & 2u) == 0u) {
        // All lanes of a part have read this where it ends: they have met.
        if (ends && lane % LANES == 0u) {
            carry[kept(group, lane)] = vec4<f32>(square, 0.0, 0.0, 0.0);
        }
        return;
    }
    let scale = inverseSqrt(square + p.eps);
    let to = p.y_offset + at.row * p.y_stride;
    for (var q = first; q < at.end; q += LANES) {
        y[to + q] = x[source + q] * scale * gain[p.gain_offset + q - at.first];
    }
    if (at.end > 0u && begin == 0u && lane % LANES == 0u) {
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
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let ends = begin + p.block_len >= p.quads;
    let at = span((p.first_line + group / p.blocks) * (WG / LANES) + lane / LANES, begin);
    let first = at.begin + lane % LANES;
    let source = p.x_offset + at.row * p.x_stride;
    let above = p.dy_offset + at.row * p.dy_stride;
    let scale = stats[4u * (p.stats_offset + at.row * p.stats_stride) + at.part];
    let slot = group * (WG + WG / LANES) + lane;
    var lean = 0.0;
    if (p.carried == 1u) {
        lean = carry[kept(group, lane)].x;
    }
    if ((p.passes & 1u) != 0u) {
        var leaning = vec4<f32>(0.0);
        if (begin > 0u) {
            leaning = carry[slot];
        }
        for (var q = first; q < at.end; q += LANES) {
            let h = gain[p.gain_offset + q - at.first] * dy[above + q];
            leaning = fma(h, x[source + q], leaning);
        }
        if (ends) {
            lean = part_sum(lane, quad_sum(leaning)) * scale / f32(p.cols);
        } else {
            carry[slot] = leaning;
        }
    }
    if ((p.passes & 2u) == 0u) {
        // All lanes of a part have read this where it ends: they have met.
        if (ends && lane % LANES == 0u) {
            carry[kept(group, lane)] = vec4<f32>(lean, 0.0, 0.0, 0.0);
        }
        return;
    }
    for (var q = first; q < at.end; q += LANES) {
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
    let q = (p.first_line + group / p.blocks) * QUADS + lane % QUADS;
    let slot = lane / QUADS;
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let ends = begin + p.block_len >= p.rows;
    // Columns past the last take part in the barriers only, and padding of the gain stays what it is.
    let rows = select(0u, min(begin + p.block_len, p.rows), 4u * q < p.cols);
    // A slot takes every SLOTS-th block of rows, by its place in the column, wherever that is cut.
    let first = begin + (slot - begin / BLOCK) % SLOTS * BLOCK;
    var total = vec4<f32>(0.0);
    if (begin > 0u) {
        total = carry[group * WG + lane];
    }
    for (var block = first; block < rows; block += SLOTS * BLOCK) {
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
