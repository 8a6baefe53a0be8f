//! Layer norm: within the bound on every device; all gradients against central differences in f64; slices give the bits
//! of whole matrices; equal bits for any number of host threads.

use crate::fabric::relay::fused;
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
    layer_norm::forward(device, &x, &gain, Some(&bias), EPSILON, &y, &stats).unwrap();
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
    layer_norm::forward(device, &x, &gain, None, EPSILON, &y, &stats).unwrap();
    layer_norm::backward(device, &x, &gain, &stats, &dy, residual.as_ref(), &dx).unwrap();
    layer_norm::gain_backward(device, &x, &stats, &dy, &dgain, false).unwrap();
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
    layer_norm::gain_backward(&oracle, &x, &stats, &dy, &dgain, false).unwrap();
    let once = dgain.download_f64(&oracle).unwrap();
    layer_norm::gain_backward(&oracle, &x, &stats, &dy, &dgain, true).unwrap();
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
                layer_norm::forward(&device, x, &gain, bias, EPSILON, &y, &stats).unwrap();
                layer_norm::backward(&device, x, &gain, &stats, &y, None, &dx).unwrap();
                layer_norm::gain_backward(&device, x, &stats, &y, &dgain, false).unwrap();
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
        layer_norm::forward(&device, &x, &gain, Some(&gain), EPSILON, &y, &stats).unwrap();
        layer_norm::backward(&device, &x, &gain, &stats, &y, Some(&x), &dx).unwrap();
        layer_norm::gain_backward(&device, &x, &stats, &y, &dgain, false).unwrap();
        [y, dx, dgain, stats].map(|m| m.download(&device).unwrap())
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(3));
}
