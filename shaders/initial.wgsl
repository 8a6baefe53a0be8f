// Initial parameters: a tile owns WG * QUADS vec4 elements of a panel; each is a pure function of its index.
// The words of a block come from shaders/philox.wgsl, which stands before this file.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/initial.rs.

// Which columns of the quad that starts at a column hold values, not padding.
fn live(column: u32) -> vec4<bool> {
    return vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.cols);
}

//# entry initial_normal

fn quantile(word: u32) -> f32 {
    return bitcast<f32>(bitcast<u32>(table[word >> 20u]) | (word << 31u)) * p.deviation;
}

@compute @workgroup_size(WG, 1, 1)
fn initial_normal(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    for (var q = 0u; q < QUADS; q++) {
        let i = (group * QUADS + q) * WG + lane;
        let row = i / p.row_quads;
        if (group < p.groups && row < p.rows) {
            let column = 4u * (i - row * p.row_quads);
            let local = row * p.cols + column;
            let low = p.first_low + local;
            let high = p.first_high + select(0u, 1u, low < local);
            let words = philox_quad(low, high, p.tensor, 0u, vec2<u32>(p.seed_low, p.seed_high));
            let values = vec4<f32>(quantile(words.x), quantile(words.y), quantile(words.z), quantile(words.w));
            panel[p.offset + i] = select(vec4<f32>(0.0), values, live(column));
        }
    }
}

//# entry initial_fill

@compute @workgroup_size(WG, 1, 1)
fn initial_fill(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    for (var q = 0u; q < QUADS; q++) {
        let i = (group * QUADS + q) * WG + lane;
        let row = i / p.row_quads;
        if (group < p.groups && row < p.rows) {
            panel[p.offset + i] = select(vec4<f32>(0.0), vec4<f32>(p.value), live(4u * (i - row * p.row_quads)));
        }
    }
}
