// Residual add. A tile owns a run of WG * QUADS vec4 elements of one row; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/residual_add.rs.

const RUN: u32 = WG * QUADS;

//# entry residual_add

@compute @workgroup_size(WG, 1, 1)
fn residual_add(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let runs = (p.quads + RUN - 1u) / RUN;
    let row = group / runs;
    let first = (group - row * runs) * RUN + lane;
    let last = min(p.quads, first + RUN);
    for (var q = first; q < last; q += WG) {
        sum[p.sum_offset + row * p.sum_stride + q] =
            a[p.a_offset + row * p.a_stride + q] + b[p.b_offset + row * p.b_stride + q];
    }
}
