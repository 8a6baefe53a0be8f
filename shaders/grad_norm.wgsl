// The norm of all gradients: a tile sums the squares of one run of rows, a line of tiles (fused: one) adds what they found, in order.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/grad_norm.rs.

const LARGEST_BITS: u32 = 0x7f7fffffu;

var<workgroup> squares: array<f32, WG>;
var<workgroup> counts: array<f32, WG>;
// Squares of the slots that make the norm: some of those that must be finite.
var<workgroup> norms: array<f32, WG>;

// Adds the arrays into their first elements, in a fixed order.
fn reduce(lane: u32) {
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            squares[lane] += squares[lane + half];
            counts[lane] += counts[lane + half];
            norms[lane] += norms[lane + half];
        }
        workgroupBarrier();
    }
}

//# entry grad_norm_partial

@compute @workgroup_size(WG, 1, 1)
fn grad_norm_partial(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let first = group * p.slot_quads;
    let end = min(first + p.slot_quads, p.quads);
    var sum = vec4<f32>(0.0);
    var bad = vec4<u32>(0u);
    for (var i = first + lane; i < end; i += WG) {
        let g = gradient[p.offset + i];
        // On the bits: a driver may assume that floats are finite.
        let finite = (bitcast<vec4<u32>>(g) & vec4<u32>(0x7fffffffu)) <= vec4<u32>(LARGEST_BITS);
        let x = select(vec4<f32>(0.0), g, finite);
        sum = fma(x, x, sum);
        bad += select(vec4<u32>(1u), vec4<u32>(0u), finite);
    }
    squares[lane] = (sum.x + sum.y) + (sum.z + sum.w);
    counts[lane] = f32(bad.x + bad.y + bad.z + bad.w);
    norms[lane] = 0.0;
    reduce(lane);
    if (lane == 0u) {
        partials[2u * (p.first_slot + group)] = squares[0];
        partials[2u * (p.first_slot + group) + 1u] = counts[0];
    }
}

//# entry grad_norm_finish

@compute @workgroup_size(WG, 1, 1)
fn grad_norm_finish(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let begin = (p.first_block + group % p.blocks) * p.block_len;
    let end = min(begin + p.block_len, p.slots);
    // A tile carries three sums for each lane.
    let held = 3u * (group * WG + lane);
    var sum = 0.0;
    var norm_sum = 0.0;
    var count = 0.0;
    if (begin > 0u) {
        sum = carry[held];
        norm_sum = carry[held + 1u];
        count = carry[held + 2u];
    }
    // A lane takes slots by their place in the line, wherever it is cut.
    for (var i = begin + (lane - begin) % WG; i < end; i += WG) {
        let square = partials[2u * (p.first + i)];
        sum += square;
        norm_sum += select(0.0, square, i < p.norm_slots);
        count += partials[2u * (p.first + i) + 1u];
    }
    if (end < p.slots) {
        carry[held] = sum;
        carry[held + 1u] = norm_sum;
        carry[held + 2u] = count;
        return;
    }
    squares[lane] = sum;
    norms[lane] = norm_sum;
    counts[lane] = count;
    reduce(lane);
    if (lane == 0u) {
        var total = norms[0];
        var bad = counts[0];
        if ((bitcast<u32>(scalars[LOSS]) & 0x7fffffffu) > LARGEST_BITS) {
            bad += 1.0;
        }
        // Finite gradients whose squares leave f32: no norm, so no update either.
        if ((bitcast<u32>(squares[0]) & 0x7fffffffu) > LARGEST_BITS) {
            bad += 1.0;
        }
        if ((bitcast<u32>(total) & 0x7fffffffu) > LARGEST_BITS) {
            total = 0x1.fffffep+127;
        }
        let norm = sqrt(total);
        scalars[GRAD_NORM] = norm;
        scalars[CLIP_SCALE] = select(1.0, min(1.0, p.clip / (norm + 1e-6)), p.clip > 0.0);
        scalars[NON_FINITE] = bad;
    }
}
