//! RMS norm: within the bound on every device; all gradients against central differences in f64, for whole rows and for
//! parts; parts give the bits of rows, slices those of whole matrices; equal bits for any number of host threads; and along lines of tiles.

use crate::fabric::relay::{Example, Operand, assert_is_sound, fused};
use crate::program::matmul;
use crate::rig;
use gaufre::device::Device;
use gaufre::program::relay::Relay;
use gaufre::program::{Matrix, check, column_sum, initial, layer_norm, rms_norm};

const EPSILON: f32 = 1e-5;

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("rms_norm") {
        for program in rms_norm::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

/// A bound that nothing comes near proves nothing.
#[test]
fn bound_is_tight() {
    for program in rms_norm::PROGRAMS {
        let reports = check::run(program, &rig::host(), 2).unwrap();
        let worst = reports.iter().map(|r| r.worst).fold(0.0, f64::max);
        assert!(worst > 0.01, "{}: worst error is {worst:.1e} of its bound", program.kernel.name);
    }
}

/// Normal values that are multiples of 1/1024, so that steps of as much from them are exact in f32.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| (1024.0 * initial::normal(seed, i as u64)).round() as f32 / 1024.0).collect()
}

fn matrix(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let matrix = Matrix::new(device, "matrix", rows, cols).unwrap();
    matrix.upload(device, values).unwrap();
    matrix
}

/// Rows, parts of a row, columns of a part.
type Shape = (usize, usize, usize);

/// Sum of cotangent * y, of x and gain.
fn loss(device: &Device, (rows, parts, cols): Shape, [x, gain]: &[Vec<f32>; 2], cotangent: &[f32]) -> f64 {
    let (x, gain) = (matrix(device, rows, parts * cols, x), matrix(device, 1, cols, gain));
    let y = Matrix::new(device, "y", rows, parts * cols).unwrap();
    let stats = Matrix::new(device, "stats", rows, parts).unwrap();
    rms_norm::forward(&fused(device), &x, &gain, parts, EPSILON, &y, &stats).unwrap();
    y.download_f64(device).unwrap().iter().zip(cotangent).map(|(y, &dy)| y * f64::from(dy)).sum()
}

/// Gradients of x (with `residual` added) and gain.
fn gradients(
    device: &Device,
    (rows, parts, cols): Shape,
    [x, gain]: &[Vec<f32>; 2],
    cotangent: &[f32],
    residual: Option<&[f32]>,
) -> [Vec<f64>; 2] {
    let whole = |values: &[f32]| matrix(device, rows, parts * cols, values);
    let (x, dy, residual) = (whole(x), whole(cotangent), residual.map(whole));
    let gain = matrix(device, 1, cols, gain);
    let [y, dx] = ["y", "dx"].map(|name| Matrix::new(device, name, rows, parts * cols).unwrap());
    let stats = Matrix::new(device, "stats", rows, parts).unwrap();
    let dgain = Matrix::new(device, "dgain", 1, cols).unwrap();
    rms_norm::forward(&fused(device), &x, &gain, parts, EPSILON, &y, &stats).unwrap();
    rms_norm::backward(&fused(device), &x, &gain, parts, &stats, &dy, residual.as_ref(), &dx).unwrap();
    rms_norm::gain_backward(&fused(device), &x, parts, &stats, &dy, &dgain, false).unwrap();
    [dx, dgain].map(|m| m.download_f64(device).unwrap())
}

#[test]
fn gradients_agree_with_central_differences() {
    let oracle = Device::oracle().unwrap();
    for shape in [(3, 1, 13), (2, 3, 4), (2, 2, 8)] {
        let (rows, parts, cols) = shape;
        let len = rows * parts * cols;
        let inputs = [normal(len, 1), normal(cols, 2)];
        let (cotangent, residual) = (normal(len, 4), normal(len, 5));
        let got = gradients(&oracle, shape, &inputs, &cotangent, Some(&residual));
        let step = 1.0f32 / 1024.0;
        // Differences of the fourth order: the truncation is step^4 / 30 times a fifth derivative. A root is a function
        // of x over its own scale, so four more derivatives bring a root each; beside them 1024 times the largest
        // gradient is room enough.
        let largest = got.iter().flatten().map(|g| g.abs()).fold(1.0, f64::max);
        let root = |x: &[f32]| (x.len() as f64 / x.iter().map(|&x| f64::from(x * x)).sum::<f64>()).sqrt();
        let steepest = inputs[0].chunks(cols).map(root).fold(1.0, f64::max);
        let allowed = (f64::from(step) * steepest).powi(4) / 30.0 * 1024.0 * largest;
        for which in 0..2 {
            for at in 0..inputs[which].len() {
                let moved = |steps: f32| {
                    let mut inputs = inputs.clone();
                    inputs[which][at] += steps * step;
                    loss(&oracle, shape, &inputs, &cotangent)
                };
                let slope = (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * f64::from(step));
                let want = slope + if which == 0 { f64::from(residual[at]) } else { 0.0 };
                let got = got[which][at];
                assert!((got - want).abs() <= allowed, "{shape:?}, {which}[{at}]: {got} against {want}");
            }
        }
    }
}

