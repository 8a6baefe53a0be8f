//! Layer norm: within the bound on every device; all gradients against central differences in f64; slices give the bits
//! of whole matrices; equal bits for any number of host threads; and along lines of tiles.

use crate::fabric::relay::{Example, Operand, assert_is_sound, fused};
use crate::program::matmul;
use crate::rig;
use gaufre::device::Device;
use gaufre::program::{Matrix, check, column_sum, initial, layer_norm};

const EPSILON: f32 = 1e-5;

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("layer_norm") {
        for program in layer_norm::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

/// A bound that nothing comes near proves nothing.
#[test]
fn bound_is_tight() {
    for program in layer_norm::PROGRAMS {
        let reports = check::run(program, &rig::host(), 2).unwrap();
        let worst = reports.iter().map(|r| r.worst).fold(0.0, f64::max);
        assert!(worst > 0.01, "{}: worst error is {worst:.1e} of its bound", program.kernel.name);
    }
}

/// Normal values that are multiples of 1/1024, so that steps of 1/256 from them are exact in f32.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| (1024.0 * initial::normal(seed, i as u64)).round() as f32 / 1024.0).collect()
}

fn matrix(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let matrix = Matrix::new(device, "matrix", rows, cols).unwrap();
    matrix.upload(device, values).unwrap();
    matrix
}

/// x, gain, bias.
type Inputs = [Vec<f32>; 3];

const ROWS: usize = 3;
const COLS: usize = 13;

/// Sum of cotangent * y.
fn loss(device: &Device, inputs: &Inputs, cotangent: &[f32]) -> f64 {
    let [x, gain, bias] = inputs;
    let x = matrix(device, ROWS, COLS, x);
    let [gain, bias] = [gain, bias].map(|row| matrix(device, 1, COLS, row));
    let (y, stats) = (Matrix::new(device, "y", ROWS, COLS).unwrap(), Matrix::new(device, "stats", ROWS, 2).unwrap());
    layer_norm::forward(&fused(device), &x, &gain, Some(&bias), EPSILON, &y, &stats).unwrap();
    y.download_f64(device).unwrap().iter().zip(cotangent).map(|(y, &dy)| y * f64::from(dy)).sum()
}

/// Gradients of x (with `residual` added), gain and bias.
fn gradients(device: &Device, inputs: &Inputs, cotangent: &[f32], residual: Option<&[f32]>) -> [Vec<f64>; 3] {
    let x = matrix(device, ROWS, COLS, &inputs[0]);
    let gain = matrix(device, 1, COLS, &inputs[1]);
    let dy = matrix(device, ROWS, COLS, cotangent);
    let [y, dx] = ["y", "dx"].map(|name| Matrix::new(device, name, ROWS, COLS).unwrap());
    let [dgain, dbias] = ["dgain", "dbias"].map(|name| Matrix::new(device, name, 1, COLS).unwrap());
    let stats = Matrix::new(device, "stats", ROWS, 2).unwrap();
    let residual = residual.map(|values| matrix(device, ROWS, COLS, values));
    layer_norm::forward(&fused(device), &x, &gain, None, EPSILON, &y, &stats).unwrap();
    layer_norm::backward(&fused(device), &x, &gain, &stats, &dy, residual.as_ref(), &dx).unwrap();
    layer_norm::gain_backward(&fused(device), &x, &stats, &dy, &dgain, false).unwrap();
    column_sum::run(&fused(device), &dy, &dbias, false).unwrap();
    [dx, dgain, dbias].map(|m| m.download_f64(device).unwrap())
}

#[test]
fn gradients_agree_with_central_differences() {
    let oracle = Device::oracle().unwrap();
    let inputs = [normal(ROWS * COLS, 1), normal(COLS, 2), normal(COLS, 3)];
    let (cotangent, residual) = (normal(ROWS * COLS, 4), normal(ROWS * COLS, 5));
    let got = gradients(&oracle, &inputs, &cotangent, Some(&residual));
    let step = 1.0f32 / 256.0;
    // Differences of the fourth order: the truncation is step^4 / 30 times a fifth derivative, for which 1024 times the
    // largest gradient is room enough at standard deviations near 1.
    let largest = got.iter().flatten().map(|g| g.abs()).fold(1.0, f64::max);
    let allowed = f64::from(step).powi(4) / 30.0 * 1024.0 * largest;
    for which in 0..3 {
        for at in 0..inputs[which].len() {
            let moved = |steps: f32| {
                let mut inputs = inputs.clone();
                inputs[which][at] += steps * step;
                loss(&oracle, &inputs, &cotangent)
            };
            let slope = (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * f64::from(step));
            let want = slope + if which == 0 { f64::from(residual[at]) } else { 0.0 };
            assert!((got[which][at] - want).abs() <= allowed, "{which}[{at}]: {} against {want}", got[which][at]);
        }
    }
}

