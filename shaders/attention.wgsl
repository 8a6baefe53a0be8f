// Attention as an online softmax: forward, gradient of the queries, gradient of keys and values, and delta.
// Struct `Params`, bindings and constants are generated from the declarations in src/program/attention/.
//
// A lane owns R rows of the tile's own block (queries, or keys in the last kernel) and is the only one that touches their
// accumulators, so nothing is reduced across lanes. A step receives COLS rows of the other side, QUADS vec4 of them; where
// STAGED, the workgroup first copies them into shared memory, transposed, else each lane reads them where they lie.
// Received rows past the last live one repeat it with weight zero: memory beyond is never read.

const LOWEST: f32 = -3.0e38;
const CAUSAL: u32 = 1u;
const INBOX: u32 = 2u;
const SAVES: u32 = 4u;

var<workgroup> acc: array<f32, ${HEAD*ROWS}>;
//# if STAGED
var<workgroup> stage: array<vec4<f32>, ${HEAD*QUADS}>;
//# end

struct Tile { batch: u32, block: u32, head: u32 }

// Of sequences with `len` rows on the side that stays.
fn tile_of(group: u32, len: u32) -> Tile {
    let i = p.first_row + group / p.width;
    let blocks = (len + ROWS - 1u) / ROWS;
    return Tile(i / blocks, i % blocks, p.first_col + group % p.width);
}

fn causal() -> bool { return (p.flags & CAUSAL) != 0u; }
fn inbox() -> bool { return (p.flags & INBOX) != 0u; }

// The first key that a query at row `row` of its batch entry may not see.
fn horizon(row: u32) -> u32 {
    return select(p.key_value_len, min(p.key_value_len, p.query_start + row + 1u), causal());
}

// The first key that it sees.
fn nearest(row: u32) -> u32 {
    let end = p.query_start + row + 1u;
    return select(0u, max(end, p.window) - p.window, p.window > 0u);
}

// Where the received rows of two operands begin, each with the elements from one to the next: in place or in the inboxes.
fn received(group: u32, in_place: vec4<u32>) -> vec4<u32> {
    let stride = (p.head_size + 7u) & ~7u;
    return select(in_place, vec4<u32>(group * COLS * stride, stride, group * COLS * stride, stride), inbox());
}

// Addresses of received rows 4j .. 4j+4, of which `live` exist.
fn quad_rows(base: u32, stride: u32, j: u32, live: u32) -> vec4<u32> {
    return base + min(vec4<u32>(4u * j) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(live - 1u)) * stride;
}

//# if DROPOUT
fn seed() -> vec2<u32> { return vec2<u32>(p.key_low, p.key_high); }

// The index of the pair of a query, counted through all heads and sequences, and a key: its low and its high word.
fn pair(query: u32, key: u32) -> vec2<u32> {
    let low = query * p.key_value_len + key;
    return vec2<u32>(low, mul_high(query, p.key_value_len) + select(0u, 1u, low < key));
}

// What the weights that have these words are multiplied by.
fn factors(words: vec4<u32>) -> vec4<f32> {
    return select(vec4<f32>(0.0), vec4<f32>(4294967296.0 / f32(0u - p.threshold)), words >= vec4<u32>(p.threshold));
}

// The same of a query and four keys.
fn key_factors(query: u32, key: u32) -> vec4<f32> {
    let at = pair(query, key);
    return factors(philox_quad(at.x, at.y, 0u, 1u, seed()));
}

fn word(query: u32, key: u32) -> u32 {
    let at = pair(query, key);
    return philox(vec4<u32>((at.x >> 2u) | (at.y << 30u), at.y >> 2u, 0u, 1u), seed())[at.x & 3u];
}

// The same of four queries and a key.
fn query_factors(queries: vec4<u32>, key: u32) -> vec4<f32> {
    return factors(vec4<u32>(word(queries.x, key), word(queries.y, key), word(queries.z, key), word(queries.w, key)));
}
//# end

//# entry attention_forward

fn k_quad(at: vec4<u32>, d: u32) -> vec4<f32> { return vec4<f32>(k[at.x + d], k[at.y + d], k[at.z + d], k[at.w + d]); }
fn v_quad(at: vec4<u32>, d: u32) -> vec4<f32> { return vec4<f32>(v[at.x + d], v[at.y + d], v[at.z + d], v[at.w + d]); }

