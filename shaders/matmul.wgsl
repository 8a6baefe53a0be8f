// C = A B^T, A B or A^T B: one accumulator per element, k ascending, explicit fma, so that neither the tile's shape, nor the
// grid, nor a cut of the contraction into steps or panels can change a bit. A launch runs steps p.first .. p.last; between
// launches the tile's block of C holds its sums.
//
// Struct `Params`, bindings and constants are generated from the declaration in src/program/matmul.rs. A_ALONG and B_ALONG
// say in which operands k runs along rows; where it does not, it runs across them, one row for each k.

struct Place {
    // First element of the tile's block of A, of B and of C, as quads.
    a: u32,
    b: u32,
    c: u32,
    // Elements of C that the tile has left, down and to the right, and quads to the right with the padding.
    rows: u32,
    cols: u32,
    quads: u32,
    // Depth of this launch.
    depth: u32,
    // First quad of the bias.
    bias: u32,
}

fn place(group: u32) -> Place {
    let y = group / p.round_width;
    let x = group % p.round_width;
    let i = p.first_row + y;
    let j = p.first_col + x;
    var at: Place;
    at.a = (p.a_base + y * p.a_tile_y + x * p.a_tile_x) / 4u;
    at.b = (p.b_base + y * p.b_tile_y + x * p.b_tile_x) / 4u;
    at.c = (p.c_base + i * TM * p.c_stride + j * TN) / 4u;
    at.rows = min(TM, p.m - i * TM);
    at.cols = p.n - j * TN;
    at.quads = (p.c_cols - j * TN) / 4u;
    at.depth = min(p.last * KB, p.k) - p.first * KB;
    at.bias = (p.bias_base + j * TN) / 4u;
    return at;
}

// Whether the tile starts from what its block of C holds: the saved sums of earlier steps, or what is to be added to.
fn starts_from_c() -> bool {
    return p.first > 0u || p.accumulate == 1u;
}

// The bias of a quad of columns, at the last step; zero before it and where there is none.
fn bias_of(at: Place, quad: u32) -> vec4<f32> {
    if (p.bias == 1u && p.last == p.steps) {
        return row_bias[at.bias + min(quad, at.quads - 1u)];
    }
    return vec4<f32>();
}

