//! Activations, plain and gated: every form on every device within the bound; derivatives against central differences
//! in f64; the gated ones against the plain ones; equal bits for any number of host threads.

use crate::rig;
use gaufre::device::Device;
use gaufre::program::activation::{self, Form};
use gaufre::program::check::Report;
use gaufre::program::{EPS, Matrix, check, initial};

/// A power of two, so that a step of small values is exact in f32.
const STEP: f32 = 1.0 / 1024.0;

#[test]
fn within_bound_on_every_device() {
    for device in rig::devices("activation") {
        for program in activation::PROGRAMS {
            check::assert_within_bound(program, &device);
        }
    }
}

/// A bound that nothing comes near proves nothing. ReLU is exact unless a gate: no rounding but that of a last product.
#[test]
fn bound_is_tight() {
    for program in activation::PROGRAMS {
        let reports: Vec<Report> = check::run(program, &rig::host(), 2).unwrap();
        for form in Form::ALL {
            let named = reports.iter().filter(|r| r.case.ends_with(&format!(", {form:?}")));
            let worst = named.map(|r| r.worst).fold(0.0, f64::max);
            let name = program.kernel.name;
            let exact = form == Form::Relu && name.starts_with("activation");
            assert!(worst > 0.01 || exact, "{name}, {form:?}: worst error is {worst:.1e} of its bound");
        }
    }
}

fn normal(len: usize, seed: u64, scale: f64) -> Vec<f32> {
    (0..len).map(|i| (scale * initial::normal(seed, i as u64)) as f32).collect()
}

/// Random inputs, none within two steps of 0, where ReLU has no derivative.
fn inputs(len: usize, seed: u64) -> Vec<f32> {
    normal(len, seed, 2.0).iter().map(|x| x + (2.0 * STEP).copysign(*x)).collect()
}

fn matrix(device: &Device, name: &str, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let m = Matrix::new(device, name, rows, cols).unwrap();
    m.upload(device, values).unwrap();
    m
}

fn shifted(values: &[f32], by: f32) -> Vec<f32> {
    values.iter().map(|x| x + by).collect()
}

/// Holds derivatives against the differences between the results for inputs shifted up and down. Both shifted values
/// are rounded to f32, so the step is what lies between them. Truncation: step^2 / 6 times the third derivative, which
/// is at most 2; and the f32 rounding of the midpoint. `factor` is what the result is multiplied by.
fn assert_slopes(what: &str, x: &[f32], got: &[f64], factor: &[f64], value: impl Fn(&[f32]) -> Vec<f64>) {
    let (up, down) = (shifted(x, STEP), shifted(x, -STEP));
    let (above, below) = (value(&up), value(&down));
    for i in 0..x.len() {
        let slope = (above[i] - below[i]) / (f64::from(up[i]) - f64::from(down[i]));
        let want = factor[i] * slope;
        let allowed = factor[i].abs() * (f64::from(STEP).powi(2) / 3.0 + 4.0 * EPS);
        assert!((got[i] - want).abs() <= allowed, "{what} at {}: {} against {want}", x[i], got[i]);
    }
}

#[test]
fn derivative_agrees_with_central_differences() {
    let oracle = Device::oracle().unwrap();
    let (rows, cols) = (3, 20);
    let (values, cotangent) = (inputs(rows * cols, 1), normal(rows * cols, 2, 1.0));
    let wide: Vec<f64> = cotangent.iter().map(|&x| x.into()).collect();
    let on_oracle = |name, values: &[f32]| matrix(&oracle, name, rows, cols, values);
    for form in Form::ALL {
        let (x, dy) = (on_oracle("x", &values), on_oracle("dy", &cotangent));
        let dx = Matrix::new(&oracle, "dx", rows, cols).unwrap();
        activation::backward(&oracle, form, &x, &dy, &dx).unwrap();
        // Each output depends on one input only: shifting all inputs at once differentiates every element.
        let value = |values: &[f32]| {
            let (x, y) = (on_oracle("x", values), Matrix::new(&oracle, "y", rows, cols).unwrap());
            activation::forward(&oracle, form, &x, &y).unwrap();
            y.download_f64(&oracle).unwrap()
        };
        assert_slopes(&format!("{form:?}"), &values, &dx.download_f64(&oracle).unwrap(), &wide, value);
    }
}

/// Rows of `g` beside rows of `u`.
fn beside(cols: usize, g: &[f32], u: &[f32]) -> Vec<f32> {
    g.chunks(cols).zip(u.chunks(cols)).flat_map(|(g, u)| [g, u].concat()).collect()
}

/// Column half 0 or 1 of rows of `2 * cols`.
fn half<T: Copy>(cols: usize, which: usize, values: &[T]) -> Vec<T> {
    values.chunks(cols).skip(which).step_by(2).flatten().copied().collect()
}

