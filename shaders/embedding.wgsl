// Embedding: rows of a table panel gathered by id, and the gradient of the panel. A tile owns a run of WG * QUADS vec4
// columns of one row of the result; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/embedding.rs.

const RUN: u32 = WG * QUADS;

//# entry embedding_forward

@compute @workgroup_size(WG, 1, 1)
fn embedding_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let runs = (p.quads + RUN - 1u) / RUN;
    let row = group / runs;
    // An id before the panel wraps to a number beyond its end.
    let entry = ids[row] - p.first_row;
    if (entry >= p.table_rows) {
        return;
    }
    let first = (group - row * runs) * RUN + lane;
    let last = min(p.quads, first + RUN);
    for (var q = first; q < last; q += WG) {
        let to = p.out_offset + row * p.out_stride + q;
        var value = table[p.table_offset + entry * p.table_stride + q];
        if (p.accumulate == 1u) {
            value += out[to];
        }
        out[to] = value;
    }
}

//# entry embedding_backward

@compute @workgroup_size(WG, 1, 1)
fn embedding_backward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let runs = (p.quads + RUN - 1u) / RUN;
    let occurrence = group / runs;
    // An id before the panel wraps to a number beyond its end.
    let entry = ids[occurrence] - p.first_row;
    if (entry >= p.table_rows) {
        return;
    }
    let begin = starts[occurrence];
    let end = starts[occurrence + 1u];
    let first = (group - occurrence * runs) * RUN + lane;
    let last = min(p.quads, first + RUN);
    for (var q = first; q < last; q += WG) {
        var total = vec4<f32>(0.0);
        for (var i = begin; i < end; i++) {
            total += dx[p.dx_offset + rows[i] * p.dx_stride + q];
        }
        table_gradient[p.table_offset + entry * p.table_stride + q] += total;
    }
}