#[test]
fn without_a_residual_none_is_added() {
    let oracle = Device::oracle().unwrap();
    let shape = (2, 2, 8);
    let (inputs, cotangent) = ([normal(32, 1), normal(8, 2)], normal(32, 4));
    let [plain, _] = gradients(&oracle, shape, &inputs, &cotangent, None);
    let [zeros, _] = gradients(&oracle, shape, &inputs, &cotangent, Some(&[0.0; 32]));
    assert_eq!(plain, zeros);
}

#[test]
fn gain_gradient_accumulates() {
    let oracle = Device::oracle().unwrap();
    for (rows, parts, cols) in [(3, 1, 13), (3, 3, 4)] {
        let whole = |seed| matrix(&oracle, rows, parts * cols, &normal(rows * parts * cols, seed));
        let (x, dy, stats) = (whole(1), whole(3), matrix(&oracle, rows, parts, &normal(rows * parts, 2)));
        let dgain = Matrix::new(&oracle, "dgain", 1, cols).unwrap();
        rms_norm::gain_backward(&fused(&oracle), &x, parts, &stats, &dy, &dgain, false).unwrap();
        let once = dgain.download_f64(&oracle).unwrap();
        rms_norm::gain_backward(&fused(&oracle), &x, parts, &stats, &dy, &dgain, true).unwrap();
        let twice = dgain.download_f64(&oracle).unwrap();
        assert!(once.iter().zip(&twice).all(|(once, twice)| 2.0 * once == *twice));
    }
}

/// What each part becomes does not depend on its neighbours: the heads of a row are as many rows.
#[test]
fn parts_give_the_bits_of_rows() {
    for device in rig::devices("rms_norm") {
        let (rows, parts, cols) = (11, 5, 24);
        let (values, above) = (normal(rows * parts * cols, 1), normal(rows * parts * cols, 2));
        let gain = matrix(&device, 1, cols, &normal(cols, 3));
        let run = |rows: usize, parts: usize| {
            let [x, dy] = [&values, &above].map(|values| matrix(&device, rows, parts * cols, values));
            let [y, dx] = ["y", "dx"].map(|name| Matrix::new(&device, name, rows, parts * cols).unwrap());
            let stats = Matrix::new(&device, "stats", rows, parts).unwrap();
            rms_norm::forward(&fused(&device), &x, &gain, parts, EPSILON, &y, &stats).unwrap();
            rms_norm::backward(&fused(&device), &x, &gain, parts, &stats, &dy, Some(&x), &dx).unwrap();
            [y, dx, stats].map(|m| m.download(&device).unwrap())
        };
        assert_eq!(run(rows, parts), run(rows * parts, 1), "{}", device.name());
    }
}