// Which columns of a quad are not padding.
fn real(at: Place, quad: u32) -> vec4<bool> {
    return vec4<u32>(quad * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(at.cols);
}

//# if SHARED
// 8 x 8 invocations of 8 rows x 2 quads each; both operands pass through workgroup memory, DEPTH deep, k-major. Rows,
// columns and depth beyond the operands are read as the nearest element there is, and depth beyond them as zero.

var<workgroup> a_tile: array<vec4<f32>, TM * DEPTH / 4u>;
var<workgroup> b_tile: array<vec4<f32>, TN * DEPTH / 4u>;

fn keep(k: u32, depth: u32) -> vec4<bool> {
    return vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(depth);
}

fn load_a(at: Place, k: u32, lane: u32) {
    let stride = p.a_stride / 4u;
//# if A_ALONG
    // Four rows of four k each, turned by registers: a whole vec4 is written by one invocation.
    let k_quad = lane % (DEPTH / 4u);
    let row_quad = lane / (DEPTH / 4u);
    let valid = keep(k + k_quad * 4u, at.depth);
    let quad = min(k / 4u + k_quad, (at.depth - 1u) / 4u);
//# repeat r 0..4
    let v${r} = select(vec4<f32>(), a[at.a + min(row_quad * 4u + ${r}u, at.rows - 1u) * stride + quad], valid);
//# end
    a_tile[(k_quad * 4u + 0u) * (TM / 4u) + row_quad] = vec4<f32>(v0.x, v1.x, v2.x, v3.x);
    a_tile[(k_quad * 4u + 1u) * (TM / 4u) + row_quad] = vec4<f32>(v0.y, v1.y, v2.y, v3.y);
    a_tile[(k_quad * 4u + 2u) * (TM / 4u) + row_quad] = vec4<f32>(v0.z, v1.z, v2.z, v3.z);
    a_tile[(k_quad * 4u + 3u) * (TM / 4u) + row_quad] = vec4<f32>(v0.w, v1.w, v2.w, v3.w);
//# else
    for (var i = lane; i < TM * DEPTH / 4u; i += WG) {
        let row = k + i / (TM / 4u);
        let quad = min(i % (TM / 4u), (at.rows - 1u) / 4u);
        let v = a[at.a + min(row, at.depth - 1u) * stride + quad];
        a_tile[i] = select(vec4<f32>(), v, row < at.depth);
    }
//# end
}

fn load_b(at: Place, k: u32, lane: u32) {
    let stride = p.b_stride / 4u;
//# if B_ALONG
    let k_quad = lane % (DEPTH / 4u);
    let col_quad = lane / (DEPTH / 4u);
    let valid = keep(k + k_quad * 4u, at.depth);
    let quad = min(k / 4u + k_quad, (at.depth - 1u) / 4u);
//# repeat r 0..4
    let v${r} = select(vec4<f32>(), b[at.b + min(col_quad * 4u + ${r}u, at.cols - 1u) * stride + quad], valid);
//# end
    b_tile[(k_quad * 4u + 0u) * (TN / 4u) + col_quad] = vec4<f32>(v0.x, v1.x, v2.x, v3.x);
    b_tile[(k_quad * 4u + 1u) * (TN / 4u) + col_quad] = vec4<f32>(v0.y, v1.y, v2.y, v3.y);
    b_tile[(k_quad * 4u + 2u) * (TN / 4u) + col_quad] = vec4<f32>(v0.z, v1.z, v2.z, v3.z);
    b_tile[(k_quad * 4u + 3u) * (TN / 4u) + col_quad] = vec4<f32>(v0.w, v1.w, v2.w, v3.w);
//# else
    for (var i = lane; i < TN * DEPTH / 4u; i += WG) {
        let row = k + i / (TN / 4u);
        let quad = min(i % (TN / 4u), at.quads - 1u);
        let v = b[at.b + min(row, at.depth - 1u) * stride + quad];
        b_tile[i] = select(vec4<f32>(), v, row < at.depth);
    }
//# end
}

fn tile(group: u32, lane: u32) {
    let at = place(group);
    let row = lane / 8u * 8u;
    let quad = lane % 8u * 2u;
    let c_stride = p.c_stride / 4u;
//# repeat r 0..8
//# repeat q 0..2
    var sum_${r}_${q} = vec4<f32>();
//# end
//# end
    if (starts_from_c()) {
//# repeat r 0..8
        let c_${r} = at.c + min(row + ${r}u, at.rows - 1u) * c_stride;
//# repeat q 0..2
        sum_${r}_${q} = c[c_${r} + min(quad + ${q}u, at.quads - 1u)];
//# end
//# end
    }
    for (var k = 0u; k < at.depth; k += DEPTH) {
        load_a(at, k, lane);
        load_b(at, k, lane);
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            let a0 = a_tile[d * (TM / 4u) + row / 4u];
            let a1 = a_tile[d * (TM / 4u) + row / 4u + 1u];
//# repeat q 0..2
            let b${q} = b_tile[d * (TN / 4u) + quad + ${q}u];
            sum_0_${q} = fma(vec4<f32>(a0.x), b${q}, sum_0_${q});
            sum_1_${q} = fma(vec4<f32>(a0.y), b${q}, sum_1_${q});
            sum_2_${q} = fma(vec4<f32>(a0.z), b${q}, sum_2_${q});
            sum_3_${q} = fma(vec4<f32>(a0.w), b${q}, sum_3_${q});
            sum_4_${q} = fma(vec4<f32>(a1.x), b${q}, sum_4_${q});
            sum_5_${q} = fma(vec4<f32>(a1.y), b${q}, sum_5_${q});
            sum_6_${q} = fma(vec4<f32>(a1.z), b${q}, sum_6_${q});
            sum_7_${q} = fma(vec4<f32>(a1.w), b${q}, sum_7_${q});
//# end
        }
        workgroupBarrier();
    }
//# repeat q 0..2
    if (quad + ${q}u < at.quads) {
        let bias = bias_of(at, quad + ${q}u);
        let mask = real(at, quad + ${q}u);
//# repeat r 0..8
        if (row + ${r}u < at.rows) {
            c[at.c + (row + ${r}u) * c_stride + quad + ${q}u] = select(vec4<f32>(), sum_${r}_${q} + bias, mask);
        }
//# end
    }
//# end
}
//# else
// Each invocation owns all TM rows of QUADS quads of columns, in named accumulators, and nothing is shared: on an adapter
// that runs lanes as the elements of vectors, A is then read once for all lanes, and there is no barrier. Where k runs
// along A, four of k are taken at a time, and the zeros of A's padding columns end the contraction.

