// AdamW: a tile owns WG * QUADS vec4 elements of a panel and of its moments; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/adamw.rs.

//# entry adamw_apply

@compute @workgroup_size(WG, 1, 1)
fn adamw_apply(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    // On the bits: any count but zero, also one that is not a number.
    let taken = (bitcast<u32>(scalars[NON_FINITE]) & 0x7fffffffu) == 0u;
    let clip = scalars[CLIP_SCALE];
    for (var q = 0u; q < QUADS; q++) {
        let i = (group * QUADS + q) * WG + lane;
        if (taken && group < p.groups && i < p.quads) {
            let g = gradient[p.gradient_offset + i] * clip;
            let m0 = m[p.m_offset + i];
            let m1 = fma(vec4<f32>(p.one_minus_beta1), g - m0, m0);
            let v1 = fma(g * g, vec4<f32>(p.one_minus_beta2), p.beta2 * v[p.v_offset + i]);
            let denominator = fma(sqrt(v1), vec4<f32>(p.root_correction), vec4<f32>(p.eps));
            weights[p.weights_offset + i] = weights[p.weights_offset + i] * p.decay - p.step_size * (m1 / denominator);
            m[p.m_offset + i] = m1;
            v[p.v_offset + i] = v1;
        }
    }
}