/// Rows and columns of wider matrices; what lies around the outputs stays as it was.
#[test]
fn slices_give_the_bits_of_whole_matrices() {
    for device in rig::devices("rms_norm") {
        let values = normal(37 * 84, 1);
        let wide = matrix(&device, 37, 84, &values);
        let part = |m: &Matrix| m.rows(7, 20).columns(12, 40);
        let picked: Vec<f32> = part(&wide).download(&device).unwrap();
        let dense = matrix(&device, 20, 40, &picked);
        for parts in [1, 2, 5] {
            let gain = matrix(&device, 1, 40 / parts, &normal(40 / parts, 2));
            let run = |x: &Matrix, sliced: bool| {
                let outputs = ["y", "dx"].map(|name| {
                    if sliced { matrix(&device, 37, 84, &values) } else { Matrix::new(&device, name, 20, 40).unwrap() }
                });
                let [y, dx] = outputs.each_ref().map(|m| if sliced { part(m) } else { m.clone() });
                let stats = Matrix::new(&device, "stats", 20, parts).unwrap();
                let dgain = Matrix::new(&device, "dgain", 1, 40 / parts).unwrap();
                rms_norm::forward(&fused(&device), x, &gain, parts, EPSILON, &y, &stats).unwrap();
                rms_norm::backward(&fused(&device), x, &gain, parts, &stats, &y, None, &dx).unwrap();
                rms_norm::gain_backward(&fused(&device), x, parts, &stats, &y, &dgain, false).unwrap();
                for output in outputs.iter().filter(|_| sliced) {
                    let around = |i: usize| !((7..27).contains(&(i / 84)) && (12..52).contains(&(i % 84)));
                    let now = output.download(&device).unwrap();
                    assert!((0..now.len()).filter(|&i| around(i)).all(|i| now[i].to_bits() == values[i].to_bits()));
                }
                [y, dx, stats, dgain].map(|m| m.download(&device).unwrap())
            };
            assert_eq!(run(&part(&wide), true), run(&dense, false), "{}, {parts} parts", device.name());
        }
    }
}

#[test]
#[should_panic(expected = "parts of whole quads")]
fn parts_that_no_quad_begins_are_refused() {
    let device = Device::host(1).unwrap();
    let [x, y] = ["x", "y"].map(|name| Matrix::new(&device, name, 4, 12).unwrap());
    let (gain, stats) = (Matrix::new(&device, "gain", 1, 6).unwrap(), Matrix::new(&device, "stats", 4, 2).unwrap());
    let _ = rms_norm::forward(&fused(&device), &x, &gain, 2, EPSILON, &y, &stats);
}

