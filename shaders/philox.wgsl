// Philox4x32-10, put before the shaders of programs that draw random words; no entry point, no bindings, no parameters.
// Its twin in Rust is src/program/philox.rs.

// The high word of a product: WGSL has no 64-bit integers.
fn mul_high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let carry = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (middle >> 16u) + (carry >> 16u);
}

// Four random words for a counter and a key.
fn philox(counter: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        let a = mul_high(c.x, 0xD2511F53u);
        let b = mul_high(c.z, 0xCD9E8D57u);
        c = vec4<u32>(b ^ c.y ^ key.x, c.z * 0xCD9E8D57u, a ^ c.w ^ key.y, c.x * 0xD2511F53u);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// Words of the four elements that begin at an index, where a block holds those of four elements: of one block, or of
// two where the index does not begin a block.
fn philox_quad(low: u32, high: u32, stream: u32, tag: u32, seed: vec2<u32>) -> vec4<u32> {
    let words = philox(vec4<u32>((low >> 2u) | (high << 30u), high >> 2u, stream, tag), seed);
    let shift = low & 3u;
    if (shift == 0u) {
        return words;
    }
    let next_low = low + 4u;
    let next_high = high + select(0u, 1u, next_low < low);
    let next = philox(vec4<u32>((next_low >> 2u) | (next_high << 30u), next_high >> 2u, stream, tag), seed);
    if (shift == 1u) {
        return vec4<u32>(words.yzw, next.x);
    }
    if (shift == 2u) {
        return vec4<u32>(words.zw, next.xy);
    }
    return vec4<u32>(words.w, next.xyz);
}
