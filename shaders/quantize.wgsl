// Block-wise quantisation in place: a tile owns one block of QUADS vec4 elements of a row. What lies on the grid is found
// by arithmetic on the bits; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/quantize.rs.

//# entry quantize

const INFINITY_BITS: u32 = 0x7f800000u;

var<workgroup> largest: array<u32, WG>;

// Bits of the magnitudes; what the unsigned grid does not have is zero.
fn magnitudes(bits: vec4<u32>) -> vec4<u32> {
    let negative = (bits & vec4<u32>(0x80000000u)) != vec4<u32>(0u);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let dropped = vec4<bool>(p.is_signed == 0u) & negative & (magnitude < vec4<u32>(INFINITY_BITS));
    return select(magnitude, vec4<u32>(0u), dropped);
}

fn quantized(x: vec4<f32>, scale: f32, inverse: f32) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bitcast<vec4<f32>>(magnitudes(bits));
    // Only a guess of the cell of the grid, good to a few ulp: which end of the cell is nearer is decided by a product.
    let ratio = bitcast<vec4<u32>>(min((magnitude * inverse) * 0.00390625, vec4<f32>(1.0)));
    let octave = vec4<u32>(127u) - (ratio >> vec4<u32>(23u));
    let one = vec4<u32>(1u);
    let coarser = select(vec4<u32>(0u), one, octave > vec4<u32>(p.fine)) + select(vec4<u32>(0u), one, octave > vec4<u32>(p.middle));
    let cell = one << (vec4<u32>(19u) + coarser);
    let below = ratio < vec4<u32>(p.smallest);
    let floor = ratio & ~(cell - one);
    let low = select(floor, vec4<u32>(0u), below);
    let high = select(floor + cell, vec4<u32>(p.smallest), below);
    let middle = select(floor + (cell >> one), vec4<u32>(p.smallest - 0x00800000u), below);
    let chosen = select(low, high, magnitude >= bitcast<vec4<f32>>(middle) * scale);
    let value = bitcast<vec4<u32>>(bitcast<vec4<f32>>(chosen) * scale) | (bits & vec4<u32>(0x80000000u));
    return bitcast<vec4<f32>>(select(value, vec4<u32>(0u), chosen == vec4<u32>(0u)));
}

@compute @workgroup_size(WG, 1, 1)
fn quantize(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let row = group / p.row_blocks;
    let first = (group - row * p.row_blocks) * QUADS;
    let count = min(QUADS, p.row_quads - first);
    let at = p.offset + row * p.row_quads + first;
    var most = vec4<u32>(0u);
    for (var q = lane; q < count; q += WG) {
        most = max(most, magnitudes(bitcast<vec4<u32>>(panel[at + q])));
    }
    largest[lane] = max(max(most.x, most.y), max(most.z, most.w));
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
        workgroupBarrier();
    }
    let scale_bits = largest[0];
    // A block that is not finite stays as it is.
    if (scale_bits < INFINITY_BITS) {
        let tiny = scale_bits < p.tiny;
        let scale = bitcast<f32>(select(scale_bits, 0x3f800000u, tiny));
        let inverse = 1.0 / (scale * 0.00390625);
        for (var q = lane; q < count; q += WG) {
            panel[at + q] = select(quantized(panel[at + q], scale, inverse), vec4<f32>(0.0), tiny);
        }
    }
}