#[test]
fn bits_do_not_depend_on_threads() {
    for parts in [1, 3] {
        let run = |threads: usize| {
            let device = Device::host(threads).unwrap();
            let x = matrix(&device, 300, 84, &normal(300 * 84, 1));
            let gain = matrix(&device, 1, 84 / parts, &normal(84 / parts, 2));
            let [y, dx] = ["y", "dx"].map(|name| Matrix::new(&device, name, 300, 84).unwrap());
            let stats = Matrix::new(&device, "stats", 300, parts).unwrap();
            let dgain = Matrix::new(&device, "dgain", 1, 84 / parts).unwrap();
            rms_norm::forward(&fused(&device), &x, &gain, parts, EPSILON, &y, &stats).unwrap();
            rms_norm::backward(&fused(&device), &x, &gain, parts, &stats, &y, Some(&x), &dx).unwrap();
            rms_norm::gain_backward(&fused(&device), &x, parts, &stats, &y, &dgain, false).unwrap();
            [y, dx, dgain, stats].map(|m| m.download(&device).unwrap())
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }
}

/// Columns of a tile.
const BLOCK: usize = 4 * layer_norm::ROW_BLOCK as usize;

/// Rows of a line on a device.
fn high(device: &Device) -> usize {
    let variant = rms_norm::FORWARD.kernel.variant(device.class());
    (variant.get("WG") / variant.get("LANES")) as usize
}

/// The columns of a tile in the rows of its line; of rows of several parts, all.
fn block_of(m: &Matrix, high: usize, parts: usize) -> Operand {
    Operand::matrix(m, move |line, block, row, col| {
        parts > 1 || row / high == line as usize && col / BLOCK == block as usize
    })
}

/// Rows, parts and columns of a part: several lines and blocks, the last ones not whole; one block; whole blocks; several
/// parts.
const SHAPES: [Shape; 5] = [(21, 1, 300), (9, 1, 13), (5, 1, 2 * BLOCK), (1, 1, 9 * BLOCK + 1), (21, 3, 140)];

#[test]
fn forward_is_a_relay_along_its_rows() {
    for (rows, parts, cols) in SHAPES {
        assert_is_sound("rms_norm_forward", &|fabric| {
            let device = fabric.device();
            let [x, y] = [1, 2].map(|seed| matmul::normal(device, rows, parts * cols, seed));
            let (gain, stats) = (matmul::normal(device, 1, cols, 3), matmul::normal(device, rows, parts, 4));
            let high = high(device);
            let program = rms_norm::forward_relay(fabric, &x, &gain, parts, EPSILON, &y, &stats);
            let columns = Operand::matrix(&gain, move |_, block, _, col| parts > 1 || col / BLOCK == block as usize);
            let roots = Operand::matrix(&stats, move |line, block, row, _| {
                parts > 1 || row / high == line as usize && block == 0
            });
            let outputs = [block_of(&y, high, parts).unread(), roots.unread()];
            let operands = [block_of(&x, high, parts), columns].into_iter().chain(outputs).collect();
            Example { program: Box::new(program), operands }
        });
    }
}

#[test]
fn backward_is_a_relay_along_its_rows() {
    for (i, (rows, parts, cols)) in SHAPES.into_iter().enumerate() {
        assert_is_sound("rms_norm_backward", &|fabric| {
            let device = fabric.device();
            let [x, dy, residual, dx] = [1, 2, 3, 4].map(|seed| matmul::normal(device, rows, parts * cols, seed));
            let (gain, stats) = (matmul::normal(device, 1, cols, 5), matmul::normal(device, rows, parts, 6));
            let high = high(device);
            let residual = (i % 2 == 0).then_some(&residual);
            let program = rms_norm::backward_relay(fabric, &x, &gain, parts, &stats, &dy, residual, &dx);
            let columns = Operand::matrix(&gain, move |_, block, _, col| parts > 1 || col / BLOCK == block as usize);
            let roots = Operand::matrix(&stats, move |line, _, row, _| parts > 1 || row / high == line as usize);
            let mut operands = vec![block_of(&x, high, parts), columns, roots, block_of(&dy, high, parts)];
            operands.extend(residual.map(|residual| block_of(residual, high, parts)));
            operands.push(block_of(&dx, high, parts).unread());
            Example { program: Box::new(program), operands }
        });
    }
}

/// A part lies whole on a tile: one launch in both schedules.
#[test]
fn parts_travel_nowhere() {
    let fabric = fused(&rig::host());
    let device = fabric.device();
    let [x, y] = [1, 2].map(|seed| matmul::normal(device, 21, 24, seed));
    let (gain, stats) = (matmul::normal(device, 1, 8, 3), matmul::normal(device, 21, 3, 4));
    let program = rms_norm::forward_relay(&fabric, &x, &gain, 3, EPSILON, &y, &stats);
    let cost = gaufre::program::relay::cost(&program, &gaufre::wafer::Wafer::new(2, 2));
    assert_eq!((cost.dispatches, cost.messages), (1, 0));
    assert_eq!(program.work(), gaufre::wafer::Work::Local { elements: 21 * 24 });
}

#[test]
fn gain_gradient_is_a_relay_down_its_columns() {
    let block = column_sum::BLOCK_ROWS as usize;
    for (shape, accumulate) in
        [((9 * block + 5, 1, 84), false), ((2 * block, 3, 20), true), ((3, 1, 130), true), ((200, 2, 28), false)]
    {
        let (rows, parts, cols) = shape;
        assert_is_sound("rms_norm_gain_backward", &|fabric| {
            let device = fabric.device();
            let [x, dy] = [1, 2].map(|seed| matmul::normal(device, rows, parts * cols, seed));
            let (stats, dgain) = (matmul::normal(device, rows, parts, 3), matmul::normal(device, 1, cols, 4));
            let width = 4 * rms_norm::GAIN_BACKWARD.kernel.variant(device.class()).get("QUADS") as usize;
            let last = (rows.div_ceil(block) - 1) as u32;
            let program = rms_norm::gain_relay(fabric, &x, parts, &stats, &dy, &dgain, accumulate);
            let terms = |m: &Matrix| {
                Operand::matrix(m, move |line, at, row, col| {
                    // The padding of a row of one part goes along with its last columns.
                    let inside = if parts == 1 { col } else { col % cols };
                    row / block == at as usize && inside / width == line as usize
                })
            };
            let roots = Operand::matrix(&stats, move |_, at, row, _| row / block == at as usize);
            let sums = Operand::of(&dgain.view, move |line, at, col| at == last && col / width == line as usize);
            let sums = if accumulate { sums } else { sums.unread() };
            Example { program: Box::new(program), operands: vec![terms(&x), roots, terms(&dy), sums] }
        });
    }
}