#[test]
fn gated_derivatives_agree_with_central_differences() {
    let oracle = Device::oracle().unwrap();
    let (rows, cols) = (3, 20);
    let [g, u, cotangent] = [inputs(rows * cols, 1), normal(rows * cols, 2, 1.0), normal(rows * cols, 3, 1.0)];
    let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&x| x.into()).collect() };
    for form in Form::ALL {
        let x = matrix(&oracle, "x", rows, 2 * cols, &beside(cols, &g, &u));
        let dy = matrix(&oracle, "dy", rows, cols, &cotangent);
        let dx = Matrix::new(&oracle, "dx", rows, 2 * cols).unwrap();
        activation::gated_backward(&oracle, form, &x, &dy, &dx).unwrap();
        let got = dx.download_f64(&oracle).unwrap();
        let value = |g: &[f32], u: &[f32]| {
            let x = matrix(&oracle, "x", rows, 2 * cols, &beside(cols, g, u));
            let y = Matrix::new(&oracle, "y", rows, cols).unwrap();
            activation::gated_forward(&oracle, form, &x, &y).unwrap();
            y.download_f64(&oracle).unwrap()
        };
        let dyu: Vec<f64> = wide(&cotangent).iter().zip(wide(&u)).map(|(dy, u)| dy * u).collect();
        // With u = 1 the differences are those of the curve alone; dy * u is then the factor of both.
        let ones = vec![1.0; rows * cols];
        assert_slopes(&format!("{form:?}, gate"), &g, &half(cols, 0, &got), &dyu, |g| value(g, &ones));
        // In u the result is linear.
        assert_slopes(&format!("{form:?}, factor"), &u, &half(cols, 1, &got), &wide(&cotangent), |u| value(&g, u));
    }
}

#[test]
fn gated_by_one_gives_the_plain_bits() {
    let (rows, cols) = (37, 84);
    let (g, dy, ones) = (normal(rows * cols, 1, 3.0), normal(rows * cols, 2, 1.0), vec![1.0; rows * cols]);
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    for device in rig::devices("activation") {
        for form in Form::ALL {
            let [plain, both] = [(cols, &g), (2 * cols, &beside(cols, &g, &ones))]
                .map(|(cols, values)| matrix(&device, "x", rows, cols, values));
            let dy = matrix(&device, "dy", rows, cols, &dy);
            let [y, gated] = ["y", "gated"].map(|name| Matrix::new(&device, name, rows, cols).unwrap());
            let [dx, dboth] = [cols, 2 * cols].map(|cols| Matrix::new(&device, "dx", rows, cols).unwrap());
            activation::forward(&device, form, &plain, &y).unwrap();
            activation::gated_forward(&device, form, &both, &gated).unwrap();
            activation::backward(&device, form, &plain, &dy, &dx).unwrap();
            activation::gated_backward(&device, form, &both, &dy, &dboth).unwrap();
            let [y, gated, dx, dboth] = [y, gated, dx, dboth].map(|m| m.download(&device).unwrap());
            assert_eq!(bits(&y), bits(&gated), "{form:?} on {}", device.name());
            assert_eq!(bits(&dx), bits(&half(cols, 0, &dboth)), "{form:?} on {}", device.name());
        }
    }
}

/// What is not a number stays so in every form, and shows in both gradients.
#[test]
fn what_is_not_a_number_is_not_lost() {
    let device = rig::host();
    for form in Form::ALL {
        let x = matrix(&device, "x", 1, 16, &[f32::NAN; 16]);
        let [y, dx] = [8, 16].map(|cols| Matrix::new(&device, "y", 1, cols).unwrap());
        activation::gated_forward(&device, form, &x, &y).unwrap();
        let dy = matrix(&device, "dy", 1, 8, &[1.0; 8]);
        activation::gated_backward(&device, form, &x, &dy, &dx).unwrap();
        for m in [y, dx] {
            assert!(m.download(&device).unwrap().iter().all(|x| x.is_nan()), "{form:?}");
        }
    }
}

#[test]
fn relu_is_flat_at_zero() {
    for device in rig::devices("activation") {
        let x = matrix(&device, "x", 1, 8, &[0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 3.0, -3.0]);
        let (dy, dx) = (matrix(&device, "dy", 1, 8, &[1.5; 8]), Matrix::new(&device, "dx", 1, 8).unwrap());
        activation::backward(&device, Form::Relu, &x, &dy, &dx).unwrap();
        assert_eq!(dx.download(&device).unwrap(), [0.0, 0.0, 1.5, 0.0, 1.5, 0.0, 1.5, 0.0], "{}", device.name());
    }
}

#[test]
#[should_panic(expected = "twice as wide")]
fn a_gate_without_its_factor_is_refused() {
    let device = Device::host(1).unwrap();
    let [x, y] = [24, 8].map(|cols| Matrix::new(&device, "m", 2, cols).unwrap());
    let _ = activation::gated_forward(&device, Form::Silu, &x, &y);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (rows, cols) = (70, 84);
    let run = |threads: usize, form: Form| {
        let device = Device::host(threads).unwrap();
        let x = matrix(&device, "x", rows, cols, &normal(rows * cols, 5, 2.0));
        let [y, dx] = ["y", "dx"].map(|name| Matrix::new(&device, name, rows, cols).unwrap());
        let (gated, dgated) = (Matrix::new(&device, "gated", rows, cols / 2), Matrix::new(&device, "dx", rows, cols));
        let (gated, dgated) = (gated.unwrap(), dgated.unwrap());
        activation::forward(&device, form, &x, &y).unwrap();
        activation::backward(&device, form, &x, &y, &dx).unwrap();
        // Half of 84 columns is no whole number of quads: a slice of 80.
        let (x, gated) = (x.columns(0, 80), gated.columns(0, 40));
        activation::gated_forward(&device, form, &x, &gated).unwrap();
        activation::gated_backward(&device, form, &x, &gated, &dgated.columns(0, 80)).unwrap();
        [y, dx, gated, dgated].map(|m| m.download(&device).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<u32>>())
    };
    for form in Form::ALL {
        let one = run(1, form);
        assert_eq!(one, run(2, form));
        assert_eq!(one, run(3, form));
    }
}
