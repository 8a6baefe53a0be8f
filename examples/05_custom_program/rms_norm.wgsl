// RMS norm: y = x * gain / sqrt(mean(x^2) + eps), each row alone. A tile owns one row.
// Struct `Params`, the bindings `x`, `gain`, `y` and the constant `WG` are generated from the declaration in main.rs.

// One partial sum of squares for each invocation: all that the tile keeps in its SRAM.
var<workgroup> partial: array<f32, WG>;

//# entry rms_norm
@compute @workgroup_size(WG, 1, 1)
fn rms_norm(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // More tiles than one dimension of a dispatch can have are folded over two; those past the last have no row.
    let row = id.y * count.x + id.x;
    if (row >= p.groups) {
        return;
    }
    let first = p.x_offset + row * p.stride;
    var sum = 0.0;
    for (var col = lane; col < p.cols; col += WG) {
        sum = fma(x[first + col], x[first + col], sum);
    }
    partial[lane] = sum;
    // The tree has one order of additions, whatever the adapter.
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            partial[lane] += partial[lane + half];
        }
    }
    workgroupBarrier();
    let scale = inverseSqrt(partial[0] / f32(p.cols) + p.eps);
    // Padding columns are written too, as zeros: x is zero there.
    for (var col = lane; col < p.stride; col += WG) {
        var g = 0.0;
        if (col < p.cols) {
            g = gain[col];
        }
        y[p.y_offset + row * p.stride + col] = x[first + col] * scale * g;
    }
}
