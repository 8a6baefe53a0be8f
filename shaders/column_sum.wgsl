// Column sum. A tile owns QUADS vec4 columns; its SLOTS row slots take blocks of BLOCK rows in turn, each block is summed
// alone and added to the slot's total, and the totals meet in a tree. The order depends on the shape alone.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/column_sum.rs.

//# if SPLIT
var<workgroup> totals: array<vec4<f32>, WG>;
//# end

//# entry column_sum

@compute @workgroup_size(WG, 1, 1)
fn column_sum(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
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
            part += dy[p.dy_offset + row * p.dy_stride + q];
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
            total += sum[p.sum_offset + q];
        }
        sum[p.sum_offset + q] = total;
    }
}