#[test]
fn gain_gradient_accumulates() {
    let oracle = Device::oracle().unwrap();
    let (x, stats) =
        (matrix(&oracle, ROWS, COLS, &normal(ROWS * COLS, 1)), matrix(&oracle, ROWS, 2, &normal(ROWS * 2, 2)));
    let dy = matrix(&oracle, ROWS, COLS, &normal(ROWS * COLS, 3));
    let dgain = Matrix::new(&oracle, "dgain", 1, COLS).unwrap();
    layer_norm::gain_backward(&fused(&oracle), &x, &stats, &dy, &dgain, false).unwrap();
    let once = dgain.download_f64(&oracle).unwrap();
    layer_norm::gain_backward(&fused(&oracle), &x, &stats, &dy, &dgain, true).unwrap();
    let twice = dgain.download_f64(&oracle).unwrap();
    assert!(once.iter().zip(&twice).all(|(once, twice)| 2.0 * once == *twice));
}

/// Rows and columns of wider matrices, without and with a bias.
#[test]
fn slices_give_the_bits_of_whole_matrices() {
    for device in rig::devices("layer_norm") {
        let values = normal(37 * 84, 1);
        let wide = matrix(&device, 37, 84, &values);
        let part = |m: &Matrix| m.rows(7, 20).columns(12, 40);
        let picked: Vec<f32> = part(&wide).download(&device).unwrap();
        let dense = matrix(&device, 20, 40, &picked);
        let gain = matrix(&device, 1, 40, &normal(40, 2));
        let bias = matrix(&device, 1, 40, &normal(40, 3));
        for bias in [None, Some(&bias)] {
            let run = |x: &Matrix, sliced: bool| {
                let [y, dx] = ["y", "dx"].map(|name| {
                    if sliced {
                        part(&Matrix::new(&device, name, 37, 84).unwrap())
                    } else {
                        Matrix::new(&device, name, 20, 40).unwrap()
                    }
                });
                let stats = Matrix::new(&device, "stats", 20, 2).unwrap();
                let dgain = Matrix::new(&device, "dgain", 1, 40).unwrap();
                layer_norm::forward(&fused(&device), x, &gain, bias, EPSILON, &y, &stats).unwrap();
                layer_norm::backward(&fused(&device), x, &gain, &stats, &y, None, &dx).unwrap();
                layer_norm::gain_backward(&fused(&device), x, &stats, &y, &dgain, false).unwrap();
                [y, dx, stats, dgain].map(|m| m.download(&device).unwrap())
            };
            assert_eq!(run(&part(&wide), true), run(&dense, false), "{}", device.name());
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let run = |threads: usize| {
        let device = Device::host(threads).unwrap();
        let x = matrix(&device, 300, 84, &normal(300 * 84, 1));
        let gain = matrix(&device, 1, 84, &normal(84, 2));
        let [y, dx] = ["y", "dx"].map(|name| Matrix::new(&device, name, 300, 84).unwrap());
        let (stats, dgain) =
            (Matrix::new(&device, "stats", 300, 2).unwrap(), Matrix::new(&device, "dgain", 1, 84).unwrap());
        layer_norm::forward(&fused(&device), &x, &gain, Some(&gain), EPSILON, &y, &stats).unwrap();
        layer_norm::backward(&fused(&device), &x, &gain, &stats, &y, Some(&x), &dx).unwrap();
        layer_norm::gain_backward(&fused(&device), &x, &stats, &y, &dgain, false).unwrap();
        [y, dx, dgain, stats].map(|m| m.download(&device).unwrap())
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}

/// Columns of a tile.
const BLOCK: usize = 4 * layer_norm::ROW_BLOCK as usize;

/// Rows of a line on a device.
fn high(device: &Device) -> usize {
    let variant = layer_norm::FORWARD.kernel.variant(device.class());
    (variant.get("WG") / variant.get("LANES")) as usize
}

/// The columns of a tile in the rows of its line.
fn block_of(m: &Matrix, high: usize) -> Operand {
    Operand::matrix(m, move |line, block, row, col| row / high == line as usize && col / BLOCK == block as usize)
}

/// The columns of a tile in a row that all rows share.
fn columns_of(m: &Matrix) -> Operand {
    Operand::matrix(m, |_, block, _, col| col / BLOCK == block as usize)
}

/// Rows and columns of several lines and blocks, the last ones not whole; of one block; of blocks that are all whole.
const SHAPES: [(usize, usize); 4] = [(21, 300), (9, 13), (5, 2 * BLOCK), (1, 9 * BLOCK + 1)];

#[test]
fn forward_is_a_relay_along_its_rows() {
    for ((rows, cols), biased) in SHAPES.into_iter().zip([true, false, true, false]) {
        assert_is_sound("layer_norm_forward", &|fabric| {
            let device = fabric.device();
            let (x, y, stats) = (
                matmul::normal(device, rows, cols, 1),
                matmul::normal(device, rows, cols, 2),
                matmul::normal(device, rows, 2, 3),
            );
            let (gain, bias) = (matmul::normal(device, 1, cols, 4), matmul::normal(device, 1, cols, 5));
            let high = high(device);
            let bias = biased.then_some(&bias);
            let program = layer_norm::forward_relay(fabric, &x, &gain, bias, EPSILON, &y, &stats);
            let moments = Operand::matrix(&stats, move |line, block, row, _| row / high == line as usize && block == 0);
            let mut operands = vec![block_of(&x, high), columns_of(&gain)];
            operands.extend(bias.map(columns_of));
            operands.extend([block_of(&y, high).unread(), moments.unread()]);
            Example { program: Box::new(program), operands }
        });
    }
}

#[test]
fn backward_is_a_relay_along_its_rows() {
    for ((rows, cols), bypassed) in SHAPES.into_iter().zip([true, false, true, false]) {
        assert_is_sound("layer_norm_backward", &|fabric| {
            let device = fabric.device();
            let [x, dy, residual, dx] = [1, 2, 3, 4].map(|seed| matmul::normal(device, rows, cols, seed));
            let (gain, stats) = (matmul::normal(device, 1, cols, 5), matmul::normal(device, rows, 2, 6));
            let high = high(device);
            let residual = bypassed.then_some(&residual);
            let program = layer_norm::backward_relay(fabric, &x, &gain, &stats, &dy, residual, &dx);
            let moments = Operand::matrix(&stats, move |line, _, row, _| row / high == line as usize);
            let mut operands = vec![block_of(&x, high), columns_of(&gain), moments, block_of(&dy, high)];
            operands.extend(residual.map(|residual| block_of(residual, high)));
            operands.push(block_of(&dx, high).unread());
            Example { program: Box::new(program), operands }
        });
    }
}

#[test]
fn gain_gradient_is_a_relay_down_its_columns() {
    let block = column_sum::BLOCK_ROWS as usize;
    for (rows, cols, accumulate) in [(9 * block + 5, 84, false), (2 * block, 20, true), (3, 130, true)] {
        assert_is_sound("layer_norm_gain_backward", &|fabric| {
            let device = fabric.device();
            let [x, dy] = [1, 2].map(|seed| matmul::normal(device, rows, cols, seed));
            let (stats, dgain) = (matmul::normal(device, rows, 2, 3), matmul::normal(device, 1, cols, 4));
            let width = 4 * layer_norm::GAIN_BACKWARD.kernel.variant(device.class()).get("QUADS") as usize;
            let last = (rows.div_ceil(block) - 1) as u32;
            let program = layer_norm::gain_relay(fabric, &x, &stats, &dy, &dgain, accumulate);
            let terms = |m: &Matrix| {
                Operand::matrix(m, move |line, at, row, col| row / block == at as usize && col / width == line as usize)
            };
            let moments = Operand::matrix(&stats, move |_, at, row, _| row / block == at as usize);
            let sums = Operand::of(&dgain.view, move |line, at, col| at == last && col / width == line as usize);
            let sums = if accumulate { sums } else { sums.unread() };
            Example { program: Box::new(program), operands: vec![terms(&x), moments, terms(&dy), sums] }
        });
    }
}
