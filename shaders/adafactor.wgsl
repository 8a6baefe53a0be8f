// Adafactor: sums of squares by rows and columns, the factored second moment, the size of the update, the update itself.
// A slot is ROWS rows of a tensor; whatever crosses rows is added slot by slot, in order.
// Struct `Params`, bindings and constants are generated from the declarations in src/program/adafactor/mod.rs.

//# entry adafactor_sums

var<workgroup> sums: array<f32, ${ROWS*WG}>;

@compute @workgroup_size(WG, 1, 1)
fn adafactor_sums(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let clip = scalars[CLIP_SCALE];
    let rows = min(ROWS, p.rows - group * ROWS);
    let first = p.gradient_offset + group * ROWS * p.row_quads;
//# repeat r 0..ROWS
    var sum${r} = 0.0;
//# end
    for (var q = lane; q < p.row_quads; q += WG) {
        var column = vec4<f32>(0.0);
//# repeat r 0..ROWS
        if (${r}u < rows) {
            let g = gradient[first + ${r}u * p.row_quads + q] * clip;
            column = fma(g, g, column);
            sum${r} = fma(g.x, g.x, fma(g.y, g.y, fma(g.z, g.z, fma(g.w, g.w, sum${r}))));
        }
//# end
        column_partials[group * p.row_quads + q] = column;
    }
//# repeat r 0..ROWS
    sums[${r}u * WG + lane] = sum${r};
//# end
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            for (var r = 0u; r < ROWS; r++) {
                sums[r * WG + lane] += sums[r * WG + lane + half];
            }
        }
        workgroupBarrier();
    }
    if (lane < rows) {
        row_sums[p.first_row + group * ROWS + lane] = sums[lane * WG];
    }
}

//# entry adafactor_columns

@compute @workgroup_size(WG, 1, 1)
fn adafactor_columns(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let q = (wid.y * nwg.x + wid.x) * WG + lane;
    if (q >= p.row_quads) {
        return;
    }
    var total = vec4<f32>(0.0);
    if (p.begins == 0u) {
        total = column_sums[q];
    }
    for (var slot = 0u; slot < p.slots; slot++) {
        total += column_partials[slot * p.row_quads + q];
    }
    column_sums[q] = total;
}

//# entry adafactor_factor

var<workgroup> totals: array<f32, WG>;

fn moved(state: f32, mean: f32) -> f32 {
    return fma(p.one_minus_beta2, mean - state, state);
}

@compute @workgroup_size(WG, 1, 1)
fn adafactor_factor(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // On the bits: any count but zero, also one that is not a number.
    let taken = (bitcast<u32>(scalars[NON_FINITE]) & 0x7fffffffu) == 0u && wid.x == 0u;
    var sum = 0.0;
    for (var i = lane; taken && i < p.rows; i += WG) {
        var state = 1.0;
        if (p.is_vector == 0u) {
            state = moved(row[p.row_offset + i], row_sums[i] * p.inverse_cols);
        }
        row[p.row_offset + i] = state;
        sum += state;
    }
    for (var i = lane; taken && i < p.cols; i += WG) {
        column[p.column_offset + i] = moved(column[p.column_offset + i], column_sums[i] * p.inverse_rows);
    }
    totals[lane] = sum;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            totals[lane] += totals[lane + half];
        }
        workgroupBarrier();
    }
    if (lane == 0u && taken) {
        let inverse = 1.0 / max(totals[0] * p.inverse_rows, p.eps1);
        factors[INVERSE_MEAN] = select(inverse, 1.0, p.is_vector == 1u);
    }
}

//# entry adafactor_partial

var<workgroup> updates: array<f32, WG>;
var<workgroup> squares: array<f32, WG>;

@compute @workgroup_size(WG, 1, 1)
fn adafactor_partial(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let clip = scalars[CLIP_SCALE];
    var update_sum = vec4<f32>(0.0);
    var square_sum = vec4<f32>(0.0);
    for (var r = group * ROWS; r < min(group * ROWS + ROWS, p.rows); r++) {
        let scale = row[p.row_first + r] * factors[INVERSE_MEAN];
        for (var q = lane; q < p.row_quads; q += WG) {
            let variance = max(scale * column[p.column_offset + q], vec4<f32>(p.eps1_squared));
            let u = gradient[p.gradient_offset + r * p.row_quads + q] * clip * inverseSqrt(variance);
            let w = weights[p.weights_offset + r * p.row_quads + q];
            update_sum = fma(u, u, update_sum);
            square_sum = fma(w, w, square_sum);
        }
    }
    updates[lane] = (update_sum.x + update_sum.y) + (update_sum.z + update_sum.w);
    squares[lane] = (square_sum.x + square_sum.y) + (square_sum.z + square_sum.w);
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            updates[lane] += updates[lane + half];
            squares[lane] += squares[lane + half];
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        slot_sums[2u * (p.first_slot + group)] = updates[0];
        slot_sums[2u * (p.first_slot + group) + 1u] = squares[0];
    }
}

//# entry adafactor_finish

var<workgroup> updates: array<f32, WG>;
var<workgroup> squares: array<f32, WG>;

@compute @workgroup_size(WG, 1, 1)
fn adafactor_finish(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var update_sum = 0.0;
    var square_sum = 0.0;
    for (var i = lane; i < p.slots; i += WG) {
        update_sum += slot_sums[2u * i];
        square_sum += slot_sums[2u * i + 1u];
    }
    updates[lane] = update_sum;
    squares[lane] = square_sum;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            updates[lane] += updates[lane + half];
            squares[lane] += squares[lane + half];
        }
        workgroupBarrier();
    }
    if (lane == 0u && wid.x == 0u) {
        let update_size = sqrt(updates[0] * p.inverse_count);
        let weight_size = sqrt(squares[0] * p.inverse_count);
        factors[STEP_SIZE] = max(p.eps2, weight_size) * p.rho / max(1.0, update_size * p.inverse_threshold);
        factors[UPDATE_SIZE] = update_size;
        factors[WEIGHT_SIZE] = weight_size;
    }
}

//# entry adafactor_apply

@compute @workgroup_size(WG, 1, 1)
fn adafactor_apply(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    // On the bits: any count but zero, also one that is not a number.
    let taken = (bitcast<u32>(scalars[NON_FINITE]) & 0x7fffffffu) == 0u;
    let clip = scalars[CLIP_SCALE];
    let step_size = factors[STEP_SIZE];
    for (var k = 0u; k < QUADS; k++) {
        let i = (group * QUADS + k) * WG + lane;
        let r = i / p.row_quads;
        if (taken && group < p.groups && r < p.rows) {
            let scale = row[p.row_first + r] * factors[INVERSE_MEAN];
            let variance = max(scale * column[p.column_offset + i - r * p.row_quads], vec4<f32>(p.eps1_squared));
            let u = gradient[p.gradient_offset + i] * clip * inverseSqrt(variance);
            weights[p.weights_offset + i] = fma(vec4<f32>(-step_size), u, weights[p.weights_offset + i] * p.decay);
        }
    }
}