@compute @workgroup_size(WG, 1, 1)
fn attention_forward(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) { return; }
    let tile = tile_of(group, p.query_len);
    let size = p.head_size;
    let first_query = tile.block * ROWS;
    let visible = horizon(min(first_query + ROWS, p.query_len) - 1u);
    let top = (visible + COLS - 1u) / COLS;
    let pairs = (tile.batch * p.query_heads + tile.head) * p.query_len;
    let blocks = top - nearest(first_query) / COLS;
    let saved = group * ROWS * (size + 2u) + lane;
    //# repeat r 0..R
    let row${r} = min(first_query + ${r}u * WG + lane, p.query_len - 1u);
    let first_seen${r} = nearest(row${r});
    let seen${r} = horizon(row${r}) - first_seen${r};
    let q${r} = p.q_offset + (tile.batch * p.query_len + row${r}) * p.q_stride + tile.head * size;
    var m${r} = LOWEST;
    var l${r} = 0.0;
    if (p.first_step > 0u) {
        m${r} = state[saved + ${r}u * WG];
        l${r} = state[saved + ROWS + ${r}u * WG];
    }
    for (var d = 0u; d < size; d++) {
        var o = 0.0;
        if (p.first_step > 0u) {
            o = state[saved + (d + 2u) * ROWS + ${r}u * WG];
        }
        acc[d * ROWS + ${r}u * WG + lane] = o;
    }
    //# end
    for (var step = p.first_step; step < min(p.last_step, blocks); step++) {
        let first_key = (top - 1u - step) * COLS;
        let live = min(COLS, visible - first_key);
        let row = tile.batch * p.key_value_rows + first_key;
        let k_row = p.k_offset + row * p.k_stride + tile.head / p.group * size;
        let v_row = p.v_offset + row * p.v_stride + tile.head / p.group * size;
        let rows = received(group, vec4<u32>(k_row, p.k_stride, v_row, p.v_stride));
        //# repeat j 0..QUADS
        let k_at${j} = quad_rows(rows.x, rows.y, ${j}u, live);
        let v_at${j} = quad_rows(rows.z, rows.w, ${j}u, live);
        let keys${j} = vec4<u32>(first_key + ${4*j}u) + vec4<u32>(0u, 1u, 2u, 3u);
        //# repeat r 0..R
        var s${r}_${j} = vec4<f32>(0.0);
        //# end
        //# end
        //# if STAGED
        workgroupBarrier();
        for (var d = lane; d < size; d += WG) {
            //# repeat j 0..QUADS
            stage[d * QUADS + ${j}u] = k_quad(k_at${j}, d);
            //# end
        }
        workgroupBarrier();
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            let x${r} = vec4<f32>(q[q${r} + d]);
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = k_quad(k_at${j}, d);
            //# end
            //# repeat r 0..R
            s${r}_${j} = fma(x${r}, t${j}, s${r}_${j});
            //# end
            //# end
        }
        //# repeat r 0..R
        var top${r} = m${r};
        //# repeat j 0..QUADS
        let seen${r}_${j} = keys${j} - vec4<u32>(first_seen${r}) < vec4<u32>(seen${r});
        s${r}_${j} = select(vec4<f32>(LOWEST), p.scale * s${r}_${j}, seen${r}_${j});
        top${r} = max(top${r}, max(max(s${r}_${j}.x, s${r}_${j}.y), max(s${r}_${j}.z, s${r}_${j}.w)));
        //# end
        let fade${r} = exp(m${r} - top${r});
        m${r} = top${r};
        l${r} = l${r} * fade${r};
        //# repeat j 0..QUADS
        s${r}_${j} = select(vec4<f32>(0.0), exp(s${r}_${j} - vec4<f32>(m${r})), seen${r}_${j});
        l${r} = (((l${r} + s${r}_${j}.x) + s${r}_${j}.y) + s${r}_${j}.z) + s${r}_${j}.w;
        //# if DROPOUT
        s${r}_${j} = s${r}_${j} * key_factors(pairs + row${r}, keys${j}.x);
        //# end
        //# end
        //# end
        //# if STAGED
        workgroupBarrier();
        for (var d = lane; d < size; d += WG) {
            //# repeat j 0..QUADS
            stage[d * QUADS + ${j}u] = v_quad(v_at${j}, d);
            //# end
        }
        workgroupBarrier();
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            var o${r} = acc[d * ROWS + ${r}u * WG + lane] * fade${r};
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = v_quad(v_at${j}, d);
            //# end
            //# repeat r 0..R
            o${r} = fma(s${r}_${j}.x, t${j}.x, o${r});
            o${r} = fma(s${r}_${j}.y, t${j}.y, o${r});
            o${r} = fma(s${r}_${j}.z, t${j}.z, o${r});
            o${r} = fma(s${r}_${j}.w, t${j}.w, o${r});
            //# end
            //# end
            //# repeat r 0..R
            acc[d * ROWS + ${r}u * WG + lane] = o${r};
            //# end
        }
    }
    //# repeat r 0..R
    if ((p.flags & SAVES) != 0u) {
        state[saved + ${r}u * WG] = m${r};
        state[saved + ROWS + ${r}u * WG] = l${r};
        for (var d = 0u; d < size; d++) {
            state[saved + (d + 2u) * ROWS + ${r}u * WG] = acc[d * ROWS + ${r}u * WG + lane];
        }
    } else if (first_query + ${r}u * WG + lane < p.query_len) {
        let o_at${r} = p.o_offset + (tile.batch * p.query_len + row${r}) * p.o_stride + tile.head * size;
        for (var d = 0u; d < size; d++) {
            out[o_at${r} + d] = acc[d * ROWS + ${r}u * WG + lane] / l${r};
        }
        lse[p.row_offset + (tile.batch * p.query_heads + tile.head) * p.row_stride + row${r}] = m${r} + log(l${r});
    }
    //# end
}

