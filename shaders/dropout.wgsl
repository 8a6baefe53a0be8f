// Dropout in place. A tile owns WG * QUADS vec4 elements; what each is multiplied by is a function of its index alone.
// Philox comes from shaders/philox.wgsl, which stands before this file.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/dropout.rs.

// `DROPOUT` of src/program/philox.rs.
const TAG: u32 = 3u;

//# entry dropout

@compute @workgroup_size(WG, 1, 1)
fn dropout(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    for (var q = 0u; q < QUADS; q++) {
        let i = (group * QUADS + q) * WG + lane;
        let row = i / p.quads;
        if (group < p.groups && row < p.rows) {
            let quad = i - row * p.quads;
            // first + row * cols + column, in two words.
            let begin = row * p.cols;
            let local = begin + 4u * quad;
            let low = p.first_low + local;
            let carry = select(0u, 1u, local < begin) + select(0u, 1u, low < local);
            let high = p.first_high + mul_high(row, p.cols) + carry;
            let words = philox_quad(low, high, 0u, TAG, vec2<u32>(p.key_low, p.key_high));
            let at = p.offset + row * p.stride + quad;
            // A product, not a choice: what is not a number stays so. Zeros of the padding stay zero.
            x[at] *= select(vec4<f32>(0.0), vec4<f32>(p.scale), words >= vec4<u32>(p.threshold));
        }
    }
}
