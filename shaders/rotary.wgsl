// Rotary position embedding, in place. A tile owns a run of WG * PAIRS pairs of one row; nothing crosses tiles.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/rotary.rs.

const RUN: u32 = WG * PAIRS;

//# entry rotary

@compute @workgroup_size(WG, 1, 1)
fn rotary(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.y * nwg.x + wid.x;
    if (group >= p.groups) {
        return;
    }
    let pairs = p.heads * p.half;
    let runs = (pairs + RUN - 1u) / RUN;
    let row = group / runs;
    let first = (group - row * runs) * RUN + lane;
    let last = min(pairs, first + RUN);
    // The two of a pair lie half the rotated columns apart, or side by side.
    let apart = select(p.half, 1u, p.interleaved == 1u);
    let angles = p.table_offset + (p.start + row % p.seq_len) * p.table_stride;
    for (var pair = first; pair < last; pair += WG) {
        let head = pair / p.half;
        let i = pair - head * p.half;
        let c = table[angles + i];
        let s = p.sign * table[angles + p.half + i];
        let at = p.x_offset + row * p.x_stride + head * p.head_size + i * (1u + p.interleaved);
        let a = x[at];
        let b = x[at + apart];
        x[at] = fma(a, c, -(b * s));
        x[at + apart] = fma(b, c, a * s);
    }
}