fn tile(group: u32, lane: u32) {
    let at = place(group);
    let first = lane * QUADS;
    let a_stride = p.a_stride / 4u;
    let b_stride = p.b_stride / 4u;
//# repeat q 0..QUADS
//# if B_ALONG
//# repeat t 0..4
    let b_${q}_${t} = at.b + min(first * 4u + ${4*q+t}u, at.cols - 1u) * b_stride;
//# end
//# else
    let b_${q} = at.b + min(first + ${q}u, at.quads - 1u);
//# end
//# end
//# if A_ALONG
//# repeat r 0..TM
    let a_${r} = at.a + min(${r}u, at.rows - 1u) * a_stride;
//# end
//# else
//# repeat g 0..TM_QUADS
    let a_${g} = at.a + min(${g}u, (at.rows - 1u) / 4u);
//# end
//# end
    let c_stride = p.c_stride / 4u;
//# repeat r 0..TM
//# repeat q 0..QUADS
    var sum_${r}_${q} = vec4<f32>();
//# end
//# end
    if (starts_from_c()) {
//# repeat r 0..TM
        let c_${r} = at.c + min(${r}u, at.rows - 1u) * c_stride;
//# repeat q 0..QUADS
        sum_${r}_${q} = c[c_${r} + min(first + ${q}u, at.quads - 1u)];
//# end
//# end
    }
//# if A_ALONG
    let last = at.depth - 1u;
    for (var k = 0u; k < at.depth; k += 4u) {
//# repeat r 0..TM
        let x_${r} = a[a_${r} + k / 4u];
//# end
//# repeat q 0..QUADS
//# if B_ALONG
//# repeat t 0..4
        let w_${q}_${t} = b[b_${q}_${t} + k / 4u];
//# end
        let z_${q}_0 = vec4<f32>(w_${q}_0.x, w_${q}_1.x, w_${q}_2.x, w_${q}_3.x);
        let z_${q}_1 = vec4<f32>(w_${q}_0.y, w_${q}_1.y, w_${q}_2.y, w_${q}_3.y);
        let z_${q}_2 = vec4<f32>(w_${q}_0.z, w_${q}_1.z, w_${q}_2.z, w_${q}_3.z);
        let z_${q}_3 = vec4<f32>(w_${q}_0.w, w_${q}_1.w, w_${q}_2.w, w_${q}_3.w);
//# else
//# repeat t 0..4
        let z_${q}_${t} = b[b_${q} + min(k + ${t}u, last) * b_stride];
//# end
//# end
//# repeat r 0..TM
        sum_${r}_${q} = fma(vec4<f32>(x_${r}.x), z_${q}_0, sum_${r}_${q});
        sum_${r}_${q} = fma(vec4<f32>(x_${r}.y), z_${q}_1, sum_${r}_${q});
        sum_${r}_${q} = fma(vec4<f32>(x_${r}.z), z_${q}_2, sum_${r}_${q});
        sum_${r}_${q} = fma(vec4<f32>(x_${r}.w), z_${q}_3, sum_${r}_${q});
//# end
//# end
    }
//# else
    for (var k = 0u; k < at.depth; k++) {
//# repeat g 0..TM_QUADS
        let x_${g} = a[a_${g} + k * a_stride];
//# end
//# repeat q 0..QUADS
        let z_${q} = b[b_${q} + k * b_stride];
//# repeat g 0..TM_QUADS
        sum_${4*g}_${q} = fma(vec4<f32>(x_${g}.x), z_${q}, sum_${4*g}_${q});
        sum_${4*g+1}_${q} = fma(vec4<f32>(x_${g}.y), z_${q}, sum_${4*g+1}_${q});
        sum_${4*g+2}_${q} = fma(vec4<f32>(x_${g}.z), z_${q}, sum_${4*g+2}_${q});
        sum_${4*g+3}_${q} = fma(vec4<f32>(x_${g}.w), z_${q}, sum_${4*g+3}_${q});
//# end
//# end
    }
//# end
//# repeat q 0..QUADS
    if (first + ${q}u < at.quads) {
        let bias = bias_of(at, first + ${q}u);
        let mask = real(at, first + ${q}u);
//# repeat r 0..TM
        if (${r}u < at.rows) {
            c[at.c + ${r}u * c_stride + first + ${q}u] = select(vec4<f32>(), sum_${r}_${q} + bias, mask);
        }
//# end
    }
//# end
}
//# end

//# entry matmul_nt

@compute @workgroup_size(WG, 1, 1)
fn matmul_nt(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group < p.groups) {
        tile(group, lane);
    }
}

//# entry matmul_nn

@compute @workgroup_size(WG, 1, 1)
fn matmul_nn(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group < p.groups) {
        tile(group, lane);
    }
}

//# entry matmul_tn

@compute @workgroup_size(WG, 1, 1)
fn matmul_tn(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group < p.groups) {
        tile(group, lane);
    }
}