//# entry attention_backward_query

fn k_quad(at: vec4<u32>, d: u32) -> vec4<f32> { return vec4<f32>(k[at.x + d], k[at.y + d], k[at.z + d], k[at.w + d]); }
fn v_quad(at: vec4<u32>, d: u32) -> vec4<f32> { return vec4<f32>(v[at.x + d], v[at.y + d], v[at.z + d], v[at.w + d]); }

@compute @workgroup_size(WG, 1, 1)
fn attention_backward_query(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) { return; }
    let tile = tile_of(group, p.query_len);
    let size = p.head_size;
    let first_query = tile.block * ROWS;
    let visible = horizon(min(first_query + ROWS, p.query_len) - 1u);
    let top = (visible + COLS - 1u) / COLS;
    let pairs = (tile.batch * p.query_heads + tile.head) * p.query_len;
    let blocks = top - nearest(first_query) / COLS;
    let saved = group * ROWS * size + lane;
    //# repeat r 0..R
    let row${r} = min(first_query + ${r}u * WG + lane, p.query_len - 1u);
    let first_seen${r} = nearest(row${r});
    let seen${r} = horizon(row${r}) - first_seen${r};
    let q${r} = p.q_offset + (tile.batch * p.query_len + row${r}) * p.q_stride + tile.head * size;
    let o${r} = p.o_offset + (tile.batch * p.query_len + row${r}) * p.o_stride + tile.head * size;
    let scalar${r} = p.row_offset + (tile.batch * p.query_heads + tile.head) * p.row_stride + row${r};
    let lse${r} = vec4<f32>(lse[scalar${r}]);
    let delta${r} = vec4<f32>(delta[scalar${r}]);
    for (var d = 0u; d < size; d++) {
        var x = 0.0;
        if (p.first_step > 0u) {
            x = state[saved + d * ROWS + ${r}u * WG];
        }
        acc[d * ROWS + ${r}u * WG + lane] = x;
    }
    //# end
    for (var step = p.first_step; step < min(p.last_step, blocks); step++) {
        let first_key = (top - 1u - step) * COLS;
        let live = min(COLS, visible - first_key);
        let row = tile.batch * p.key_value_rows + first_key;
        let k_row = p.k_offset + row * p.k_stride + tile.head / p.group * size;
        let v_row = p.v_offset + row * p.v_stride + tile.head / p.group * size;
        let rows = received(group, vec4<u32>(k_row, p.k_stride, v_row, p.v_stride));
        //# repeat j 0..QUADS
        let k_at${j} = quad_rows(rows.x, rows.y, ${j}u, live);
        let v_at${j} = quad_rows(rows.z, rows.w, ${j}u, live);
        let keys${j} = vec4<u32>(first_key + ${4*j}u) + vec4<u32>(0u, 1u, 2u, 3u);
        //# repeat r 0..R
        var s${r}_${j} = vec4<f32>(0.0);
        var dp${r}_${j} = vec4<f32>(0.0);
        //# end
        //# end
        //# if STAGED
        workgroupBarrier();
        for (var d = lane; d < size; d += WG) {
            //# repeat j 0..QUADS
            stage[d * QUADS + ${j}u] = v_quad(v_at${j}, d);
            //# end
        }
        workgroupBarrier();
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            let x${r} = vec4<f32>(d_out[o${r} + d]);
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = v_quad(v_at${j}, d);
            //# end
            //# repeat r 0..R
            dp${r}_${j} = fma(x${r}, t${j}, dp${r}_${j});
            //# end
            //# end
        }
        //# if STAGED
        workgroupBarrier();
        for (var d = lane; d < size; d += WG) {
            //# repeat j 0..QUADS
            stage[d * QUADS + ${j}u] = k_quad(k_at${j}, d);
            //# end
        }
        workgroupBarrier();
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            let x${r} = vec4<f32>(q[q${r} + d]);
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = k_quad(k_at${j}, d);
            //# end
            //# repeat r 0..R
            s${r}_${j} = fma(x${r}, t${j}, s${r}_${j});
            //# end
            //# end
        }
        //# repeat r 0..R
        //# repeat j 0..QUADS
        //# if DROPOUT
        dp${r}_${j} = dp${r}_${j} * key_factors(pairs + row${r}, keys${j}.x);
        //# end
        let p${r}_${j} = exp(p.scale * s${r}_${j} - lse${r});
        let seen${r}_${j} = keys${j} - vec4<u32>(first_seen${r}) < vec4<u32>(seen${r});
        s${r}_${j} = select(vec4<f32>(0.0), p${r}_${j} * (dp${r}_${j} - delta${r}), seen${r}_${j});
        //# end
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            var x${r} = acc[d * ROWS + ${r}u * WG + lane];
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = k_quad(k_at${j}, d);
            //# end
            //# repeat r 0..R
            x${r} = fma(s${r}_${j}.x, t${j}.x, x${r});
            x${r} = fma(s${r}_${j}.y, t${j}.y, x${r});
            x${r} = fma(s${r}_${j}.z, t${j}.z, x${r});
            x${r} = fma(s${r}_${j}.w, t${j}.w, x${r});
            //# end
            //# end
            //# repeat r 0..R
            acc[d * ROWS + ${r}u * WG + lane] = x${r};
            //# end
        }
    }
    //# repeat r 0..R
    if ((p.flags & SAVES) != 0u) {
        for (var d = 0u; d < size; d++) {
            state[saved + d * ROWS + ${r}u * WG] = acc[d * ROWS + ${r}u * WG + lane];
        }
    } else if (first_query + ${r}u * WG + lane < p.query_len) {
        let at${r} = p.grad_offset + (tile.batch * p.query_len + row${r}) * p.grad_stride + tile.head * size;
        for (var d = 0u; d < size; d++) {
            dq[at${r} + d] = p.scale * acc[d * ROWS + ${r}u * WG + lane];
        }
    }
    //# end
}

