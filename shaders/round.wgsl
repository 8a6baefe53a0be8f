// Rounds f32 to values of bf16, on the bits: a tile owns WG * PIECES pieces of eight elements; nothing crosses tiles.
// Philox comes from shaders/philox.wgsl, which stands before this file.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/round.rs.

const INFINITY_BITS: vec4<u32> = vec4<u32>(0x7f800000u);

// The high half of the magnitude plus what was added to it, where the value is finite; infinity and NaN (made quiet) else.
fn finished(bits: vec4<u32>, rounded: vec4<u32>) -> vec4<f32> {
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let quiet = select(magnitude, magnitude | vec4<u32>(0x00400000u), magnitude > INFINITY_BITS);
    let kept = select(rounded, quiet, magnitude >= INFINITY_BITS) & vec4<u32>(0xffff0000u);
    return bitcast<vec4<f32>>(kept | (bits & vec4<u32>(0x80000000u)));
}

//# entry round_nearest

fn nearest(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    return finished(bits, magnitude + 0x7fffu + ((magnitude >> vec4<u32>(16u)) & vec4<u32>(1u)));
}

@compute @workgroup_size(WG, 1, 1)
fn round_nearest(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    for (var piece = 0u; piece < PIECES; piece++) {
        let i = (group * PIECES + piece) * WG + lane;
        if (group < p.groups && i < p.pieces) {
            let at = p.offset + 2u * i;
            panel[at] = nearest(panel[at]);
            panel[at + 1u] = nearest(panel[at + 1u]);
        }
    }
}

//# entry round_stochastic

// Random words of a block of eight elements.
fn random(block_low: u32, block_high: u32) -> vec4<u32> {
    return philox(vec4<u32>(block_low, p.step_low, p.stream, p.tag | (block_high << 8u)), vec2<u32>(p.seed_low, p.seed_high));
}

// Sixteen bits for one of the sixteen elements of two neighbouring blocks.
fn part(first: vec4<u32>, second: vec4<u32>, k: u32) -> u32 {
    let words = select(first, second, k > 7u);
    return (words[(k >> 1u) & 3u] >> (16u * (k & 1u))) & 0xffffu;
}

fn stochastic(x: vec4<f32>, random: vec4<u32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let rounded = (bits & vec4<u32>(0x7fffffffu)) + random;
    // What would round up to infinity stays the largest finite value.
    return finished(bits, min(rounded, vec4<u32>(0x7f7fffffu)));
}

@compute @workgroup_size(WG, 1, 1)
fn round_stochastic(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    for (var piece = 0u; piece < PIECES; piece++) {
        let i = (group * PIECES + piece) * WG + lane;
        if (group < p.groups && i < p.pieces) {
            let row = i / p.row_pieces;
            let local = row * p.cols + 8u * (i - row * p.row_pieces);
            let low = p.first_low + local;
            let high = p.first_high + select(0u, 1u, low < local);
            // Eight elements lie in one block of random words, or in two where the row does not begin with a block.
            let first = random((low >> 3u) | (high << 29u), high >> 3u);
            var second = first;
            let k = low & 7u;
            if (k != 0u) {
                let next_low = low + 8u;
                let next_high = high + select(0u, 1u, next_low < low);
                second = random((next_low >> 3u) | (next_high << 29u), next_high >> 3u);
            }
            let left = vec4<u32>(part(first, second, k), part(first, second, k + 1u), part(first, second, k + 2u), part(first, second, k + 3u));
            let right = vec4<u32>(part(first, second, k + 4u), part(first, second, k + 5u), part(first, second, k + 6u), part(first, second, k + 7u));
            // Zeros of the padding stay zero whatever is added.
            let at = p.offset + 2u * i;
            panel[at] = stochastic(panel[at], left);
            panel[at + 1u] = stochastic(panel[at + 1u], right);
        }
    }
}
