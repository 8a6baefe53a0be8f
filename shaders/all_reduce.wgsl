// One superstep of a scalar all-reduce. A tile adds what its neighbours left for it to what it holds, west, east, north,
// south in this order, keeps the result, and leaves it for those neighbours that hear it next. A superstep is LINES straight
// lines of tiles, some of them empty. A message is a slot of the sender's outbox: after the buffers have changed places, it
// is read there.
// Struct `Params`, bindings and constants are generated from the declaration in src/program/all_reduce.rs.

// The sum after the message at a port, if the task takes one there.
fn receive(sum: f32, task: u32, port: u32, neighbour: u32) -> f32 {
    if ((task & (TAKE << port)) == 0u) {
        return sum;
    }
    // Ports are numbered clockwise: the neighbour sent it through the opposite one.
    let message = inbox[4u * neighbour + (port ^ 2u)];
    return select(sum + message, message, (task & PASS) != 0u);
}

// Leaves the sum at a port, if the task says so and a neighbour is there; counts the messages.
fn send(sum: f32, task: u32, port: u32, there: bool, tile: u32) -> u32 {
    if ((task & (SEND << port)) == 0u || !there) {
        return 0u;
    }
    outbox[4u * tile + port] = sum;
    return 1u;
}

//# entry all_reduce

@compute @workgroup_size(WG, 1, 1)
fn all_reduce(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    var at = wid.y * nwg.x + wid.x;
    if (at >= p.groups) {
        return;
    }
    var line = vec4<u32>(p.first_0, p.stride_0, p.count_0, p.task_0);
//# repeat i 1..LINES
    if (at >= line.z) {
        at -= line.z;
        line = vec4<u32>(p.first_${i}, p.stride_${i}, p.count_${i}, p.task_${i});
    }
//# end
    let tile = line.x + at * line.y;
    let task = line.w;
    var sum = 0.0;
    if ((task & OWN) != 0u) {
        sum = own[tile];
    } else {
        sum = sums[tile];
    }
    sum = receive(sum, task, WEST, tile - 1u);
    sum = receive(sum, task, EAST, tile + 1u);
    sum = receive(sum, task, NORTH, tile - p.width);
    sum = receive(sum, task, SOUTH, tile + p.width);
    sums[tile] = sum;
    let x = tile % p.width;
    var sent = send(sum, task, WEST, x > 0u, tile);
    sent += send(sum, task, EAST, x + 1u < p.width, tile);
    sent += send(sum, task, NORTH, tile >= p.width, tile);
    sent += send(sum, task, SOUTH, tile + p.width < p.tiles, tile);
    tally[2u * tile] += 1u;
    tally[2u * tile + 1u] += sent;
}
