// Initial parameters: a tile owns WG * QUADS vec4 elements of a panel; each is a pure function of its index.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/initial.rs.

// Which columns of the quad that starts at a column hold values, not padding.
fn live(column: u32) -> vec4<bool> {
    return vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.cols);
}

//# entry initial_normal

// The high word of a product: WGSL has no 64-bit integers.
fn mul_high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let carry = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (middle >> 16u) + (carry >> 16u);
}

// Philox4x32-10.
fn philox(block_low: u32, block_high: u32) -> vec4<u32> {
    var c = vec4<u32>(block_low, block_high, p.tensor, 0u);
    var key = vec2<u32>(p.seed_low, p.seed_high);
    for (var round = 0u; round < 10u; round++) {
        let a = mul_high(c.x, 0xD2511F53u);
        let b = mul_high(c.z, 0xCD9E8D57u);
        c = vec4<u32>(b ^ c.y ^ key.x, c.z * 0xCD9E8D57u, a ^ c.w ^ key.y, c.x * 0xD2511F53u);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

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
            // Four elements lie in one block of random words, or in two where the row does not begin with a block.
            var words = philox((low >> 2u) | (high << 30u), high >> 2u);
            let shift = low & 3u;
            if (shift != 0u) {
                let next_low = low + 4u;
                let next_high = high + select(0u, 1u, next_low < low);
                let next = philox((next_low >> 2u) | (next_high << 30u), next_high >> 2u);
                if (shift == 1u) {
                    words = vec4<u32>(words.yzw, next.x);
                } else if (shift == 2u) {
                    words = vec4<u32>(words.zw, next.xy);
                } else {
                    words = vec4<u32>(words.w, next.xyz);
                }
            }
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
