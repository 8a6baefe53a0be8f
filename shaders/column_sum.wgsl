// Column sum. A tile owns rows of QUADS vec4 columns (fused: all rows); its SLOTS row slots take blocks of BLOCK rows in turn,
// each block is summed alone and added to the slot's total, which goes on from tile to tile; in the last one the totals meet in
// a tree. The order depends on the shape alone.
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
    let q = (p.first_line + group / p.blocks) * QUADS + lane % QUADS;
    let slot = lane / QUADS;
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let end = min(begin + p.block_len, p.rows);
    // Columns past the last take part in the barriers only.
    let rows = select(0u, end, q < p.quads);
    var total = vec4<f32>(0.0);
    if (begin > 0u) {
        total = carry[group * WG + lane];
    }
    // A slot takes blocks by their place in the column, wherever it is cut.
    for (var block = begin + (slot * BLOCK - begin) % (SLOTS * BLOCK); block < rows; block += SLOTS * BLOCK) {
        var part = vec4<f32>(0.0);
        for (var row = block; row < min(block + BLOCK, rows); row++) {
            part += dy[p.dy_offset + row * p.dy_stride + q];
        }
        total += part;
    }
    if (end < p.rows) {
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
            total += sum[p.sum_offset + q];
        }
        sum[p.sum_offset + q] = total;
    }
}
