// SGD with momentum: a tile owns WG * QUADS vec4 elements of a panel and of its momentum; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/sgd.rs.

//# entry sgd_apply

@compute @workgroup_size(WG, 1, 1)
fn sgd_apply(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    // On the bits: any count but zero, also one that is not a number.
    let taken = (bitcast<u32>(scalars[NON_FINITE]) & 0x7fffffffu) == 0u;
    let clip = scalars[CLIP_SCALE];
    for (var q = 0u; q < QUADS; q++) {
        let i = (group * QUADS + q) * WG + lane;
        if (taken && group < p.groups && i < p.quads) {
            let w = weights[p.weights_offset + i];
            let g = fma(vec4<f32>(p.weight_decay), w, gradient[p.gradient_offset + i] * clip);
            var m = g;
            if (p.plain == 0u) {
                m = fma(vec4<f32>(p.momentum), momentum[p.momentum_offset + i], g);
            }
            weights[p.weights_offset + i] = fma(vec4<f32>(-p.lr), m, w);
            momentum[p.momentum_offset + i] = m;
        }
    }
}