//# entry attention_backward_key_value

var<workgroup> acc_v: array<f32, ${HEAD*ROWS}>;

fn q_quad(at: vec4<u32>, d: u32) -> vec4<f32> { return vec4<f32>(q[at.x + d], q[at.y + d], q[at.z + d], q[at.w + d]); }
fn o_quad(at: vec4<u32>, d: u32) -> vec4<f32> { return vec4<f32>(d_out[at.x + d], d_out[at.y + d], d_out[at.z + d], d_out[at.w + d]); }

@compute @workgroup_size(WG, 1, 1)
fn attention_backward_key_value(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) { return; }
    let tile = tile_of(group, p.key_value_len);
    let size = p.head_size;
    let first_key = tile.block * ROWS;
    // Queries that see one of the tile's keys, and their blocks. A key is seen from its position on, by `reach` queries.
    let last_key = min(first_key + ROWS, p.key_value_len) - 1u;
    let reach = select(0x80000000u, p.window, p.window > 0u);
    let first = select(0u, max(first_key, p.query_start) - p.query_start, causal());
    let end = min(p.query_len, max(last_key + reach, p.query_start) - p.query_start);
    let near = first / COLS;
    let blocks = select(0u, (end + COLS - 1u) / COLS - near, first < end);
    let saved = group * 2u * ROWS * size + lane;
    //# repeat r 0..R
    let row${r} = min(first_key + ${r}u * WG + lane, p.key_value_len - 1u);
    let k${r} = p.k_offset + (tile.batch * p.key_value_rows + row${r}) * p.k_stride + tile.head * size;
    let v${r} = p.v_offset + (tile.batch * p.key_value_rows + row${r}) * p.v_stride + tile.head * size;
    for (var d = 0u; d < size; d++) {
        var x = 0.0;
        var y = 0.0;
        if (p.first_step > 0u) {
            x = state[saved + d * ROWS + ${r}u * WG];
            y = state[saved + (size + d) * ROWS + ${r}u * WG];
        }
        acc[d * ROWS + ${r}u * WG + lane] = x;
        acc_v[d * ROWS + ${r}u * WG + lane] = y;
    }
    //# end
    for (var step = p.first_step; step < min(p.last_step, p.group * blocks); step++) {
        let head = tile.head * p.group + step / blocks;
        let first_query = (near + step % blocks) * COLS;
        let live = min(COLS, end - first_query);
        let row = tile.batch * p.query_len + first_query;
        let q_row = p.q_offset + row * p.q_stride + head * size;
        let o_row = p.o_offset + row * p.o_stride + head * size;
        let rows = received(group, vec4<u32>(q_row, p.q_stride, o_row, p.o_stride));
        let first_scalar = p.row_offset + (tile.batch * p.query_heads + head) * p.row_stride + first_query;
        let scalar = select(first_scalar, group * COLS, inbox());
        //# repeat j 0..QUADS
        let q_at${j} = quad_rows(rows.x, rows.y, ${j}u, live);
        let o_at${j} = quad_rows(rows.z, rows.w, ${j}u, live);
        let scalar_at${j} = quad_rows(scalar, 1u, ${j}u, live);
        let lse${j} = vec4<f32>(lse[scalar_at${j}.x], lse[scalar_at${j}.y], lse[scalar_at${j}.z], lse[scalar_at${j}.w]);
        let delta${j} = vec4<f32>(delta[scalar_at${j}.x], delta[scalar_at${j}.y], delta[scalar_at${j}.z], delta[scalar_at${j}.w]);
        let queries${j} = vec4<u32>(first_query + ${4*j}u) + vec4<u32>(0u, 1u, 2u, 3u);
        //# repeat r 0..R
        var s${r}_${j} = vec4<f32>(0.0);
        var dp${r}_${j} = vec4<f32>(0.0);
        //# end
        //# end
        //# if STAGED
        workgroupBarrier();
        for (var d = lane; d < size; d += WG) {
            //# repeat j 0..QUADS
            stage[d * QUADS + ${j}u] = q_quad(q_at${j}, d);
            //# end
        }
        workgroupBarrier();
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            let x${r} = vec4<f32>(k[k${r} + d]);
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = q_quad(q_at${j}, d);
            //# end
            //# repeat r 0..R
            s${r}_${j} = fma(x${r}, t${j}, s${r}_${j});
            //# end
            //# end
        }
        //# repeat r 0..R
        //# repeat j 0..QUADS
        let seen${r}_${j} = (queries${j} < vec4<u32>(p.query_len))
            & ((queries${j} + vec4<u32>(p.query_start - row${r}) < vec4<u32>(reach)) | vec4<bool>(!causal()));
        s${r}_${j} = select(vec4<f32>(0.0), exp(p.scale * s${r}_${j} - lse${j}), seen${r}_${j});
        //# if DROPOUT
        let kept${r}_${j} = query_factors((tile.batch * p.query_heads + head) * p.query_len + queries${j}, row${r});
        let w${r}_${j} = s${r}_${j} * kept${r}_${j};
        //# else
        let w${r}_${j} = s${r}_${j};
        //# end
        //# end
        //# end
        //# if STAGED
        workgroupBarrier();
        for (var d = lane; d < size; d += WG) {
            //# repeat j 0..QUADS
            stage[d * QUADS + ${j}u] = o_quad(o_at${j}, d);
            //# end
        }
        workgroupBarrier();
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            let x${r} = vec4<f32>(v[v${r} + d]);
            var y${r} = acc_v[d * ROWS + ${r}u * WG + lane];
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = o_quad(o_at${j}, d);
            //# end
            //# repeat r 0..R
            dp${r}_${j} = fma(x${r}, t${j}, dp${r}_${j});
            y${r} = fma(w${r}_${j}.x, t${j}.x, y${r});
            y${r} = fma(w${r}_${j}.y, t${j}.y, y${r});
            y${r} = fma(w${r}_${j}.z, t${j}.z, y${r});
            y${r} = fma(w${r}_${j}.w, t${j}.w, y${r});
            //# end
            //# end
            //# repeat r 0..R
            acc_v[d * ROWS + ${r}u * WG + lane] = y${r};
            //# end
        }
        //# repeat r 0..R
        //# repeat j 0..QUADS
        //# if DROPOUT
        dp${r}_${j} = dp${r}_${j} * kept${r}_${j};
        //# end
        s${r}_${j} = select(vec4<f32>(0.0), s${r}_${j} * (dp${r}_${j} - delta${j}), seen${r}_${j});
        //# end
        //# end
        //# if STAGED
        workgroupBarrier();
        for (var d = lane; d < size; d += WG) {
            //# repeat j 0..QUADS
            stage[d * QUADS + ${j}u] = q_quad(q_at${j}, d);
            //# end
        }
        workgroupBarrier();
        //# end
        for (var d = 0u; d < size; d++) {
            //# repeat r 0..R
            var x${r} = acc[d * ROWS + ${r}u * WG + lane];
            //# end
            //# repeat j 0..QUADS
            //# if STAGED
            let t${j} = stage[d * QUADS + ${j}u];
            //# else
            let t${j} = q_quad(q_at${j}, d);
            //# end
            //# repeat r 0..R
            x${r} = fma(s${r}_${j}.x, t${j}.x, x${r});
            x${r} = fma(s${r}_${j}.y, t${j}.y, x${r});
            x${r} = fma(s${r}_${j}.z, t${j}.z, x${r});
            x${r} = fma(s${r}_${j}.w, t${j}.w, x${r});
            //# end
            //# end
            //# repeat r 0..R
            acc[d * ROWS + ${r}u * WG + lane] = x${r};
            //# end
        }
    }
    //# repeat r 0..R
    if ((p.flags & SAVES) != 0u) {
        for (var d = 0u; d < size; d++) {
            state[saved + d * ROWS + ${r}u * WG] = acc[d * ROWS + ${r}u * WG + lane];
            state[saved + (size + d) * ROWS + ${r}u * WG] = acc_v[d * ROWS + ${r}u * WG + lane];
        }
    } else if (first_key + ${r}u * WG + lane < p.key_value_len) {
        let at${r} = tile.batch * p.key_value_rows + row${r};
        for (var d = 0u; d < size; d++) {
            dkv[p.grad_offset + at${r} * p.grad_stride + tile.head * size + d] = p.scale * acc[d * ROWS + ${r}u * WG + lane];
            dkv[p.grad_v_offset + at${r} * p.grad_stride + tile.head * size + d] = acc_v[d * ROWS + ${r}u * WG + lane];
        }
    }
    //# end
}

//# entry attention_delta

@compute @workgroup_size(WG, 1, 1)
fn attention_delta(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    let tile = tile_of(group, p.query_len);
    let row = tile.block * ROWS + lane;
    if (group >= p.groups || row >= p.query_len) {
        return;
    }
    let at = tile.batch * p.query_len + row;
    let o_at = p.o_offset + at * p.o_stride + tile.head * p.head_size;
    let d_at = p.grad_offset + at * p.grad_stride + tile.head * p.head_size;
    var sum = 0.0;
    for (var d = 0u; d < p.head_size; d++) {
        sum = fma(out[o_at + d], d_out[d_at + d], sum);
    }
    delta[p.row_offset + (tile.batch * p.query_heads + tile.head) * p.row_stride + row] = sum;
}
